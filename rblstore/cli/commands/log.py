"""``rbl log``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("log", cls=Verb, example="rbl log --graph --oneline -n 20")
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("--graph", is_flag=True, help="Draw the graph of commits beside them.")
@click.option("-n", "limit", type=click.IntRange(min=0), metavar="N", help="Show at most N commits.")
@click.option("--oneline", is_flag=True, help="One line a commit.")
@click.option("--all", "every", is_flag=True, help="Start from every branch and tag besides.")
@click.pass_obj
def command(
    invocation: Invocation, *, revision: str, graph: bool, limit: int | None, oneline: bool, every: bool
) -> Outcome:
    """Show the commits that lead to REV, newest first, with what each composes and how it was verified."""
    with invocation.repository() as repository:
        entries = repository.log(revision, limit=limit, all=every)
    from rblstore.cli.render.log import log_lines

    return Outcome(
        [entry.as_json() for entry in entries], lambda commits: log_lines(commits, graph=graph, oneline=oneline)
    )
