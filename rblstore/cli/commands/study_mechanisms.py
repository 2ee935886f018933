"""``rbl study mechanisms``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rblstore.cli.commands.study import study_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.recipe_options import options_of, recipe_options
from rblstore.cli.verb import Verb


@click.command(
    "mechanisms",
    cls=Verb,
    example="""
    rbl study mechanisms HEAD --training other --probe ten
    rbl study mechanisms HEAD --mechanism structured --reset distillation
    """,
)
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("--behavior", "behaviors", multiple=True, metavar="NAME", help="Only these; else all that stand alone.")
@click.option("--training", metavar="PROBE", help="Train on the prompts of this probe; else on the measured ones.")
@recipe_options
@study_options
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    *,
    revision: str,
    behaviors: tuple[str, ...],
    training: str | None,
    probe: str | None,
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
    **recipe: Any,
) -> Outcome:
    """Adapt REV's identity in several ways, get it back in several ways, and measure both.

    Noise on every weight, a few steps on the last layers, adapters held apart, full fine-tunes kept as overlays. Where
    weights were written over, it is tried to get back without a snapshot, and done by the store.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_mechanisms(
            revision,
            behaviors or None,
            probe,
            training=training,
            dtype=dtype,
            author=author_from(author, repository),
            progress=progress,
            **options_of(recipe),
        )
    return study_outcome(result, csv, plot)
