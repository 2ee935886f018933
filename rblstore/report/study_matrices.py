"""Studies as matrices: what behaviors do to one another, and which prompts each of them moved."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rblstore.objects.study_records import StudyPoint
from rblstore.report.measures import axis_label, scalar_text
from rblstore.report.panels import draw_matrix
from rblstore.report.safe_text import figure_text, one_line
from rblstore.report.study_drawing import DIVERGENCES, MOST_ROWS, Drawing, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLUMNS: Final = 16


@dataclass(frozen=True)
class _Table:
    """A matrix of values: what goes down and across, which measure its cells have, and what chance alone would give."""

    rows: Sequence[str]
    down: str
    columns: Sequence[str]
    across: str
    cells: Sequence[Sequence[float | None]]
    measure: str
    chance: Sequence[Sequence[float | None]] = ()


def interference(it: Drawing) -> Figure | None:
    """How much of each behavior's effect is left beside another, and beneath how far their subspaces overlap.

    Args:
        it: The study.

    Returns:
        None where it has nothing of this make.
    """
    kept = _pairs(it, "given", ("kept_pooled", "kept", "kl", "relative_l2"))
    shared = _pairs(it, "subspaces", ("output_overlap", "delta_cosine"))
    found = [one for one in (kept, shared) if one is not None]
    return _matrices(it, found) if found else None


def _pairs(it: Drawing, part: str, names: Sequence[str]) -> _Table | None:
    """The rows of one part of an interference study as a matrix: behaviors down, what they stand beside across."""
    rows = [
        at
        for at, one in enumerate(it.conditions)
        if one.get("part", part) == part and one.get("behavior") and one.get("given") and not one.get("tensor")
    ]
    named = next((name for name in names if any(it.marks(name)[at] is not None for at in rows)), None)
    if named is None:
        return None
    values = _by_pair(it, rows, named, mirrored=part == "subspaces")
    chance = _by_pair(it, rows, named.replace("_overlap", "_chance"), mirrored=True) if "_overlap" in named else {}
    behaviors = list(dict.fromkeys(str(it.conditions[at][key]) for at in rows for key in ("given", "behavior")))
    down, across = behaviors[:MOST_ROWS], behaviors[:_MOST_COLUMNS]
    cells, expected = ([[found.get((row, column)) for column in across] for row in down] for found in (values, chance))
    return _Table(down, "behavior", across, "beside", cells, named, expected if chance else ())


def _by_pair(it: Drawing, rows: Sequence[int], name: str, *, mirrored: bool) -> dict[tuple[str, str], float]:
    """A measure by behavior and what it stands beside.

    Args:
        it: The study.
        rows: Which of its rows.
        name: The measure.
        mirrored: Whether it is the same from both sides, as an overlap is.
    """
    marks = it.marks(name)
    found: dict[tuple[str, str], float] = {}
    for at in rows:
        mark, behavior, given = marks[at], str(it.conditions[at]["behavior"]), str(it.conditions[at]["given"])
        if mark is not None:
            found[behavior, given] = mark.value
            if mirrored:
                found[given, behavior] = mark.value
    return found


def attribution(it: Drawing) -> Figure | None:
    """Prompts down, behaviors across: how far leaving one out moves each prompt.

    Args:
        it: The study.

    Returns:
        None where it has nothing of this make.
    """
    parts = ("without", "whole")
    points = [point for point in it.record.points if point.condition.get("part", "without") in parts]
    measured = {name for point in points for one in point.prompts for name in one.values}
    named = next((name for name in DIVERGENCES if name in measured), None)
    if named is None:
        return None
    columns = {_left_out(point): None for point in points}
    if len(columns) < len({repr(sorted(point.condition.items(), key=str)) for point in points}):
        return None  # conditions of another make: what they have in common says too little
    found: dict[tuple[str, str], list[float]] = {}
    for point in points:
        for one in point.prompts:
            value = one.values.get(named)
            if value is not None:
                found.setdefault((one.id, _left_out(point)), []).append(value)
    ids = list(dict.fromkeys(one.id for point in points for one in point.prompts))
    across = list(columns)[:_MOST_COLUMNS]
    cells = [[_mean(found.get((id, column), [])) for column in across] for id in ids]
    if len(ids) > MOST_ROWS:
        most = sorted(range(len(ids)), key=lambda at: -max((value or 0.0 for value in cells[at]), default=0.0))
        keep = sorted(most[:MOST_ROWS])
        ids, cells = [ids[at] for at in keep], [cells[at] for at in keep]
    return _matrices(it, [_Table(ids, "prompt", across, "left out", cells, named)])


def _left_out(point: StudyPoint) -> str:
    if point.condition.get("part") == "whole":
        return "all of them"
    behavior = point.condition.get("behavior", point.condition.get("without"))
    return behavior if isinstance(behavior, str) else scalar_text(behavior)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _matrices(it: Drawing, tables: Sequence[_Table]) -> Figure:
    figure, axes = panels(it.width, [0.7 + 0.3 * len(one.rows) for one in tables])
    for axis, one in zip(axes, tables, strict=True):
        low, high = draw_matrix(
            axis,
            [one_line(text, 20) for text in one.rows],
            [one_line(text, 16) for text in one.columns],
            one.cells,
            one.chance,
        )
        axis.set_ylabel(one.down)
        axis.set_xlabel(one.across)
        shades = f"from {figure_text(low)} (light) to {figure_text(high)} (dark)" if high > low else "all 0"
        chance = "; in brackets: what random subspaces of these dimensions have" if one.chance else ""
        title = f"{axis_label([one.measure])}: {shades}; hatched: no value{chance}"
        axis.set_title(textwrap.fill(title, int(it.width * 15)), fontsize=8.5)
    return figure
