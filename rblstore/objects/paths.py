"""The one validator for names that become paths, by POSIX and Windows rules everywhere."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rblstore.errors import InputError, UsageError
from rblstore.objects import limits

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\/]')
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*")


def _shown(path: str) -> str:
    # A terminal must not be steered by a name: escape what it would not print.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path[:200])


def _refuse(path: str, why: str) -> InputError:
    shown = _shown(path)
    return InputError(f"the path '{shown}' {why}", object=shown, hint="Rename the file and try again.")


def check_component(component: str, path: str) -> None:
    """Refuses one component of a path that some file system would read as something else.

    Raises:
        InputError: Empty, dots, a separator, a control or format character, a reserved name, too long.
    """
    if component in ("", ".", ".."):
        raise _refuse(path, "has an empty or dot component")
    if _FORBIDDEN.search(component):
        raise _refuse(path, "has a character that is not allowed in file names everywhere")
    odd = "" if component.isascii() else component
    if any(unicodedata.category(character) in ("Cf", "Cs", "Zl", "Zp") for character in odd):
        raise _refuse(path, "has an invisible character")
    if component[-1] in ". " or component[0] == " ":
        raise _refuse(path, "has a component that begins or ends with a space, or ends with a dot")
    if _RESERVED.fullmatch(component):
        raise _refuse(path, "has a name that Windows reserves")
    if component.casefold() in (".rbl", ".git") or re.fullmatch(r"(rbl|git)~[0-9]+", component, re.IGNORECASE):
        raise _refuse(path, "lies in a repository's own folder")
    if len(component.encode("utf-8")) > limits.COMPONENT_BYTES:
        raise _refuse(path, f"has a component longer than {limits.COMPONENT_BYTES} bytes")


def check_path(path: str) -> str:
    """A relative path with forward slashes that stays inside its directory on every system, returned as it is.

    Raises:
        InputError: It would not.
    """
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _refuse(path, "is not valid Unicode") from error
    if len(encoded) > limits.PATH_BYTES:
        raise _refuse(path, f"is longer than {limits.PATH_BYTES} bytes")
    for component in path.split("/"):
        check_component(component, path)
    return path


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


@dataclass
class _Place:
    """A file or a folder among paths that were checked: how it was spelled, by which path, and what is in it."""

    spelled: str
    path: str
    inside: dict[str, _Place] | None


def check_paths(paths: Iterable[str]) -> None:
    """Checks each path, and that no two are one file, or one a folder of the other, on a case-folding file system.

    Raises:
        InputError: A path is refused or two collide.
    """
    top: dict[str, _Place] = {}
    for path in paths:
        inside = top
        spelled = check_path(path).split("/")
        for number, (component, key) in enumerate(zip(spelled, _folded(path).split("/"), strict=True), 1):
            is_file = number == len(spelled)
            place = inside.get(key)
            if place is None:
                place = inside[key] = _Place(component, path, None if is_file else {})
            elif is_file and place.inside is None:
                raise _refuse(path, f"collides with '{_shown(place.path)}' where case or accents are folded")
            elif is_file:
                raise _refuse(path, f"collides with the folder of '{_shown(place.path)}'")
            elif place.inside is None:
                raise _refuse(path, f"lies under '{_shown(place.path)}', which is a file")
            elif place.spelled != component:
                raise _refuse(path, f"spells a folder of '{_shown(place.path)}' in another way")
            if place.inside is not None:
                inside = place.inside


def given_path(path: str | Path) -> Path:
    """A path as somebody gave it, if any system could have a file of that name.

    Raises:
        UsageError: It is no path, or holds a NUL, by which systems end names.
    """
    if not isinstance(path, (str, os.PathLike)):  # the types say so; a notebook does not read them
        raise UsageError(f"a path is text or a Path, not a {type(path).__name__}", hint="Give a file or directory.")
    if "\0" in str(path):
        shown = _shown(str(path))
        raise UsageError(f"'{shown}' cannot be a path: it has a NUL in it", object=shown)
    return Path(path)


def check_name(name: str, what: str) -> str:
    """A behavior's or probe's name: ASCII letters, digits and ``._+-``, usable as a folder everywhere.

    Raises:
        UsageError: It is not one.
    """
    refused = not _NAME.fullmatch(name) or len(name) > limits.NAME_BYTES
    if not refused:
        try:
            check_component(name, name)
        except InputError:
            refused = True
    if refused:
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a {what}",
            object=name[:80],
            hint="Use letters, digits, '.', '_', '+' and '-', beginning with a letter or digit; at most "
            f"{limits.NAME_BYTES} of them, and none of the names that systems keep for themselves (CON, NUL, ...).",
        )
    return name


def check_ref_name(name: str, what: str) -> str:
    """A branch's or tag's name: components as in :func:`check_name`, joined by slashes.

    Raises:
        UsageError: It is not one, or could be read as another kind of revision.
    """
    refused = (
        not _REF.fullmatch(name)
        or len(name) > limits.NAME_BYTES
        or ".." in name
        or name.startswith("refs/")
        or name.endswith(".lock")
        or name.upper() in ("HEAD", "PROBE")
        or re.fullmatch(r"[0-9a-f]{64}", name) is not None
    )
    if not refused:
        try:
            check_path(name)
        except InputError:
            refused = True
    if refused:
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a {what}",
            object=name[:80],
            hint="Use letters, digits, '.', '_', '+', '-' and '/', beginning with a letter or digit. HEAD, PROBE, what "
            "begins with 'refs/' or ends in '.lock', ids, and names that systems keep for themselves are refused.",
        )
    return name
