"""Training states, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import columns, environment_lines, plural, short, size


def states_lines(states: Any) -> Iterator[str]:
    """A table of training states.

    Args:
        states: Documents of ``StateInfo``.
    """
    if not states:
        yield "no training state is stored; train with save_state=True"
        return
    rows = [
        (short(one["state"]), short(one["commit"]), str(one["step"]), size(one["bytes"]), one["time"]) for one in states
    ]
    yield from columns(rows, header=("state", "commit", "step", "size", "time"))


def state_lines(state: Any) -> Iterator[str]:
    """One training state, and what it holds.

    Args:
        state: The document of a ``StateDetail``.
    """
    yield click.style(f"training state {state['state']}", fg="yellow")
    yield f"commit       {state['commit']}"
    yield f"step         {state['step']}"
    yield f"author       {state['author']}"
    yield f"time         {state['time']}"
    yield from environment_lines("environment  ", state["environment"])
    yield f"holds        {plural(state['tensors'], 'tensor')}, {size(state['bytes'])}"
    rows = ((f"  {part['name']}", plural(part["tensors"], "tensor"), size(part["bytes"])) for part in state["parts"])
    yield from columns(rows)
