"""A report that was written, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import short, size


def report_lines(result: Any) -> Iterator[str]:
    """Where it is.

    Args:
        result: The document of ``rbl report``.
    """
    names = f" ({', '.join(result['refs'])})" if result["refs"] else ""
    yield f"report of    {short(result['commit'])}{names}"
    yield f"written to   {result['output']}, {result['format']}, {size(result['bytes'])}"
