"""How the catalog talks to SQLite: connections, transactions, and what its errors mean.

Rollback journal, ``synchronous=EXTRA`` (a commit survives a power cut), foreign keys on, our own BEGIN. WAL is not
used: its reset bug lost commits until SQLite 3.51.3. Each transaction has a connection to itself, so a catalog may be
shared between threads. Connections are used again, since opening one costs more than most queries, but not in a process
forked from the one that opened it, nor once `rbl reindex` has replaced the file.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import QueuePool

from rblstore.errors import CorruptError, LockedError, RblError
from rblstore.objects import limits

BUSY_TIMEOUT_SECONDS: Final = 30.0
# SQLite waits longer each time that it asks, so that whoever comes last asks first. Everybody asks equally often here.
_TURN_SECONDS: Final = 0.008
REINDEX_HINT: Final = "The catalog is only an index: run `rbl reindex` to rebuild it."

# An operation's JSON is the longest text that is kept; SQLite itself would take a gigabyte.
_LONGEST_VALUE: Final = limits.RECORD_BYTES + 4096

_WRITE_OPTION = "catalog_write"
_DAMAGE = (
    "no such", "no column", "malformed", "decode to utf-8", "corrupt", "unsupported file format",
    "foreign key mismatch",
)  # fmt: skip
# What SQLite says of statements that do not suit the schema: ours suit the one that we made.
_SQLITE_ERROR = 1
# What it says of pages that are malformed, and of pages that the disk does not give.
_SQLITE_CORRUPT = 11
# More of a catalog than this is not read only to tell the two apart.
_READ_AGAIN_BYTES: Final = 256 << 20
_PIECE_BYTES: Final = 1 << 20


class CatalogBusyError(LockedError):
    """Another process held the catalog for longer than the busy timeout; nothing was changed."""

    code = "catalog_busy"


class CatalogDamagedError(CorruptError):
    """The catalog's file is missing, is not a catalog, or contradicts itself."""

    code = "catalog_damaged"

    def __init__(self, message: str, *, object: str | None = None, hint: str | None = REINDEX_HINT) -> None:
        super().__init__(message, object=object or "catalog.db", hint=hint)


class CatalogFailedError(RblError):
    """The system did not let SQLite read or write (a full disk, an I/O error, permissions); nothing was changed."""

    code = "catalog_failed"


class CommitOutcomeUnknownError(RblError):
    """COMMIT failed, so the transaction may or may not be there: open the catalog again and look."""

    code = "commit_outcome_unknown"


class _CatalogConnection(sqlite3.Connection):
    """A connection that knows what it is a connection to, and whose."""

    opened_for: tuple[int, ...] = ()


def _file_now(path: Path) -> tuple[int, ...]:
    """What a connection would be opened for now; nothing where there is no file, which opening it will say."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return os.getpid(), status.st_dev, status.st_ino


def _refuse_odd_sides(path: Path) -> None:
    """Refuses what SQLite would open in the place of its own files: a pipe among them hangs it for ever.

    Raises:
        CatalogDamagedError: There is such a thing.
    """
    for name in (path.name, *(f"{path.name}{suffix}" for suffix in ("-journal", "-wal", "-shm"))):
        try:
            mode = os.lstat(path.with_name(name)).st_mode
        except OSError:
            continue  # absent; or opening it says what is wrong
        if not stat.S_ISREG(mode):
            what = "is a symbolic link, which is never followed" if stat.S_ISLNK(mode) else "is no regular file"
            raise CatalogDamagedError(
                f"{name} {what}", object=str(path.with_name(name)), hint="Remove it. " + REINDEX_HINT
            )


def open_engine(path: Path, busy_timeout: float) -> Engine:
    """An engine for an existing file, which is never created.

    Args:
        path: The database.
        busy_timeout: Seconds to wait for a lock.
    """
    location = f"file:{quote(os.fsencode(path.absolute()))}?mode=rw"

    def connect() -> sqlite3.Connection:
        _refuse_odd_sides(path)
        opened_for = _file_now(path)  # before it is opened: if it is replaced meanwhile, the next one to ask finds out
        connection = sqlite3.connect(
            location,
            uri=True,
            timeout=busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=_CatalogConnection,
        )
        try:
            connection.opened_for = opened_for
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA cell_size_check=ON")
            connection.execute("PRAGMA journal_mode=DELETE")
        except UnicodeDecodeError as error:  # what SQLite says of a schema that is damaged may be no text
            connection.close()
            raise sqlite3.DatabaseError("its schema is malformed") from error
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def check(connection: _CatalogConnection, *_: object) -> None:
        if connection.opened_for != _file_now(path):
            raise DisconnectionError("the catalog is another file now, or this another process")

    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(_WRITE_OPTION, False):
            _begin_writing(connection, busy_timeout)
        else:
            connection.exec_driver_sql("BEGIN")

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=8, max_overflow=-1)
    event.listen(engine, "checkout", check)
    event.listen(engine, "begin", begin)
    return engine


def _begin_writing(connection: Connection, busy_timeout: float) -> None:
    """Takes the write lock at once: no read of a writer is ever stale. Nobody who waits is passed over for ever."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    until = time.monotonic() + busy_timeout
    driver.execute(f"PRAGMA busy_timeout={round(1000 * min(_TURN_SECONDS, busy_timeout))}")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= until:
                    raise
            else:
                return
    finally:
        driver.execute(f"PRAGMA busy_timeout={round(1000 * busy_timeout)}")


