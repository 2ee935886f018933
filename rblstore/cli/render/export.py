"""A document that was written, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import short, size


def export_lines(result: Any) -> Iterator[str]:
    """Where it is, and its digest.

    Args:
        result: The document of ``rbl export``.
    """
    yield f"{result['format']} of {short(result['commit'])}"
    yield f"written to   {result['output']}, {size(result['size'])}"
    yield f"sha256       {result['sha256']}"
