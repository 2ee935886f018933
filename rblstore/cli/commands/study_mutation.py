"""``rbl study mutation``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.commands.study import seeds as seeds_option
from rblstore.cli.commands.study import study_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("mutation", cls=Verb, example="rbl study mutation HEAD --alpha 0.001 --alpha 0.01 --seeds 3")
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option(
    "--alpha",
    "alphas",
    type=float,
    multiple=True,
    metavar="X",
    help="A standard deviation above 0; may be repeated. Else .001, .01 and .05.",
)
@seeds_option
@study_options
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    alphas: tuple[float, ...],
    seeds: int,
    probe: str | None,
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
) -> Outcome:
    """Add noise to every weight of REV's identity, and see what brings it back: nothing, or the store.

    REV's behaviors are left out. The reference is the identity as it is stored.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_mutation(
            revision,
            alphas or None,
            probe,
            seeds=seeds,
            dtype=dtype,
            author=author_from(author, repository),
            progress=progress,
        )
    return study_outcome(result, csv, plot)
