"""``rbl tag``."""

from __future__ import annotations

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "tag",
    cls=Verb,
    example="""
    rbl tag
    rbl tag v1 HEAD -m "first release"
    rbl tag -d v1
    """,
)
@click.argument("name", required=False)
@click.argument("revision", required=False, metavar="[REV]")
@click.option("-m", "--message", metavar="TEXT", help="Say something about it.")
@click.option("-d", "--delete", metavar="NAME", help="Delete this tag; the commit stays.")
@options.author
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    name: str | None,
    revision: str | None,
    message: str | None,
    delete: str | None,
    author: str | None,
) -> Outcome:
    """List the tags; name a commit (REV, HEAD unless given); or delete a tag. Tags do not move."""
    if delete is not None and (name is not None or message is not None):
        raise click.UsageError("-d takes the name of one tag, and nothing else goes with it")
    if message is not None and name is None:
        raise click.UsageError("-m goes with the name of a tag to make")
    from rblstore.cli.render.refs import created_lines, deleted_lines, tag_lines

    with invocation.repository() as repository:
        if delete is not None:
            gone = repository.delete_tag(delete, author=author_from(author, repository))
            return Outcome(gone.as_json(), lambda ref: deleted_lines("tag", ref))
        if name is not None:
            made = repository.create_tag(
                name, revision or "HEAD", message=message or "", author=author_from(author, repository)
            )
            return Outcome(made.as_json(), lambda ref: created_lines("tag", ref))
        return Outcome([tag.as_json() for tag in repository.tags()], tag_lines)
