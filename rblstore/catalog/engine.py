"""How the catalog talks to SQLite: connections, transactions, and what its errors mean.

Rollback journal, ``synchronous=EXTRA`` (a commit survives a power cut), foreign keys on, our own BEGIN. WAL is not
used: its reset bug lost commits until SQLite 3.51.3. Each transaction has a connection of its own, so a catalog may be
shared between threads, survives a fork, and follows a file that `rbl reindex` has replaced; opening one costs a
fraction of a millisecond.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from rblstore.errors import CorruptError, LockedError, RblError

BUSY_TIMEOUT_SECONDS: Final = 30.0
REINDEX_HINT: Final = "The catalog is only an index: run `rbl reindex` to rebuild it."

_WRITE_OPTION = "catalog_write"
_DAMAGE = ("no such", "no column", "malformed", "decode to utf-8", "corrupt", "unsupported file format")


class CatalogBusyError(LockedError):
    """Another process held the catalog for longer than the busy timeout; nothing was changed."""

    code = "catalog_busy"


class CatalogDamagedError(CorruptError):
    """The catalog's file is missing, is not a catalog, or contradicts itself."""

    code = "catalog_damaged"

    def __init__(self, message: str, *, object: str | None = None, hint: str | None = REINDEX_HINT) -> None:
        super().__init__(message, object=object, hint=hint)


class CatalogFailedError(RblError):
    """The system did not let SQLite read or write (a full disk, an I/O error, permissions); nothing was changed."""

    code = "catalog_failed"


class CommitOutcomeUnknownError(RblError):
    """COMMIT failed, so the transaction may or may not be there: open the catalog again and look."""

    code = "commit_outcome_unknown"


def open_engine(path: Path, busy_timeout: float) -> Engine:
    """An engine for an existing file, which is opened anew for each connection and never created.

    Args:
        path: The database.
        busy_timeout: Seconds to wait for a lock.
    """
    location = f"file:{quote(os.fsencode(path.absolute()))}?mode=rw"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            location, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA cell_size_check=ON")
            connection.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, pool_reset_on_return=None)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    """Begins what the connection is for. IMMEDIATE takes the write lock at once: no read of a writer is ever stale."""
    writes = connection.get_execution_options().get(_WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def translated(error: DBAPIError, path: str) -> RblError:
    """What a driver's error means for the catalog at a path."""
    cause = error.orig
    message = str(cause)
    lowered = message.lower()
    if isinstance(cause, sqlite3.OperationalError):
        if "locked" in lowered or "locking protocol" in lowered:
            return CatalogBusyError(
                "another process is writing to the catalog and did not finish in time",
                object=path,
                hint="Wait for it to end, then run the command again; nothing was changed.",
            )
        if not any(word in lowered for word in _DAMAGE):
            return CatalogFailedError(
                f"the catalog could not be read or written: {message}",
                object=path,
                hint="Check free space, permissions and the disk, then run the command again; nothing was changed.",
            )
    return CatalogDamagedError(f"the catalog is damaged: {message}", object=path)


@contextmanager
def translating(path: str) -> Iterator[None]:
    """Turns the driver's errors into the catalog's.

    Raises:
        CatalogBusyError: A lock was not to be had in time.
        CatalogDamagedError: The file is not what a catalog is.
        CatalogFailedError: The system refused.
    """
    try:
        yield
    except DBAPIError as error:
        raise translated(error, path) from error


@contextmanager
def transaction(engine: Engine, path: str, *, write: bool) -> Iterator[Connection]:
    """One transaction on a connection of its own: committed on a clean exit where it writes, else rolled back.

    Raises:
        CatalogBusyError: A lock was not to be had in time, at the beginning or at COMMIT; nothing was changed.
        CommitOutcomeUnknownError: COMMIT failed in any other way.
    """
    with translating(path):
        connection = engine.connect()
    try:
        connection = connection.execution_options(**{_WRITE_OPTION: write})
        with translating(path):
            connection.begin()
        yield connection
        if write:
            _commit(connection, path)
    finally:
        # Closing rolls back whatever was not committed, and an error in that must not hide the one that led here.
        with suppress(DBAPIError):
            connection.close()


def _commit(connection: Connection, path: str) -> None:
    try:
        connection.commit()
    except DBAPIError as error:
        known = translated(error, path)
        if isinstance(known, CatalogBusyError):
            # SQLite keeps such a transaction open and unwritten; closing the connection rolls it back.
            raise known from error
        raise CommitOutcomeUnknownError(
            f"the catalog's COMMIT failed, so it is not known whether the change was made: {error.orig}",
            object=path,
            hint="Look at the repository again (`rbl log`, `rbl fsck`) before you repeat the command.",
        ) from error
