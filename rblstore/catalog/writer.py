"""What a write transaction hands out: adding packs and records, and moving refs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Table, delete, func, insert, select

from rblstore.catalog.forgetting import Forgetting, LastCopyError
from rblstore.catalog.operation_log import operation_text
from rblstore.catalog.rows import read_count, read_text
from rblstore.catalog.snapshot import batches
from rblstore.catalog.tables import (
    commit_parents,
    commits,
    compositions,
    contents,
    evidence,
    operations,
    packs,
    records,
)
from rblstore.catalog.tables import refs as refs_table
from rblstore.catalog.tables import slots as slots_table
from rblstore.errors import ConflictError, InputError, NotFoundError
from rblstore.objects.evidence_records import Baseline, Statement, Verification
from rblstore.objects.history_records import Commit, Composition, Operation, Tag
from rblstore.objects.ids import CommitId, OperationId, RecordId
from rblstore.objects.locations import PackSummary
from rblstore.objects.record import Record
from rblstore.objects.signature_records import Signature
from rblstore.objects.study_records import Study
from rblstore.objects.tombstone_records import Tombstone
from rblstore.objects.training_records import TrainingState

__all__ = ["CatalogWriter", "LastCopyError", "OperationRaceError", "RefMovedError", "UnknownParentError", "subjects_of"]

_PARSED_AT_ONCE = 200


class RefMovedError(ConflictError):
    """A ref is not where the operation expected it: somebody else moved it in between.

    Attributes:
        ref: Its full name.
        expected: The value that the operation started from, None for no such ref.
        found: The value that it has.
    """

    code = "ref_moved"

    def __init__(self, ref: str, expected: str | None, found: str | None) -> None:
        super().__init__(
            f"{ref} moved: {expected or 'nothing'} was expected there, {found or 'nothing'} was found",
            object=ref,
            hint="Look at what changed (`rbl op log`, `rbl log`), then run the command again.",
        )
        self.ref = ref
        self.expected = expected
        self.found = found


class OperationRaceError(ConflictError):
    """An operation does not follow the latest one: somebody else's came in between."""

    code = "operation_race"


class UnknownParentError(NotFoundError):
    """A commit names a parent that is not in the catalog."""

    code = "unknown_parent"


def subjects_of(record: Record) -> tuple[RecordId, ...]:
    """What a record is evidence about."""
    match record:
        case Statement() | Signature() | Tombstone():
            return (record.subject,)
        case Baseline():
            return (record.composition, record.probe)
        case Verification():
            return (record.composition,) if record.commit is None else (record.composition, record.commit)
        case TrainingState():
            return (record.commit,)
        case Study():
            return record.commits
        case Tag():
            return (record.target,)
    return ()


