"""What ``rbl doctor`` found, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import plural

_COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}


def doctor_lines(result: Any) -> Iterator[str]:
    """One line a finding, what to do about it beneath, and how many there are of each kind.

    Args:
        result: The document of a ``DoctorResult``.
    """
    found = result["findings"]
    width = max(len(finding["check"]) for finding in found)
    for finding in found:
        level = finding["level"]
        yield f"{click.style(f'{level:<7}', fg=_COLORS[level])}  {finding['check']:<{width}}  {finding['what']}"
        if finding["hint"]:
            yield f"{'':<{width + 11}}hint: {finding['hint']}"
    counts = {level: sum(finding["level"] == level for finding in found) for level in ("problem", "warning", "note")}
    said = [plural(count, level) for level, count in counts.items() if count]
    yield ", ".join(said) or "nothing to say"
