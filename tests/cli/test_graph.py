"""The commit graph: golden drawings, and a reader that follows the strokes back to the parents they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rblstore.cli.render.graph import Node, draw_graph

History = Sequence[tuple[str, str]]

GOLDEN: dict[str, tuple[History, str]] = {
    "a line": (
        [("c", "b"), ("b", "a"), ("a", "")],
        """
* c
* b
* a
""",
    ),
    "a merge": (
        [("m", "ab"), ("b", "r"), ("a", "r"), ("r", "")],
        """
*   m
|\\
| * b
* | a
|/
* r
""",
    ),
    "two tips of one commit": (
        [("b", "r"), ("a", "r"), ("r", "")],
        """
* b
| * a
|/
* r
""",
    ),
    "a merge whose second parent is drawn already, to the left": (
        [("h", "x"), ("m", "px"), ("p", "x"), ("x", "")],
        """
* h
| * m
|/|
| * p
|/
* x
""",
    ),
    "a merge whose parents are both to the left": (
        [("p", "a"), ("q", "b"), ("m", "ba"), ("b", ""), ("a", "")],
        """
* p
| * q
| | * m
| |/|
|/| |
| |/
| * b
* a
""",
    ),
    "a lane that runs far to the left": (
        [("a", "r"), ("b", "x"), ("c", "y"), ("d", "r"), ("x", ""), ("y", ""), ("r", "")],
        """
* a
| * b
| | * c
| | | * d
| |_|/
|/| |
| * | x
|  /
| * y
* r
""",
    ),
    "an octopus": (
        [("o", "abc"), ("c", "r"), ("b", "r"), ("a", "r"), ("r", "")],
        """
*-.   o
|\\ \\
| | * c
| * | b
| |/
* | a
|/
* r
""",
    ),
    "an octopus beside another lane": (
        [("x", "r"), ("y", "s"), ("z", "s"), ("r", "abc"), ("s", ""), ("c", ""), ("b", ""), ("a", "")],
        """
* x
| * y
| | * z
| |/
|  \\
*-. |   r
|\\ \\ \\
| | | * s
| | * c
| * b
* a
""",
    ),
    "two histories that share nothing": (
        [("b", "a"), ("a", ""), ("d", "c"), ("c", "")],
        """
* b
* a

* d
* c
""",
    ),
    "a limit that cuts parents off": (
        [("m", "ab"), ("b", "r")],
        """
*   m
|\\
| * b
""",
    ),
}


def _draw(history: History) -> list[str]:
    return list(draw_graph(Node(name, tuple(parents), (name,)) for name, parents in history))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_drawings(name: str) -> None:
    history, drawing = GOLDEN[name]
    assert _draw(history) == drawing.strip("\n").split("\n")


def test_text_stands_beside_the_strokes_and_lines_up() -> None:
    nodes = [
        Node("m", ("a", "b"), ("merge", "second", "third", "")),
        Node("b", ("r",), ("b",)),
        Node("a", ("r",), ("a", "more", "")),
        Node("r", (), ("root", "text")),
    ]
    assert list(draw_graph(nodes)) == [
        "*   merge",
        "|\\  second",
        "| | third",
        "| |",
        "| * b",
        "* | a",
        "|/  more",
        "|",
        "* root",
        "  text",
    ]


@st.composite
def _histories(draw: st.DrawFn) -> list[tuple[str, tuple[str, ...]]]:
    count = draw(st.integers(1, 14))
    names = [str(number) for number in range(count)]
    history = []
    for number, name in enumerate(names):
        later = names[number + 1 :]
        parents = draw(st.lists(st.sampled_from(later), unique=True, max_size=4)) if later else []
        history.append((name, tuple(parents)))
    return history


@given(_histories())
def test_the_strokes_lead_from_every_commit_to_its_parents_and_nowhere_else(
    history: list[tuple[str, tuple[str, ...]]],
) -> None:
    rows = list(draw_graph(Node(name, parents, ("",)) for name, parents in history))
    names = [name for name, _ in history]
    assert [{names[number] for number in found} for found in _parents_drawn(rows)] == [
        set(parents) for _, parents in history
    ]


def _parents_drawn(rows: Sequence[str]) -> list[set[int]]:
    """For each commit, the numbers of the commits that its strokes lead to, read as a person would."""

    def at(row: int, column: int) -> str:
        return rows[row][column] if 0 <= row < len(rows) and 0 <= column < len(rows[row]) else " "

    def below(row: int, column: int, came: str) -> list[tuple[int, int, str]]:
        straight, left = at(row + 1, column) in "|*", column > 0 and at(row + 1, column - 1) == "/"
        crossed = at(row, column + 1) == "/" or (at(row, column + 1) == "_" and at(row, column - 1) != "_")
        if came == "/" and straight and left:
            straight = False  # a stroke that passes under a lane goes on
        elif came == "|" and straight and left and crossed:
            left = False  # ... and the lane that it passes under goes straight down
        found = [(row + 1, column, "|")] if straight else []
        if left:
            edge = column - 1
            while at(row + 1, edge - 2) == "_":
                edge -= 2
            found.append((row + 1, edge - 1, "/"))
        if at(row + 1, column + 1) == "\\":
            found.append((row + 1, column + 2, "\\"))
        return found

    commits = [number for number, row in enumerate(rows) if "*" in row]
    drawn = []
    for row in commits:
        column = rows[row].index("*")
        todo = [(row, column, "*")]
        arm = column + 1
        while at(row, arm) == "-":
            arm += 1
        if at(row, arm) == ".":  # the arms of an octopus: each goes down as a backslash
            todo += [
                (row + 1, lane + 2, "\\") for lane in range(column + 2, arm + 1, 2) if at(row + 1, lane + 1) == "\\"
            ]
        found: set[int] = set()
        seen: set[tuple[int, int, str]] = set()
        while todo:
            step = todo.pop()
            if step in seen:
                continue
            seen.add(step)
            if step[0] != row and step[2] == "|" and at(step[0], step[1]) == "*":
                found.add(commits.index(step[0]))
            else:
                todo += below(*step)
        drawn.append(found)
    return drawn
