"""``rbl study list``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "list",
    cls=Verb,
    example="""
    rbl study list
    rbl study list HEAD
    """,
)
@click.argument("revision", required=False, metavar="[REV]")
@click.pass_obj
def command(invocation: Invocation, revision: str | None) -> Outcome:
    """List the studies of REV, or all of them, in the order in which they were recorded.

    A study lives as long as its commits.
    """
    with invocation.repository() as repository:
        found = repository.studies(revision)
    from rblstore.cli.render.study import studies_lines

    return Outcome([one.as_json() for one in found], studies_lines)
