"""``rbl study``: a group whose commands are modules of their own, imported when they are named."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from rblstore.cli import options
from rblstore.cli.invocation import PATH
from rblstore.cli.outcome import Outcome

if TYPE_CHECKING:
    from rblstore.operations.study_run import StudyResult

Command = TypeVar("Command", bound=Callable[..., Any])

SUMMARIES: Final = MappingProxyType(
    {
        "elimination": "Put more and more of a behavior to nothing: when is none of it left?",
        "mutation": "Add noise to the identity's weights: what comes back, and by what means?",
        "svar": "Perturb a behavior a little: how stable is what it does?",
        "mechanisms": "Adapt the identity in several ways: what comes back, with and without the store?",
        "entropy": "Measure the frozen base again and again: does it drift?",
        "scale": "Do that for several identities: what can be recovered, in percent?",
        "interference": "Put behaviors beside one another: what is left of each one's effect?",
        "attribution": "Leave each behavior out in turn: which one moved which prompt?",
        "shift": "Prove a removal on held-out prompts as well.",
        "list": "List the studies.",
        "show": "Show a study's summary.",
    }
)


class StudyGroup(click.Group):
    """Imports ``study_NAME.py`` when that command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of help."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports one command's module."""
        if cmd_name not in SUMMARIES:
            return None
        found = import_module(f"rblstore.cli.commands.study_{cmd_name}").command
        if not isinstance(found, click.Command):
            raise TypeError(f"rblstore.cli.commands.study_{cmd_name} holds no command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group("study", cls=StudyGroup, no_args_is_help=False)
def command() -> None:
    """Measure a model in many states: the studies of arXiv 2603.02934, and what it leaves open.

    Each reads compositions from the repository, keeps one model in memory, and is recorded as evidence: all of it or
    nothing. One that was interrupted goes on where it was when the same command is run again.
    """


def seeds(function: Command) -> Command:
    """``--seeds N``."""
    return click.option(
        "--seeds", type=int, default=3, show_default=True, metavar="N", help="Repeat what is random under N seeds."
    )(function)


def dtype(function: Command) -> Command:
    """``--dtype NAME``."""
    return click.option(
        "--dtype",
        type=click.Choice(("float32", "float64", "bfloat16", "float16")),
        help="Load the model in it, and compare with what is stored as loading converts it. Else as stored.",
    )(function)


def study_options(function: Command) -> Command:
    """What every study takes: ``--dtype``, ``--probe``, ``--csv``, ``--plot``, ``--author``."""
    for option in (options.author, *_outputs(), options.probe, dtype):
        function = option(function)
    return function


def output_options(function: Command) -> Command:
    """``--csv`` and ``--plot``."""
    for option in _outputs():
        function = option(function)
    return function


def _drawable(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    """Refuses a picture that cannot be drawn, before minutes are spent on what it would show."""
    if value is not None:
        from rblstore.report.drawing import plot_format

        plot_format(value)
    return value


def _writable(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    """Refuses a table that has no place, likewise."""
    if value is not None:
        from rblstore.operations.study_csv import check_csv

        check_csv(value)
    return value


def _outputs() -> tuple[Callable[[Any], Any], ...]:
    return (
        click.option(
            "--plot",
            type=PATH,
            callback=_drawable,
            metavar="FILE",
            help="Draw it into FILE: .svg, .png or .pdf.",
        ),
        click.option(
            "--csv",
            type=PATH,
            callback=_writable,
            metavar="FILE",
            help="Write every measured number into FILE, one a row.",
        ),
    )


def study_outcome(result: StudyResult, csv: Path | None, plot: Path | None) -> Outcome:
    """What every study prints, after the files that were asked for are written.

    Args:
        result: What was measured.
        csv: Where to write the table, or None.
        plot: Where to draw it, or None.
    """
    from rblstore.cli.render.study import study_lines

    if csv is not None:
        from rblstore.operations.study_csv import write_study_csv

        write_study_csv(result.record, csv)
    if plot is not None:
        from rblstore.report.study_plots import plot_study

        plot_study(result.record, plot, None)
    return Outcome(result.as_json(), study_lines)
