"""Folders for files that live only as long as an operation."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rblstore.errors import RblError
from rblstore.repository import Store

_NOT_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class NoScratchError(RblError):
    """The system gives no room for temporary files."""

    code = "no_scratch"


@contextmanager
def scratch(store: Store, purpose: str) -> Iterator[Path]:
    """A folder that goes away afterwards.

    It lies in the repository, on whose disk models fit; where that can only be read, among the system's temporary
    files.

    Args:
        store: The repository.
        purpose: A word for the folder's name.

    Raises:
        NoScratchError: None can be made.
    """
    prefix = f"rbl-{purpose}-"
    try:
        try:
            folder = tempfile.TemporaryDirectory(prefix=prefix, dir=store.folder / "tmp")
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            folder = tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as error:
        raise NoScratchError(
            f"no temporary folder could be made: {error.strerror or error}",
            object=str(store.folder / "tmp"),
            hint="Check free space and permissions.",
        ) from error
    with folder as path:
        yield Path(path)
