"""Options of the studies that adapt a model: how, and how it is got back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from rblstore.divergence.verdict import DEFAULT_TOLERANCE

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option(
        "--mechanism",
        "mechanisms",
        multiple=True,
        metavar="NAME",
        help="Only these: unstructured, structured, reversible, overlay.",
    ),
    click.option(
        "--reset",
        "resets",
        multiple=True,
        metavar="NAME",
        help="Only these: pull_back, eight_bit, estimated_delta, distillation, store.",
    ),
    click.option(
        "--alpha", type=float, default=0.01, show_default=True, metavar="X", help="Noise on each weight: its deviation."
    ),
    click.option("--steps", type=int, default=10, show_default=True, metavar="N", help="AdamW steps."),
    click.option("--learning-rate", type=float, default=5e-5, show_default=True, metavar="X", help="Of AdamW."),
    click.option("--layers", type=int, default=4, show_default=True, metavar="N", help="Train the last N layers."),
    click.option(
        "--threshold",
        type=float,
        default=DEFAULT_TOLERANCE,
        show_default=True,
        metavar="X",
        help="Flag prompts whose ILS is above X, in nats.",
    ),
)


def recipe_options(function: Command) -> Command:
    """``--mechanism``, ``--reset``, ``--alpha``, ``--steps``, ``--learning-rate``, ``--layers``, ``--threshold``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
