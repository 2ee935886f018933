"""What a repair does, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import plural, short

_SHOWN = 20


def repair_lines(result: Any) -> Iterator[str]:
    """What is wrong, what is done about it, and what is left.

    Args:
        result: The document of a ``RepairResult``.
    """
    if result["whole"] and not result["steps"] and not result["found"]:
        yield f"{click.style('whole', fg='green')}: there is nothing to repair"
        return
    yield f"found {plural(len(result['found']), 'problem')}"
    for damage in result["found"][:_SHOWN]:
        yield f"  {damage['kind']} {damage['object']}: {damage['problem']}"
    if len(result["found"]) > _SHOWN:
        yield f"  and {len(result['found']) - _SHOWN} more: rbl fsck --full"
    if not result["steps"]:
        yield "nothing can be done about it"
    for step in result["steps"]:
        yield f"{click.style(step['action'], fg='cyan')} {step['object']}: {step['what']}"
    for loss in result["lost"]:
        yield f"{click.style('lost', fg='red')} {loss['kind']} {short(loss['object'])}: nothing has it"
        for needed in loss["needed_by"]:
            yield f"  needed by {needed}"
    if result["lost"]:
        yield "  another copy may have it: rbl repair --from PATH"
    if not result["applied"]:
        if result["steps"]:
            yield "nothing was done yet; to do it: rbl repair --apply"
    elif result["whole"]:
        yield f"{click.style('whole', fg='green')}: everything was repaired"
    else:
        left = plural(len(result["remaining"]), "problem")
        yield f"{click.style('damaged', fg='red')}: {left} left; see: rbl fsck --full"
