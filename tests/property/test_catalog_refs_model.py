"""Refs and operations against a dictionary and a list, through any order of moves, races, rollbacks and reopenings."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis_tiers import law

from rblstore.catalog.database import Catalog
from rblstore.catalog.operation_log import next_operation
from rblstore.catalog.writer import OperationRaceError, RefMovedError
from rblstore.objects.history_records import Operation, RefChange

TIME = "2024-01-01T00:00:00Z"
NAMES = ["HEAD", "refs/heads/a", "refs/heads/A", "refs/heads/a_b", "refs/tags/v1"]
VALUES = ["1" * 64, "2" * 64, "ref: refs/heads/a"]

names = st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=4)
values = st.none() | st.sampled_from(VALUES)


@cache
def template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.db"
        Catalog.create(path).close()
        return path.read_bytes()


def fresh(path: Path) -> Catalog:
    path.write_bytes(template())
    return Catalog.open(path)


class RefsAndOperations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.refs: dict[str, str] = {}
        self.log: list[Operation] = []

    @initialize()
    def create(self) -> None:
        self.catalog = fresh(self.folder / "catalog.db")

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()
        shutil.rmtree(self.folder)

    def take(self, changes: list[RefChange]) -> None:
        for change in changes:
            self.refs.pop(change.ref, None)
            if change.after is not None:
                self.refs[change.ref] = change.after

    @rule(names=names, data=st.data())
    def move(self, names: list[str], data: st.DataObject) -> None:
        changes = [RefChange(name, self.refs.get(name), data.draw(values)) for name in names]
        with self.catalog.write() as writer:
            operation = next_operation(writer, "move", changes, "Ada", TIME)
            writer.apply(operation)
        self.take(changes)
        self.log.append(operation)

    @rule(names=names, before=values, after=values, data=st.data())
    def move_what_may_have_moved(
        self, names: list[str], before: str | None, after: str | None, data: st.DataObject
    ) -> None:
        guessed = data.draw(st.sampled_from(names))
        changes = [RefChange(name, before if name == guessed else self.refs.get(name), after) for name in names]
        with self.catalog.read() as reader:
            operation = next_operation(reader, "guess", changes, "Ada", TIME)
        if before == self.refs.get(guessed):
            with self.catalog.write() as writer:
                writer.apply(operation)
            self.take(changes)
            self.log.append(operation)
        else:
            with pytest.raises(RefMovedError) as caught, self.catalog.write() as writer:
                writer.apply(operation)
            assert (caught.value.ref, caught.value.found) == (guessed, self.refs.get(guessed))

    @rule(names=names, after=values)
    def roll_back(self, names: list[str], after: str | None) -> None:
        changes = [RefChange(name, self.refs.get(name), after) for name in names]
        with pytest.raises(InterruptedError), self.catalog.write() as writer:  # noqa: PT012
            writer.apply(next_operation(writer, "lost", changes, "Ada", TIME))
            raise InterruptedError

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def repeat_an_operation(self, data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(self.log))
        with pytest.raises((OperationRaceError, RefMovedError)), self.catalog.write() as writer:
            writer.apply(operation)

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = Catalog.open(self.folder / "catalog.db")

    @rule()
    def rebuild_from_the_log(self) -> None:
        with fresh(self.folder / "fresh.db") as rebuilt:
            with rebuilt.write() as writer:
                for operation in self.log:
                    writer.replay(operation)
            rebuilt.path.replace(self.catalog.path)

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "catalog"):
            return
        with self.catalog.read() as reader:
            assert list(reader.refs("").items()) == sorted(self.refs.items())
            assert reader.operations() == self.log[::-1]
            assert reader.last_operation() == (self.log[-1] if self.log else None)
            assert [reader.ref(name) for name in NAMES] == [self.refs.get(name) for name in NAMES]
            for prefix in ("refs/heads/a", "refs/heads/", "refs/heads/a_"):
                assert reader.refs(prefix) == {k: v for k, v in self.refs.items() if k.startswith(prefix)}


TestRefsAndOperations = RefsAndOperations.TestCase
TestRefsAndOperations.settings = law(12, stateful_step_count=15)
