"""A commit that was made, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import first_line, plural, short, size, slots_text


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
        new = f"{plural(result['added_contents'], 'new content')}, {size(result['stored_bytes'])} stored"
        yield f"  read       {size(result['added_bytes'])}: {new}"
    for path, reason in result["left_out"]:
        yield f"  left out   {path} ({reason})"
