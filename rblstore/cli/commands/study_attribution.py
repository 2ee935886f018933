"""``rbl study attribution``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.commands.study import study_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "attribution", cls=Verb, example="rbl study attribution HEAD --csv attribution.csv --plot attribution.svg"
)
@click.argument("revision", default="HEAD", metavar="[REV]")
@study_options
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    probe: str | None,
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
) -> Outcome:
    """Measure which behavior moved which prompt, by leaving each out of REV's composition in turn."""
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_attribution(
            revision, probe, dtype=dtype, author=author_from(author, repository), progress=progress
        )
    return study_outcome(result, csv, plot)
