"""``rbl gc``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb
from rblstore.errors import UsageError


@click.command("gc", cls=Verb, example="rbl gc\nrbl gc --apply\nrbl gc --restore")
@click.option("--apply", is_flag=True, help="Do it; without this, say what would be done.")
@click.option(
    "--grace",
    type=click.IntRange(min=0, max=36_500),
    metavar="DAYS",
    help="Days for which what nothing reaches stays, and then stays in the trash; else the configured ones (14).",
)
@click.option("--restore", is_flag=True, help="Bring back what lies in the trash.")
@click.pass_obj
def command(invocation: Invocation, apply: bool, grace: int | None, restore: bool) -> Outcome:
    """Let go of what no branch, no tag and no recent operation reaches.

    It goes to the trash first, and is deleted by a later gc, when its grace is over a second time. Evidence stays with
    what it is about. Without --apply nothing is changed.
    """
    from rblstore.cli.render.gc import gc_lines, gc_warnings, restore_lines, restore_warnings

    if restore and (apply or grace is not None):
        raise UsageError("--restore stands alone", object="--restore", hint="Run: rbl gc --restore")
    with invocation.repository() as repository, invocation.progress() as progress:
        if restore:
            document = repository.restore_trash(progress=progress).as_json()
            return Outcome(document, restore_lines, warnings=restore_warnings(document))
        document = repository.gc(apply=apply, grace_days=grace, progress=progress).as_json()
    return Outcome(document, gc_lines, warnings=gc_warnings(document))
