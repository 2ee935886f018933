"""``rbl audit``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("audit", cls=Verb, example="rbl audit HEAD")
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.pass_obj
def command(invocation: Invocation, revision: str) -> Outcome:
    """Show what REV is made of: licence, source and datasets of the identity and of each behavior, and the evidence.

    Says what was stated, by whom; it is no legal advice.
    """
    with invocation.repository() as repository:
        result = repository.audit(revision)
    from rblstore.cli.render.audit import audit_lines

    return Outcome(result.as_json(), audit_lines, warnings=result.warnings)
