"""What maintenance found, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import plural

_COUNTED = ("packs", "contents", "records", "commits", "operations")


def fsck_lines(result: Any) -> Iterator[str]:
    """What was checked, and what is damaged.

    Args:
        result: The document of an ``FsckResult``.
    """
    for damage in result["damages"]:
        yield f"{click.style(damage['kind'], fg='red')} {damage['object']}: {damage['problem']}"
        for needed in damage["needed_by"]:
            yield f"  needed by {needed}"
        if damage["hint"]:
            yield f"  hint: {damage['hint']}"
    counts = ", ".join(plural(result[what], what.removesuffix("s")) for what in _COUNTED)
    if result["forgotten"]:
        yield f"removed on purpose, and no damage: {plural(result['forgotten'], 'content')}"
    if result["ok"]:
        yield f"{click.style('whole', fg='green')}: {counts}"
        if not result["full"]:
            yield "checksums were compared; rbl fsck --full decodes and hashes every content, too"
    else:
        yield f"{click.style('damaged', fg='red')}: {plural(len(result['damages']), 'problem')} in {counts}"


def reindex_lines(result: Any) -> Iterator[str]:
    """What the catalog was rebuilt from.

    Args:
        result: The document of a ``ReindexResult``.
    """
    counts = ", ".join(plural(result[what], what.removesuffix("s")) for what in ("packs", "records", "operations"))
    yield f"rebuilt the catalog: {counts}"
