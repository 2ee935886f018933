"""Writing a checkout whole or not at all, and comparing one with what was written.

Files go into a fresh directory beside the target, which only then takes the target's name. Every component is opened
relative to the one above it and never through a link, so a directory that somebody swaps for a link leads nowhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from typing_extensions import Self

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutManifest
from rblstore.checkpoints.open_beneath import DIRECTORY_FLAGS, open_directory, open_regular
from rblstore.checkpoints.source_directory import is_excluded
from rblstore.errors import ConflictError, CorruptError, InputError, RblError
from rblstore.objects.ids import ContentId
from rblstore.objects.paths import check_path

DifferenceKind = Literal["added", "changed", "missing"]

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CONTENT: Final = "content"
_CHUNK: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_OCCUPIED: Final = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class TargetNotEmptyError(ConflictError):
    """The directory to write has something in it, or is no directory."""

    code = "target_not_empty"


class NoSpaceError(RblError):
    """The disk, or the user's share of it, is full or would be."""

    code = "no_space"


class CheckoutWriteError(RblError):
    """The system refused to create, write or rename something."""

    code = "write_failed"


class ContentMismatchError(CorruptError):
    """The bytes that came out of the store are not those that the record names."""

    code = "content_mismatch"


@dataclass(frozen=True)
class Difference:
    """One file of a checkout that is not as it was written.

    Attributes:
        path: Relative to the checkout.
        kind: ``missing``, ``changed`` or ``added``.
    """

    path: str
    kind: DifferenceKind


@contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpaceError(
                f"no space was left while writing {what}",
                object=what,
                hint="Free some space and try again; nothing was changed.",
            ) from error
        raise CheckoutWriteError(
            f"{what} could not be written: {error.strerror or error}",
            object=what,
            hint="Check permissions and the disk, then try again; nothing was changed.",
        ) from error


