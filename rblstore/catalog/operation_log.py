"""Refs and the operations that moved them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select

from rblstore.catalog.content_index import id_range
from rblstore.catalog.engine import CatalogDamagedError
from rblstore.catalog.rows import read_text, shown
from rblstore.catalog.snapshot import Snapshot
from rblstore.catalog.tables import operations, refs
from rblstore.errors import InputError
from rblstore.objects.canonical import VERSION
from rblstore.objects.fields import require_sorted
from rblstore.objects.history_records import Operation, RefChange
from rblstore.objects.ids import OperationId

_RECORD_LINE = f"rblstore/{Operation.KIND}/{VERSION}\n"


def operation_text(operation: Operation) -> tuple[OperationId, str]:
    """An operation's id, and its canonical JSON as the catalog and ``refs.log`` hold it."""
    data = operation.encode()
    return OperationId(Operation.id_of(data)), data.decode("utf-8").removeprefix(_RECORD_LINE)


def _operation(row: Row[Any]) -> Operation:
    data = (_RECORD_LINE + read_text(row.body)).encode("utf-8", "surrogatepass")
    if Operation.id_of(data) != row.id:
        raise CatalogDamagedError(
            f"operation {row.sequence} of the catalog is not what its id says", object=shown(row.id)
        )
    try:
        operation = Operation.parse(data)
    except InputError as error:
        raise CatalogDamagedError(f"operation {row.sequence} of the catalog is damaged: {error.message}") from error
    if operation.sequence != row.sequence:
        where = f"operation {row.sequence} of the catalog"
        raise CatalogDamagedError(f"{where} is in the wrong place", object=shown(row.id))
    return operation


class OperationLog(Snapshot):
    """Refs and operations."""

    def ref(self, name: str) -> str | None:
        """A ref's value: an object id, ``ref: NAME`` where it is symbolic, None where there is no such ref."""
        if any("\ud800" <= character <= "\udfff" for character in name):
            return None  # a person's argument that is no text: SQLite could not be asked for it
        row = self._first(select(refs.c.value).where(refs.c.name == name))
        return None if row is None else read_text(row.value)

    def refs(self, prefix: str = "") -> dict[str, str]:
        """Every ref whose full name begins with a prefix, sorted by name."""
        # Not LIKE: it folds case in SQLite.
        statement = select(refs).where(func.substr(refs.c.name, 1, len(prefix)) == prefix)
        return dict(sorted((read_text(row.name), read_text(row.value)) for row in self._all(statement)))

    def operation(self, id: OperationId) -> Operation | None:
        """An operation, or None where there is none of that id."""
        return next(iter(self._operations(select(operations).where(operations.c.id == id))), None)

    def last_operation(self) -> Operation | None:
        """The latest operation, None in a repository without any."""
        return next(iter(self.operations(1)), None)

    def operations(self, limit: int | None = None, before_sequence: int | None = None) -> list[Operation]:
        """Operations, newest first.

        Args:
            limit: The most to return, or None for all.
            before_sequence: Only those with a smaller sequence number, or None for all.
        """
        statement = select(operations).order_by(operations.c.sequence.desc()).limit(limit)
        if before_sequence is not None:
            statement = statement.where(operations.c.sequence < before_sequence)
        return self._operations(statement)

    def operations_after(self, sequence: int) -> list[Operation]:
        """The operations with a larger sequence number, oldest first."""
        statement = select(operations).where(operations.c.sequence > sequence).order_by(operations.c.sequence)
        return self._operations(statement)

    def find_operations(self, prefix: str, limit: int = 10) -> list[Operation]:
        """Operations whose ids begin with some digits, sorted by id.

        Args:
            prefix: 6 to 64 hexadecimal digits.
            limit: The most to return.

        Raises:
            UsageError: The prefix is not one.
        """
        first, last = id_range(prefix)
        statement = (
            select(operations).where(operations.c.id.between(first, last)).order_by(operations.c.id).limit(limit)
        )
        return self._operations(statement)

    def _operations(self, statement: Select[Any]) -> list[Operation]:
        return [_operation(row) for row in self._all(statement)]


def next_operation(
    log: OperationLog,
    description: str,
    changes: Sequence[RefChange],
    author: str,
    time: str,
    undoes: OperationId | None = None,
) -> Operation:
    """The operation that would come next; nothing is written.

    Args:
        log: A reader, or the writer that will apply it.
        description: What is done, one line.
        changes: Every ref that changes, in any order.
        author: Who does it.
        time: RFC 3339.
        undoes: The operation that this one reverses, or None.

    Raises:
        InputError: Two changes are of one ref.
    """
    ordered = tuple(sorted(changes, key=lambda change: change.ref))
    require_sorted([change.ref for change in ordered], "the changes of an operation")
    last = log.last_operation()
    if last is None:
        return Operation(1, None, description, ordered, undoes, author, time)
    return Operation(last.sequence + 1, operation_text(last)[0], description, ordered, undoes, author, time)
