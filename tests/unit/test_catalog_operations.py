"""Refs move by compare-and-swap, and every move is an operation."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from catalog_samples import MAIN, TIME, fresh_catalog, made, moved

from rblstore.catalog.database import Catalog
from rblstore.catalog.engine import CatalogDamagedError
from rblstore.catalog.operation_log import next_operation
from rblstore.catalog.writer import OperationRaceError, RefMovedError
from rblstore.errors import ConflictError, InputError, UsageError
from rblstore.objects.history_records import Operation, RefChange
from rblstore.objects.ids import CommitId, OperationId

ONE, TWO, THREE = (made(CommitId, at) for at in (1, 2, 3))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with fresh_catalog(tmp_path / "catalog.db") as opened:
        yield opened


def apply(catalog: Catalog, *changes: RefChange, undoes: OperationId | None = None) -> Operation:
    with catalog.write() as writer:
        operation = next_operation(writer, "test", changes, "Ada", TIME, undoes)
        assert writer.apply(operation) == Operation.id_of(operation.encode())
    return operation


def refs(catalog: Catalog, prefix: str = "") -> dict[str, str]:
    with catalog.read() as reader:
        return reader.refs(prefix)


def test_refs_are_made_moved_and_removed(catalog: Catalog) -> None:
    apply(catalog, RefChange("refs/tags/v1", None, ONE), RefChange("HEAD", None, f"ref: {MAIN}"))
    apply(catalog, *moved(None, ONE))
    assert refs(catalog) == {"HEAD": f"ref: {MAIN}", MAIN: ONE, "refs/tags/v1": ONE}
    apply(catalog, *moved(ONE, TWO), RefChange("refs/tags/v1", ONE, None))
    assert list(refs(catalog).items()) == [("HEAD", f"ref: {MAIN}"), (MAIN, TWO)]
    with catalog.read() as reader:
        assert reader.ref(MAIN) == TWO
        assert reader.ref("refs/tags/v1") is None


def test_prefixes_of_refs_are_literal_and_sorted(catalog: Catalog) -> None:
    names = ["refs/heads/é", "refs/heads/b_c", "refs/heads/bxc", "refs/heads/B", "refs/heads/b%", "refs/tags/b"]
    apply(catalog, *(RefChange(name, None, ONE) for name in names))
    assert list(refs(catalog, "refs/heads/")) == sorted(names[:5])
    assert list(refs(catalog, "refs/heads/b_")) == ["refs/heads/b_c"]
    assert list(refs(catalog, "refs/heads/b")) == ["refs/heads/b%", "refs/heads/b_c", "refs/heads/bxc"]
    assert refs(catalog, "refs/heads/é ") == {}


@pytest.mark.parametrize(("before", "after"), [(None, TWO), (TWO, THREE), (TWO, None), (THREE, THREE)])
def test_a_moved_ref_is_a_conflict_that_names_it(catalog: Catalog, before: str | None, after: str | None) -> None:
    apply(catalog, *moved(None, ONE))
    other = RefChange("refs/heads/another", None, TWO)
    with pytest.raises(RefMovedError) as caught, catalog.write() as writer:  # noqa: PT012
        operation = next_operation(writer, "test", [other, *moved(before, after)], "Ada", TIME)
        try:
            writer.apply(operation)
        finally:
            # Whoever goes on after the refusal commits nothing of it.
            assert writer.ref(other.ref) is None
    error = caught.value
    assert (error.ref, error.expected, error.found, error.object) == (MAIN, before, ONE, MAIN)
    assert isinstance(error, ConflictError)
    assert refs(catalog) == {MAIN: ONE}
    with catalog.read() as reader:
        assert reader.last_operation().sequence == 1


def test_a_removed_ref_is_a_conflict(catalog: Catalog) -> None:
    with pytest.raises(RefMovedError) as caught:
        apply(catalog, *moved(ONE, TWO))
    assert caught.value.found is None


def test_operations_follow_each_other(catalog: Catalog) -> None:
    first = apply(catalog, *moved(None, ONE))
    with catalog.read() as reader:
        fitting = next_operation(reader, "test", moved(ONE, TWO), "Ada", TIME)
    assert (fitting.sequence, fitting.previous) == (2, Operation.id_of(first.encode()))
    for wrong in (
        replace(fitting, sequence=3),
        replace(fitting, sequence=1, previous=None),
        replace(fitting, previous=made(OperationId, "other")),
    ):
        for take in ("apply", "replay"):
            with pytest.raises(OperationRaceError), catalog.write() as writer:
                getattr(writer, take)(wrong)
    assert refs(catalog) == {MAIN: ONE}
    with catalog.write() as writer:
        writer.apply(fitting)
    with pytest.raises(OperationRaceError), catalog.write() as writer:
        writer.replay(fitting)


def test_the_log_reads_both_ways(catalog: Catalog) -> None:
    made_operations = [apply(catalog, *moved(None if at == 0 else made(CommitId, at), made(CommitId, at + 1)))
                       for at in range(6)]  # fmt: skip
    undone = apply(catalog, *moved(made(CommitId, 6), made(CommitId, 5)),
                   undoes=Operation.id_of(made_operations[-1].encode()))  # fmt: skip
    everything = [*made_operations, undone]
    with catalog.read() as reader:
        assert reader.last_operation() == undone
        assert reader.operations() == everything[::-1]
        assert reader.operations(3) == everything[:3:-1]
        assert reader.operations(2, before_sequence=4) == [everything[2], everything[1]]
        assert reader.operations(before_sequence=1) == []
        assert reader.operations_after(0) == everything
        assert reader.operations_after(5) == everything[5:]
        assert reader.operations_after(7) == []
        for operation in everything:
            id = OperationId(Operation.id_of(operation.encode()))
            assert reader.operation(id) == operation
            assert reader.find_operations(id[:20]) == [operation]
        assert reader.operation(made(OperationId, "unknown")) is None
        with pytest.raises(UsageError):
            reader.find_operations("abc")


def test_an_empty_catalog_has_no_operation(catalog: Catalog) -> None:
    with catalog.read() as reader:
        assert reader.last_operation() is None
        first = next_operation(reader, "init", [RefChange("b", None, ONE), RefChange("a", None, ONE)], "Ada", TIME)
    assert (first.sequence, first.previous) == (1, None)
    assert [change.ref for change in first.changes] == ["a", "b"]


def test_an_operation_changes_a_ref_once(catalog: Catalog) -> None:
    with catalog.read() as reader, pytest.raises(InputError, match="repeated"):
        next_operation(reader, "test", [*moved(None, ONE), *moved(ONE, TWO)], "Ada", TIME)


def test_replay_rebuilds_refs_from_operations_alone(catalog: Catalog, tmp_path: Path) -> None:
    apply(catalog, *moved(None, ONE), RefChange("HEAD", None, f"ref: {MAIN}"))
    apply(catalog, *moved(ONE, TWO), RefChange("refs/tags/v1", None, ONE))
    apply(catalog, RefChange("refs/tags/v1", ONE, None))
    with catalog.read() as reader, fresh_catalog(tmp_path / "rebuilt.db") as rebuilt:
        with rebuilt.write() as writer:
            for operation in reader.operations_after(0):
                writer.replay(operation)
        assert refs(rebuilt) == reader.refs()
        with rebuilt.read() as other:
            assert other.operations() == reader.operations()


def test_replay_does_not_compare(catalog: Catalog) -> None:
    with catalog.write() as writer:
        writer.replay(next_operation(writer, "test", moved(TWO, THREE), "Ada", TIME))
    assert refs(catalog) == {MAIN: THREE}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE operations SET body = replace(body, 'Ada', 'Eve')",
        "UPDATE operations SET body = 'x'",
        "UPDATE operations SET body = x'00'",
        "UPDATE operations SET sequence = 7",
        f"UPDATE operations SET id = '{'a' * 64}'",
    ],
)
def test_an_operation_that_is_not_its_id_is_damage(catalog: Catalog, damage: str) -> None:
    apply(catalog, *moved(None, ONE))
    with closing(sqlite3.connect(catalog.path)) as connection:
        connection.execute(damage)
        connection.commit()
    with catalog.read() as reader, pytest.raises(CatalogDamagedError):
        reader.last_operation()
