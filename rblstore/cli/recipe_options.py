"""Options of the studies that adapt a model: how, and how it is got back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from rblstore.cli.commands.study import seeds
from rblstore.divergence.recipes import Recipe
from rblstore.divergence.verdict import DEFAULT_TOLERANCE

if TYPE_CHECKING:
    from rblstore.operations.study_mechanisms import MechanismOptions

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
    click.option("--steps", type=int, default=Recipe.steps, show_default=True, metavar="N", help="AdamW steps."),
    click.option(
        "--learning-rate", type=float, default=Recipe.learning_rate, show_default=True, metavar="X", help="Of AdamW."
    ),
    click.option(
        "--layers", type=int, default=Recipe.layers, show_default=True, metavar="N", help="Train the last N layers."
    ),
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
    """``--mechanism``, ``--reset``, ``--alpha``, ``--steps``, ``--learning-rate``, ``--layers``, ``--threshold``,
    ``--seeds``.
    """
    for option in reversed((*_OPTIONS, seeds)):
        function = option(function)
    return function


def options_of(given: Mapping[str, Any]) -> MechanismOptions:
    """What the command line says of them, as the studies take it: an option that was not repeated at all is None.

    Args:
        given: The parameters of these options, by name.
    """
    return cast("MechanismOptions", {name: None if value == () else value for name, value in given.items()})
