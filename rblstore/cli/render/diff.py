"""A difference between two commits, in text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import number, plural, short

_MARKS = {"added": ("+", "green"), "removed": ("-", "red")}
_SHOWN = 40


def diff_lines(diff: Any) -> Iterator[str]:
    """Slots, files and tensors that differ.

    Args:
        diff: The document of a ``DiffResult``.
    """
    yield click.style(f"{short(diff['a'])}..{short(diff['b'])}", bold=True)
    if diff["identity_before"] != diff["identity_after"]:
        yield f"identity {short(diff['identity_before'])} -> {short(diff['identity_after'])}"
    if not (diff["slots"] or diff["tensors"] or diff["files"]):
        yield "no difference"
        return
    for change in diff["slots"]:
        yield _marked(change["change"], f"behavior {change['name']}: {_slot_change(change)}")
    for change in diff["files"]:
        yield _marked(change["change"], f"file {change['path']}: {short(change['before'])} -> {short(change['after'])}")
    yield from _tensors(diff["tensors"])


def _marked(change: str, text: str) -> str:
    mark, colour = _MARKS.get(change, ("~", "yellow"))
    return click.style(f"{mark} {text}", fg=colour)


def _slot_change(change: Any) -> str:
    before, after = change["before"], change["after"]
    if change["change"] == "replaced":
        return f"replaced, {short(before['behavior'])} -> {short(after['behavior'])}"
    if change["change"] == "reweighted":
        return f"reweighted, {number(before['weight'])} -> {number(after['weight'])}"
    slot = after or before
    weight = "" if slot["weight"] == 1 else f", weight {number(slot['weight'])}"
    return f"{change['change']}, {short(slot['behavior'])}{weight}"


def _tensors(tensors: Any) -> Iterator[str]:
    if not tensors:
        return
    counts = Counter(change["change"] for change in tensors)
    yield f"{plural(len(tensors), 'tensor')}: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}"
    for change in tensors[:_SHOWN]:
        who = f"  ({', '.join(change['behaviors'])})" if change["behaviors"] else ""
        values = (
            f"  {short(change['before'])} -> {short(change['after'])}" if change["before"] or change["after"] else ""
        )
        yield _marked(change["change"], f"{change['target']}{values}{who}")
    if len(tensors) > _SHOWN:
        yield f"... and {len(tensors) - _SHOWN} more; --json names them all"
