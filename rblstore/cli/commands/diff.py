"""``rbl diff``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("diff", cls=Verb, example="rbl diff HEAD~2 HEAD\nrbl diff --licenses v1 HEAD")
@click.argument("a", required=False)
@click.argument("b", required=False)
@click.option("--licenses", is_flag=True, help="Show instead what B's audit finds about terms and A's does not.")
@click.pass_obj
def command(invocation: Invocation, *, a: str | None, b: str | None, licenses: bool) -> Outcome:
    """Show how commit B differs from commit A: behaviors, tensors, files.

    With one revision, how HEAD differs from it; with none, how HEAD differs from its parent.
    """
    if licenses:
        with invocation.repository() as repository:
            effect = repository.license_effect(a or "HEAD^", b or "HEAD")
        from rblstore.cli.render.audit import effect_lines

        return Outcome(effect.as_json(), effect_lines)
    with invocation.repository() as repository:
        result = repository.diff(a or "HEAD^", b or "HEAD")
    from rblstore.cli.render.diff import diff_lines

    return Outcome(result.as_json(), diff_lines)
