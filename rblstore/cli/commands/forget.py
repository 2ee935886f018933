"""``rbl forget``."""

from __future__ import annotations

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("forget", cls=Verb, example='rbl forget polite --reason "its data was withdrawn" --apply')
@click.argument("name", metavar="NAME")
@click.option("--reason", required=True, metavar="TEXT", help="Why; whoever looks for it later is told.")
@click.option("--revision", default="HEAD", metavar="REV", help="The commit in which NAME is looked up; else HEAD.")
@click.option("--apply", is_flag=True, help="Do it; without this, say what would go. It cannot be undone.")
@options.author
@click.pass_obj
def command(
    invocation: Invocation, *, name: str, reason: str, revision: str, apply: bool, author: str | None
) -> Outcome:
    """Remove the content of a behavior, or of the identity, for good; its record and its history stay.

    NAME is a behavior's name, the word identity, or the beginning of an id. The bytes go by rbl gc, once its grace is
    over; what something else needs stays. Commits that have it can be looked at, and composed no more.
    """
    with invocation.repository() as repository:
        result = repository.forget(
            name, reason=reason, revision=revision, apply=apply, author=author_from(author, repository)
        )
    from rblstore.cli.render.forget import forget_lines

    return Outcome(result.as_json(), forget_lines)
