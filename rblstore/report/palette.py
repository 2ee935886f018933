"""Colours that stay apart for colour-blind eyes and in greyscale; markers and line styles differ as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INK: Final = "#1a1a1a"
FAINT: Final = "#6b6b6b"
GRID: Final = "#d9d9d9"
STRIP: Final = "#f0f0f0"


@dataclass(frozen=True)
class Style:
    """How one series is drawn.

    Attributes:
        colour: ``#rrggbb``.
        marker: matplotlib's letter.
        line: matplotlib's line style.
    """

    colour: str
    marker: str
    line: str


SERIES: Final = (
    Style("#0b3c6f", "o", "-"),
    Style("#d55e00", "s", "--"),
    Style("#56b4e9", "^", "-."),
    Style("#f0e442", "D", ":"),
)
"""In the order of their use; from dark to light, after Okabe and Ito."""

_LIGHT: Final = (247, 251, 255)
_DARK: Final = (8, 48, 107)
_MIDDLE: Final = (107, 174, 214)


def shade(part: float) -> tuple[str, str]:
    """Background and ink of a cell: from nearly white to dark blue, in greyscale as well.

    Args:
        part: From 0 to 1; beyond is cut off.

    Returns:
        Two ``#rrggbb``; their contrast is at least 4.5 to 1.
    """
    part = min(1.0, max(0.0, part))
    low, high, along = (_LIGHT, _MIDDLE, part / 0.5) if part <= 0.5 else (_MIDDLE, _DARK, part / 0.5 - 1.0)
    mixed = tuple(round(a + (b - a) * along) for a, b in zip(low, high, strict=True))
    background = "#{:02x}{:02x}{:02x}".format(*mixed)
    return background, "#000000" if luminance(background) > 0.18 else "#ffffff"


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` from 0 to 1 (WCAG 2)."""

    def linear(channel: int) -> float:
        value = channel / 255
        return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)

    red, green, blue = (linear(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
