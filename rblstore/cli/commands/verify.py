"""``rbl verify``."""

from __future__ import annotations

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command("verify", cls=Verb, example="rbl verify HEAD --against HEAD~2 --probe ten")
@click.argument("revision", default="HEAD", metavar="[REV]")
@options.probe
@options.tolerance
@options.threshold
@click.option("--against", metavar="REV", help="Compare with the baseline of this commit instead of its own.")
@options.author
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    probe: str | None,
    tolerance: float,
    threshold: float | None,
    against: str | None,
    author: str | None,
) -> Outcome:
    """Measure REV's composition and compare its outputs with a recorded baseline.

    Exits 5 where they diverge. The evidence is kept either way; see rbl log and rbl show.
    """
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.verify(
            revision,
            probe=probe,
            tolerance=tolerance,
            threshold=threshold,
            against=against,
            author=author_from(author, repository),
            progress=progress,
        )
    from rblstore.cli.render.verification import verified_lines

    return Outcome(result.as_json(), verified_lines)
