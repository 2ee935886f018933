"""``rbl study show``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.commands.study import output_options, study_outcome
from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("show", cls=Verb, example="rbl study show 1f0c44ab --csv study.csv")
@click.argument("study_id", metavar="ID")
@output_options
@click.pass_obj
def command(invocation: Invocation, *, study_id: str, csv: Path | None, plot: Path | None) -> Outcome:
    """Show a study: one line for each state, means with 95 % intervals.

    ID may be the first digits. Nothing is measured: tables and plots are drawn from what is recorded.
    """
    with invocation.repository() as repository:
        result = repository.study(study_id)
    return study_outcome(result, csv, plot)
