"""A checkout that was made, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import plural, short, size


def checkout_lines(result: Any) -> Iterator[str]:
    """Where it is and how to load it.

    Args:
        result: The document of a ``CheckoutResult``.
    """
    tensors = f" with {plural(result['tensors'], 'tensor')}" if result["tensors"] else ""
    what = f"{plural(result['files'], 'file')}{tensors}, {size(result['bytes'])}"
    yield f"checked out {short(result['commit'])} into {result['directory']} ({what}, form {result['form']})"
    if result["load"]:
        yield "load it with:"
    for line in result["load"]:
        yield f"    {line}"
