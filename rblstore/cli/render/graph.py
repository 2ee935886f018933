"""The commit graph in text, as ``git log --graph`` draws it: one lane a line of descent, newest first.

Lanes sit at even columns of text, the strokes between them at odd ones. Below a commit the lanes move in two steps:
first to the right, to make room for the further parents of a merge, then to the left, where a lane has ended or two
await one commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A commit to draw.

    Attributes:
        id: Its id.
        parents: Their ids, the first parent first.
        lines: Text to its right, at least one line; more follow beside the strokes below it.
    """

    id: str
    parents: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Edge:
    """A lane on its way from one position to another, both counted in lanes."""

    start: int
    end: int


def draw_graph(nodes: Iterable[Node]) -> Iterator[str]:
    """Draws commits.

    Args:
        nodes: Every commit before its parents (topological order). Parents that never come leave their lanes open.

    Returns:
        Lines without trailing space.
    """
    lanes: list[str] = []
    ended = -1  # the lane in which a root was the last thing drawn
    for node in nodes:
        if node.id not in lanes:
            if len(lanes) == ended:  # without a row between them the two would look like child and parent
                yield _row({2 * lane: "|" for lane in range(len(lanes))})
            lanes.append(node.id)
        position = lanes.index(node.id)
        above, own, below, lanes = _strokes(lanes, position, node.parents)
        padding = _row({2 * lane: "|" for lane in range(len(lanes))})
        extra = max(0, len(node.lines) - 1 - len(below))
        width = max(len(row) for row in (own, *below, padding))
        yield from above
        rows = [own, *below, *([padding] * extra)]
        for index, row in enumerate(rows):
            text = node.lines[index] if index < len(node.lines) else ""
            yield f"{row:{width}} {text}".rstrip()
        ended = position if len(rows) == 1 and not node.parents else -1


def _strokes(
    lanes: Sequence[str], position: int, parents: Sequence[str]
) -> tuple[list[str], str, list[str], list[str]]:
    """The rows above, of and below a commit, and the lanes after it."""
    first, others = list(parents[:1]), list(dict.fromkeys(parents[1:]))
    to_left = [parent for parent in others if parent in lanes[:position]]
    inserted = [parent for parent in others if parent not in to_left and parent not in first]
    above, own = _node_rows(len(lanes), position, len(inserted))
    below: list[str] = []

    spread = [*lanes[:position], *first, *inserted, *lanes[position + 1 :]]
    shift = len(inserted) + len(first) - 1
    if inserted:
        moved = max(0, len(inserted) - 1)  # an octopus made most of its room above
        edges = [_Edge(lane, lane) for lane in range(position + 1)]
        edges += [_Edge(position + number, position + number + 1) for number in range(len(inserted))]
        edges += [_Edge(lane + moved, lane + shift) for lane in range(position + 1, len(lanes))]
        below.append(_step(edges))

    resting = [lane for lane in range(len(lanes) + max(0, shift)) if first or lane != position]
    for parent in to_left:  # one after the other: two strokes that leave together cannot be told apart
        below += _collapse([*(_Edge(lane, lane) for lane in resting), _Edge(position, lanes.index(parent))])
    after = list(dict.fromkeys(spread))
    below += _collapse([_Edge(lane, after.index(awaited)) for lane, awaited in zip(resting, spread, strict=True)])
    return above, own, below, after


def _node_rows(count: int, position: int, inserted: int) -> tuple[list[str], str]:
    """Rows that make room for an octopus merge, and the row of the commit itself."""
    extra = max(0, inserted - 1)
    above = []
    if position + 1 < count:
        for step in range(extra):
            edges = [_Edge(lane, lane) for lane in range(position + 1)]
            edges += [_Edge(lane + step, lane + step + 1) for lane in range(position + 1, count)]
            above.append(_step(edges))
    marks = {2 * lane: "|" for lane in range(position)}
    marks[2 * position] = "*"
    for column in range(2 * position + 1, 2 * (position + extra)):
        marks[column] = "-"
    if extra:
        marks[2 * (position + extra)] = "."
    marks.update({2 * (lane + extra): "|" for lane in range(position + 1, count)})
    return above, _row(marks)


def _collapse(edges: list[_Edge]) -> list[str]:
    """Rows in which every lane moves left, one lane a row, until all are where they belong."""
    rows = []
    while moving := [edge for edge in edges if edge.start > edge.end]:
        if len(moving) == 1 and moving[0].start - moving[0].end > 2:
            rows.append(_long_step(edges, moving[0]))
            edges = [_Edge(edge.end + 1, edge.end) if edge is moving[0] else edge for edge in edges]
        else:
            rows.append(_step([_Edge(edge.start, max(edge.start - 1, edge.end)) for edge in edges]))
            edges = [_Edge(max(edge.start - 1, edge.end), edge.end) for edge in edges]
    return rows


def _step(edges: Iterable[_Edge]) -> str:
    """One row in which each lane stays or moves by one."""
    marks: dict[int, str] = {}
    for edge in edges:
        if edge.start == edge.end:
            marks[2 * edge.start] = "|"
        elif edge.start < edge.end:
            marks[2 * edge.start + 1] = "\\"
        else:
            marks[2 * edge.start - 1] = "/"
    return _row(marks)


def _long_step(edges: Iterable[_Edge], mover: _Edge) -> str:
    """One row in which a lane runs under the others to beside its place."""
    marks = {2 * edge.start: "|" for edge in edges if edge is not mover}
    marks.update({2 * lane + 1: "_" for lane in range(mover.end + 1, mover.start - 1)})
    marks[2 * mover.start - 1] = "/"
    return _row(marks)


def _row(marks: dict[int, str]) -> str:
    return "".join(marks.get(column, " ") for column in range(max(marks, default=-1) + 1))
