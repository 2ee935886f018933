"""``rbl export``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb

STDOUT = "-"
FORMATS = ("cyclonedx", "spdx3", "in-toto", "model-card", "annex-xi")


@click.command(
    "export",
    cls=Verb,
    example="""
    rbl export HEAD --format cyclonedx -o bom.json
    rbl export HEAD --format in-toto --behavior polite
    rbl export HEAD --format model-card -o out/README.md --force
    """,
)
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option("--format", type=click.Choice(FORMATS), required=True, help="Which document.")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; - for stdout, as without it.")
@click.option("--force", is_flag=True, help="Replace FILE where there is one.")
@click.option("--verification", metavar="ID", help="For in-toto: which verification; else the latest of REV.")
@click.option("--behavior", metavar="NAME", help="For in-toto: how this behavior was trained, not a verification.")
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    format: str,
    output: str | None,
    force: bool,
    verification: str | None,
    behavior: str | None,
) -> Outcome:
    """Write what is known of a commit as a document that others' tools read.

    A CycloneDX 1.7 or SPDX 3.0.1 bill of materials, an in-toto statement of a verification or of a training (SLSA),
    a model card for the hub, or a draft after Annex XI of the EU's AI Act. No model is run. What nobody stated is
    given as not stated; the same records give the same bytes.
    """
    if not output and output is not None:
        raise click.UsageError("-o needs the name of a file")
    if output == STDOUT and invocation.as_json:
        raise click.UsageError("--json prints on stdout itself; leave -o - out")
    from rblstore.report.writing import check_target, write_whole

    target = invocation.directory / output if output is not None and output != STDOUT else None
    if target is not None:
        check_target(target, force=force)  # before anything is read
    with invocation.repository() as repository:
        found = repository.export(revision, format, verification=verification, behavior=behavior)
    if target is not None:
        write_whole(target, found.data, force=force)
    elif not invocation.as_json:
        click.echo(found.data, nl=False)
        return Outcome(None, lambda _: ())
    document = found.as_json()
    if target is not None:
        document["document"] = None
    document["output"] = str(target) if target is not None else None
    from rblstore.cli.render.export import export_lines

    return Outcome(document, export_lines)
