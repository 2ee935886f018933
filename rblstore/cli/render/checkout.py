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
    what = f"{plural(result['files'], 'file')}, {size(result['bytes'])}"
    yield f"checked out {short(result['commit'])} into {result['directory']} ({what}, form {result['form']})"
    yield "load it with:"
    for line in result["load"]:
        yield f"    {line}"
