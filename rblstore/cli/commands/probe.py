"""``rbl probe``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli import options
from rblstore.cli.invocation import PATH, Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.group("probe", no_args_is_help=False)
def command() -> None:
    """Keep the prompts that outputs are measured on."""


@command.command("add", cls=Verb, example="rbl probe add ten --prompts prompts.json --default")
@click.argument("name")
@click.option("--prompts", type=PATH, required=True, metavar="FILE", help="JSON, JSONL, or one prompt a line.")
@click.option(
    "--positions",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="Measure every token, or the last one of each prompt.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Run N prompts at once, padded; part of the probe, since padding changes bits.",
)
@click.option("--default", "is_default", is_flag=True, help="Measure under this one where none is named.")
@click.option("--force", is_flag=True, help="Accept baselines of more than 1 GiB.")
@click.option("--rev", default="HEAD", show_default=True, metavar="REV", help="Whose tokenizer makes the tokens.")
@options.author
@click.pass_obj
def add(
    invocation: Invocation,
    *,
    name: str,
    prompts: Path,
    positions: str,
    batch: int,
    is_default: bool,
    force: bool,
    rev: str,
    author: str | None,
) -> Outcome:
    """Record a probe from a file of prompts. What is fixed is their token ids.

    Prints how much a baseline under it takes.
    """
    with invocation.repository() as repository:
        result = repository.add_probe(
            name,
            prompts,
            positions="last" if positions == "last" else "all",
            batch=batch,
            default=is_default,
            force=force,
            revision=rev,
            author=author_from(author, repository),
        )
    from rblstore.cli.render.probes import added_lines

    return Outcome(result.as_json(), added_lines)


@command.command("list", cls=Verb, example="rbl probe list")
@click.pass_obj
def list_probes(invocation: Invocation) -> Outcome:
    """List the probes."""
    with invocation.repository() as repository:
        probes = repository.probes()
    from rblstore.cli.render.probes import probe_lines

    return Outcome([probe.as_json() for probe in probes], probe_lines)
