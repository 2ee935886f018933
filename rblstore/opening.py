"""Where a repository is, and whether it may be opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from rblstore.errors import NoRepositoryError

FOLDER: Final = ".rbl"
FORMAT: Final = b"rblstore 1\n"


class ForeignRepositoryError(NoRepositoryError):
    """The repository belongs to another user of this system."""

    code = "foreign_owner"


def discover(start: Path) -> Path:
    """The nearest folder at or above ``start`` that holds a repository.

    Raises:
        NoRepositoryError: There is none up to the root.
    """
    start = start.absolute()
    if start.name == FOLDER and (start / "format").is_file():
        return start.parent
    for folder in (start, *start.parents):
        if (folder / FOLDER / "format").is_file():
            return folder
    raise NoRepositoryError(
        f"{start} is not in an rblstore repository", object=str(start), hint="Make one with: rbl init"
    )


def check_format(folder: Path) -> None:
    """Refuses a folder that is not a repository of the format this version reads.

    Raises:
        NoRepositoryError: It is not.
    """
    try:
        with (folder / "format").open("rb") as stream:
            found = stream.read(64)
    except OSError as error:
        raise NoRepositoryError(
            f"{folder} has no readable format file ({error.strerror})",
            object=str(folder),
            hint="Check its permissions, or make a repository with: rbl init",
        ) from error
    if found != FORMAT:
        raise NoRepositoryError(
            f"{folder} has the format {found[:40].decode('ascii', 'backslashreplace').strip()!r}, "
            "which this version does not read",
            object=str(folder),
            hint="Open it with the version that wrote it, or a newer one.",
        )


def check_owner(folder: Path, *, allow_foreign: bool) -> None:
    """Refuses a repository of another user, unless it is allowed.

    Raises:
        ForeignRepositoryError: It is another user's.
    """
    if allow_foreign or not hasattr(os, "geteuid"):
        return
    owner = folder.stat().st_uid
    if owner not in (os.geteuid(), 0):
        raise ForeignRepositoryError(
            f"{folder} belongs to another user (uid {owner})",
            object=str(folder),
            hint="If you trust it: rbl --allow-foreign COMMAND, or rblstore.open(..., allow_foreign=True).",
        )
