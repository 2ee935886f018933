"""The licence effect of what a command just did, for its document and its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rblstore.errors import RblError

if TYPE_CHECKING:
    from rblstore.api import Repository


def effect_of(repository: Repository, before: str | None, after: str, *, merged: bool = False) -> Any:
    """The document of a licence effect; None where it cannot be told: what was done is done, and stays a success.

    Args:
        repository: The repository.
        before: The commit gone from; None for nothing.
        after: The commit gone to.
        merged: Whether the second was summed into one checkpoint.
    """
    try:
        return repository.license_effect(before, after, merged=merged).as_json()
    except (RblError, OSError):
        return None


def with_effect(lines: Callable[[Any], Iterable[str]]) -> Callable[[Any], Iterator[str]]:
    """What draws a document, with the licence effect at its end.

    Args:
        lines: Draws the rest of it.
    """

    def drawn(document: Any) -> Iterator[str]:
        from rblstore.cli.render.audit import short_effect_lines

        yield from lines(document)
        yield from short_effect_lines(document["license_effect"])

    return drawn
