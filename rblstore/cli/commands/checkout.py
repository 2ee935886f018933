"""``rbl checkout``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("checkout", cls=Verb, example="rbl checkout main~1 out")
@click.argument("revision", metavar="REV")
@click.argument("directory", type=PATH, metavar="DIR")
@click.option(
    "--form",
    type=click.Choice(["adapters", "merged"]),
    default="adapters",
    show_default=True,
    help="The identity's files with the behaviors beside them, or one plain checkpoint.",
)
@click.pass_obj
def command(invocation: Invocation, revision: str, directory: Path, form: Literal["adapters", "merged"]) -> Outcome:
    """Compose a commit's model into DIR, which must be new or empty. HEAD does not move.

    Prints the lines of Python that load it: from_pretrained(DIR) alone would give the identity without its behaviors.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.checkout(revision, directory, form=form, progress=progress)
    from rblstore.cli.render.checkout import checkout_lines

    return Outcome(result.as_json(), checkout_lines)
