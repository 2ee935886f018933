"""``rbl study svar``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.commands.study import seeds as seeds_option
from rblstore.cli.commands.study import study_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "svar", cls=Verb, example="rbl study svar HEAD --behavior polite --perturb scale:0.9 --perturb drop:0.25"
)
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("--behavior", metavar="NAME", help="Which behavior; needed where REV has several.")
@click.option(
    "--perturb",
    "perturbations",
    multiple=True,
    metavar="KIND:X[@REGION]",
    help=(
        "drop:FRACTION of the tensors, scale:FACTOR, normal:DEVIATION or uniform:HALFWIDTH, in the first, middle or "
        "last layers; may be repeated. Else the paper's drop:0.25, scale:0.9, normal:0.01 and uniform:0.05@middle."
    ),
)
@click.option(
    "--form",
    type=click.Choice(["adapters", "merged"]),
    default="adapters",
    show_default=True,
    help="Perturb the behavior held apart, or the weights that it is written into.",
)
@seeds_option
@study_options
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    behavior: str | None,
    perturbations: tuple[str, ...],
    form: str,
    seeds: int,
    probe: str | None,
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
) -> Outcome:
    """Perturb a behavior a little, and measure how far the outputs move from the adapted model's.

    SVAR is the mean KL over the perturbations: low where the behavior is stable.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_svar(
            revision,
            behavior,
            perturbations or None,
            probe,
            form=form,
            seeds=seeds,
            dtype=dtype,
            author=author_from(author, repository),
            progress=progress,
        )
    return study_outcome(result, csv, plot)
