"""What a command leaves for the terminal, and how it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import click

from rblstore.cli.render.text import printable


@dataclass(frozen=True)
class Outcome:
    """A command's result.

    Attributes:
        document: What ``--json`` prints; the text is drawn from it too, so both say the same.
        lines: Draws the text, from the document with everything unprintable escaped.
        warnings: What went well enough but should be known; to stderr.
        exit_code: As documented in docs/cli.md.
    """

    document: Any
    lines: Callable[[Any], Iterable[str]]
    warnings: tuple[str, ...] = field(default=())
    exit_code: int = 0


def say(text: str, *, err: bool = False) -> None:
    """Prints a line; colours survive only on a terminal that wants them (https://no-color.org)."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    click.echo(text, err=err, color=False if plain else None)


def write_document(document: Any) -> None:
    """Prints one JSON document on stdout, in ASCII so that no terminal or pipe can spoil it."""
    say(json.dumps(document, indent=2, allow_nan=False))


def write_warning(message: str) -> None:
    """Prints a warning on stderr."""
    say(f"{click.style('warning:', fg='yellow')} {printable(message)}", err=True)


def write_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """Prints the warnings and then the result, as a document or as text."""
    for warning in outcome.warnings:
        write_warning(warning)
    if as_json:
        write_document(outcome.document)
        return
    for line in outcome.lines(printable(outcome.document)):
        say(line)
