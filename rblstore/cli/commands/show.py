"""``rbl show``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("show", cls=Verb, example="rbl show HEAD~1")
@click.argument("name", default="HEAD", metavar="[REV-OR-ID]")
@click.option("--only", type=click.Choice(["behaviors"]), help="Show this part of a commit alone.")
@click.pass_obj
def command(invocation: Invocation, name: str, only: str | None) -> Outcome:
    """Show one object: a commit, tag, identity, behavior, probe, baseline, verification, ...

    Takes a revision, a tag, a probe's name, or an id of any object; an id may be cut to six digits or more.
    """
    with invocation.repository() as repository:
        result = repository.show(name)
    from rblstore.cli.render.show import behavior_lines, behaviors_of, show_lines

    if only is None:
        return Outcome(result.as_json(), show_lines)
    return Outcome(behaviors_of(result.as_json()), behavior_lines)
