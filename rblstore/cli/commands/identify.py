"""``rbl identify``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "identify",
    cls=Verb,
    example="""
    rbl identify path/to/model.safetensors
    rbl identify path/to/deployed
    """,
)
@click.argument("path", type=PATH, metavar="PATH")
@click.pass_obj
def command(invocation: Invocation, *, path: Path) -> Outcome:
    """Say what a loose file or directory is, by digest, and else what it resembles.

    Digests decide what it is: a stored file, stored tensors in other files or under other names, a merged checkout.
    Only where they have no answer it is compared by names, shapes and values: cast to another type, merged with an
    adapter, fine-tuned. It exits with 1 where something is unknown. No model is loaded, no pickle read.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.identify(path, progress=progress)
    from rblstore.cli.render.identify import identify_lines

    return Outcome(result.as_json(), identify_lines, exit_code=1 if result.unknown else 0)
