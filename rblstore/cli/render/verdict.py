"""A verdict, in text."""

from __future__ import annotations

import click

_COLOURS = {"exact": "green", "within_tolerance": "green", "diverged": "red", "unverified": "yellow"}


def verdict_text(verdict: str) -> str:
    """The verdict's words, coloured by what it means."""
    return click.style(verdict.replace("_", " "), fg=_COLOURS.get(verdict))
