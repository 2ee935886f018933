"""Where a repository is, and whether it may be opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from rblstore.configuration import MAX_BYTES, Configuration, parse_configuration
from rblstore.errors import InputError, NoRepositoryError
from rblstore.storage.backend import ReadError

FOLDER: Final = ".rbl"
FORMAT: Final = b"rblstore 1\n"

# What decides what a repository says, and so whose it is.
_OWNED: Final = ("", "format", "config.toml", "catalog.db", "refs.log")
# O_NONBLOCK: a pipe in the place of a file must not hang whoever opens it.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Answers about what is there and whose it is. Any other says only that the system could not look.
_ANSWERS: Final = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.ENAMETOOLONG,
    errno.EACCES, errno.EPERM,
)  # fmt: skip


class ForeignRepositoryError(NoRepositoryError):
    """The repository belongs to another user of this system."""

    code = "foreign_owner"


def discover(start: Path) -> Path:
    """The nearest folder at or above ``start`` that holds a repository.

    Raises:
        NoRepositoryError: There is none up to the root, or the nearest cannot be looked into.
        ReadError: The system could not look.
    """
    start = start.absolute()
    if start.name == FOLDER and _has_format(start):
        return start.parent
    for folder in (start, *start.parents):
        if _has_format(folder / FOLDER):
            return folder
    damaged = _damaged(start)
    if damaged is not None:
        raise NoRepositoryError(
            f"{damaged / FOLDER} holds a repository that has no format file",
            object=str(damaged),
            hint="To have it written anew: rbl repair",
        )
    raise NoRepositoryError(
        f"{start} is not in an rblstore repository", object=str(start), hint="Make one with: rbl init"
    )


def _unread(what: str, path: Path, error: OSError) -> ReadError:
    return ReadError(
        f"{what} cannot be read: {error.strerror or error}",
        object=str(path),
        hint="Check the disk, then run the command again; nothing was changed.",
    )


def _has_format(folder: Path) -> bool:
    try:
        return (folder / "format").is_file()
    except OSError as error:
        if error.errno not in _ANSWERS:
            raise _unread("the format file", folder / "format", error) from error
        raise NoRepositoryError(
            f"{folder} cannot be looked into: {error.strerror or error}",
            object=str(folder),
            hint="Check its owner and permissions.",
        ) from error


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The first bytes of a small file of a repository: one more than allowed where it is larger.

    Raises:
        OSError: It cannot be read, or is no regular file (a link, a pipe, a device).
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return stream.read(max_bytes + 1)


def discover_damaged(start: Path) -> Path:
    """The nearest folder that holds a repository, or one whose format file is lost: it still has packs or a log.

    Raises:
        NoRepositoryError: There is none up to the root.
    """
    return _damaged(start.absolute()) or discover(start)  # which says that there is none


def _damaged(start: Path) -> Path | None:
    for folder in (start.parent if start.name == FOLDER else start, *start.parents):
        inside = folder / FOLDER
        try:
            if (inside / "format").exists() or any((inside / "packs").glob("??/*.pack")):
                return folder
            if (inside / "refs.log").stat().st_size > 0:
                return folder
        except OSError:
            continue
    return None


def check_format(folder: Path) -> None:
    """Refuses a folder that is not a repository of the format this version reads.

    Raises:
        NoRepositoryError: It is not.
        ReadError: The system could not read what says so.
    """
    try:
        found = read_regular(folder / "format", 64)
    except OSError as error:
        if error.errno not in _ANSWERS:
            raise _unread("the format file", folder / "format", error) from error
        raise NoRepositoryError(
            f"{folder} has no readable format file ({error.strerror})",
            object=str(folder),
            hint="Check its permissions; what is damaged, rbl repair writes anew.",
        ) from error
    if found != FORMAT:
        raise NoRepositoryError(
            f"{folder} has the format {found[:40].decode('ascii', 'backslashreplace').strip()!r}, "
            "which this version does not read",
            object=str(folder),
            hint="Open it with the version that wrote it, or a newer one.",
        )


def check_owner(folder: Path, *, allow_foreign: bool) -> None:
    """Refuses a repository of another user, unless it is allowed; also where only a part of it is another's.

    Raises:
        ForeignRepositoryError: It is another user's.
    """
    if allow_foreign or not hasattr(os, "geteuid"):
        return
    for name in _OWNED:
        path = folder / name
        # A link and what it leads to: whoever made either decides what is opened.
        for follow in (False, True):
            try:
                owner = path.stat(follow_symlinks=follow).st_uid
            except OSError:
                continue  # what is missing or unreadable is an error of whoever opens it
            if owner not in (os.geteuid(), 0):
                raise ForeignRepositoryError(
                    f"{path} belongs to another user (uid {owner}{_name_of(owner)})",
                    object=str(path),
                    hint="If you trust it: rbl --allow-foreign COMMAND, or rblstore.open(..., allow_foreign=True).",
                )


def _name_of(owner: int) -> str:
    import pwd

    try:
        return f", {pwd.getpwuid(owner).pw_name}"
    except KeyError:
        return ""


def read_configuration(folder: Path) -> Configuration:
    """The settings of a repository.

    Raises:
        InputError: They cannot be read, or break their rules.
        ReadError: The system could not read them.
    """
    try:
        return parse_configuration(read_regular(folder / "config.toml", MAX_BYTES))
    except FileNotFoundError:
        return Configuration()
    except OSError as error:
        if error.errno not in _ANSWERS:
            raise _unread("config.toml", folder / "config.toml", error) from error
        raise InputError(
            f"config.toml cannot be read: {error.strerror}",
            object=str(folder / "config.toml"),
            hint="Mend or delete .rbl/config.toml.",
        ) from error
