"""The one place through which bytes of a repository become durable.

Order (docs/format.md, Write order): exclusive create in ``tmp/``, write, compare the size, fsync, mode 0444, rename,
fsync the directory. An fsync that fails is final: the descriptor is closed and never trusted again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from rblstore.errors import RblError
from rblstore.storage.liveness import CLAIM_ATTEMPTS, claim

_WRITEBACK_BYTES: Final = 16 << 20


class WriteError(RblError):
    """The operating system did not take the bytes (a full disk, an I/O error, a read-only file system)."""

    code = "write_failed"


def _failed(what: str, path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{what} failed: {error.strerror or error}",
        object=str(path),
        hint="Check free space, permissions and the disk, then run the command again; nothing was changed.",
    )


def fsync_directory(path: Path) -> None:
    """Makes a directory's entries durable.

    Raises:
        WriteError: The system refused.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failed("making a directory durable", path, error) from error


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder and its parents; returns those whose entries must be made durable, innermost first.

    Raises:
        OSError: The system refused.
    """
    changed = [folder]
    for parent in folder.parents:
        if (parent / folder.name).is_dir():
            break
        changed.append(parent)
        folder = parent
    changed[0].mkdir(parents=True, exist_ok=True)
    return changed


def _is_file(path: Path) -> bool:
    """Whether a regular file is there; raises OSError where something else is."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise OSError(errno.EEXIST, "something that is not a regular file is in the way")
    return True


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_file(source: Path, destination: Path) -> None:
    """Gives a file of the repository another name, durably, and stamps it with the time of the move.

    Args:
        source: The file.
        destination: Where nothing is; its parents are made and made durable.

    Raises:
        WriteError: The system refused; the file has one of the two names, or after a power cut either.
    """
    try:
        folders = make_folders(destination.parent)
        os.utime(source, follow_symlinks=False)
        if stat.S_ISREG(os.lstat(source).st_mode):  # repair moves whatever stands in a file's place
            _fsync_file(source)  # the time, too: what lies in the trash is deleted by it
        source.rename(destination)
    except OSError as error:
        raise _failed("moving", source, error) from error
    # The new name first: after a power cut the file may have both, but never none.
    for folder in (*folders, source.parent):
        fsync_directory(folder)


def file_system_time(folder: Path) -> float:
    """The time by the clock of a folder's file system, in seconds of the Unix epoch.

    Raises:
        WriteError: The system refused.
    """
    staged = StagedFile(folder)
    try:
        return staged.stamp()
    finally:
        staged.discard()


