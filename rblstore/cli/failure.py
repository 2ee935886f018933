"""Mapping what went wrong to a message, a document and an exit code."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any

import click

from rblstore.cli import signals
from rblstore.cli.outcome import say, write_document
from rblstore.cli.render.text import printable
from rblstore.errors import RblError


@dataclass(frozen=True)
class Failure:
    """One failed run.

    Attributes:
        error: What happened, to which object.
        code: Stable name of the kind of failure.
        exit_code: As documented in docs/cli.md.
        object: The object concerned, or None.
        hint: What to do next, or None.
        evidence: Further members of the document (a diverged revert's verification).
    """

    error: str
    code: str
    exit_code: int
    object: str | None = None
    hint: str | None = None
    evidence: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        members = {"error": self.error, "code": self.code, "object": self.object, "hint": self.hint}
        return {**members, "exit_code": self.exit_code, **(self.evidence or {})}


def from_error(error: RblError) -> Failure:
    """What the library refused or failed to do."""
    return Failure(error.message, error.code, error.exit_code, error.object, error.hint, _evidence(error))


def _evidence(error: RblError) -> dict[str, Any]:
    """The verification of a diverged revert or verify, as the document of one that succeeded has it."""
    verification = getattr(error, "verification", None)
    if verification is None:
        return {}
    from rblstore.operations.verification_document import verification_document

    document = verification_document(verification, getattr(error, "threshold", None))
    return {**document, "verification": getattr(error, "verification_id", None)}


def from_usage(error: click.ClickException) -> Failure:
    """A command line that cannot be read."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "rbl"
    return Failure(error.format_message(), "usage", 2, hint=f"See: {path} --help")


_SYSTEM = {
    errno.ENOSPC: ("no_space", "the disk is full", "Free some space and run the command again."),
    errno.EDQUOT: ("no_space", "the disk quota is used up", "Free some space and run the command again."),
    errno.EACCES: ("permission_denied", "permission denied", "Check who owns it and what its mode allows."),
    errno.EPERM: ("permission_denied", "permission denied", "Check who owns it and what its mode allows."),
    errno.EROFS: ("permission_denied", "the file system is read-only", "Work on a copy that can be written."),
    errno.ENOENT: ("not_found", "no such file or directory", "Check the path."),
}


def from_system(error: OSError) -> Failure:
    """What the operating system refused."""
    reason = error.strerror or str(error) or type(error).__name__
    code, what, hint = _SYSTEM.get(error.errno or 0, ("system_error", reason, None))
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    return Failure(what if where is None else f"{what}: {where}", code, 1, where, hint)


def interrupted() -> Failure:
    """Ctrl-C, or another signal that ends programs, before the command was done."""
    return Failure(signals.message(), signals.code(), signals.exit_code())


def write_failure(failure: Failure, *, as_json: bool) -> None:
    """Prints the message and the hint on stderr and, with ``--json``, the document on stdout."""
    if as_json:
        write_document(failure.as_json())
    if failure.code in signals.CODES.values():
        say(failure.error, err=True)
        return
    say(f"{click.style('error:', fg='red')} {printable(failure.error)}", err=True)
    if failure.hint:
        say(f"{click.style('hint:', fg='cyan')} {printable(failure.hint)}", err=True)
    if failure.evidence:
        from rblstore.cli.render.verification import verification_lines

        for line in verification_lines(printable(failure.evidence)):
            say(line, err=True)
