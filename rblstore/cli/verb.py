"""The commands' own classes: every one has an example and ``--json``, and groups load theirs when asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, TextIO

import click

from rblstore.cli import signals
from rblstore.cli.failure import from_error, from_system, from_usage, interrupted, write_failure
from rblstore.cli.outcome import Outcome, say, write_outcome
from rblstore.cli.registry import SECTIONS, SUMMARIES
from rblstore.errors import RblError, UsageError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verb(click.Command):
    """A command whose function returns an :class:`Outcome`.

    Args:
        example: Lines that can be typed as they stand, shown at the end of its help.
    """

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.append(
            click.Option(["--json", "as_json"], is_flag=True, help="Print the result as one JSON document on stdout.")
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Shows the example as it is typed, not rewrapped."""
        with formatter.section("Example"):
            for line in self.example.strip().splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line.strip()}\n")

    def invoke(self, ctx: click.Context) -> None:
        """Runs the command, writes what it found, and exits with its code."""
        as_json = ctx.params.pop("as_json")
        ctx.obj = replace(ctx.obj, as_json=as_json)
        outcome = super().invoke(ctx)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"the command {self.name!r} gave no outcome")
        try:
            write_outcome(outcome, as_json=as_json)
        except BrokenPipeError:
            _discard(sys.stdout)
        except KeyboardInterrupt:  # the command itself was done
            ctx.exit(signals.exit_code())
        ctx.exit(outcome.exit_code)


def _discard(*streams: TextIO) -> None:
    """Points streams at nothing: who read them has gone (``rbl log | head``), which is no failure of ours."""
    for stream in streams:
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            continue
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


class LazyGroup(click.Group):
    """The top of the command line: imports a command's module only when that command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of help."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports ``commands/NAME.py``, hyphens as underscores."""
        if cmd_name not in SUMMARIES:
            return None
        command = import_module(f"rblstore.cli.commands.{cmd_name.replace('-', '_')}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"rblstore.cli.commands.{cmd_name} holds no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Names the commands that an unknown word comes near to."""
        name = args[0]
        if name not in SUMMARIES and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(name, SUMMARIES, n=3)
            raise click.UsageError(
                f"there is no command {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""), ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands by what they are for, without importing any."""
        for title, commands in SECTIONS:
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def main(  # type: ignore[override]  # it never returns, as with click's standalone mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any
    ) -> None:
        """Runs the command line and exits with the documented code."""
        arguments = list(sys.argv[1:] if args is None else args)
        name = prog_name or "rbl"
        extra = {key: value for key, value in extra.items() if key != "standalone_mode"}
        self._main_shell_completion(extra, name)
        sys.exit(self._run(arguments, name, extra))

    def _run(self, arguments: list[str], name: str, extra: dict[str, Any]) -> int:
        as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
        try:
            if not arguments:
                say(self.get_help(click.Context(self, info_name=name, **self.context_settings)), err=True)
                return UsageError.exit_code
            try:
                with self.make_context(name, list(arguments), **extra) as context:
                    self.invoke(context)
                return 0
            except click.exceptions.Exit as done:
                return done.exit_code
            except RblError as error:
                failure = from_error(error)
            except click.ClickException as error:
                failure = from_usage(error)
            except (KeyboardInterrupt, click.Abort):
                failure = interrupted()
            except BrokenPipeError:
                raise
            except OSError as error:
                # Where the terminal went away, taking the progress bar off it failed: the signal is what happened.
                failure = from_system(error) if signals.received() is None else interrupted()
            try:
                write_failure(failure, as_json=as_json)
            except OSError:
                if signals.received() is None:
                    raise
                _discard(sys.stdout, sys.stderr)  # the terminal went away, which is what the signal said
        except BrokenPipeError:
            _discard(sys.stdout)
            return 1
        return failure.exit_code