class DirectoryWriter:
    """Writes a directory that appears under its name only when it is complete.

    A context manager: leaving it without :meth:`commit` removes what was written.

    Args:
        target: The directory to be. It must not exist or be empty; the directory above it must exist.
        durable: Whether everything is synced to disk before it takes its name.

    Raises:
        TargetNotEmptyError: The target holds something, or is a file, a link or the current directory.
        InputError: There is no directory above it.
        CheckoutWriteError: The system refused.
    """

    def __init__(self, target: Path, *, durable: bool = False) -> None:
        self._target = target
        self._durable = durable
        self._name = target.name
        self._made: list[tuple[str, ...]] = []
        self._folders: dict[tuple[str, ...], None] = {}
        self._open = False
        try:
            self._check_target()
        except (OSError, ValueError) as error:
            raise InputError(f"{target!s:.200} cannot be a directory: {error}", object=str(target)[:200]) from error
        self._temporary = f".{self._name[:60]}.rbl-tmp-{secrets.token_hex(8)}"
        self._descriptors = [self._open_parent()]
        self._open = True
        try:
            with _writing(str(target)):
                # Nobody else may reach the outer folder; the inner one gets the mode that the user's mask gives.
                self._outer = self._new_folder(self._temporary, 0o700)
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
        with _writing(str(self._target)):
            status = os.fstatvfs(self._root)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise NoSpaceError(
                f"{self._target} needs {size:,} bytes, but {free:,} are free",
                object=str(self._target),
                hint="Free some space or check out on another disk; nothing was changed.",
            )

    def write_file(
        self, path: str, chunks: Iterable[bytes | bytearray | memoryview], sha256: ContentId | None, size: int
    ) -> ContentId:
        """Writes one new file and checks that it is what it should be.

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
        components = tuple(check_path(path).split("/"))
        with _writing(path):
            folder = open_directory(self._root, components[:-1], make=True)
            for end in range(1, len(components)):
                self._folders.setdefault(components[:end])
            try:
                descriptor = os.open(components[-1], _CREATE, 0o666, dir_fd=folder)
            finally:
                os.close(folder)
        self._made.append(components)
        try:
            digest, written = self._copy(path, descriptor, chunks, size)
            if self._durable:
                with _writing(path):
                    os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if written != size or (sha256 is not None and digest != sha256):
            raise self._mismatch(path)
        return ContentId(digest)

    def _mismatch(self, path: str) -> ContentMismatchError:
        return ContentMismatchError(
            f"{path} came out of the store with other bytes than were stored",
            object=path,
            hint="Run rbl fsck --full to see what is damaged.",
        )

    def _copy(
        self, path: str, descriptor: int, chunks: Iterable[bytes | bytearray | memoryview], size: int
    ) -> tuple[str, int]:
        digest = hashlib.sha256()
        written = 0
        for chunk in chunks:
            view = memoryview(chunk)
            if view.nbytes == 0:
                continue
            view = view.cast("B")
            if written + len(view) > size:
                raise self._mismatch(path)
            digest.update(view)
            written += len(view)
            with _writing(path):
                while view:
                    view = view[os.write(descriptor, view) :]
        return digest.hexdigest(), written

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
        with _writing(str(self._target)):
            if not os.path.samestat(os.fstat(self._root), os.stat(_CONTENT, dir_fd=self._outer, follow_symlinks=False)):
                raise OSError(errno.ESTALE, "somebody put something else in its place")
            try:
                os.rename(_CONTENT, self._name, src_dir_fd=self._outer, dst_dir_fd=self._parent)
            except OSError as error:
                if error.errno in _OCCUPIED:
                    raise self._not_empty("is no longer empty") from error
                raise
            if self._durable:
                os.fsync(self._parent)
        self._made.clear()
        self._folders.clear()
        self._close()

    def _sync_folders(self) -> None:
        for components in (*self._folders, ()):
            with _writing("/".join(components) or str(self._target)):
                descriptor = open_directory(self._root, components)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def abort(self) -> None:
        """Removes what was written, and nothing else; does nothing after a commit or another abort."""
        if not self._open:
            return
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


def _is_same(root: int, path: str, sha256: str, size: int) -> bool | None:
    """Whether a file has that content; None where nothing is there."""
    try:
        descriptor = open_regular(root, path.split("/"))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EIO, errno.EMFILE):
            raise InputError(f"{path} could not be read: {error.strerror}", object=path) from error
        return False  # a link, a folder or something special lies in its place
    try:
        if os.fstat(descriptor).st_size != size:
            return False
        digest = hashlib.sha256()
        while data := os.read(descriptor, _CHUNK):
            digest.update(data)
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}", object=path) from error
    finally:
        os.close(descriptor)
    return digest.hexdigest() == sha256


def _walk(root: int) -> Iterator[str]:
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        components = waiting.pop()
        descriptor = open_directory(root, components)
        try:
            with os.scandir(descriptor) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((*components, entry.name))
                    else:
                        yield "/".join((*components, entry.name))
        finally:
            os.close(descriptor)


def compare_directory(target: Path, manifest: CheckoutManifest) -> list[Difference]:
    """Compares a checkout's files with what was written, digest by digest; links are differences, never followed.

    Args:
        target: The checkout.
        manifest: What its ``rbl-composition.json`` says.

    Returns:
        Sorted by path; none where it is as it was. Version control and cache folders do not count as added.

    Raises:
        InputError: The directory or a file in it cannot be read.
    """
    found: list[Difference] = []
    known = {file.path for file in manifest.files} | {MANIFEST_FILE}
    try:
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{target} cannot be opened: {error.strerror or error}", object=str(target)) from error
    try:
        for file in manifest.files:
            same = _is_same(root, file.path, file.sha256, file.size)
            if same is None:
                found.append(Difference(file.path, "missing"))
            elif not same:
                found.append(Difference(file.path, "changed"))
        added = (path for path in _walk(root) if path not in known and not is_excluded(path))
        found.extend(Difference(path, "added") for path in added)
    except OSError as error:
        raise InputError(f"{target} could not be read: {error.strerror or error}", object=str(target)) from error
    finally:
        os.close(root)
    return sorted(found, key=lambda difference: difference.path)
