"""A commit that was made, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import first_line, short, size, slots_text, times


def commit_lines(result: Any) -> Iterator[str]:
    """What was recorded, what it took, and which files were left out.

    Args:
        result: The document of a ``CommitResult``.
    """
    where = click.style(f"{result['branch']} {short(result['commit'])}", fg="yellow")
    root = "" if result["parents"] else " (root commit)"
    yield f"[{where}]{root} {first_line(result['message'])}"
    yield f"  identity   {short(result['identity'])}"
    yield f"  behaviors  {slots_text(result['slots'])}"
    if result["added_bytes"]:
        yield f"  added      {_added(result)}"
    for path, reason in result["left_out"]:
        yield f"  left out   {path} ({reason})"


def _added(result: Any) -> str:
    """What was new of the bytes that were read, and what it takes."""
    new, stored = result["new_bytes"], result["stored_bytes"]
    before = max(result["added_bytes"] - new, 0)
    if not new:
        return f"nothing: {size(before)} were stored already"
    known = f", {size(before)} were stored already" if before else ""
    return f"{size(new)} as {size(stored)} ({times(new / stored)}){known}"
