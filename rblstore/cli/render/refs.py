"""Branches and tags, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import columns, first_line, short


def branch_lines(branches: Any) -> Iterator[str]:
    """Every branch, the current one marked.

    Args:
        branches: Documents of ``BranchInfo``.
    """
    rows = columns((branch["name"], short(branch["commit"])) for branch in branches)
    for branch, row in zip(branches, rows, strict=True):
        yield click.style(f"* {row}", fg="green") if branch["current"] else f"  {row}"


def tag_lines(tags: Any) -> Iterator[str]:
    """Every tag.

    Args:
        tags: Documents of ``TagInfo``.
    """
    yield from columns((tag["name"], short(tag["commit"]), first_line(tag["message"])) for tag in tags)


def created_lines(what: str, ref: Any) -> Iterator[str]:
    """A branch or tag that was made."""
    yield f"made the {what} {ref['name']} at {short(ref['commit'])}"


def deleted_lines(what: str, ref: Any) -> Iterator[str]:
    """A branch or tag that was deleted."""
    yield f"deleted the {what} {ref['name']} (was {short(ref['commit'])}); rbl undo brings it back"


def switched_lines(branch: Any) -> Iterator[str]:
    """The branch that is current now.

    Args:
        branch: The document of a ``BranchInfo``.
    """
    yield f"on branch {branch['name']}" + (
        ", which has no commit yet" if branch["commit"] is None else f" at {short(branch['commit'])}"
    )
