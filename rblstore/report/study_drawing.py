"""What pictures of studies are made from: a study's summary as marks, and panels above one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rblstore.objects.study_records import Study
from rblstore.report.drawing import new_figure
from rblstore.report.panels import Mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rblstore.operations.study_summary import SummaryRow

MOST_ROWS: Final = 40
"""The most rows of a matrix or of dots that are drawn; what is left out is said."""

DIVERGENCES: Final = ("kl", "js", "relative_l2")
"""How far outputs are apart; the last of embeddings."""


@dataclass(frozen=True)
class Drawing:
    """A study on its way to paper.

    Attributes:
        record: The study.
        rows: Its summary, one row a condition.
        width: Inches.
    """

    record: Study
    rows: Sequence[SummaryRow]
    width: float

    @property
    def conditions(self) -> list[Mapping[str, Any]]:
        return [row.condition for row in self.rows]

    def marks(self, name: str) -> list[Mark | None]:
        """A measure's values, one a row."""
        return [mark_of(row, name) for row in self.rows]

    def known(self, names: Sequence[str]) -> list[str]:
        """Those of some measures that any row has."""
        return [name for name in names if any(mark is not None for mark in self.marks(name))]


def mark_of(row: SummaryRow, name: str) -> Mark | None:
    """A measure of a row as it is drawn; None where it has no value."""
    interval = row.measures.get(name)
    if interval is None or interval.mean is None:
        return None
    low = interval.mean if interval.low is None else interval.low
    high = interval.mean if interval.high is None else interval.high
    exact = bool(row.bit_equal) and name in (*DIVERGENCES, "entropy", "rf")
    return Mark(interval.mean, min(low, interval.mean), max(high, interval.mean), exact)


def panels(width: float, heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure of panels above one another.

    Args:
        width: Inches.
        heights: Of each, inches, without its labels.
    """
    figure = new_figure(width, sum(heights) + 0.55 * len(heights) + 0.75)
    axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": list(heights)})
    return figure, list(axes[:, 0])
