"""Choosing names, of files or of tensors, by patterns as a shell has them.

Names are taken apart at their slashes, and so are patterns: ``*`` stands for any characters but a slash, ``?`` for one,
``[a-z]`` and ``[!a-z]`` for one of a set or of its complement; ``**`` as a whole part stands for any number of parts,
none included. Case counts. A pattern that is a name as it stands chooses that name, whatever characters are in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import Final

from rblstore.errors import NotFoundError, UsageError
from rblstore.objects import limits

_ANY: Final = "**"
_SHOWN: Final = 3
# Comparing a wrong name with every one of 140,000 would take seconds, and names may be made to take the longest.
_COMPARED: Final = 5000
_COMPARISONS: Final = 1_000_000

Part = Callable[[str], object]


class NothingMatchedError(NotFoundError):
    """A pattern chooses nothing."""

    code = "nothing_matched"


def _compile(pattern: str) -> list[Part | None]:
    """A test for each part of a pattern; None for any number of parts."""
    if len(pattern) > limits.PATH_BYTES:
        raise UsageError(
            f"a pattern of {len(pattern)} characters is longer than any name", object=pattern[:80], hint="Shorten it."
        )
    parts = pattern.split("/")
    # Two in a row say no more than one, and each costs time for each part of each name.
    parts = [part for part, following in zip(parts, [*parts[1:], ""], strict=True) if not part == following == _ANY]
    try:
        return [None if part == _ANY else re.compile(translate(part)).match for part in parts]
    except re.error as error:
        raise UsageError(f"{pattern[:80]!r} is not a pattern: {error}", object=pattern[:80]) from error


def _matches(parts: Sequence[Part | None], name: str) -> bool:
    # All places in the pattern that the parts seen so far may have led to: no pattern makes this go back.
    places = _entered(parts, {0})
    for component in name.split("/"):
        reached = set()
        for place in places:
            if place < len(parts):
                test = parts[place]
                if test is None:
                    reached.add(place)
                elif test(component):
                    reached.add(place + 1)
        places = _entered(parts, reached)
    return len(parts) in places


def _entered(parts: Sequence[Part | None], places: set[int]) -> set[int]:
    """These places, and those behind a ``**`` that stands for nothing more."""
    entered: set[int] = set()
    for place in places:
        while place not in entered:
            entered.add(place)
            if place < len(parts) and parts[place] is None:
                place += 1
    return entered


def choose_names(patterns: str | Iterable[str], names: Sequence[str], what: str) -> set[str]:
    """The names that patterns choose, of which each must choose at least one.

    Args:
        patterns: One, or several, but not none.
        names: To choose from.
        what: What they are names of, for messages: ``file``.

    Raises:
        NothingMatchedError: A pattern chooses nothing; the hint says what comes near.
        UsageError: A pattern is malformed, or there is none.
    """
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    if not given:
        raise UsageError(f"no pattern says which {what}s to take", hint="Give at least one, or leave it out for all.")
    chosen: set[str] = set()
    known = set(names)
    for pattern in given:
        parts = _compile(pattern)
        found = {name for name in names if _matches(parts, name)} | ({pattern} & known)
        if not found:
            raise _nothing(pattern, names, what)
        chosen |= found
    return chosen


def _nothing(pattern: str, names: Sequence[str], what: str) -> NothingMatchedError:
    shown = pattern[:120]
    return NothingMatchedError(f"no {what} matches {shown!r}", object=shown, hint=_hint(pattern, names, what))


def _hint(pattern: str, names: Sequence[str], what: str) -> str:
    folder = pattern.rstrip("/") + "/"
    if any(name.startswith(folder) for name in names):
        return f"That is a folder; for everything in it: {folder}{_ANY}"
    return nearest(pattern, names, what)


def nearest(name: str, names: Sequence[str], what: str) -> str:
    """A hint that says which names come near to one that does not exist, or what names there are."""
    import difflib
    from itertools import accumulate, takewhile

    costs = accumulate(len(other) * len(name) for other in names[:_COMPARED])
    compared = names[: sum(1 for _ in takewhile(lambda cost: cost <= _COMPARISONS, costs))]
    if near := difflib.get_close_matches(name, compared, n=_SHOWN):
        return f"Did you mean {' or '.join(near)}?"
    if not names:
        return f"There is no {what} at all."
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"There are: {', '.join(names[:_SHOWN])}{more}."
