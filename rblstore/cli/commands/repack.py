"""``rbl repack``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb

if TYPE_CHECKING:
    from rblstore.configuration import Compression


@click.command("repack", cls=Verb, example="rbl repack --compression max --dry-run")
@options.compression
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.pass_obj
def command(invocation: Invocation, compression: Compression | None, dry_run: bool) -> Outcome:
    """Store everything anew where that takes less: encoded by a policy, as differences, in fewer packs.

    No id changes, and whoever reads meanwhile does not notice. Tensors committed before what they are like become
    differences, small packs are merged, and second copies dropped. Contents that nothing refers to are kept.
    """
    from rblstore.cli.render.repack import repack_lines

    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.repack(compression=compression, dry_run=dry_run, progress=progress)
    left = tuple(f"pack {pack} could not be deleted; nothing refers to it any more" for pack in result.left)
    return Outcome(result.as_json(), repack_lines, warnings=left)
