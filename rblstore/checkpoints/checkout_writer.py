"""Writing a checkout whole or not at all.

Files go into a fresh directory beside the target, which only then takes the target's name. Every component is opened
relative to the one above it and never through a link, so a directory that somebody swaps for a link leads nowhere.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rblstore.checkpoints.new_file import NewFile, NoSpaceError, writing
from rblstore.checkpoints.open_beneath import DIRECTORY_FLAGS, open_directory
from rblstore.errors import ConflictError, CorruptError, InputError
from rblstore.objects.ids import ContentId
from rblstore.objects.paths import check_path

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CONTENT: Final = "content"
_NAME_BYTES: Final = 60
_MARK: Final = ".rbl-tmp-"
_TEMPORARY: Final = re.compile(rf"\.[^/]{{0,{_NAME_BYTES}}}{re.escape(_MARK)}[0-9a-f]{{16}}")
_OCCUPIED: Final = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class TargetNotEmptyError(ConflictError):
    """The directory to write has something in it, or is no directory."""

    code = "target_not_empty"


class ContentMismatchError(CorruptError):
    """The bytes that came out of the store are not those that the record names."""

    code = "content_mismatch"


def mismatch(path: str) -> ContentMismatchError:
    """The error for a file whose bytes are not those that were stored."""
    return ContentMismatchError(
        f"{path} came out of the store with other bytes than were stored",
        object=path,
        hint="Run rbl fsck --full to see what is damaged.",
    )


def temporary_name(name: str) -> str:
    """A name that nobody has for the fresh directory beside a target, from the target's name."""
    # Cut by bytes: a name of 255 may be all that the file system takes.
    start = os.fsencode(name)[:_NAME_BYTES].decode("utf-8", "ignore")
    return f".{start}{_MARK}{secrets.token_hex(8)}"


def is_temporary_name(name: str) -> bool:
    """Whether a directory's name is one that :func:`temporary_name` makes."""
    return _TEMPORARY.fullmatch(name) is not None


