"""``rbl repair``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb
from rblstore.errors import CorruptError


@click.command("repair", cls=Verb, example="rbl repair --from ../backup --from ~/models/base --apply")
@click.option(
    "--from",
    "sources",
    type=PATH,
    multiple=True,
    metavar="PATH",
    help="Where good bytes may be: another copy of the repository, a directory or file it came from. Repeatable.",
)
@click.option("--apply", "apply", is_flag=True, help="Do it; without this it is only said.")
@click.pass_obj
def command(invocation: Invocation, sources: tuple[Path, ...], apply: bool) -> Outcome:
    """Say what is damaged and what can be done about it; with --apply, do it. Nothing is ever deleted.

    What is damaged goes to .rbl/quarantine. What other packs, copies and directories have whole comes back, by its
    SHA-256. Exits 6 while something is damaged or lost.
    """
    import rblstore

    with invocation.progress() as progress:
        result = rblstore.repair(
            invocation.directory,
            sources=sources,
            apply=apply,
            allow_foreign=invocation.allow_foreign,
            progress=progress,
        )
    from rblstore.cli.render.repair import repair_lines

    return Outcome(result.as_json(), repair_lines, exit_code=0 if result.whole else CorruptError.exit_code)
