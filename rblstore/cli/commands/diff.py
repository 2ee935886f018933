"""``rbl diff``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("diff", cls=Verb, example="rbl diff HEAD~2 HEAD")
@click.argument("a", required=False)
@click.argument("b", required=False)
@click.pass_obj
def command(invocation: Invocation, a: str | None, b: str | None) -> Outcome:
    """Show how commit B differs from commit A: behaviors, tensors, files.

    With one revision, how HEAD differs from it; with none, how HEAD differs from its parent.
    """
    with invocation.repository() as repository:
        result = repository.diff(a or "HEAD^", b or "HEAD")
    from rblstore.cli.render.diff import diff_lines

    return Outcome(result.as_json(), diff_lines)
