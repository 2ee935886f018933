"""The lineage of a commit as a picture: one row a commit, one lane a line of history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rblstore.objects.ids import CommitId
from rblstore.operations.report_facts import LineageCommit
from rblstore.report.markup import Markup, element, join
from rblstore.report.safe_text import one_line

_LANE: Final = 16
_ROW: Final = 62
_TEXT: Final = 324
_MOST_LANES: Final = 12
_COLOURS: Final = ("#0b3c6f", "#b34700", "#3a87ad", "#6b6b6b")
_DASHES: Final = (None, "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Edge:
    """A line from a child to a parent.

    Attributes:
        child: (row, lane).
        lane: Where it runs.
        parent: (row, lane), or None where the parent is not shown.
    """

    child: tuple[int, int]
    lane: int
    parent: tuple[int, int] | None


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Attributes:
        lanes: The lane of each commit, in order.
        edges: Lines between them.
        width: How many lanes there are.
    """

    lanes: tuple[int, ...]
    edges: tuple[Edge, ...]
    width: int


def lay_out(commits: Sequence[LineageCommit]) -> Layout:
    """Gives every commit a lane: a line of first parents stays in one.

    Args:
        commits: Children before their parents.
    """
    waiting: list[CommitId | None] = []
    lanes: list[int] = []
    open_edges: list[tuple[CommitId, tuple[int, int], int]] = []
    for row, one in enumerate(commits):
        mine = [at for at, expected in enumerate(waiting) if expected == one.commit]
        lane = mine[0] if mine else _free(waiting)
        for at in mine:
            waiting[at] = None
        lanes.append(lane)
        for number, parent in enumerate(one.parents):
            # A parent that another child waits for already is reached in that child's lane.
            at = lane if number == 0 else _free(waiting)
            waiting[at] = parent
            open_edges.append((parent, (row, lane), at))
    places = {one.commit: (row, lanes[row]) for row, one in enumerate(commits)}
    edges = tuple(Edge(child, lane, places.get(parent)) for parent, child, lane in open_edges)
    return Layout(tuple(lanes), edges, 1 + max([*lanes, *(edge.lane for edge in edges)], default=0))


def _free(waiting: list[CommitId | None]) -> int:
    for at, expected in enumerate(waiting):
        if expected is None:
            return at
    waiting.append(None)
    return len(waiting) - 1


def lineage_svg(commits: Sequence[LineageCommit], older: int) -> Markup:
    """The picture, with a text alternative; the same in words stands beside it.

    Args:
        commits: Children before their parents; at least one.
        older: How many further ancestors there are.
    """
    layout = lay_out(commits)
    left = min(layout.width, _MOST_LANES) * _LANE + 10
    width, height = left + _TEXT, len(commits) * _ROW + (22 if older else 4)
    lines = [_edge(edge, len(commits)) for edge in layout.edges]
    dots = [_commit(row, layout.lanes[row], one, left) for row, one in enumerate(commits)]
    more = [
        element("text", f"and {older} older", x=str(left), y=str(height - 8), font_size="11", fill="#595959")
    ] if older else []  # fmt: skip
    described = "; ".join(
        f"{one.commit.short} {one_line(one.subject, 60)}, parents "
        + (", ".join(parent.short for parent in one.parents) or "none")
        for one in commits
    )
    return element(
        "svg",
        element("title", "The commits that lead here, newest first", id="lineage-title"),
        element("desc", described, id="lineage-desc"),
        lines,
        dots,
        more,
        class_="lineage",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby="lineage-title lineage-desc",
        font_family="system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    )


def _x(lane: int) -> int:
    return 10 + min(lane, _MOST_LANES - 1) * _LANE


def _y(row: int) -> int:
    return 18 + row * _ROW


def _edge(edge: Edge, rows: int) -> Markup:
    (row, lane), along = edge.child, _x(edge.lane)
    bottom, end = (rows, edge.lane) if edge.parent is None else edge.parent
    start, last = _y(row), _y(bottom) if edge.parent is not None else _y(rows - 1) + _ROW - 14
    half = _ROW // 2
    path = f"M{_x(lane)} {start}"
    if _x(lane) != along:
        path += f"C{_x(lane)} {start + half} {along} {start} {along} {start + half}"
    if _x(end) != along:
        path += f"V{last - half}C{along} {last} {_x(end)} {last - half} {_x(end)} {last}"
    else:
        path += f"V{last}"
    kind = edge.lane % len(_COLOURS)
    dash = "1 4" if edge.parent is None else _DASHES[kind]
    return element("path", d=path, fill="none", stroke=_COLOURS[kind], stroke_width="2", stroke_dasharray=dash)


def _commit(row: int, lane: int, one: LineageCommit, left: int) -> Markup:
    x, y = _x(lane), _y(row)
    fill = {"exact": _COLOURS[0], "within_tolerance": "#9cc8ec"}.get(one.verdict, "#ffffff")
    stroke = "#b34700" if one.verdict == "diverged" else _COLOURS[0]
    dot = element("circle", cx=str(x), cy=str(y), r="5.5", fill=fill, stroke=stroke, stroke_width="2")
    cross = (
        [element("path", d=f"M{x - 3} {y - 3}l6 6m0 -6l-6 6", stroke=stroke, stroke_width="1.6")]
        if one.verdict == "diverged"
        else []
    )
    changes = ", ".join(f"{_SIGNS[change.change]}{change.name}" for change in one.changes)
    if one.identity_changed:
        changes = f"another identity{', ' if changes else ''}{changes}"
    names = f" · {', '.join(one.refs)}" if one.refs else ""
    second = one_line(f"{one.commit.short} · {one.time[:10]}{names}", 50)
    third = one_line(f"{changes or 'no change of behaviors'} · {one.verdict.replace('_', ' ')}", 50)
    return join(
        dot,
        cross,
        element("text", one_line(one.subject, 42), x=str(left), y=str(y + 1), font_size="13", font_weight="600",
                fill="#1a1a1a"),
        element("text", second, x=str(left), y=str(y + 16), font_size="11", fill="#595959"),
        element("text", third, x=str(left), y=str(y + 30), font_size="11", fill="#1a1a1a"),
    )  # fmt: skip


_SIGNS: Final = {"added": "+ ", "removed": "− ", "replaced": "± ", "weight": "weight of ", "moved": "moved "}
