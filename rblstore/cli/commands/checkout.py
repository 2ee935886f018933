"""``rbl checkout``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.license_effect import effect_of, with_effect
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "checkout",
    cls=Verb,
    example="rbl checkout main~1 out\nrbl checkout HEAD part --only 'behaviors/polite/*' --tensor 'model.layers.0.*'",
)
@click.argument("revision", metavar="REV")
@click.argument("directory", type=PATH, metavar="DIR")
@click.option(
    "--form",
    type=click.Choice(["adapters", "merged"]),
    default="adapters",
    show_default=True,
    help="The checkpoint, overlays laid on, with adapters beside it; or one plain checkpoint.",
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Write only the files whose paths match; repeatable.")
@click.option(
    "--tensor",
    "tensors",
    multiple=True,
    metavar="PATTERN",
    help="Write only the tensors whose names match, into tensors.safetensors; repeatable.",
)
@click.pass_obj
def command(
    invocation: Invocation,
    revision: str,
    directory: Path,
    form: Literal["adapters", "merged"],
    only: tuple[str, ...],
    tensors: tuple[str, ...],
) -> Outcome:
    """Compose a commit's model into DIR, which must be new or empty. HEAD does not move.

    Prints the lines of Python that load it: from_pretrained(DIR) alone would give the checkpoint without its adapters.
    With --only or --tensor nothing else is read or written. In a PATTERN, * stands for anything but a slash, ** for
    any folders.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.checkout(
            revision, directory, form=form, only=only or None, tensors=tensors or None, progress=progress
        )
        whole = result.form != "partial"
        effect = effect_of(repository, repository.head, result.commit, merged=form == "merged") if whole else None
    from rblstore.cli.render.checkout import checkout_lines

    return Outcome({**result.as_json(), "license_effect": effect}, with_effect(checkout_lines))
