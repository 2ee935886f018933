"""``rbl branch``."""

from __future__ import annotations

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "branch",
    cls=Verb,
    example="""
    rbl branch
    rbl branch experiment HEAD~1
    rbl branch -d experiment
    """,
)
@click.argument("name", required=False)
@click.argument("start", required=False)
@click.option("-d", "--delete", metavar="NAME", help="Delete this branch; its commits stay.")
@options.author
@click.pass_obj
def command(
    invocation: Invocation, name: str | None, start: str | None, delete: str | None, author: str | None
) -> Outcome:
    """List the branches; make one called NAME at START (HEAD unless given); or delete one."""
    if delete is not None and name is not None:
        raise click.UsageError("-d takes the name of one branch, and nothing else goes with it")
    from rblstore.cli.render.refs import branch_lines, created_lines, deleted_lines

    with invocation.repository() as repository:
        if delete is not None:
            gone = repository.delete_branch(delete, author=author_from(author, repository))
            return Outcome(gone.as_json(), lambda ref: deleted_lines("branch", ref))
        if name is not None:
            made = repository.create_branch(name, start or "HEAD", author=author_from(author, repository))
            return Outcome(made.as_json(), lambda ref: created_lines("branch", ref))
        return Outcome([branch.as_json() for branch in repository.branches()], branch_lines)
