"""Logarithmic axes that have a place for zero: a strip of its own, cut off by a line, and never a small number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rblstore.report.palette import FAINT, INK, STRIP
from rblstore.report.safe_text import figure_text

_MOST_TICKS = 7
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class ZeroScale:
    """Where values of one axis are drawn.

    Attributes:
        low: The least decade drawn, as an exponent of ten; zero lies a decade and a half below.
        high: The largest decade.
        zero: Whether there is a zero to be drawn.
        logarithmic: Whether there is anything but zero.
    """

    low: int
    high: int
    zero: bool
    logarithmic: bool

    @classmethod
    def of(cls, values: Iterable[float]) -> ZeroScale:
        """The scale for some values of at least 0; what lies below 0 is rounding, and drawn as 0."""
        found = [value for value in values if math.isfinite(value)]
        positive = [value for value in found if value > 0.0]
        if not positive:
            return cls(0, 1, bool(found), logarithmic=False)
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        return cls(low, max(high, low + 1), len(positive) < len(found), logarithmic=True)

    @property
    def strip(self) -> float:
        """Where zero is drawn."""
        return float(10.0 ** (self.low - 0.16 * self._decades - 0.25)) if self.logarithmic else 0.0

    @property
    def _decades(self) -> int:
        return self.high - self.low

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        return value if value > 0.0 or not self.logarithmic else self.strip

    def apply(self, axis: Any, which: Literal["x", "y"]) -> None:
        """Gives an axis its scale, its ticks and, where there is a zero, its strip.

        Args:
            axis: A matplotlib ``Axes``.
            which: The axis.
        """
        limits, scale, ticks = (axis.set_xlim, axis.set_xscale, axis.set_xticks) if which == "x" else (
            axis.set_ylim, axis.set_yscale, axis.set_yticks
        )  # fmt: skip
        if not self.logarithmic:
            limits(-0.15, 1.0)
            ticks([0.0], ["0"])
            return
        scale("log")
        step = max(1, -(-self._decades // _MOST_TICKS))
        decades = list(range(self.low, self.high + 1, step))
        ticks([*([self.strip] if self.zero else []), *(10.0**decade for decade in decades)],
              [*(["0"] if self.zero else []), *(decade_text(decade) for decade in decades)])  # fmt: skip
        ticks([], minor=True)
        room = 10.0 ** (0.06 * self._decades)
        cut = 10.0 ** (self.low - 0.08 * self._decades - 0.05)
        if not self.zero:
            limits(10.0**self.low / room, 10.0**self.high * room)
            return
        bottom = self.strip / (cut / self.strip)
        limits(bottom, 10.0**self.high * room)
        span, line = (axis.axvspan, axis.axvline) if which == "x" else (axis.axhspan, axis.axhline)
        span(bottom, cut, facecolor=STRIP, edgecolor="none", zorder=0)
        line(cut, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)


def decade_text(decade: int) -> str:
    """A power of ten: 0.01, 1, 100, and 10⁻⁶ beyond."""
    if -3 <= decade <= 3:
        return figure_text(10.0**decade)
    return "10" + str(decade).translate(_SUPERSCRIPT)


def reference_line(axis: Any, value: float, text: str, *, which: Literal["x", "y"] = "y") -> None:
    """A thin line across a panel at a value, and what it is."""
    line = axis.axhline if which == "y" else axis.axvline
    line(value, color=INK, linewidth=0.9, linestyle=(0, (6, 2, 1, 2)), zorder=1.5)
    if not text:
        return
    if which == "y":
        # At the right, where curves of a recovery have come down, and above the markers of one that lies on the line.
        axis.annotate(text, (1.0, value), (-3, 7), ("axes fraction", "data"), textcoords="offset points", fontsize=8,
                      ha="right", annotation_clip=True, zorder=5,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85})  # fmt: skip
    else:
        axis.annotate(text, (value, 1.0), (3, -9), ("data", "axes fraction"), textcoords="offset points", fontsize=8,
                      annotation_clip=True)  # fmt: skip


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest of some values, a little apart; (0, 1) of none."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.08 * abs(high) or 0.08
    return low - room, high + room
