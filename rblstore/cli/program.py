"""The program itself: what stands before a command on the command line."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore import __version__
from rblstore.cli.invocation import Invocation
from rblstore.cli.verb import CONTEXT, LazyGroup


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    click.echo(f"rbl {__version__}")
    context.exit()


@click.command(cls=LazyGroup, name="rbl", context_settings=CONTEXT)
@click.option(
    "-C",
    "directory",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Run as if in DIR; other paths are relative to it.",
)
@click.option("--no-progress", is_flag=True, help="Draw no progress bar.")
@click.option(
    "--allow-foreign", is_flag=True, help="Open a repository that belongs to another user; only if you trust it."
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
@click.pass_context
def rbl(context: click.Context, directory: Path, no_progress: bool, allow_foreign: bool) -> None:
    """Version control for what models do: commit, compose and provably revert behaviors.

    Every command takes --json, and shows its own help with --help.
    """
    context.obj = Invocation(directory, show_progress=not no_progress, allow_foreign=allow_foreign)
