"""The operation log, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import first_line, short

_FULL_ID = 64


def operation_lines(operations: Any) -> Iterator[str]:
    """Operations, each with the refs that it moved.

    Args:
        operations: Documents of ``OperationInfo``, newest first.
    """
    for operation in operations:
        name = click.style(f"{operation['sequence']:>4} {short(operation['id'])}", fg="yellow")
        undone = " (undone)" if operation["undone"] else ""
        yield f"{name} {operation['time']} {operation['author']}: {first_line(operation['description'])}{undone}"
        yield from _changes(operation["changes"])


def undo_lines(result: Any) -> Iterator[str]:
    """An operation that was reversed.

    Args:
        result: The document of an ``UndoResult``.
    """
    yield f"undid {short(result['undone'])} ({first_line(result['description'])})"
    yield from _changes(result["changes"])


def _changes(changes: Any) -> Iterator[str]:
    for change in changes:
        yield f"     {change['ref']}: {_value(change['before'])} -> {_value(change['after'])}"


def _value(value: str | None) -> str:
    if value is None:
        return "none"
    return short(value) if len(value) == _FULL_ID else value.removeprefix("ref: ")
