"""``rbl study elimination``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.commands.study import study_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("elimination", cls=Verb, example="rbl study elimination HEAD --behavior polite --csv curve.csv")
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("--behavior", metavar="NAME", help="Which behavior; needed where REV has several.")
@click.option(
    "--epsilon",
    "epsilons",
    type=float,
    multiple=True,
    metavar="X",
    help="A fraction from 0 to 1; may be repeated. Else 0, .001, .01, .05, .2, .4, .6, .8 and 1.",
)
@click.option(
    "--form",
    type=click.Choice(["adapters", "merged"]),
    default="adapters",
    show_default=True,
    help="Put an adapter's own elements to zero, or what it changes of the weights back.",
)
@study_options
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    behavior: str | None,
    epsilons: tuple[float, ...],
    form: str,
    probe: str | None,
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
) -> Outcome:
    """Put a growing fraction of a behavior to nothing, its smallest elements first, and measure what is left of it.

    Adapters' elements go to zero, an overlay's back to what lies beneath; with --form merged an adapter is treated as
    an overlay, whatever its kind. The reference is REV without the behavior; epsilon_star is the smallest fraction
    from which on KL and JS are below 1e-6.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_elimination(
            revision,
            behavior,
            epsilons or None,
            probe,
            form=form,
            dtype=dtype,
            author=author_from(author, repository),
            progress=progress,
        )
    return study_outcome(result, csv, plot)
