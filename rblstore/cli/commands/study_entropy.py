"""``rbl study entropy``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.commands.study import study_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("entropy", cls=Verb, example="rbl study entropy HEAD --runs 5")
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("--runs", type=int, default=5, show_default=True, metavar="N", help="Read the identity anew N times.")
@study_options
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    runs: int,
    probe: str | None,
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
) -> Outcome:
    """Read REV's identity from the store again and again: are its outputs the same bits, and what is their entropy?

    REV's behaviors are left out.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_entropy(
            revision, runs, probe, dtype=dtype, author=author_from(author, repository), progress=progress
        )
    return study_outcome(result, csv, plot)
