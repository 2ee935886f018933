"""The small parts that every section of the page uses: numbers with intervals, ids that lead somewhere, heat tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rblstore.divergence.intervals import Interval
from rblstore.report.markup import Markup, element, foreign, join
from rblstore.report.palette import shade
from rblstore.report.safe_text import figure_text, one_line, short_figure

WORDS = {
    "exact": "exact",
    "within_tolerance": "within tolerance",
    "diverged": "diverged",
    "unverified": "unverified",
}


def verdict(name: str) -> Markup:
    """A verdict, told by words, shade and border."""
    return element("span", WORDS.get(name, name), class_=f"verdict {name if name in WORDS else 'unverified'}")


def evidence(id: str | None) -> Markup:
    """The short form of an id, which leads to its whole form at the end of the page."""
    if id is None:
        return element("span", "–", class_="soft")
    return element("a", element("code", id[:12]), href=f"#e-{id}", title=id)


def short_id(id: str) -> Markup:
    """The short form of an id that the list at the end does not have."""
    return element("code", id[:12], title=id)


def number(value: float | None, unit: str = "") -> Markup:
    """A number in four digits, all of it on demand."""
    if value is None:
        return element("span", "–", class_="soft")
    return element("span", figure_text(value) + (f" {unit}" if unit else ""), title=repr(value))


def with_interval(value: float | None, found: Interval | None, unit: str = "") -> Markup:
    """A number and, beneath, the interval that it comes with."""
    if value is None or found is None or found.low == found.high:
        return number(value, unit)
    ends = f"{100 * found.level:g} %: {figure_text(found.low)} to {figure_text(found.high)}"
    return join(number(value, unit), " ", element("small", ends, class_="interval"))


def moment(time: str) -> Markup:
    """A time as people read it; all of it on demand."""
    at = one_line(time, 40)
    readable = f"{at[:10]} {at[11:16]} UTC" if at.endswith("Z") and at[10:11] == "T" else at
    return element("time", readable, datetime=at, title=at)


def by(author: str, time: str) -> Markup:
    """Who, and when."""
    return join(foreign(author), ", ", moment(time))


def facts(rows: Iterable[tuple[str, str | Markup | None]]) -> Markup:
    """Names and what they are; rows without anything are left out."""
    return element(
        "dl", [join(element("dt", name), element("dd", value)) for name, value in rows if value], class_="facts"
    )


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[str | Markup]], numeric: Sequence[int] = ()
) -> Markup:
    """A table that can be wider than the screen.

    Args:
        caption: What it shows.
        header: One a column.
        rows: Cells.
        numeric: Which columns hold numbers.
    """
    kinds = ["n" if at in numeric else None for at in range(len(header))]
    head = element(
        "tr", [element("th", one, scope="col", class_=kind) for one, kind in zip(header, kinds, strict=True)]
    )
    body = [
        element("tr", [element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)]) for row in rows
    ]
    inner = element("table", element("caption", caption), element("thead", head), element("tbody", body))
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


@dataclass(frozen=True)
class HeatCell:
    """One cell of a heat table.

    Attributes:
        value: What decides its shade; None for a cell without a number.
        note: What stands beneath, small.
        flagged: Whether it is marked.
    """

    value: float | None
    note: str = ""
    flagged: bool = False


def heat_table(
    caption: str,
    columns: Sequence[Markup],
    rows: Iterable[tuple[Markup, Sequence[HeatCell | None]]],
    *,
    logarithmic: bool,
    first: str,
) -> Markup:
    """A heat map that is a table: every cell has its number, every row its head above it, so that it can be read.

    Args:
        caption: What it shows; how shades are to be read is added.
        columns: Heads of the columns.
        rows: Each row's head and its cells, None where nothing was measured.
        logarithmic: Whether shades go by magnitude; zero is the lightest then, and only it.
        first: What the rows' heads are.
    """
    listed = list(rows)
    known = [cell.value for _, cells in listed for cell in cells if cell is not None and cell.value is not None]
    positive = [value for value in known if value > 0.0]
    low, high = (min(positive), max(positive)) if logarithmic and positive else (0.0, max(known, default=0.0))
    if not known:
        shades = "Nothing has a number."
    elif high <= 0.0:
        shades = "Every number is exactly 0."
    elif logarithmic:
        ends = f"from {figure_text(low)} to {figure_text(high)}"
        shades = f"Shades go by magnitude, {ends}; a cell without shade is exactly 0."
    else:
        low = min(known)
        shades = f"Shades go from {figure_text(low)} (light) to {figure_text(high)} (dark)."

    def part(value: float) -> float:
        if value <= 0.0 or high <= low:
            return 0.0 if value <= 0.0 else 0.6
        if logarithmic:
            return 0.15 + 0.85 * math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    body = []
    for head, cells in listed:
        drawn = [_cell(cell, part) for cell in cells]
        top = element("tr", element("th", element("div", head), scope="rowgroup", colspan=str(max(1, len(columns)))))
        body.append(element("tbody", top, element("tr", drawn)))
    header = element(
        "thead",
        element(
            "tr", [element("th", column, scope="col", style=f"width:{100 / len(columns):.2f}%") for column in columns]
        ),
    )
    inner = element("table", element("caption", f"{caption} {shades} {first}"), header, body, class_="heat")
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _cell(cell: HeatCell | None, part: object) -> Markup:
    if cell is None:
        return element("td", "not measured", class_="none")
    note = [element("small", cell.note)] if cell.note else []
    flag = [
        element("span", " ▲", class_="flag", title="above the threshold", role="img", aria_label="above the threshold")
    ]
    if cell.value is None:
        return element("td", "no number", flag if cell.flagged else [], note, class_="none")
    assert callable(part)
    background, ink = shade(part(cell.value))
    return element(
        "td",
        short_figure(cell.value),
        flag if cell.flagged else [],
        note,
        style=f"background:{background};color:{ink}",
        title=repr(cell.value),
    )
