"""The entry point: ``rbl``, ``python -m rblstore`` and ``python -m rblstore.cli.main``."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Sequence
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


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        argv: The arguments, without the program's name; None takes those of the process.
    """
    # Imports make hundreds of thousands of objects that all stay. Looking for garbage among them, again and again and
    # once more at the end, takes a third of the time of a short command.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    # numpy moves bytes here and multiplies little: threads that spin while they wait for matrices take a core away.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    rbl.main(args=argv, prog_name="rbl")


if __name__ == "__main__":
    main()
