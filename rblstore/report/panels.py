"""The three kinds of panels that studies are drawn in: curves, dots in rows, and matrices with their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rblstore.report.palette import FAINT, INK, SERIES, Style, shade
from rblstore.report.safe_text import short_figure
from rblstore.report.zero_axis import ZeroScale, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE_COLUMNS: Final = 5
"""The most columns of a matrix whose cells have room for two numbers side by side."""
_LETTERS_ACROSS: Final = 48
"""As many letters have room beneath a matrix; more are written aslant."""


@dataclass(frozen=True)
class Mark:
    """One measured value with its interval.

    Attributes:
        value: The mean.
        low: The interval's lower end.
        high: Its upper end.
        exact: Whether the outputs were equal bit for bit, which is marked.
    """

    value: float
    low: float
    high: float
    exact: bool = False


@dataclass(frozen=True)
class Series:
    """One line, or one kind of dots.

    Attributes:
        name: For the legend.
        marks: One a place; None where there is no value.
        style: How it looks.
    """

    name: str
    marks: Sequence[Mark | None]
    style: Style


def series(names: Sequence[str], marks: Sequence[Sequence[Mark | None]], *, every: int = 1) -> list[Series]:
    """Series in the order of the palette, of which every so-manieth is taken; those without any value are left out."""
    return [
        Series(name, of, SERIES[at * every % len(SERIES)])
        for at, (name, of) in enumerate(zip(names, marks, strict=True))
        if any(mark is not None for mark in of)
    ]


def ends(found: Sequence[Series]) -> list[float]:
    """Every number that the series draw."""
    return [end for one in found for mark in one.marks if mark is not None for end in (mark.low, mark.value, mark.high)]


def draw_curves(axis: Axes, xs: Sequence[float], found: Sequence[Series], *, x_log: bool, y_log: bool) -> bool:
    """Lines with intervals over a numeric axis.

    Args:
        axis: Where.
        xs: The places, ascending.
        found: What is drawn.
        x_log: Whether the horizontal axis is logarithmic.
        y_log: Whether the vertical one is.

    Returns:
        Whether a mark of exact equality was drawn.
    """
    across, up = ZeroScale.of(xs), ZeroScale.of(ends(found))
    at = [across.place(x) if x_log else x for x in xs]
    exact = False
    for one in found:
        here = [(x, mark) for x, mark in zip(at, one.marks, strict=True) if mark is not None]
        ys = [(up.place(mark.value) if y_log else mark.value) for _, mark in here]
        _bars(axis, here, ys, one.style, up if y_log else None)
        style = one.style
        axis.plot([x for x, _ in here], ys, color=style.colour, linestyle=style.line, marker=style.marker,
                  markeredgecolor=INK, markeredgewidth=0.6, label=one.name, zorder=3)  # fmt: skip
        for (x, mark), y in zip(here, ys, strict=True):
            if mark.exact:
                exact = True
                _exact(axis, x, y)
    if x_log:
        across.apply(axis, "x")
    else:
        axis.set_xlim(*spread(xs))
    if y_log:
        up.apply(axis, "y")
    else:
        axis.set_ylim(*spread(ends(found)))
    return exact


def draw_dots(axis: Axes, labels: Sequence[str], found: Sequence[Series], *, x_log: bool) -> bool:
    """One row a label, from the top, with a dot and its interval a series; returns whether one is marked as exact."""
    across = ZeroScale.of(ends(found))
    exact = False
    apart = 0.5 / max(1, len(found))
    for number, one in enumerate(found):
        shift = (number - (len(found) - 1) / 2) * apart
        first = True
        for row, mark in enumerate(one.marks):
            if mark is None:
                continue
            x, low, high = ((across.place(end) if x_log else end) for end in (mark.value, mark.low, mark.high))
            if high > low:
                axis.plot([low, high], [row + shift] * 2, color=one.style.colour, linewidth=1.8, zorder=2)
            axis.plot([x], [row + shift], color=one.style.colour, marker=one.style.marker, linestyle="none",
                      markeredgecolor=INK, markeredgewidth=0.6, label=one.name if first else None,
                      zorder=3)  # fmt: skip
            if mark.exact:
                exact = True
                _exact(axis, x, row + shift, size=9)
            first = False
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    for row in range(1, len(labels)):
        axis.axhline(row - 0.5, color="#ececec", linewidth=0.6, zorder=0.5)
    axis.tick_params(axis="y", length=0)
    if x_log:
        across.apply(axis, "x")
    else:
        axis.set_xlim(*spread([*ends(found)]))
    return exact


def draw_matrix(
    axis: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    chance: Sequence[Sequence[float | None]] = (),
) -> tuple[float, float]:
    """A table of shaded cells, each with its number; returns what the lightest and the darkest shade stand for.

    Args:
        axis: Where to draw.
        rows: What goes down.
        columns: What goes across.
        cells: Values by row and column; None where there is none.
        chance: What chance alone would give, for each cell; written in brackets behind its number. Empty for none.
    """
    from matplotlib.patches import Rectangle

    known = [value for row in cells for value in row if value is not None and math.isfinite(value)]
    low, high = min([*known, 0.0]), max([*known, 0.0])
    for y, row in enumerate(cells):
        for x, value in enumerate(row):
            if value is None:
                patch: dict[str, Any] = {"facecolor": "white", "hatch": "////", "edgecolor": "#bbbbbb"}
                ink = FAINT
            else:
                background, ink = shade((value - low) / (high - low) if high > low else 0.0)
                patch = {"facecolor": background, "edgecolor": "white"}
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, linewidth=1.0, **patch))
            expected = chance[y][x] if chance else None
            between = " " if len(columns) <= _WIDE_COLUMNS else "\n"
            text = short_figure(value) + (f"{between}({short_figure(expected)})" if expected is not None else "")
            axis.text(x, y, text, ha="center", va="center", fontsize=8 if "\n" not in text else 7, color=ink)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    longest = max((len(column) for column in columns), default=0)
    steep = longest > 7 and longest * len(columns) > _LETTERS_ACROSS
    axis.set_xticks(range(len(columns)), columns, rotation=35 if steep else 0, ha="right" if steep else "center",
                    rotation_mode="anchor" if steep else None)  # fmt: skip
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.grid(visible=False)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    return low, high


def _bars(
    axis: Axes, here: Sequence[tuple[float, Mark]], ys: Sequence[float], style: Style, up: ZeroScale | None
) -> None:
    for (x, mark), y in zip(here, ys, strict=True):
        low, high = (mark.low, mark.high) if up is None else (up.place(mark.low), up.place(mark.high))
        if high > low:
            axis.errorbar([x], [y], yerr=[[max(0.0, y - low)], [max(0.0, high - y)]], fmt="none", capsize=3,
                          ecolor=style.colour, elinewidth=1.2, zorder=2)  # fmt: skip


def _exact(axis: Axes, x: float, y: float, size: float = 11) -> None:
    axis.plot([x], [y], marker="D", markersize=size, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.3,
              linestyle="none", zorder=4, clip_on=False)  # fmt: skip


def exact_handle() -> Any:
    """What the legend shows for bit equality."""
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="D", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.3,
                  linestyle="none", label="outputs bit-equal")  # fmt: skip
