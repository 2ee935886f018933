"""``rbl status``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("status", cls=Verb, example="rbl status out")
@click.argument("directory", type=PATH, required=False, metavar="[DIR]")
@click.pass_obj
def command(invocation: Invocation, directory: Path | None) -> Outcome:
    """Show the current branch; or, for a checkout in DIR, what in it is no longer as it was checked out.

    A changed checkout is an answer, not a failure: it exits 0, and --json has "clean": false.
    """
    from rblstore.cli.render.status import checkout_lines, repository_lines

    with invocation.repository() as repository:
        if directory is None:
            return Outcome(repository.status().as_json(), repository_lines)
        return Outcome(repository.status(directory).as_json(), checkout_lines)
