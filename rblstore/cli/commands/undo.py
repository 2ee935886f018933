"""``rbl undo``."""

from __future__ import annotations

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("undo", cls=Verb, example="rbl undo")
@click.argument("operation", required=False, metavar="[OP]")
@options.author
@click.pass_obj
def command(invocation: Invocation, operation: str | None, author: str | None) -> Outcome:
    """Reverse an operation: the latest that is neither undone nor an undo, or OP (see rbl op log).

    Only refs go back; everything recorded stays. Again goes further back. Refused with exit code 4 where a
    ref has moved since.
    """
    with invocation.repository() as repository:
        result = repository.undo(operation, author=author_from(author, repository))
    from rblstore.cli.render.operations import undo_lines

    return Outcome(result.as_json(), undo_lines)
