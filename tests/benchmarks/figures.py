"""Figures out of raw measurements: medians with their extremes, ratios, exponents, and tables in Markdown. No I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MB = 1_000_000


@dataclass(frozen=True)
class Spread:
    """The middle of several measurements, and how far apart they lie.

    Attributes:
        median: The middle one.
        least: The smallest.
        most: The largest.
    """

    median: float
    least: float
    most: float


def spread(values: Iterable[float]) -> Spread | None:
    """Median, least and most; None of nothing."""
    taken = list(values)
    return Spread(statistics.median(taken), min(taken), max(taken)) if taken else None


def median(values: Iterable[float] | None) -> float | None:
    """The median; None of nothing."""
    found = spread(values or ())
    return None if found is None else found.median


def ratio(above: float | None, below: float | None) -> float | None:
    """One over the other; None where either is missing or the lower is nothing."""
    return None if above is None or not below else above / below


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The exponent of the power law nearest to the points: the slope of least squares through their logarithms.

    Args:
        points: (size, cost); those that are not positive are left out.

    Returns:
        None for fewer than two different sizes.
    """
    logarithms = [(math.log(size), math.log(cost)) for size, cost in points if size > 0 and cost > 0]
    if len({size for size, _ in logarithms}) < 2:
        return None
    sizes, costs = zip(*logarithms, strict=True)
    return statistics.linear_regression(sizes, costs).slope


def neighbours(values: Sequence[float], number: int, reach: int = 10) -> float | None:
    """The median of the measurements around the ``number``-th (from 1), at most ``reach`` to either side.

    None from the first half before it, which belong to another order of magnitude; at the end of the sequence, where
    nothing follows, the side before it stays.
    """
    if not 1 <= number <= len(values):
        return None
    before = min(reach, (number - 1) // 2)
    return statistics.median(values[number - 1 - before : number + before])


def digits(value: float | None, places: int = 2) -> str:
    """A figure for a table, ``n/a`` where there is none; small ones keep two digits that say something."""
    if value is None:
        return "n/a"
    if value and abs(value) < 10**-places:
        return f"{value:.2g}"
    return f"{value:,.{places}f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, figures to the right."""
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)
