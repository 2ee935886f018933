"""``rbl study shift``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.commands.study import study_options, study_outcome
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb
from rblstore.divergence.verdict import DEFAULT_TOLERANCE


@click.command("shift", cls=Verb, example="rbl study shift HEAD --behavior polite --held-out other --probe ten")
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("--held-out", required=True, metavar="PROBE", help="The probe of other prompts.")
@click.option("--behavior", metavar="NAME", help="What is taken out; else every behavior.")
@click.option("--allow-shared", is_flag=True, help="Let the two probes have prompts in common.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0.0),
    default=DEFAULT_TOLERANCE,
    show_default=True,
    metavar="X",
    help="Flag prompts whose ILS is above X, in nats.",
)
@study_options
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    held_out: str,
    behavior: str | None,
    allow_shared: bool,
    tolerance: float,
    probe: str | None,
    csv: Path | None,
    plot: Path | None,
    dtype: str | None,
    author: str | None,
) -> Outcome:
    """Take a behavior out of REV's live model and prove it, under the probe and under a held-out one.

    Nothing is committed. A held-out probe that shares prompts with the other one is refused.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.study_shift(
            revision,
            behavior,
            held_out=held_out,
            probe=probe,
            allow_shared=allow_shared,
            tolerance=tolerance,
            dtype=dtype,
            author=author_from(author, repository),
            progress=progress,
        )
    return study_outcome(result, csv, plot)
