"""The catalog as a whole: creating it, opening it, and its transactions."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rblstore.catalog.engine import (
    BUSY_TIMEOUT_SECONDS,
    CatalogBusyError,
    CatalogDamagedError,
    CatalogFailedError,
    holds,
    open_engine,
    read_failure,
    transaction,
    translating,
)
from rblstore.catalog.reader import CatalogReader
from rblstore.catalog.schema_history import check_schema, create_schema
from rblstore.errors import ConflictError
from rblstore.objects.ids import ContentId

if TYPE_CHECKING:
    from rblstore.catalog.writer import CatalogWriter


LIBRARY_VERSION: Final = sqlite3.sqlite_version
"""Of the SQLite library that Python brought along."""


class CatalogExistsError(ConflictError):
    """A file is already where a catalog was to be created."""

    code = "catalog_exists"


class Catalog:
    """The index of one repository. It may be shared between threads; its readers and writers may not.

    Use :meth:`create` or :meth:`open`.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path = path
        self._name = str(path)
        self._engine = open_engine(path, busy_timeout)
        self._thread = threading.local()

    @classmethod
    def create(cls, path: Path, *, busy_timeout: float = BUSY_TIMEOUT_SECONDS) -> Catalog:
        """Creates an empty catalog; a failure leaves no file behind.

        Args:
            path: Where; nothing may be there.
            busy_timeout: Seconds to wait for another process.

        Raises:
            CatalogExistsError: A file is there.
            CatalogFailedError: The system refused.
        """
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError as error:
            raise CatalogExistsError("a catalog is already there", object=str(path)) from error
        except OSError as error:
            raise CatalogFailedError(
                f"the catalog could not be created: {error.strerror or error}",
                object=str(path),
                hint="Check free space and permissions.",
            ) from error
        catalog = cls(path, busy_timeout)
        try:
            with translating(catalog._name), transaction(catalog._engine, catalog._name, write=True) as connection:
                create_schema(connection)
        except BaseException:
            catalog.close()
            path.unlink(missing_ok=True)
            raise
        return catalog

    @classmethod
    def open(cls, path: Path, *, busy_timeout: float = BUSY_TIMEOUT_SECONDS) -> Catalog:
        """Opens a catalog, and checks that this version made it. Nothing is migrated.

        Args:
            path: The file.
            busy_timeout: Seconds to wait for another process.

        Raises:
            CatalogDamagedError: The file is missing or is no catalog.
            CatalogVersionError: An older or newer rblstore made it.
            CatalogFailedError: The system refused.
            CatalogBusyError: Another process held it for too long.
        """
        try:
            there = path.is_file()
        except OSError as error:
            raise CatalogFailedError(
                f"the catalog could not be opened: {error.strerror or error}",
                object=str(path),
                hint="Check the disk and permissions.",
            ) from error
        if not there:
            raise CatalogDamagedError("the catalog is missing", object=str(path))
        catalog = cls(path, busy_timeout)
        with transaction(catalog._engine, catalog._name, write=False) as connection:
            check_schema(connection, catalog._name)
        return catalog

    def close(self) -> None:
        """Releases what the catalog holds. Closing again does nothing."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[CatalogReader]:
        """One consistent snapshot; keep it short, since a writer cannot finish while it is open.

        Inside of it the same thread gets the same snapshot again: another connection would wait for a writer that
        waits for this one.

        Raises:
            CatalogBusyError: Another process was finishing a commit for longer than the busy timeout.
        """
        outer: CatalogReader | None = getattr(self._thread, "reader", None)
        if outer is not None:
            yield outer
            return
        with transaction(self._engine, self._name, write=False) as connection:
            self._thread.reader = CatalogReader(connection, self._name)
            try:
                yield self._thread.reader
            finally:
                self._thread.reader = None

    def has_content(self, content: ContentId) -> bool:
        """Whether any pack holds a content, now. Asked once for each of thousands, so it takes the shortest way.

        Raises:
            CatalogBusyError, CatalogDamagedError, CatalogFailedError: As for :meth:`read`.
        """
        return holds(self._engine, self._name, content)

    @contextmanager
    def write(self) -> Iterator[CatalogWriter]:
        """One write transaction: committed where the block ends without an exception, else rolled back.

        Raises:
            CatalogBusyError: Another process held the catalog for longer than the busy timeout; nothing was changed.
            CommitOutcomeUnknownError: COMMIT failed; open the catalog again and look.
        """
        from rblstore.catalog.writer import CatalogWriter  # not for the commands that only look

        if getattr(self._thread, "reader", None) is not None:
            # It would wait for itself at COMMIT until the busy timeout is over.
            raise CatalogBusyError("this thread still reads the catalog that it is about to write", object=self._name)
        with transaction(self._engine, self._name, write=True) as connection:
            yield CatalogWriter(connection, self._name)

    def settings(self) -> tuple[str, str]:
        """How SQLite writes when we ask it to: its journal mode (``delete``) and ``synchronous`` (``EXTRA``)."""
        with transaction(self._engine, self._name, write=False) as connection, translating(self._name):
            journal = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
            synchronous = int(connection.exec_driver_sql("PRAGMA synchronous").scalar() or 0)
        return journal, ("OFF", "NORMAL", "FULL", "EXTRA")[synchronous]

    def integrity_problems(self, limit: int = 100) -> list[str]:
        """What SQLite's own checks find wrong with the file: its pages and indexes, and rows that refer to nothing.

        Args:
            limit: About how many to report.

        Raises:
            CatalogFailedError: The disk does not give what is to be checked.
        """
        with transaction(self._engine, self._name, write=False) as connection, translating(self._name):
            problems = [str(row[0]) for row in connection.exec_driver_sql(f"PRAGMA integrity_check({int(limit)})")]
            if problems == ["ok"]:
                problems = []
            for row in connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(limit):
                problems.append(f"a row of {row[0]!r} refers to nothing in {row[2]!r}")
        if problems and (failure := read_failure(self._name)) is not None:
            raise failure
        return problems
