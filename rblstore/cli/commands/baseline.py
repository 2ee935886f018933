"""``rbl baseline``."""

from __future__ import annotations

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "baseline",
    cls=Verb,
    example="""
    rbl baseline HEAD --probe ten
    rbl baseline --list
    """,
)
@click.argument("revision", required=False, metavar="[REV]")
@options.probe
@options.author
@click.option("--list", "listed", is_flag=True, help="List the baselines that are recorded instead.")
@click.pass_obj
def command(
    invocation: Invocation, revision: str | None, *, probe: str | None, author: str | None, listed: bool
) -> Outcome:
    """Record the outputs of REV's composition (HEAD's unless given) under a probe, to compare others with.

    Where the same composition has a baseline in this environment already, that one is kept.
    """
    if listed and (revision is not None or probe is not None):
        raise click.UsageError("--list takes neither a revision nor --probe")
    from rblstore.cli.render.probes import baseline_lines, baselines_lines

    if listed:
        with invocation.repository() as repository:
            return Outcome([one.as_json() for one in repository.baselines()], baselines_lines)
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.baseline(
            revision or "HEAD", probe=probe, author=author_from(author, repository), progress=progress
        )
    return Outcome(result.as_json(), baseline_lines)
