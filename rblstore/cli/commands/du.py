"""``rbl du``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("du", cls=Verb, example="rbl du HEAD")
@click.argument("revision", required=False, metavar="[REV]")
@click.pass_obj
def command(invocation: Invocation, revision: str | None) -> Outcome:
    """Show what the repository takes on disk; or, for REV, what its identity and each behavior take and share.

    A content that several need is stored once and counted once. "unique" is what would be free without this one:
    what no other identity or behavior needs, and for a whole commit, what no other commit does.
    """
    from rblstore.cli.render.du import commit_lines, repository_lines

    with invocation.repository() as repository:
        result = repository.du(revision)
    return Outcome(result.as_json(), repository_lines if revision is None else commit_lines)
