"""What files were when they were read last, so that committing a file that nobody touched reads none of its bytes.

The cache is a convenience of one machine: ``.rbl/stat-cache`` may be deleted at any time, and whatever is wrong with it
makes it empty. It decides only whether commit reads a file again; what proves something (audit, revert, verify, fsck,
checkout) never looks at it. The rules are in :mod:`rblstore.operations.stat_cache_entries`.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from rblstore.errors import CorruptError, InputError, NotFoundError, RblError
from rblstore.objects.content_records import FileManifest
from rblstore.operations.stat_cache_entries import (
    MAX_BYTES,
    Entry,
    FileStamp,
    KnownFile,
    encode_entries,
    parse_entries,
    path_key,
)
from rblstore.repository import Store
from rblstore.storage.durable import write_file

__all__ = ["FileStamp", "KnownFile", "StatCache"]

FILE: Final = "stat-cache"


class StatCache:
    """The stat cache of one repository, read when it is first asked. For one thread at a time.

    Args:
        store: The repository.
        trust: Whether lookups may find anything; what is read is remembered all the same.
        clock: Nanoseconds of the Unix epoch; None for ``time.time_ns``.
    """

    def __init__(self, store: Store, *, trust: bool = True, clock: Callable[[], int] | None = None) -> None:
        self._store = store
        self._trust = trust
        self._clock = clock or time.time_ns
        self._path = store.folder / FILE
        self._inside = os.path.realpath(store.folder) + os.sep
        self._lines: dict[str, bytes] | None = None
        self._fresh: dict[str, bytes] = {}

    def lookup(self, path: Path, stamp: FileStamp) -> KnownFile | None:
        """What a file is, without reading it.

        Inside a transaction, whose lock keeps away whoever deletes, what is found stays stored until the transaction is
        published. Whether it was taken in as safetensors is for the caller to compare: a hub's cache may link two names
        of different kinds to one file.

        Args:
            path: The file's.
            stamp: Of the open descriptor that would be read.

        Returns:
            None unless the stamp proves that it is unchanged and everything that it consists of is in this repository.
        """
        if not self._trust:
            return None
        if self._lines is None:
            self._lines = self._read()
        resolved = _resolved(path)
        line = None if resolved is None else self._lines.get(path_key(resolved))
        if line is None:
            return None
        try:
            entry = Entry.parse(line)
        except InputError:
            self._lines = {}
            return None
        return self._stored(entry.known) if entry.holds(stamp, self._clock()) else None

    def _stored(self, known: KnownFile) -> KnownFile | None:
        record = None
        if known.manifest is not None:
            try:
                record = self._store.record(known.manifest, FileManifest)
            except (CorruptError, InputError, NotFoundError):
                return None  # whatever is wrong with it, reading the file says what the file is
        wanted = (known.sha256,) if record is None else record.contents()
        with self._store.catalog.read() as reader:
            return None if reader.missing_contents(wanted) else replace(known, record=record)

    def remember(self, path: Path, stamp: FileStamp, read_ns: int, known: KnownFile) -> None:
        """Keeps what a file was, for :meth:`save`, unless a change made since might not show in its stamp.

        Args:
            path: The file's.
            stamp: Of the descriptor, the same before and after reading.
            read_ns: ``time.time_ns()`` before the reading began.
            known: What was read.
        """
        resolved = _resolved(path)
        entry = Entry(stamp, read_ns, known)
        # What lies in the repository itself is temporary: a live model on its way in.
        if resolved is None or resolved.startswith(self._inside) or not entry.holds(stamp, self._clock()):
            return
        key = path_key(resolved)
        with suppress(InputError):  # notes too long to keep: the file is read again
            self._fresh[key] = entry.encode(key)

    def save(self) -> None:
        """Writes down what was remembered, beside what others have written meanwhile. Failing to is no error.

        Meant for after the publication; earlier is harmless, since lookups ask the catalog for what an entry names.
        """
        if not self._fresh:
            return
        kept = {key: line for key, line in self._read().items() if key not in self._fresh}
        self._lines = {**kept, **self._fresh}
        self._fresh = {}
        with suppress(RblError):
            write_file(self._path, encode_entries(self._lines), self._store.folder / "tmp", durable=False)

    def _read(self) -> dict[str, bytes]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as stream:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                    return {}
                return parse_entries(stream.read(MAX_BYTES + 1))
        except (OSError, InputError):
            return {}


def _resolved(path: Path) -> str | None:
    """The path with its links followed, or None where one of them became something else meanwhile."""
    try:
        return os.path.realpath(path)
    except OSError:
        return None
