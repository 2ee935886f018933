"""Folders for files that live only as long as an operation, and notes of those that it makes outside the repository.

All of them are claimed (:mod:`rblstore.storage.liveness`) while they are in use; what dead processes leave of them is
found by :mod:`rblstore.operations.leftovers`.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from rblstore.errors import RblError
from rblstore.repository import Store
from rblstore.storage.durable import StagedFile
from rblstore.storage.liveness import CLAIM_ATTEMPTS, claim

NOTE_SUFFIX: Final = ".checkout"
"""How the names of notes in ``tmp/`` end. A note's bytes are the absolute path of a folder."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class NoScratchError(RblError):
    """The system gives no room for temporary files."""

    code = "no_scratch"


@contextmanager
def scratch(store: Store, purpose: str) -> Iterator[Path]:
    """A folder that goes away afterwards; where the system refuses that, gc collects it.

    It lies in the repository, on whose disk models fit; where that can only be read, or cannot lock folders, among the
    system's temporary files.

    Args:
        store: The repository.
        purpose: A word for the folder's name.

    Raises:
        NoScratchError: None can be made.
    """
    with scratch_in(store.folder / "tmp", purpose) as folder:
        yield folder


@contextmanager
def scratch_in(temporary: Path, purpose: str) -> Iterator[Path]:
    """The same, of a repository that is not open, whose ``tmp/`` is given."""
    prefix = f"rbl-{purpose}-"
    with ExitStack() as stack:
        try:
            folder = _claimed(stack, temporary, prefix)
            if folder is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True))
        except OSError as error:
            raise NoScratchError(
                f"no temporary folder could be made: {error.strerror or error}",
                object=str(temporary),
                hint="Check free space and permissions.",
            ) from error
        yield Path(folder)


def _claimed(stack: ExitStack, temporary: Path, prefix: str) -> str | None:
    """A new folder in ``tmp/`` that is claimed until the stack unwinds; None where that can only be read."""
    for _ in range(CLAIM_ATTEMPTS):
        try:
            made = tempfile.TemporaryDirectory(prefix=prefix, dir=temporary, ignore_cleanup_errors=True)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            return None
        with ExitStack() as undo:
            try:
                descriptor = os.open(made.name, _FOLDER)
            except OSError as error:
                made.cleanup()
                if error.errno != errno.ENOENT:
                    raise
                continue  # a collector was faster
            undo.callback(os.close, descriptor)
            undo.callback(made.cleanup)
            try:
                if not claim(descriptor, Path(made.name)):
                    continue
            except OSError:
                return None
            stack.push(undo.pop_all())
            return made.name
    return None


@contextmanager
def checkout_note(store: Store) -> Iterator[Callable[[Path], None]]:
    """Lets a checkout write down where its fresh directory will be, so that it is found if this process dies.

    A repository that can only be read, or is full, is checked out without a note.

    Args:
        store: The repository.

    Yields:
        What is to be called with the directory's absolute path before that is made. The note goes away afterwards,
        unless the directory is still there.
    """
    with ExitStack() as stack:

        def announce(folder: Path) -> None:
            with suppress(RblError):
                note = StagedFile(store.folder / "tmp", NOTE_SUFFIX)
                stack.callback(_forget, note, folder)
                note.write(os.fsencode(folder))

        yield announce


def _forget(note: StagedFile, folder: Path) -> None:
    if os.path.lexists(folder):
        note.leave()
    else:
        note.discard()
