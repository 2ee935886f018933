"""``rbl reindex``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("reindex", cls=Verb, example="rbl reindex")
@click.pass_obj
def command(invocation: Invocation) -> Outcome:
    """Rebuild the catalog from the packs and refs.log, which are the truth. Works without a catalog."""
    import rblstore

    with invocation.progress() as progress:
        result = rblstore.reindex(invocation.directory, allow_foreign=invocation.allow_foreign, progress=progress)
    from rblstore.cli.render.fsck import reindex_lines

    skipped = tuple(f"{skipped[:12]} was skipped: {problem}" for skipped, problem in result.skipped)
    return Outcome(result.as_json(), reindex_lines, warnings=skipped)
