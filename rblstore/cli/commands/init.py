"""``rbl init``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("init", cls=Verb, example="rbl init store")
@click.argument("directory", type=PATH, default=".", metavar="[DIR]")
@click.option("--branch", default="main", show_default=True, metavar="NAME", help="The first branch.")
@click.pass_obj
def command(invocation: Invocation, directory: Path, branch: str) -> Outcome:
    """Make a repository in DIR, the current directory unless given.

    DIR is made where it does not exist.
    """
    import rblstore
    from rblstore.operations.file_systems import network_warning

    with rblstore.init(directory, branch=branch) as repository:
        document = {"path": str(repository.path.absolute()), "branch": branch}
        warning = network_warning(repository.path)
    return Outcome(
        document,
        lambda made: [f"made a repository in {made['path']}, on branch {made['branch']}"],
        warnings=() if warning is None else (warning,),
    )
