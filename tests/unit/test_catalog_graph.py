"""The commit graph: order, ancestry, and what a wrong row does to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from catalog_samples import commit, composition, fresh_catalog, made

from rblstore.catalog.database import Catalog
from rblstore.catalog.engine import CatalogDamagedError
from rblstore.catalog.graph import CommitNotFoundError
from rblstore.catalog.rows import CommitRow
from rblstore.catalog.writer import UnknownParentError
from rblstore.errors import InputError
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import CommitId, CompositionId


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with fresh_catalog(tmp_path / "catalog.db") as opened:
        yield opened


def linear(catalog: Catalog, count: int, *, merge_every: int = 0) -> list[CommitId]:
    """A history of one branch, with a second parent three commits back every so often."""
    added: list[tuple[CommitId, Commit]] = []
    for at in range(count):
        parents = [added[-1][0]] if added else []
        if merge_every and at % merge_every == 0 and at > 3:
            parents.append(added[-3][0])
        added.append(commit(at, *parents))
    with catalog.write() as writer:
        writer.add_records(reversed(added))
    return [id for id, _ in added]


def test_a_commit_comes_back_with_its_parents_in_their_own_order(catalog: Catalog) -> None:
    roots = sorted((commit(f"root {at}") for at in range(3)), reverse=True)
    merge, record = commit("merge", *(id for id, _ in roots), of=composition("m")[0])
    with catalog.write() as writer:
        writer.add_records([(merge, record), *roots])
    with catalog.read() as reader:
        assert reader.commit(merge) == CommitRow(
            merge, record.composition, record.parents, 2, "Ada", record.time, "merge\n\nbody"
        )
        assert reader.commit(merge).subject == "merge"
        assert reader.commit(roots[0][0]).generation == 1
        assert reader.commit(made(CommitId, "unknown")) is None
        assert next(reader.commits([merge])) == reader.commit(merge)


@pytest.mark.parametrize("limit", [0, 1, 2, 63, 64, 65, 900, None])
def test_long_histories_come_whole_and_in_order(catalog: Catalog, limit: int | None) -> None:
    ids = linear(catalog, 700, merge_every=7)
    with catalog.read() as reader:
        found = list(reader.commits([ids[-1], ids[300], ids[-1]], limit))
    assert [row.id for row in found] == ids[::-1][:limit]


def test_more_heads_than_a_statement_has_parameters(catalog: Catalog) -> None:
    root = commit("root")
    leaves = [commit(f"leaf {at}", root[0], time=f"2024-01-01T00:00:{at % 60:02}Z") for at in range(1300)]
    with catalog.write() as writer:
        writer.add_records([root, *leaves])
    with catalog.read() as reader:
        rows = list(reader.commits([id for id, _ in leaves]))
    expected = sorted(sorted(leaves), key=lambda leaf: leaf[1].time, reverse=True)
    assert [row.id for row in rows] == [*(id for id, _ in expected), root[0]]


def test_a_short_log_of_a_long_history_reads_little_of_it(catalog: Catalog) -> None:
    ids = linear(catalog, 1000)
    with closing(sqlite3.connect(catalog.path)) as connection:
        # Whoever reads the older commits fails over these.
        connection.execute("UPDATE commits SET composition = 'damaged' WHERE generation <= 900")
        connection.commit()
    with catalog.read() as reader:
        assert [row.id for row in reader.commits([ids[-1]], 20)] == ids[:-21:-1]
        assert reader.is_ancestor(ids[-20], ids[-1])
        assert reader.merge_base(ids[-20], ids[-1]) == ids[-20]
        with pytest.raises(CatalogDamagedError):
            list(reader.commits([ids[-1]]))


def test_ancestry_of_a_criss_cross(catalog: Catalog) -> None:
    root = commit("root")
    left, right = commit("left", root[0]), commit("right", root[0], time="2024-05-02T00:00:00Z")
    one, two = commit("one", left[0], right[0]), commit("two", right[0], left[0])
    alone = commit("alone")
    with catalog.write() as writer:
        writer.add_records([root, left, right, one, two, alone])
    with catalog.read() as reader:
        assert reader.merge_base(one[0], two[0]) == right[0]  # the later of the two best
        assert reader.merge_base(two[0], one[0]) == right[0]
        assert reader.merge_base(one[0], left[0]) == left[0]
        assert reader.merge_base(one[0], one[0]) == one[0]
        assert reader.merge_base(one[0], alone[0]) is None
        assert reader.is_ancestor(root[0], two[0])
        assert reader.is_ancestor(two[0], two[0])
        assert not reader.is_ancestor(two[0], root[0])
        assert not reader.is_ancestor(one[0], two[0])
        assert not reader.is_ancestor(alone[0], two[0])


def test_unknown_commits_are_named(catalog: Catalog) -> None:
    (known,) = linear(catalog, 1)
    unknown = made(CommitId, "unknown")
    with catalog.read() as reader:
        for ask in (
            lambda: list(reader.commits([known, unknown])),
            lambda: reader.is_ancestor(known, unknown),
            lambda: reader.is_ancestor(unknown, unknown),
            lambda: reader.merge_base(unknown, known),
            lambda: reader.commits_with_composition(composition()[0], unknown),
        ):
            with pytest.raises(CommitNotFoundError) as caught:
                ask()
            assert caught.value.object == unknown


def test_commits_with_a_composition(catalog: Catalog) -> None:
    wanted, other = composition("wanted")[0], composition("other")[0]
    first = commit("first", of=wanted)
    between = commit("between", first[0], of=other)
    again = commit("again", between[0], of=wanted)
    aside = commit("aside", first[0], of=wanted)
    with catalog.write() as writer:
        writer.add_records([first, between, again, aside])
    with catalog.read() as reader:

        def ids(within: CommitId | None) -> list[CommitId]:
            return [row.id for row in reader.commits_with_composition(wanted, within)]

        assert ids(None) == [again[0], aside[0], first[0]]
        assert ids(again[0]) == [again[0], first[0]]
        assert ids(between[0]) == [first[0]]
        assert reader.commits_with_composition(made(CompositionId, "none"), again[0]) == []


def test_a_commit_without_its_parent_is_refused_whole(catalog: Catalog) -> None:
    missing, _ = commit("missing")
    with pytest.raises(UnknownParentError) as caught, catalog.write() as writer:
        writer.add_records([commit("root"), commit("child", missing)])
    assert caught.value.object == missing
    with catalog.read() as reader:
        assert list(reader.records()) == []


def test_commits_that_descend_from_each_other_are_refused(catalog: Catalog) -> None:
    one, two = made(CommitId, 1), made(CommitId, 2)
    with pytest.raises(InputError, match="ancestors"), catalog.write() as writer:
        writer.add_records([(one, commit("one", two)[1]), (two, commit("two", one)[1])])


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE commits SET generation = 0 WHERE generation = 1",
        "UPDATE commits SET generation = 90 WHERE generation = 3",
        "UPDATE commits SET generation = -5 WHERE generation = 3",
        "UPDATE commits SET generation = 'x' WHERE generation = 3",
        "UPDATE commits SET author = x'ff00' WHERE generation = 3",
        "UPDATE commits SET message = CAST(x'ff' AS TEXT) WHERE generation = 3",
        "UPDATE commits SET composition = 'short' WHERE generation = 3",
        "DELETE FROM commit_parents WHERE position = 0",
        "UPDATE commit_parents SET parent = 'elsewhere'",
        "UPDATE commit_parents SET parent = (SELECT id FROM commits WHERE generation = 5)",
    ],
)
def test_wrong_rows_of_the_graph_are_damage(catalog: Catalog, damage: str) -> None:
    ids = linear(catalog, 5)
    with closing(sqlite3.connect(catalog.path)) as connection:
        connection.execute(damage)
        connection.commit()
    with catalog.read() as reader, pytest.raises(CatalogDamagedError) as caught:
        list(reader.commits([ids[-1]]))
    assert "rbl reindex" in caught.value.hint
