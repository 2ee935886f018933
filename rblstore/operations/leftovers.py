"""What dead processes left behind: files and folders in ``.rbl/tmp``, and fresh directories beside checkouts.

A thing is left over when nobody holds a lock of it (:mod:`rblstore.storage.liveness`); ages and process ids are not
asked. That is safe beside everybody at work, also those who load or check out without the repository's lock. Names that
a note in ``tmp/`` gives are as hostile as the repository: a directory elsewhere is touched only if it is a real one of
this user, is called as checkouts call theirs, and nobody holds a lock of it or of the note.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rblstore.checkpoints.checkout_writer import is_temporary_name
from rblstore.checkpoints.open_beneath import open_directory
from rblstore.objects import limits
from rblstore.operations.scratch import NOTE_SUFFIX
from rblstore.repository import Store
from rblstore.storage.liveness import take_dead

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOTE_BYTES: Final = 4 * limits.PATH_BYTES
_DEPTH: Final = limits.PATH_BYTES // 2 + 2  # the folders of the longest path, and those that it is written in
_BLOCK: Final = 512  # of st_blocks, whatever the file system's own are


@dataclass(frozen=True)
class Leftover:
    """Something that a dead process left behind.

    Attributes:
        path: Where.
        bytes: What removing it frees.
        why: What it was, in words.
    """

    path: Path
    bytes: int
    why: str


def leftovers(store: Store) -> tuple[Leftover, ...]:
    """What dead processes left behind, by path; changes nothing."""
    return leftovers_in(store.folder / "tmp")


def leftovers_in(temporary: Path) -> tuple[Leftover, ...]:
    """The same, of a repository that may not open, whose ``tmp/`` is given."""
    return tuple(_each(temporary, remove=False))


def remove_leftovers(store: Store) -> tuple[Leftover, ...]:
    """Removes what dead processes left behind, and returns what was removed.

    What the system does not let go (another user's, a full path of it in use as a mount point) stays and is not
    returned; an interrupted removal is taken up by the next one.
    """
    return tuple(_each(store.folder / "tmp", remove=True))


def _each(temporary: Path, *, remove: bool) -> Iterator[Leftover]:
    try:
        folder = os.open(temporary, _FOLDER)
    except OSError:
        return
    try:
        for name in sorted(_names(folder)):
            with take_dead(name, folder) as descriptor:
                if descriptor is None:
                    continue
                path = temporary / name
                if name.endswith(NOTE_SUFFIX) and stat.S_ISREG(os.fstat(descriptor).st_mode):
                    yield from _noted(path, folder, descriptor, remove=remove)
                else:
                    yield from _collected(path, folder, descriptor, "a file or folder in use no more", remove=remove)
    finally:
        os.close(folder)


def _noted(path: Path, folder: int, descriptor: int, *, remove: bool) -> Iterator[Leftover]:
    """The directory that a note names, and then the note; neither while the directory may be found another time."""
    directory = _directory_in(descriptor)
    if directory is not None:
        try:
            parent = os.open(directory.parent, _PARENT)
        except (FileNotFoundError, NotADirectoryError):
            pass  # it went with the directory that it lay in
        except OSError:
            return
        else:
            try:
                if _is_ours(directory.name, parent):
                    with take_dead(directory.name, parent) as found:
                        if found is None:
                            return
                        why = "a checkout that did not end"
                        collected = tuple(_collected(directory, parent, found, why, remove=remove))
                    yield from collected
                    if not collected:
                        return
            finally:
                os.close(parent)
    yield from _collected(path, folder, descriptor, "a note of a checkout in use no more", remove=remove)


def _directory_in(descriptor: int) -> Path | None:
    """What a note names; None where that is no directory that a checkout could have made."""
    data = os.pread(descriptor, _NOTE_BYTES + 1, 0)
    if len(data) > _NOTE_BYTES or b"\0" in data or not data.startswith(b"/"):
        return None
    directory = Path(os.fsdecode(data))
    return directory if is_temporary_name(directory.name) else None


def _is_ours(name: str, parent: int) -> bool:
    """Whether a name is that of a real directory of this user."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _collected(path: Path, folder: int, descriptor: int, why: str, *, remove: bool) -> Iterator[Leftover]:
    """One thing whose lock is held; nothing where the system does not let it go.

    Args:
        path: Where it is.
        folder: Descriptor of the folder that it lies in.
        descriptor: Its own.
        why: What it was.
        remove: Whether it goes.
    """
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            size = _emptied(descriptor, status.st_dev, remove=remove)
            if remove:
                os.rmdir(path.name, dir_fd=folder)
        else:
            size = _taken_by(status)
            if remove:
                os.unlink(path.name, dir_fd=folder)
    except OSError:
        return
    yield Leftover(path, size, why)


def _taken_by(status: os.stat_result) -> int:
    """Bytes of a file, without the holes in it."""
    return min(status.st_size, status.st_blocks * _BLOCK)


def _emptied(root: int, device: int, *, remove: bool) -> int:
    """Bytes of everything in a folder, which is removed or stays; links are not followed.

    Raises:
        OSError: The system refused, or another file system is mounted in it.
    """
    size = 0
    folders: list[tuple[str, ...]] = []
    pending: list[tuple[str, ...]] = [()]
    while pending:
        components = pending.pop()
        folders.append(components)
        with _opened(root, components) as folder:
            for name in _names(folder):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if status.st_dev != device or len(components) > _DEPTH:
                        raise OSError(errno.EXDEV, "this is not what an operation makes")
                    pending.append((*components, name))
                    continue
                size += _taken_by(status)
                if remove:
                    os.unlink(name, dir_fd=folder)
    # Every folder comes after the one that it lies in.
    for components in reversed(folders[1:] if remove else ()):
        with _opened(root, components[:-1]) as folder:
            os.rmdir(components[-1], dir_fd=folder)
    return size


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


@contextmanager
def _opened(root: int, components: tuple[str, ...]) -> Iterator[int]:
    descriptor = open_directory(root, components)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
