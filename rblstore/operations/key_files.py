"""Reading keys, certificates, passwords and tokens from files, under their caps; what they hold is in no message."""

from __future__ import annotations

from pathlib import Path

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.paths import given_path


def given_pem(given: bytes | str | Path | None, what: str) -> bytes | None:
    """What was given as bytes, or as the path of a file that holds them.

    Args:
        given: Bytes as they are; else a path; None for nothing.
        what: What it is, for messages ("private key").

    Raises:
        InputError: There is no such file, it is too large, or the system refuses.
    """
    if given is None or isinstance(given, bytes):
        return given
    return read_key_file(given_path(given), what)


def read_key_file(path: Path, what: str) -> bytes:
    """A small file's bytes.

    Args:
        path: The file.
        what: What it holds, for messages.

    Raises:
        InputError: There is no such file, it is too large, or the system refuses.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limits.KEY_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"the file of the {what} cannot be read: {path}: {error.strerror}", object=str(path), hint="Check its name."
        ) from error
    if len(data) > limits.KEY_BYTES:
        raise InputError(
            f"the file of the {what} is larger than the {limits.KEY_BYTES} bytes allowed: {path}",
            object=str(path),
            hint="Check its name: a key takes a few hundred bytes.",
        )
    return data


def read_password_file(path: Path) -> bytes:
    """The first line of a file, without its end.

    Args:
        path: The file.

    Raises:
        InputError: There is no such file, it is too large, or the system refuses.
    """
    return read_key_file(path, "password").split(b"\n", 1)[0].rstrip(b"\r")
