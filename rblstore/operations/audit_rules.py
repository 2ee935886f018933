"""Files of rules that somebody names, read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rblstore.errors import InputError, UsageError
from rblstore.objects.paths import given_path
from rblstore.operations.audit import AuditRequest
from rblstore.provenance.rule import FILE_BYTES


def audit_request(
    use: Sequence[str], rules: Sequence[str | Path], *, data_reaches_weights: bool = True, merged: bool = False
) -> AuditRequest:
    """How to audit, with the files of rules read.

    Args:
        use: What a model is meant for.
        rules: Files of rules.
        data_reaches_weights: Whether terms of data count as terms of what was trained on it.
        merged: Whether the parts are to be summed into one checkpoint.

    Raises:
        InputError: A file cannot be read.
        UsageError: One path in the place of a list of them.
    """
    if isinstance(rules, (str, Path)) or not isinstance(rules, Iterable):
        raise UsageError(
            "'rules' is a list of files, and something else was given",
            object=str(rules)[:200],
            hint="Put it into a list.",
        )
    return AuditRequest(
        tuple(use) if isinstance(use, Iterable) and not isinstance(use, str) else use,
        tuple((given_path(file).name, _read(given_path(file))) for file in rules),
        data_reaches_weights,
        merged,
    )


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the rules {file!s:.200} could not be read: {getattr(error, 'strerror', None) or error}",
            object=str(file)[:200],
            hint="Give a TOML file of rules: docs/audit.md, Rules of your own.",
        ) from error
