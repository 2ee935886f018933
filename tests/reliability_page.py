"""Writes the figures of docs/reliability.md from what the harnesses counted.

    RBL_TEST_TIER=full RBL_TEST_FIGURES=figures.jsonl pytest tests/crash tests/hostile tests/property tests/saboteur
    python tests/reliability_page.py figures.jsonl

Runs of one loop are added up, whatever their seeds. Nothing is written where one of them failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end -->"


def table(lines: list[dict[str, Any]]) -> str:
    """The table of all loops, by figure."""
    loops: dict[tuple[int, str], dict[str, Any]] = {}
    for line in lines:
        if line["failed"]:
            raise SystemExit(f"{line['figure']} {line['what']} failed with RBL_TEST_SEED={line['seed']}")
        loop = loops.setdefault(
            (int(line["figure"][1:]), line["what"]), {"trials": 0, "seconds": 0.0, "seeds": {}, "counts": {}}
        )
        loop["trials"] += line["trials"]
        loop["seconds"] += line["seconds"]
        loop["seeds"][line["seed"]] = None
        for name, number in line["counts"].items():
            loop["counts"][name] = loop["counts"].get(name, 0) + number
    rows = ["| # | tried | trials, none failed | broken in fewer than | counted besides | minutes | seed |"]
    rows.append("|---|---|---|---|---|---|---|")
    for (figure, what), loop in sorted(loops.items()):
        bound = f"1 of {loop['trials'] // 3:,}" if loop["trials"] >= 6 else ""
        counts = ", ".join(f"{number:,} {name}" for name, number in loop["counts"].items())
        seeds = ", ".join(map(str, loop["seeds"]))
        minutes = f"{loop['seconds'] / 60:.1f}"
        rows.append(f"| R{figure} | {what} | {loop['trials']:,} | {bound} | {counts} | {minutes} | {seeds} |")
    return "\n".join(rows) + "\n"


def main(figures: Path) -> None:
    """Puts the table in its place."""
    text = PAGE.read_text()
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"{PAGE} has no place for figures")
    lines = [json.loads(line) for line in figures.read_text().splitlines()]
    PAGE.write_text(before + BEGIN + table(lines) + END + after)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
