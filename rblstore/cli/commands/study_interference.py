"""``rbl study interference``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.commands.study import study_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "interference",
    cls=Verb,
    example="""
    rbl study interference HEAD
    rbl study interference HEAD --behavior polite --behavior brief
    """,
)
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("--behavior", "behaviors", multiple=True, metavar="NAME", help="Only these, two or more; else all.")
@click.option("--no-subspaces", is_flag=True, help="Leave out in which directions they change each tensor.")
@study_options
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    behaviors: tuple[str, ...],
    no_subspaces: bool,
    probe: str | None,
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
) -> Outcome:
    """Measure how much of each behavior's effect is left beside each other one.

    For every ordered pair of REV's behaviors: what the one does alone and beside the other, what is kept of it, what
    taking the other out again and another order do, and the overlap of what both change.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_interference(
            revision,
            behaviors or None,
            probe,
            subspaces=not no_subspaces,
            dtype=dtype,
            author=author_from(author, repository),
            progress=progress,
        )
    return study_outcome(result, csv, plot)
