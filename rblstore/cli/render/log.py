"""History, in text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from rblstore.cli.render.text import first_line, indent, number, short, slots_text
from rblstore.cli.render.verdict import verdict_text


def log_lines(commits: Sequence[Any], *, graph: bool, oneline: bool) -> Iterator[str]:
    """Commits as ``git log`` shows them, with what they compose and how they were verified.

    Args:
        commits: Documents of ``LogEntry``, children before parents.
        graph: Whether to draw the graph beside them.
        oneline: One line a commit.
    """
    if graph:
        from rblstore.cli.render.graph import Node, draw_graph

        yield from draw_graph(
            Node(
                commit["commit"],
                tuple(commit["parents"]),
                (_one_line(commit),) if oneline else (*_paragraph(commit), *(() if last else ("",))),
            )
            for last, commit in _marking_last(commits)
        )
        return
    for last, commit in _marking_last(commits):
        if oneline:
            yield _one_line(commit)
            continue
        yield from _paragraph(commit)
        if not last:
            yield ""


def _marking_last(commits: Sequence[Any]) -> Iterator[tuple[bool, Any]]:
    for index, commit in enumerate(commits):
        yield index == len(commits) - 1, commit


def refs_text(refs: Sequence[str]) -> str:
    """Names that point at a commit, in parentheses, with a space before; nothing for none."""
    if not refs:
        return ""
    styled = (click.style(ref, fg="green" if not ref.startswith("tag: ") else "cyan", bold=True) for ref in refs)
    return f" ({', '.join(styled)})"


def _one_line(commit: Any) -> str:
    verdicts = "".join(f" [{verdict_text(one['verdict'])}]" for one in commit["verifications"][-1:])
    name = click.style(short(commit["commit"]), fg="yellow")
    return f"{name}{refs_text(commit['refs'])} {first_line(commit['message'])}{verdicts}"


def _paragraph(commit: Any) -> Iterator[str]:
    yield click.style(f"commit {short(commit['commit'])}", fg="yellow") + refs_text(commit["refs"])
    if len(commit["parents"]) > 1:
        yield f"Merge:     {' '.join(short(parent) for parent in commit['parents'])}"
    yield f"Author:    {commit['author']}"
    yield f"Date:      {commit['time']}"
    yield f"Identity:  {short(commit['identity'])}"
    yield f"Behaviors: {slots_text(commit['slots'])}"
    for verification in commit["verifications"]:
        yield f"Verified:  {summary_text(verification)}"
    yield ""
    yield from indent(commit["message"])


def summary_text(verification: Any) -> str:
    """One verification in a line: verdict, figures, probe."""
    figures = f"RF {number(verification['rf'])}, KL {number(verification['kl'])}, JS {number(verification['js'])}"
    return f"{verdict_text(verification['verdict'])}, {figures}, probe {short(verification['probe'])}"
