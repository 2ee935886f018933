"""``rbl op``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.group("op", no_args_is_help=False)
def command() -> None:
    """Show the operation log: every change of refs, which undo walks."""


@command.command("log", cls=Verb, example="rbl op log -n 10")
@click.option("-n", "limit", type=click.IntRange(min=0), metavar="N", help="Show at most N operations.")
@click.pass_obj
def log(invocation: Invocation, limit: int | None) -> Outcome:
    """Show the operations, newest first."""
    with invocation.repository() as repository:
        operations = repository.operations(limit=limit)
    from rblstore.cli.render.operations import operation_lines

    return Outcome([operation.as_json() for operation in operations], operation_lines)