class DirectoryWriter:
    """Writes a directory that appears under its name only when it is complete.

    A context manager: leaving it without :meth:`commit` removes what was written.

    Args:
        target: The directory to be. It must not exist or be empty; the directory above it must exist.
        durable: Whether everything is synced to disk before it takes its name.
        announce: Is told the absolute path of the fresh directory before that is made, so that somebody can find what
            is left of it where this process dies.

    Raises:
        TargetNotEmptyError: The target holds something, or is a file, a link or the current directory.
        InputError: There is no directory above it.
        CheckoutWriteError: The system refused.
    """

    def __init__(self, target: Path, *, durable: bool = False, announce: Callable[[Path], None] | None = None) -> None:
        self._target = target
        self._durable = durable
        self._name = target.name
        self._made: list[tuple[str, ...]] = []
        self._folders: dict[tuple[str, ...], None] = {}
        self._being_written: list[NewFile] = []
        self._open = False
        try:
            self._check_target()
        except (OSError, ValueError) as error:
            raise InputError(f"{target!s:.200} cannot be a directory: {error}", object=str(target)[:200]) from error
        self._temporary = temporary_name(self._name)
        self._descriptors = [self._open_parent()]
        self._open = True
        try:
            with writing(str(target)):
                if announce is not None:
                    announce(Path(os.path.realpath(target.parent), self._temporary))
                # Nobody else may reach the outer folder; the inner one gets the mode that the user's mask gives.
                self._outer = self._new_folder(self._temporary, 0o700)
                with suppress(OSError):  # says that it is in use, where the file system can: nothing removes it then
                    fcntl.flock(self._outer, fcntl.LOCK_SH | fcntl.LOCK_NB)
                self._root = self._new_folder(_CONTENT, 0o777)
        except BaseException:
            self._close()
            raise

    @property
    def _parent(self) -> int:
        return self._descriptors[0]

    def _new_folder(self, name: str, mode: int) -> int:
        above = self._descriptors[-1]
        os.mkdir(name, mode, dir_fd=above)
        self._descriptors.append(os.open(name, DIRECTORY_FLAGS, dir_fd=above))
        return self._descriptors[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _not_empty(self, why: str) -> TargetNotEmptyError:
        return TargetNotEmptyError(
            f"{self._target} {why}",
            object=str(self._target),
            hint="Give a directory that does not exist yet, or an empty one.",
        )

    def _check_target(self) -> None:
        if self._name in ("", "..") or (self._target.exists() and self._target.samefile(Path())):
            raise self._not_empty("is the current directory or one above it")
        try:
            status = self._target.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(status.st_mode):
            raise self._not_empty("exists and is not a directory")
        with os.scandir(self._target) as entries:
            if next(entries, None) is not None:
                raise self._not_empty("is not empty")

    def _open_parent(self) -> int:
        try:
            return os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            parent = str(self._target.parent)
            raise InputError(
                f"the directory {parent} cannot be opened: {error.strerror or error}",
                object=parent,
                hint="Make it first: mkdir -p",
            ) from error

    def require_space(self, size: int) -> None:
        """Refuses to begin what the disk cannot hold.

        Args:
            size: Bytes that will be written.

        Raises:
            NoSpaceError: Less is free.
        """
        with writing(str(self._target)):
            status = os.fstatvfs(self._root)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise NoSpaceError(
                f"{self._target} needs {size:,} bytes, but {free:,} are free",
                object=str(self._target),
                hint="Free some space or check out on another disk; nothing was changed.",
            )

    def new_file(self, path: str, size: int) -> NewFile:
        """Begins one new file, all zeros, whose bytes may come in any order.

        Args:
            path: Relative, with forward slashes.
            size: Bytes that it will have.

        Raises:
            InputError: The path could not be written everywhere.
            CheckoutWriteError: The system refused, or a file of that name was written before.
        """
        components = tuple(check_path(path).split("/"))
        with writing(path):
            folder = open_directory(self._root, components[:-1], make=True)
            for end in range(1, len(components)):
                self._folders.setdefault(components[:end])
            try:
                descriptor = os.open(components[-1], _CREATE, 0o666, dir_fd=folder)
            finally:
                os.close(folder)
        self._made.append(components)
        file = NewFile(path, descriptor, size, durable=self._durable)
        self._being_written.append(file)
        return file

    def write_file(
        self, path: str, chunks: Iterable[bytes | bytearray | memoryview], sha256: ContentId | None, size: int
    ) -> ContentId:
        """Writes one new file in order and checks that it is what it should be.

        Args:
            path: Relative, with forward slashes.
            chunks: Its bytes.
            sha256: Digest that they must have, or None for bytes that nobody has seen before.
            size: Their number.

        Returns:
            Their digest.

        Raises:
            ContentMismatchError: Other bytes came.
            InputError: The path could not be written everywhere.
            NoSpaceError: The disk is full.
            CheckoutWriteError: The system refused, or a file of that name was written before.
        """
        file = self.new_file(path, size)
        digest = hashlib.sha256()
        written = 0
        for chunk in chunks:
            view = memoryview(chunk)
            if view.nbytes == 0:
                continue
            view = view.cast("B")
            if written + len(view) > size:
                raise mismatch(path)
            digest.update(view)
            file.write_at(view, written)
            written += len(view)
        found = ContentId(digest.hexdigest())
        if written != size:
            raise mismatch(path)
        self.finish_file(file, found, sha256)
        return found

    def finish_file(self, file: NewFile, found: ContentId, sha256: ContentId | None) -> None:
        """Ends a file, all of whose bytes were written.

        Args:
            file: Which.
            found: The digest of the bytes that were written.
            sha256: What it must be, or None for bytes that nobody has seen before.

        Raises:
            ContentMismatchError: Other bytes came.
            CheckoutWriteError: The system refused.
        """
        self._being_written.remove(file)
        file.close()
        if sha256 is not None and found != sha256:
            raise mismatch(file.path)

    def commit(self) -> None:
        """Gives the directory its name, in one step.

        Raises:
            TargetNotEmptyError: Something came to be there meanwhile; it stays, and what was written goes.
            CheckoutWriteError: The system refused.
        """
        if self._durable:
            self._sync_folders()
        with suppress(OSError):  # an empty directory that the user made gives its mode to what replaces it
            os.fchmod(self._root, stat.S_IMODE(os.stat(self._name, dir_fd=self._parent, follow_symlinks=False).st_mode))
        with writing(str(self._target)):
            if not os.path.samestat(os.fstat(self._root), os.stat(_CONTENT, dir_fd=self._outer, follow_symlinks=False)):
                raise OSError(errno.ESTALE, "somebody put something else in its place")
            try:
                os.rename(_CONTENT, self._name, src_dir_fd=self._outer, dst_dir_fd=self._parent)
            except OSError as error:
                if error.errno in _OCCUPIED:
                    raise self._not_empty("is no longer empty") from error
                raise
        # It has its name now: nothing of it is ours to remove any more, whatever fails next.
        self._made.clear()
        self._folders.clear()
        try:
            if self._durable:
                with writing(str(self._target)):
                    os.fsync(self._parent)
        finally:
            self._close()

    def _sync_folders(self) -> None:
        for components in (*self._folders, ()):
            with writing("/".join(components) or str(self._target)):
                descriptor = open_directory(self._root, components)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def abort(self) -> None:
        """Removes what was written, and nothing else; does nothing after a commit or another abort."""
        if not self._open:
            return
        for file in self._being_written:
            file.abandon()
        self._being_written.clear()
        for components in reversed(self._made):
            self._remove(components, os.unlink)
        for components in sorted(self._folders, key=len, reverse=True):
            self._remove(components, os.rmdir)
        self._made.clear()
        self._folders.clear()
        with suppress(OSError):
            os.rmdir(_CONTENT, dir_fd=self._outer)
        self._close()

    def _remove(self, components: tuple[str, ...], remove: Callable[..., None]) -> None:
        with suppress(OSError):  # whatever somebody else changed there stays
            folder = open_directory(self._root, components[:-1])
            try:
                remove(components[-1], dir_fd=folder)
            finally:
                os.close(folder)

    def _close(self) -> None:
        self._open = False
        with suppress(OSError):
            os.rmdir(self._temporary, dir_fd=self._parent)
        for descriptor in reversed(self._descriptors):
            os.close(descriptor)
