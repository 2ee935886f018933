"""``rbl switch``."""

from __future__ import annotations

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "switch",
    cls=Verb,
    example="""
    rbl switch -c experiment HEAD~1
    rbl switch --orphan other-model
    """,
)
@click.argument("name")
@click.argument("start", required=False)
@click.option("-c", "--create", is_flag=True, help="Make the branch first, at START (HEAD unless given).")
@click.option("--orphan", is_flag=True, help="Begin a branch without commits, for another identity.")
@options.author
@click.pass_obj
def command(
    invocation: Invocation, *, name: str, start: str | None, create: bool, orphan: bool, author: str | None
) -> Outcome:
    """Make NAME the current branch. No checkout changes by it."""
    if create and orphan:
        raise click.UsageError("-c and --orphan exclude each other: an orphan starts nowhere")
    if start is not None and not create:
        raise click.UsageError("START goes with -c")
    with invocation.repository() as repository:
        result = repository.switch(
            name, create=create, orphan=orphan, start=start or "HEAD", author=author_from(author, repository)
        )
    from rblstore.cli.render.refs import switched_lines

    return Outcome(result.as_json(), switched_lines)
