"""``rbl demo``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.outcome import Outcome, say
from rblstore.cli.render.text import printable
from rblstore.cli.verb import Verb


@click.command("demo", cls=Verb, example="rbl demo")
@click.option("--model", type=PATH, metavar="DIR", help="Use this model instead of making a small one.")
@click.option(
    "--dir", "directory", type=PATH, default="rbl-demo", show_default=True, metavar="DIR", help="Where to work."
)
@click.pass_obj
def command(invocation: Invocation, model: Path | None, directory: Path) -> Outcome:
    """Make and train a small language model, commit two behaviors, revert one, and show what is left of it.

    Needs no network and under two minutes on two cores. Leaves the repository behind to explore.
    """
    from rblstore.report.demo import run_demo

    result = run_demo(directory, model, lambda line: say(printable(line), err=invocation.as_json))
    from rblstore.cli.render.demo import demo_lines

    return Outcome(result.as_json(), demo_lines)