class CatalogWriter(Forgetting):
    """A reader that also writes. Nothing is there for others until the transaction ends without an exception."""

    def add_pack(self, summary: PackSummary) -> None:
        """Adds a pack and where its contents are; does nothing where the pack is known."""
        if self._first(select(packs.c.number).where(packs.c.id == summary.pack)) is not None:
            return
        number = self._next(packs, "number")
        self._insert(packs, [{"number": number, "id": summary.pack, "kind": summary.kind, "size": summary.size}])
        for batch in batches(summary.locations, 10_000):
            self._insert(
                contents,
                [
                    {
                        "content": location.content,
                        "pack": number,
                        "size": location.size,
                        "first_entry": location.first_entry,
                        "entries": location.entries,
                        "stored": location.stored,
                    }
                    for location in batch
                ],
            )

    def add_record(self, id: RecordId, record: Record) -> None:
        """Adds one record; see :meth:`add_records`."""
        self.add_records([(id, record)])

    def add_records(self, added: Iterable[tuple[RecordId, Record]]) -> None:
        """Adds records, in the order given, and indexes them by what they say; known ones are passed over.

        Records are taken in batches and let go of, but commits are kept to the end: they may come before their parents.

        Raises:
            UnknownParentError: A commit's parent is neither in the catalog nor among these.
            InputError: An operation is among them; those come in through :meth:`apply`.
        """
        position = self._next(records, "position")
        pending: dict[CommitId, tuple[int, Commit]] = {}
        for batch in batches(added, _PARSED_AT_ONCE):
            unknown = dict(batch)
            for row in self._all(select(records.c.id).where(records.c.id.in_(list(unknown)))):
                del unknown[row.id]
            others: list[tuple[int, RecordId, Record]] = []
            for id, record in unknown.items():
                if isinstance(record, Operation):
                    raise InputError("an operation was given as a record of the catalog", object=id)
                if isinstance(record, Commit):
                    pending.setdefault(CommitId(id), (position, record))
                else:
                    others.append((position, id, record))
                position += 1
            self._insert_records(others)
        self._insert_commits(pending)

    def apply(self, operation: Operation) -> OperationId:
        """Moves refs by compare-and-swap and records the operation that does it.

        Raises:
            RefMovedError: A ref is not what the operation has before it; nothing was written.
            OperationRaceError: The operation does not follow the latest one; nothing was written.
        """
        names = [change.ref for change in operation.changes]
        found: dict[str, str] = {}
        for batch in batches(names):
            # SQLite has one writer at a time and ignores FOR UPDATE; a database with row locks needs it.
            statement = select(refs_table).where(refs_table.c.name.in_(batch)).with_for_update()
            found.update((row.name, read_text(row.value)) for row in self._all(statement))
        for change in operation.changes:
            if found.get(change.ref) != change.before:
                raise RefMovedError(change.ref, change.before, found.get(change.ref))
        return self.replay(operation)

    def replay(self, operation: Operation) -> OperationId:
        """Sets refs to what they were after an operation read from ``refs.log``, and records it.

        Raises:
            OperationRaceError: The operation does not follow the latest one; nothing was written.
        """
        last = self._first(
            select(operations.c.sequence, operations.c.id).order_by(operations.c.sequence.desc()).limit(1)
        )
        sequence, previous = (0, None) if last is None else (read_count(last.sequence), read_text(last.id))
        if operation.sequence != sequence + 1 or operation.previous != previous:
            raise OperationRaceError(
                f"operation {operation.sequence} ({operation.description!r}) does not follow operation {sequence}, "
                "which is the latest",
                object=None if previous is None else previous,
                hint="Another command finished first: look at `rbl op log`, then run this one again.",
            )
        id, body = operation_text(operation)
        self._insert(operations, [{"sequence": operation.sequence, "id": id, "body": body, "undoes": operation.undoes}])
        for batch in batches(operation.changes):
            self._run(delete(refs_table).where(refs_table.c.name.in_([change.ref for change in batch])))
            self._insert(
                refs_table,
                [{"name": change.ref, "value": change.after} for change in batch if change.after is not None],
            )
        return id

    def _next(self, table: Table, column: str) -> int:
        """One more than the largest number in a column."""
        row = self._first(select(func.max(table.c[column]).label("largest")))
        return 1 if row is None or row.largest is None else read_count(row.largest) + 1

    def _insert(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._run(insert(table), rows)

    def _insert_records(self, added: list[tuple[int, RecordId, Record]]) -> None:
        self._insert(records, [{"position": at, "id": id, "kind": record.KIND} for at, id, record in added])
        made = [(id, record) for _, id, record in added if isinstance(record, Composition)]
        self._insert(compositions, [{"id": id, "identity": record.identity} for id, record in made])
        self._insert(
            slots_table,
            [
                {"composition": id, "position": at, "name": slot.name, "behavior": slot.behavior, "weight": slot.weight}
                for id, record in made
                for at, slot in enumerate(record.slots)
            ],
        )
        self._insert(
            evidence,
            [
                {"subject": subject, "position": at}
                for at, _, record in added
                for subject in dict.fromkeys(subjects_of(record))
            ],
        )

    def _insert_commits(self, pending: Mapping[CommitId, tuple[int, Commit]]) -> None:
        outside = {parent for _, commit in pending.values() for parent in commit.parents} - pending.keys()
        generations: dict[str, int] = {}
        for batch in batches(sorted(outside)):
            for row in self._all(select(commits.c.id, commits.c.generation).where(commits.c.id.in_(batch))):
                generations[row.id] = read_count(row.generation)
        for batch in batches(_parents_first(pending), 10_000):
            for id in batch:
                parents = pending[id][1].parents
                for parent in parents:
                    if parent not in generations:
                        raise UnknownParentError(
                            f"commit {id.short} has the parent {parent.short}, which is not in this repository",
                            object=parent,
                        )
                generations[id] = 1 + max((generations[parent] for parent in parents), default=0)
            self._insert_records([(pending[id][0], id, pending[id][1]) for id in batch])
            self._insert(
                commits,
                [
                    {
                        "id": id,
                        "composition": commit.composition,
                        "generation": generations[id],
                        "author": commit.author,
                        "time": commit.time,
                        "message": commit.message,
                    }
                    for id in batch
                    for commit in (pending[id][1],)
                ],
            )
            self._insert(
                commit_parents,
                [
                    {"commit": id, "position": at, "parent": parent}
                    for id in batch
                    for at, parent in enumerate(pending[id][1].parents)
                ],
            )


def _parents_first(pending: Mapping[CommitId, tuple[int, Commit]]) -> Iterator[CommitId]:
    """Commits in an order in which each comes after those of its parents that are among them."""
    from graphlib import CycleError, TopologicalSorter

    sorter = TopologicalSorter(
        {id: [parent for parent in commit.parents if parent in pending] for id, (_, commit) in pending.items()}
    )
    try:
        yield from sorter.static_order()
    except CycleError as error:
        raise InputError("these commits are one another's ancestors", object=str(error.args[1][0])) from error
