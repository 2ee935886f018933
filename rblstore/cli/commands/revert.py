"""``rbl revert``."""

from __future__ import annotations

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from
from rblstore.cli.license_effect import effect_of, with_effect
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "revert",
    cls=Verb,
    example="""
    rbl revert --behavior polite --probe ten
    rbl revert HEAD~1
    """,
)
@click.argument("commit", required=False)
@click.option("--behavior", metavar="NAME", help="Take this behavior out, whichever commit added it.")
@options.probe
@options.tolerance
@options.threshold
@click.option("--no-verify", is_flag=True, help="Measure nothing; the revert is recorded as unverified.")
@click.option("--require-verified", is_flag=True, help="Refuse where there is no probe to verify under.")
@click.option("--mainline", type=click.IntRange(min=1), metavar="N", help="For a merge: the parent to go back to.")
@click.option("-m", "--message", metavar="TEXT", help="The new commit's message.")
@options.author
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    commit: str | None,
    behavior: str | None,
    probe: str | None,
    tolerance: float,
    threshold: float | None,
    no_verify: bool,
    require_verified: bool,
    mainline: int | None,
    message: str | None,
    author: str | None,
) -> Outcome:
    """Make a new commit without what COMMIT, or one behavior, added; and prove that it is gone.

    The weights are proved by digest, the outputs by their divergence from the recorded baseline of the
    composition gone back to. Where they diverge nothing moves, the evidence is kept, and the exit code is 5.
    """
    if (commit is None) == (behavior is None):
        raise click.UsageError("name either a COMMIT or --behavior NAME")
    if no_verify and (require_verified or probe is not None):
        raise click.UsageError("--no-verify excludes --probe and --require-verified")
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.revert(
            commit=commit,
            behavior=behavior,
            probe=probe,
            tolerance=tolerance,
            threshold=threshold,
            verify=not no_verify,
            require_verified=require_verified,
            mainline=mainline,
            message=message,
            author=author_from(author, repository),
            progress=progress,
        )
        effect = effect_of(repository, next(iter(result.parents), None), result.commit)
    from rblstore.cli.render.verification import revert_lines

    return Outcome({**result.as_json(), "license_effect": effect}, with_effect(revert_lines))
