"""The families of everything rblstore raises on purpose.

A family decides the exit code of the command line; the leaf classes live beside the code that raises them and
carry a stable ``code`` of their own (snake case, part of the ``--json`` contract). Every message says what happened,
to which object, and ``hint`` says what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class RblError(Exception):
    """Anything that rblstore refuses or fails to do.

    Args:
        message: What happened, to which object; one sentence.
        object: The object concerned (a ref, an id, a path, a tensor), or None.
        hint: What to do next, or None.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, object: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.object = object
        self.hint = hint


class InputError(RblError):
    """Something read from outside (a file, a record, a directory) breaks the rules for it."""

    code = "bad_input"


class UsageError(RblError):
    """The request itself is malformed."""

    exit_code = 2
    code = "usage"


class NotFoundError(RblError):
    """A ref, an id, a name or a file that the request names does not exist."""

    code = "not_found"


class NothingChangedError(RblError):
    """The request would record a state that is already recorded."""

    code = "nothing_changed"


class NoRepositoryError(RblError):
    """There is no repository here, or it is one that this version does not read."""

    exit_code = 3
    code = "no_repository"


class ConflictError(RblError):
    """The request contradicts the present state: a moved ref, a wrong base, a behavior that others stand on."""

    exit_code = 4
    code = "conflict"


class DivergedError(RblError):
    """A verification found the outputs to differ from the recorded baseline."""

    exit_code = 5
    code = "diverged"


class CorruptError(RblError):
    """Stored bytes are not the bytes that were stored."""

    exit_code = 6
    code = "corrupt"


class LockedError(RblError):
    """Another process holds what the request needs."""

    exit_code = 7
    code = "locked"


class BadSignatureError(RblError):
    """A signature does not match what it is said to sign."""

    exit_code = 8
    code = "bad_signature"
