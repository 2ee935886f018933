"""Packs in a directory: read with pread, never mapped, never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rblstore.storage.backend import ROOMS, ReadError, check_key, check_prefix, check_span, is_key, missing
from rblstore.storage.durable import StagedFile, WriteError, file_system_time, fsync_directory, move_file

# O_NONBLOCK: a pipe put where a pack should be must not hang the reader. It means nothing for regular files.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_OBJECT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


def _unreadable(key: str, error: OSError) -> ReadError:
    return ReadError(
        f"reading {key} failed: {error.strerror or error}", object=key, hint="Check permissions and the disk."
    )


class _DiskStage:
    """A file in ``tmp/``; see :class:`rblstore.storage.backend.Stage`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file = StagedFile(root / "tmp")
        self.discard = self._file.discard
        self.truncate = self._file.truncate
        self.write = self._file.write

    @property
    def size(self) -> int:
        return self._file.size

    def publish(self, key: str) -> bool:
        try:
            destination = self._root / check_key(key)
            published = self._file.publish(destination)
        except BaseException:
            self._file.discard()
            raise
        # Another writer may have made the pack's folder just now and not yet made it durable.
        fsync_directory(destination.parent.parent)
        return published


class DiskBackend:
    """The backend of a repository on a local disk.

    Args:
        root: The ``.rbl`` directory. ``tmp/`` must be there; ``packs/`` is made when needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def stage(self) -> _DiskStage:
        """See :meth:`rblstore.storage.backend.Backend.stage`."""
        return _DiskStage(self._root)

    def _open(self, key: str) -> tuple[int, int]:
        """A descriptor of the object and its size."""
        try:
            descriptor = os.open(self._root / check_key(key), _READ)
        except OSError as error:
            if error.errno in _NO_OBJECT:
                raise missing(key) from error
            raise _unreadable(key, error) from error
        try:
            status = os.fstat(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise _unreadable(key, error) from error
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise missing(key)
        return descriptor, status.st_size

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See :meth:`rblstore.storage.backend.Backend.read`."""
        with self._opened(key, offset, length) as descriptor:
            data = os.pread(descriptor, length, offset)
            if len(data) == length:
                return data
            parts = [data]
            while (done := sum(map(len, parts))) < length:  # one call reads at most 2 GiB
                parts.append(os.pread(descriptor, length - done, offset + done))
                if not parts[-1]:
                    check_span(key, offset, length, offset + done)
            return b"".join(parts)

    def read_into(self, key: str, offset: int, out: memoryview) -> None:
        """See :meth:`rblstore.storage.backend.Backend.read_into`."""
        length = len(out)
        with self._opened(key, offset, length) as descriptor:
            done = 0
            while done < length:
                count = os.preadv(descriptor, [out[done:]], offset + done)
                if not count:
                    check_span(key, offset, length, offset + done)
                done += count

    @contextmanager
    def _opened(self, key: str, offset: int, length: int) -> Iterator[int]:
        descriptor, size = self._open(key)
        try:
            check_span(key, offset, length, size)
            yield descriptor
        except OSError as error:
            raise _unreadable(key, error) from error
        finally:
            os.close(descriptor)

    def _status(self, key: str) -> os.stat_result:
        try:
            status = os.lstat(self._root / check_key(key))
        except OSError as error:
            if error.errno in _NO_OBJECT:
                raise missing(key) from error
            raise _unreadable(key, error) from error
        if not stat.S_ISREG(status.st_mode):
            raise missing(key)
        return status

    def size(self, key: str) -> int:
        """See :meth:`rblstore.storage.backend.Backend.size`."""
        return self._status(key).st_size

    def exists(self, key: str) -> bool:
        """See :meth:`rblstore.storage.backend.Backend.exists`."""
        try:
            return stat.S_ISREG(os.lstat(self._root / check_key(key)).st_mode)
        except OSError as error:
            if error.errno in _NO_OBJECT:
                return False
            raise _unreadable(key, error) from error

    def _names(self, folder: Path, *, folders: bool) -> list[str]:
        try:
            with os.scandir(folder) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if (entry.is_dir() if folders else entry.is_file(follow_symlinks=False))
                )
        except OSError as error:
            if error.errno in _NO_OBJECT:
                return []
            raise _unreadable(str(folder.relative_to(self._root)), error) from error

    def list(self, prefix: str) -> Iterator[str]:
        """See :meth:`rblstore.storage.backend.Backend.list`."""
        check_prefix(prefix)
        return self._list(prefix)

    def _list(self, prefix: str) -> Iterator[str]:
        rooms = [room for room in ROOMS if not prefix or prefix.startswith(f"{room}/")]
        for folder in (f"{at}/{shard}/" for at in rooms for shard in self._names(self._root / at, folders=True)):
            if not (folder.startswith(prefix) or prefix.startswith(folder)):
                continue
            for name in self._names(self._root / folder, folders=False):
                if is_key(folder + name) and (folder + name).startswith(prefix):
                    yield folder + name

    def move(self, key: str, to: str) -> bool:
        """See :meth:`rblstore.storage.backend.Backend.move`."""
        source, destination = self._root / check_key(key), self._root / check_key(to)
        if not self.exists(key) or self.exists(to):
            return False
        move_file(source, destination)
        return True

    def modified(self, key: str) -> float:
        """See :meth:`rblstore.storage.backend.Backend.modified`."""
        return self._status(key).st_mtime

    def now(self) -> float:
        """See :meth:`rblstore.storage.backend.Backend.now`."""
        return file_system_time(self._root / "tmp")

    def delete(self, key: str) -> None:
        """See :meth:`rblstore.storage.backend.Backend.delete`."""
        path = self._root / check_key(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in _NO_OBJECT:
                return
            raise WriteError(
                f"deleting failed: {error.strerror or error}", object=key, hint="Check permissions and the disk."
            ) from error