def holds(engine: Engine, path: str, content: str) -> bool:
    """Whether a content is in the catalog: one statement on the driver's own connection, a transaction by itself.

    Raises:
        CatalogBusyError, CatalogDamagedError, CatalogFailedError: As for :func:`translating`.
    """
    # The driver's own errors come out of the pool, and not the toolkit's.
    try:
        connection = engine.raw_connection()
        try:
            # Through the pool alone this takes a fraction of what building, compiling and beginning takes.
            cursor = connection.cursor()
            cursor.execute("SELECT 1 FROM contents WHERE content = ? LIMIT 1", (content,))
            return cursor.fetchone() is not None
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translated(error, path) from error


# Never closed: a process that closes any descriptor of a file gives up the locks that SQLite holds on it.
_kept_open: dict[tuple[int, int], int] = {}


def read_failure(path: str) -> CatalogFailedError | None:
    """What the disk says when a catalog is read that SQLite finds malformed; None where it reads well.

    Args:
        path: The catalog.
    """
    try:
        status = os.lstat(path)
        descriptor = _kept_open.get((status.st_dev, status.st_ino))
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(descriptor)
            _kept_open[status.st_dev, status.st_ino] = descriptor
        if stat.S_ISREG(status.st_mode):
            for offset in range(0, min(status.st_size, _READ_AGAIN_BYTES), _PIECE_BYTES):
                os.pread(descriptor, _PIECE_BYTES, offset)
    except OSError as error:
        return CatalogFailedError(
            f"the catalog could not be read: {error.strerror or error}",
            object=path,
            hint="Check the disk, then run the command again; nothing was changed. If it stays so, copy the repository "
            "to another disk, without catalog.db if need be, and run `rbl reindex` there.",
        )
    return None


def translated(cause: BaseException | None, path: str) -> RblError:
    """What a driver's error means for the catalog at a path."""
    message = str(cause)
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # without what it says beyond that
    if code == _SQLITE_CORRUPT and (failure := read_failure(path)) is not None:
        return failure
    lowered = message.lower()
    if isinstance(cause, sqlite3.OperationalError):
        if "locked" in lowered or "locking protocol" in lowered:
            return CatalogBusyError(
                "another process is writing to the catalog and did not finish in time",
                object=path,
                hint="Wait for it to end, then run the command again; nothing was changed.",
            )
        if code != _SQLITE_ERROR and not any(word in lowered for word in _DAMAGE):
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
        raise translated(error.orig, path) from error
    except sqlite3.Error as error:
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
        known = translated(error.orig, path)
        # SQLite keeps such a transaction open. Closing the connection rolls it back, and nobody uses it again.
        connection.invalidate()
        if isinstance(known, CatalogBusyError):
            raise known from error
        raise CommitOutcomeUnknownError(
            f"the catalog's COMMIT failed, so it is not known whether the change was made: {error.orig}",
            object=path,
            hint="Look at the repository again (`rbl log`, `rbl fsck`) before you repeat the command.",
        ) from error
