"""``rbl fsck``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb
from rblstore.errors import CorruptError, UsageError


@click.command("fsck", cls=Verb, example="rbl fsck --full")
@click.option("--quick", is_flag=True, help="Compare the checksum of every frame; this is what happens without --full.")
@click.option("--full", is_flag=True, help="Decode every frame and compare every SHA-256, too.")
@click.pass_obj
def command(invocation: Invocation, quick: bool, full: bool) -> Outcome:
    """Check that everything stored is whole: every pack, frame checksum, record and reference. Changes nothing.

    Names what is damaged and what needs it, and exits 6 where something is.
    """
    if quick and full:
        raise UsageError("--quick and --full were both said", hint="Choose one; without either it is --quick.")
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.fsck(full=full, progress=progress)
    from rblstore.cli.render.fsck import fsck_lines

    return Outcome(result.as_json(), fsck_lines, exit_code=0 if result.ok else CorruptError.exit_code)
