"""``rbl report``."""

from __future__ import annotations

from typing import Any, cast

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb

STDOUT = "-"


@click.command(
    "report",
    cls=Verb,
    example="""
    rbl report HEAD -o report.html
    rbl report main~2 --format md -o -
    """,
)
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; - for stdout.")
@click.option(
    "--format",
    type=click.Choice(["html", "md", "json"]),
    help="The form; else what FILE's suffix says, else html.",
)
@click.option("--force", is_flag=True, help="Replace FILE where there is one.")
@click.pass_obj
def command(invocation: Invocation, *, revision: str, output: str | None, format: str | None, force: bool) -> Outcome:
    """Write everything known of a commit as one self-contained page: no network, no scripts.

    Composition, lineage, verifications prompt by prompt, entropy before and after, how large what each behavior
    changed is, studies, environments, and the ids of all evidence. Nothing is measured anew and no model is run.
    """
    if output is None and not invocation.as_json:
        raise click.UsageError("name a file with -o FILE, or write to stdout with -o -")
    if not output and output is not None:
        raise click.UsageError("-o needs the name of a file")
    if output == STDOUT and invocation.as_json:
        raise click.UsageError("--json prints on stdout itself; leave -o - out")
    from rblstore.report.writing import ReportFormat, check_target, render_report, report_format, write_whole

    target = invocation.directory / output if output is not None and output != STDOUT else None
    chosen = cast("ReportFormat", format or (report_format(target) if target is not None else "html"))
    if target is not None:
        check_target(target, force=force)  # before anything is read
    with invocation.repository() as repository, invocation.progress() as progress:
        found = repository.report(revision, progress=progress)
    data = render_report(found, chosen) if output is not None else b""
    if target is not None:
        write_whole(target, data, force=force)
    document: dict[str, Any] = {
        **(found.as_json() if invocation.as_json else {"commit": str(found.commit), "refs": list(found.refs)}),
        "output": str(target) if target is not None else None,
        "format": chosen if output is not None else None,
        "bytes": len(data) if output is not None else None,
    }
    if output == STDOUT:
        click.echo(data, nl=False)
        return Outcome(document, lambda _: ())
    from rblstore.cli.render.report import report_lines

    return Outcome(document, report_lines)
