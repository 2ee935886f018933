"""``rbl state``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli import options
from rblstore.cli.invocation import Invocation, author_from, gather_pairs
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "state",
    cls=Verb,
    example="""
    rbl state polite
    rbl state polite --license cc-by-nc-4.0 --dataset imdb=cc-by-nc-4.0
    rbl state identity --source google/gemma-3-270m --concluded gemma
    rbl state polite --retract dataset=imdb
    rbl state identity --text
    """,
)
@click.argument("name", metavar="NAME")
@click.option("--revision", default="HEAD", metavar="REV", help="The commit in which NAME is looked up.")
@options.license
@click.option("--concluded", metavar="EXPR", help="What licence it is under in your judgement, whatever is declared.")
@options.license_file
@options.dataset
@options.source
@options.base_revision
@options.meta
@click.option(
    "--retract",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Take back what stands, as it is shown, with nothing in its place. Repeatable.",
)
@click.option("--text", is_flag=True, help="Print the texts of licences, notices and policies that stand, whole.")
@options.author
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    name: str,
    revision: str,
    license: str | None,
    concluded: str | None,
    license_file: Path | None,
    datasets: tuple[str, ...],
    source: str | None,
    base_revision: str | None,
    meta: tuple[tuple[str, str], ...],
    retract: tuple[str, ...],
    text: bool,
    author: str | None,
) -> Outcome:
    """Say something about an identity or behavior, or show what is said about it and by whom.

    NAME is `identity`, a behavior's name in REV, or the prefix of an id. What is stated later supersedes what was said
    before of the same, and replaces nothing: every statement stays, with its author and time, and no commit changes.
    """
    if text:
        if any((license, concluded, license_file, datasets, source, base_revision, meta, retract, author)):
            raise click.UsageError("--text shows what is stored; it goes with no statement")
        with invocation.repository() as repository:
            found = repository.license_texts(name, revision)
        from rblstore.cli.render.statements import terms_lines

        return Outcome(found.as_json(), terms_lines)
    with invocation.repository() as repository:
        result = repository.state(
            name,
            revision=revision,
            license=license,
            concluded=concluded,
            license_file=license_file,
            datasets=datasets,
            source=source,
            base_revision=base_revision,
            meta=gather_pairs(meta, "--meta"),
            retract=retract,
            author=author_from(author, repository),
            origin="command line",
        )
    from rblstore.cli.render.statements import statements_lines

    return Outcome(result.as_json(), statements_lines)
