"""One open transaction: running statements in it, with the driver's errors translated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, CursorResult, Executable, Row
from sqlalchemy.exc import DBAPIError

from rblstore.catalog.engine import translated
from rblstore.errors import InputError

T = TypeVar("T")

# Databases bound the parameters of a statement; SQLite before 3.32 at 999.
BATCH: Final = 500


def batches(values: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """The values in lists of at most so many."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


class Snapshot:
    """What every part of a reader stands on.

    Args:
        connection: In a transaction that somebody else begins and ends.
        path: The catalog's file, for messages.
    """

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection = connection
        self._path = path

    def _run(self, statement: Executable, parameters: Sequence[dict[str, Any]] | None = None) -> CursorResult[Any]:
        try:
            return self._connection.execute(statement, parameters)
        except DBAPIError as error:
            raise translated(error.orig, self._path) from error
        except OverflowError as error:
            raise InputError("a number takes more than the 63 bits that the catalog holds") from error

    def _all(self, statement: Executable) -> Sequence[Row[Any]]:
        result = self._run(statement)
        try:
            return result.all()
        except DBAPIError as error:
            raise translated(error.orig, self._path) from error

    def _first(self, statement: Executable) -> Row[Any] | None:
        result = self._run(statement)
        try:
            return result.first()
        except DBAPIError as error:
            raise translated(error.orig, self._path) from error
