"""``rbl study scale``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rblstore.cli import options
from rblstore.cli.commands.study import dtype as dtype_option
from rblstore.cli.commands.study import output_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.recipe_options import options_of, recipe_options
from rblstore.cli.verb import Verb


@click.command(
    "scale",
    cls=Verb,
    example="""
    rbl study scale small large --probe ten
    rbl study scale small large --probe ten-small --probe ten-large --reset store
    """,
)
@click.argument("revisions", nargs=-1, required=True, metavar="REV...")
@click.option("--probe", "probes", multiple=True, metavar="PROBE", help="One for all, or one for each in their order.")
@click.option("--training", multiple=True, metavar="PROBE", help="Likewise, to train on; else the measured prompts.")
@recipe_options
@dtype_option
@output_options
@options.author
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    *,
    revisions: tuple[str, ...],
    probes: tuple[str, ...],
    training: tuple[str, ...],
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
    **recipe: Any,
) -> Outcome:
    """Measure for the identity of each REV what can be recovered, in percent: 100 times RF, never clamped.

    As study mechanisms, without their behaviors: the adapter is a LoRA made on the spot, in memory alone.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_scale(
            revisions,
            probes or None,
            training=training or None,
            dtype=dtype,
            author=author_from(author, repository),
            progress=progress,
            **options_of(recipe),
        )
    return study_outcome(result, csv, plot)
