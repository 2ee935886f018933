"""Where HEAD is, and what a checkout looks like, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import plural, short, slots_text

_SHOWN = 40


def repository_lines(status: Any) -> Iterator[str]:
    """The current branch and what it composes.

    Args:
        status: The document of a ``RepositoryStatus``.
    """
    yield f"on branch {click.style(status['branch'], fg='green', bold=True)}"
    if status["commit"] is None:
        yield "no commits yet; make one: rbl commit -m MESSAGE --identity DIR"
        return
    yield f"commit     {short(status['commit'])}"
    yield f"identity   {short(status['identity'])}"
    yield f"behaviors  {slots_text(status['slots'])}"


def checkout_lines(status: Any) -> Iterator[str]:
    """What in a checkout is no longer as it was written.

    Args:
        status: The document of a ``CheckoutStatus``.
    """
    yield f"{status['directory']}: checkout of {short(status['commit'])}, form {status['form']}"
    if not status["known"]:
        yield "this repository does not have that commit"
    if status["clean"]:
        yield "clean: every file is as it was checked out"
        return
    differences = status["differences"]
    yield f"{plural(len(differences), 'file differs', 'files differ')}:"
    for difference in differences[:_SHOWN]:
        yield click.style(f"  {difference['kind']:8} {difference['path']}", fg="red")
    if len(differences) > _SHOWN:
        yield f"  ... and {len(differences) - _SHOWN} more; --json names them all"
