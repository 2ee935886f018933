"""Text that others wrote, made safe to draw and to read: nothing reorders, hides or overflows what stands beside it."""

from __future__ import annotations

import re
from typing import Final

# C0 and C1 controls, and the marks that reorder or hide text.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The same text with every character that is no sign of its own written as an escape; tabs and lines stay."""
    return _HIDDEN.sub(lambda match: match.group(0).encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def one_line(text: str, longest: int) -> str:
    """A label: visible, white space as single blanks, cut with an ellipsis after so many characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def figure_text(value: float | None) -> str:
    """A measured number in four significant digits; 0 and 1 stand for just that, a dash for none."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 10_000:
        return str(int(value))
    text = f"{value:.4g}"
    # What rounds to 0 or 1 is not it.
    return f"{value:.10g}" if text in ("0", "1", "-1", "1.0") else text


def short_figure(value: float | None) -> str:
    """The same in two significant digits, for cells of a table."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    if 0.995 <= abs(value) < 1.0:
        return f"{value:.6g}"
    return f"{value:.2g}" if abs(value) < 1e-3 or abs(value) >= 1000 else f"{value:.3f}"
