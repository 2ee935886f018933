"""What log and status ask of the catalog depends on what they show, and not on how long history is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from long_history import make_history
from sqlalchemy import event

SHORT, LONG = 60, 2000


def asked(repo: Any, question: Callable[[], object]) -> tuple[int, int]:
    """How many statements a question takes, and how many steps of SQLite's machine, in units of 100."""
    engine, statements, steps = repo._store.catalog._engine, [], 0

    def count_statement(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def count_steps(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(step, 100)

    question()  # what is asked once only
    event.listen(engine, "before_cursor_execute", count_statement)
    event.listen(engine, "checkout", count_steps)
    try:
        question()
    finally:
        event.remove(engine, "before_cursor_execute", count_statement)
        event.remove(engine, "checkout", count_steps)
    return len(statements), steps


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, tuple[int, int]]]:
    found = {}
    for commits in (SHORT, LONG):
        with make_history(tmp_path_factory.mktemp("history"), commits=commits) as repo:
            assert len(repo.log()) == commits
            found[commits] = {
                "log": asked(repo, lambda: repo.log(limit=20)),
                "log of everything": asked(repo, lambda: repo.log(limit=20, all=True)),
                "status": asked(repo, repo.status),
                "show": asked(repo, repo.show),
            }
    return found


@pytest.mark.parametrize("question", ["log", "log of everything", "status", "show"])
def test_the_length_of_history_does_not_matter(figures: dict[int, dict[str, tuple[int, int]]], question: str) -> None:
    statements, steps = figures[LONG][question]
    few_statements, few_steps = figures[SHORT][question]
    assert statements <= few_statements + 2
    assert statements <= 40
    assert steps <= 2 * few_steps + 20
