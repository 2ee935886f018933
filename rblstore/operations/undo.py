"""``undo`` and ``op log``: the history of refs."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.errors import ConflictError, NothingChangedError
from rblstore.objects.history_records import Operation, RefChange
from rblstore.objects.ids import OperationId
from rblstore.operations.result import Result
from rblstore.repository import Store
from rblstore.revisions import find_operation


class NothingToUndoError(NothingChangedError):
    """Every operation is undone already."""

    code = "nothing_to_undo"


class UndoConflictError(ConflictError):
    """A ref that the operation moved has been moved again."""

    code = "undo_conflict"


@dataclass(frozen=True)
class OperationInfo(Result):
    """One operation.

    Attributes:
        id: Its id.
        sequence: Its number, from 1.
        description: What was done.
        changes: Which refs changed, from what to what.
        undoes: The operation that it reversed, or None.
        undone: Whether a later operation reversed it, and was not itself reversed.
        author: Who.
        time: RFC 3339.
    """

    id: OperationId
    sequence: int
    description: str
    changes: tuple[RefChange, ...]
    undoes: OperationId | None
    undone: bool
    author: str
    time: str


@dataclass(frozen=True)
class UndoResult(Result):
    """An operation that was reversed.

    Attributes:
        undone: The operation reversed.
        description: What it had done.
        operation: The new operation.
        changes: Which refs changed back.
    """

    undone: OperationId
    description: str
    operation: OperationId
    changes: tuple[RefChange, ...]


def operation_id(operation: Operation) -> OperationId:
    """An operation's id."""
    return OperationId(Operation.id_of(operation.encode()))


def operations(store: Store, limit: int | None = None) -> list[OperationInfo]:
    """The operation log, newest first."""
    with store.catalog.read() as reader:
        found = reader.operations()
    undone = _undone(found)
    return [
        OperationInfo(
            own := operation_id(operation),
            operation.sequence,
            operation.description,
            operation.changes,
            operation.undoes,
            own in undone,
            operation.author,
            operation.time,
        )
        for operation in found[:limit]
    ]


def _undone(found: list[Operation]) -> set[OperationId]:
    """Operations that are reversed now: by one that was not itself reversed later.

    Args:
        found: Every operation, newest first.
    """
    undone: set[OperationId] = set()
    for operation in found:
        if operation.undoes is not None and operation_id(operation) not in undone:
            undone.add(operation.undoes)
    return undone


def _latest(found: list[Operation]) -> Operation:
    undone = _undone(found)
    for operation in found:
        # The first operation made HEAD; without it there is no repository.
        if operation.undoes is None and operation.sequence > 1 and operation_id(operation) not in undone:
            return operation
    raise NothingToUndoError("there is nothing to undo", hint="See: rbl op log")


def undo(store: Store, operation: str | None = None, *, author: str) -> UndoResult:
    """Reverses an operation: its refs go back to what they were before it.

    Args:
        store: The repository.
        operation: Id prefix or number; None for the latest that is neither undone nor an undo.
        author: Who.

    Raises:
        NothingToUndoError: Every operation is undone already.
        UndoConflictError: One of its refs has moved since.
    """
    with store.catalog.read() as reader:
        target = _latest(reader.operations()) if operation is None else find_operation(reader, operation)
        if target.sequence == 1:
            raise NothingToUndoError("the operation that made the repository cannot be undone", object="1")
        moved = [change.ref for change in target.changes if reader.ref(change.ref) != change.after]
    own = operation_id(target)
    if moved:
        raise UndoConflictError(
            f"operation {own.short} ({target.description}) cannot be undone: {', '.join(moved)} moved since",
            object=own,
            hint="Undo the later operation first; see: rbl op log",
        )
    with store.transaction(author) as transaction:
        for change in target.changes:
            transaction.set_ref(change.ref, change.after, change.before)
        transaction.describe(f"undo: {target.description}", undoes=own)
    done = transaction.operation
    assert done is not None, "an undo always changes a ref"
    return UndoResult(own, target.description, operation_id(done), done.changes)
