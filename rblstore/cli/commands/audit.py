"""``rbl audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb
from rblstore.errors import NotFoundError, UsageError
from rblstore.provenance.findings import LEVELS, USES

if TYPE_CHECKING:
    from rblstore.api import Repository
    from rblstore.operations.audit import AuditResult


@click.command(
    "audit",
    cls=Verb,
    example="""
    rbl audit HEAD --distribute
    rbl audit path/to/checkout --fail-on conflict
    rbl audit prod --at 2026-03-01
    rbl audit --history prod
    """,
)
@click.argument("target", default="HEAD", metavar="[REV|DIR|FILE]")
@click.option("--use", is_flag=True, help="It is meant to be run by yourself. Without any of the three: all of them.")
@click.option("--host", is_flag=True, help="It is meant to be offered to others over a network.")
@click.option("--distribute", is_flag=True, help="It is meant to be given to others as files.")
@click.option(
    "--rules",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Add rules of your own, or replace some by id: a TOML file. Repeatable.",
)
@click.option(
    "--fail-on", type=click.Choice(LEVELS), help="Exit with 1 where something of this level or above is found."
)
@click.option(
    "--data-reaches-weights",
    type=click.Choice(["yes", "no"]),
    default="yes",
    show_default=True,
    help="Whether the licence of data binds what was trained on it: your policy, as nobody has settled it.",
)
@click.option("--merged", is_flag=True, help="The parts are to be summed into one checkpoint.")
@click.option("--at", metavar="TIME", help="Audit what the ref stood for on that date or at that time.")
@click.option("--history", is_flag=True, help="Show when each part entered and left a branch or tag, and who did it.")
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    target: str,
    use: bool,
    host: bool,
    distribute: bool,
    rules: tuple[Path, ...],
    fail_on: str | None,
    data_reaches_weights: str,
    merged: bool,
    at: str | None,
    history: bool,
) -> Outcome:
    """Show what a commit, a checkout or a file is made of, on whose terms, what these ask, and what is not known.

    Every finding names its rule and where that is written. Levels: note, obligation, gap (something is not known or
    not proved), conflict. It reports what was stated and by whom; it is no legal advice.
    """
    uses = tuple(name for name, chosen in zip(USES, (use, host, distribute), strict=True) if chosen) or USES
    if history:
        if uses != USES or rules or fail_on or at or merged:
            raise click.UsageError("--history shows who did what and when; it goes with no other option")
        with invocation.repository() as repository:
            stays = repository.audit_history(target)
        from rblstore.cli.render.audit import history_lines

        return Outcome(stays.as_json(), history_lines)
    options: dict[str, Any] = {
        "use": uses, "rules": rules, "data_reaches_weights": data_reaches_weights == "yes", "merged": merged,
    }  # fmt: skip
    with invocation.repository() as repository:
        result = _audit(invocation, repository, target, at, options)
    from rblstore.cli.render.audit import audit_lines

    failed = fail_on is not None and bool(result.at_least(fail_on))
    return Outcome(result.as_json(), audit_lines, exit_code=1 if failed else 0)


def _audit(
    invocation: Invocation, repository: Repository, target: str, at: str | None, options: dict[str, Any]
) -> AuditResult:
    """A revision comes before a path of the same name; ``./NAME`` is always a path."""
    path = invocation.directory / target if "\0" not in target else invocation.directory
    if target.startswith((".", "/")) and at is None and path.exists():
        return _path(invocation, repository, path, options)
    try:
        return repository.audit(target, at=at, **options)
    except (NotFoundError, UsageError) as error:
        if not _exists(path):
            raise
        if at is not None:
            raise click.UsageError(
                f"--at goes with a revision, which {target[:200]!r} was not then; of a path only now is known"
            ) from error
    return _path(invocation, repository, path, options)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a revision that is too long for a name
        return False


def _path(invocation: Invocation, repository: Repository, path: Path, options: dict[str, Any]) -> AuditResult:
    with invocation.progress() as progress:
        return repository.audit_path(path, progress=progress, **options)