class StagedFile:
    """A new file in a temporary folder that is published whole or not at all.

    Until then it is claimed (:mod:`rblstore.storage.liveness`), which tells it from what dead processes left.

    Args:
        folder: The temporary folder, on the file system of the destination.
        suffix: How its temporary name ends.
    """

    _owner = _descriptor = -1  # also of one whose making was interrupted

    def __init__(self, folder: Path, suffix: str = "") -> None:
        self.size = 0
        self._begun = 0
        self._owner = os.getpid()
        for _ in range(CLAIM_ATTEMPTS):
            self.path = folder / f"{self._owner}-{secrets.token_hex(8)}{suffix}"
            try:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                claimed = claim(self._descriptor, self.path)
            except OSError as error:
                self.discard()
                raise _failed("creating a temporary file", self.path, error) from error
            except BaseException:
                # The file may be there and its descriptor not yet known. Nobody else has its name.
                self._unlink()
                self.discard()
                raise
            if claimed:
                return
            self.discard()
        raise _failed("locking a temporary file", self.path, OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))

    def __del__(self) -> None:
        # An interrupt between making it and the caller's own care for it. A forked child's copy is not its to remove.
        if self._owner == os.getpid():
            self.discard()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends bytes.

        Raises:
            WriteError: The system refused; the file is discarded.
        """
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        try:
            while view:
                written = os.write(self._descriptor, view)
                self.size += written
                view = view[written:]
            self._begin_writeback()
        except OSError as error:
            self.discard()
            raise _failed("writing", self.path, error) from error

    def stamp(self) -> float:
        """When the file was changed last, by its file system's clock, in seconds of the Unix epoch.

        Raises:
            WriteError: The system refused; the file is discarded.
        """
        try:
            return os.fstat(self._descriptor).st_mtime
        except OSError as error:
            self.discard()
            raise _failed("reading the time", self.path, error) from error

    def _begin_writeback(self) -> None:
        """Has the disk take what was written while more is being made, so that fsync has little left to wait for."""
        if self.size - self._begun >= _WRITEBACK_BYTES and hasattr(os, "posix_fadvise"):
            # On Linux this begins to write dirty pages and waits for none; they stay cached, since they are not clean.
            os.posix_fadvise(self._descriptor, self._begun, self.size - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self.size

    def truncate(self, size: int) -> None:
        """Drops everything from an offset on, which is at most ``size``.

        Raises:
            WriteError: The system refused; the file is discarded.
        """
        try:
            if not 0 <= size <= self.size:
                raise OSError(errno.EINVAL, f"{self.size} bytes cannot become {size}")
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, size, os.SEEK_SET)
        except OSError as error:
            self.discard()
            raise _failed("truncating", self.path, error) from error
        self.size = size
        self._begun = min(self._begun, size)

    def publish(self, destination: Path, *, replace: bool = False, durable: bool = True) -> bool:
        """Makes the file durable under its final name.

        Args:
            destination: The final name; its parents are made and made durable.
            replace: Whether an existing file gives way. If not, it stays and this one is discarded.
            durable: Whether it must outlive a power cut; False for what is checked when read and can be made again.

        Returns:
            False where the destination existed and stayed.

        Raises:
            WriteError: The system refused; the destination is as it was, unless only the directory could not be made
                durable: then the file may be there, whole, now or after a power cut.
        """
        try:
            if os.fstat(self._descriptor).st_size != self.size:
                raise OSError(errno.EIO, "the file is not as long as what was written to it")
            if durable:
                os.fsync(self._descriptor)
            os.fchmod(self._descriptor, 0o644 if replace else 0o444)
            folders = make_folders(destination.parent)
            present = not replace and _is_file(destination)
            if not present:
                self.path.rename(destination)
        except OSError as error:
            self.discard()
            raise _failed("publishing", destination, error) from error
        if present:
            self.discard()
        else:
            self._close()
        # Also where the file was there already: whoever put it there may have died before this step.
        for folder in folders if durable else ():
            fsync_directory(folder)
        return not present

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(OSError):  # what matters was said by fsync
            os.close(descriptor)

    def discard(self) -> None:
        """Closes and removes the file; does nothing once published or discarded."""
        if self._descriptor >= 0:
            # Removed first: where an interrupt comes between the two, discarding again still does the rest.
            self._unlink()
            self._close()

    def leave(self) -> None:
        """Closes the file and lets it lie in the temporary folder, for whoever collects what nobody uses."""
        self._close()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):  # what stays in tmp/ is never read, and gc collects it
            self.path.unlink(missing_ok=True)


def write_file(path: Path, data: bytes, temporary: Path, *, durable: bool = True) -> None:
    """Writes a small file whole, replacing one that is there.

    Args:
        path: The file.
        data: Its bytes.
        temporary: A folder on the same file system.
        durable: Whether it must outlive a power cut.

    Raises:
        WriteError: The system refused; the file is as it was.
    """
    staged = StagedFile(temporary)
    try:
        staged.write(data)
        staged.publish(path, replace=True, durable=durable)
    finally:
        staged.discard()


def append(descriptor: int, data: bytes, path: Path, *, keep: int | None = None) -> None:
    """Appends bytes to an open file and makes them durable with one fsync.

    Args:
        descriptor: Opened with O_APPEND; the caller holds the file's lock and closes it on an error.
        data: What to append.
        path: The file's name, for messages.
        keep: How much of the file stays; what lies beyond (a torn tail) is cut first. None for all of it.

    Raises:
        WriteError: The system refused; what was written is undone where the system lets it.
    """
    try:
        before = os.fstat(descriptor).st_size
        if keep is not None and keep < before:
            os.ftruncate(descriptor, keep)
            before = keep
    except OSError as error:
        raise _failed("appending", path, error) from error
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, before)
        raise _failed("appending", path, error) from error
