"""What ``rbl demo`` ends with: the two recoveries side by side, and what to try."""

from __future__ import annotations

from typing import Any

from rblstore.cli.render.text import printable


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.3g}"


def demo_lines(document: dict[str, Any]) -> list[str]:
    """The lines of the document of a demonstration."""
    rows = [("", "KL before", "KL after", "JS after", "RF", "bit-equal")]
    for recovery in (document["reverted"], document["reset"]):
        rf = recovery["rf"]
        rows.append(
            (
                recovery["name"],
                _number(recovery["kl_adapted"]),
                _number(recovery["kl"]),
                _number(recovery["js"]),
                "-" if rf is None else f"{rf:.4f}",
                "yes" if recovery["bit_equal"] else "no",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["", "Divergence from the base, in nats; RF 1 is exact recovery, 0 none:", ""]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "   ".join(cells))
    lines += ["", "The history it leaves behind:", ""]
    lines += [f"  {commit}  {printable(subject)}" for commit, subject in document["commits"]]
    lines += ["", "Try:", "", *(f"  {printable(command)}" for command in document["try_next"])]
    return lines
