"""The published figures of arXiv 2603.02934, and tables of ours beside them: pure functions of studies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rblstore

# The published figures. Elimination: exact from 0.6 up; two of its entries are given by their values alone.
PUBLISHED_MUTATION = {
    0.001: {"1.5B": (0.169, 0.031), "3B": (0.355, 0.049)},
    0.01: {"1.5B": (6.347, 0.574), "3B": (8.780, 0.655)},
    0.05: {"1.5B": (14.747, 0.688), "3B": (15.581, 0.691)},
}
PUBLISHED_EXACT_FROM = 0.6
PUBLISHED_ELIMINATION = ((None, 9.63), (0.339, 0.665))
PUBLISHED_RF = {"unstructured": 0.0, "structured": 0.0, "reversible": 1.0}
PUBLISHED_ENTROPY = (0.245, 0.234, 0.261, 0.252)
PUBLISHED_SCALE = {"reversible": (100, 100, 100), "unstructured": (30, 40, 10)}

LN2 = math.log(2)


def impossible(kl: float | None, js: float | None) -> str | None:
    """Which bound a pair of mean divergences breaks, or None.

    JS is at most ln 2, and at most (ln 2 / 2) KL: both are sums over tokens of p times a function of q / p, and the
    ratio of the two functions grows with q / p, up to ln 2 / 2. Both hold for every position, and so for means.
    """
    if js is not None and js > LN2 * (1 + 1e-12):
        return f"JS {js:g} > ln 2 = {LN2:.3f}"
    if js is not None and kl is not None and js > LN2 / 2 * kl * (1 + 1e-9) + 1e-12:
        return f"JS {js:g} > (ln 2 / 2) KL = {LN2 / 2 * kl:.3g}"
    return None


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; an exact zero is told from a small number."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.{digits}g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Rows:
    """A study's summary: one row a condition, each measure a mean with its interval."""

    def __init__(self, result: Any) -> None:
        document = result.as_json()
        self.id = document["id"]
        self.environment = document["environment"]
        self.figures = document["figures"]
        self.record = result.record
        self.rows = document["summary"]

    def where(self, **wanted: Any) -> list[dict[str, Any]]:
        """The rows whose condition says so."""
        return [row for row in self.rows if all(row["condition"].get(key) == one for key, one in wanted.items())]

    def one(self, **wanted: Any) -> dict[str, Any] | None:
        """The only such row, or None."""
        found = self.where(**wanted)
        return found[0] if found else None


def mean(row: dict[str, Any] | None, name: str) -> float | None:
    """The mean of a measure in a row."""
    found = None if row is None else row["measures"].get(name)
    return None if found is None else found["mean"]


def told(row: dict[str, Any] | None, name: str, digits: int = 3) -> str:
    """A mean with its 95 % interval, for a table."""
    found = None if row is None else row["measures"].get(name)
    if found is None or found["mean"] is None:
        return "–"
    if name == "rf":
        # A difference from 1: what lies beyond nine digits is rounding, of measures that are good to nine digits.
        found = {key: None if found[key] is None else round(found[key], 9) + 0.0 for key in ("mean", "low", "high")}
    if found["low"] is None or found["low"] == found["high"]:
        return number(found["mean"], digits)
    return " to ".join(
        (f"{number(found['mean'], digits)} ({number(found['low'], digits)}", f"{number(found['high'], digits)})")
    )


def equal(row: dict[str, Any]) -> str:
    """Whether outputs are the reference's, bit for bit."""
    return "**yes**" if row["bit_equal"] else "no"


def restored(row: dict[str, Any] | None) -> tuple[str, str]:
    """RF and bit equality of a restored state."""
    return ("–", "–") if row is None else (number(mean(row, "rf")), equal(row))


def published_pair(kl: float | None, js: float | None) -> str:
    """A published KL and JS, marked where they cannot be."""
    why = impossible(kl, js)
    pair = f"{'?' if kl is None else kl:} / {js:}"
    return pair if why is None else f"~~{pair}~~ impossible: {why}"


def elimination_table(result: Rows) -> str:
    """Fig. 1 and Table 1."""
    lines = []
    for row in result.rows:
        fraction = row["condition"]["epsilon"]
        exact = "< 1e-6" if fraction >= PUBLISHED_EXACT_FROM else "partial"
        ours = (told(row, "kl"), told(row, "js"), told(row, "rf"), equal(row))
        lines.append((f"{fraction:g}", *ours, exact))
    header = ("ε", "KL, nats (95 %)", "JS, nats (95 %)", "RF", "bit-equal", "published, of a LoRA")
    wrong = "; ".join(published_pair(*pair) for pair in PUBLISHED_ELIMINATION)
    return f"{table(header, lines)}\n\nAmong the published entries (KL / JS): {wrong}."


def mutation_table(result: Rows) -> str:
    """Fig. 2 and Table 2."""
    lines = []
    for row in result.where(reset="none"):
        alpha = row["condition"]["alpha"]
        published = PUBLISHED_MUTATION.get(alpha, {})
        pairs = [published_pair(*published[size]) if size in published else "–" for size in ("1.5B", "3B")]
        stored = result.one(alpha=alpha, reset="store")
        lines.append(
            (f"{alpha:g}", told(row, "kl"), told(row, "js", 5), number(mean(row, "rf")), *restored(stored), *pairs)
        )
    header = (
        "α", "KL, nats (95 %)", "JS, nats (95 %)", "RF", "RF by the store", "bit-equal then",
        "1.5B published: KL / JS", "3B published: KL / JS",
    )  # fmt: skip
    return table(header, lines)


def mechanisms_table(result: Rows) -> str:
    """Table 3, and every way back."""
    lines = []
    for row in result.rows:
        condition = row["condition"]
        name = condition["mechanism"] + (f" `{condition['behavior']}`" if condition.get("behavior") else "")
        published = PUBLISHED_RF.get(condition["mechanism"])
        told_there = condition["reset"] in ("none", "unload") and published is not None
        if condition["mechanism"] == "reversible" and condition["reset"] == "none":
            told_there = False
        lines.append(
            (
                name,
                condition["reset"],
                told(row, "kl"),
                told(row, "js"),
                told(row, "rf"),
                number(mean(row, "ils_max")),
                equal(row),
                f"RF {published:g}" if told_there else "–",
            )
        )
    header = ("mechanism", "reset", "KL, nats", "JS, nats", "RF", "largest ILS", "bit-equal", "published")
    return table(header, lines)


def entropy_table(result: Rows) -> str:
    """Fig. 3 and Table 4."""
    lines = []
    for place, row in enumerate(result.rows):
        published = f"{PUBLISHED_ENTROPY[place]:g}" if place < len(PUBLISHED_ENTROPY) else "–"
        lines.append((str(place + 1), told(row, "entropy", 6), equal(row), published))
    return table(("run", "mean entropy, nats (95 %)", "bit-equal to the first", "published"), lines)


def svar_table(result: Rows) -> str:
    """SVAR and its four perturbations, for which nothing was published."""
    lines = []
    for row in result.rows:
        name = " ".join(str(value) for value in row["condition"].values() if value is not None)
        lines.append((name, told(row, "kl"), told(row, "js"), equal(row)))
    return table(("perturbation", "KL, nats", "JS, nats", "bit-equal"), lines)


def scale_table(result: Rows) -> str:
    """Fig. 4 and Table 5."""
    lines = []
    for identity in dict.fromkeys(row["condition"]["identity"] for row in result.rows):
        for mechanism in dict.fromkeys(row["condition"]["mechanism"] for row in result.where(identity=identity)):
            rows = result.where(identity=identity, mechanism=mechanism)
            without = [row for row in rows if row["condition"]["reset"] not in ("none", "store", "unload")]
            best = max(without, key=fidelity, default=None)
            exact = next((row for row in rows if row["condition"]["reset"] in ("store", "unload")), None)
            nothing = next((row for row in rows if row["condition"]["reset"] == "none"), None)
            published = PUBLISHED_SCALE.get(mechanism)
            size = mean(rows[0], "parameters")
            lines.append(
                (
                    f"{identity} ({0 if size is None else size / 1e6:.1f} M)",
                    mechanism,
                    percent(nothing),
                    "–" if best is None else f"{percent(best)} ({best['condition']['reset']})",
                    percent(exact),
                    "–" if published is None else " / ".join(f"{one} %" for one in published),
                    number(sum(mean(row, "seconds") or 0.0 for row in rows) / len(rows)),
                )
            )
    header = (
        "identity", "mechanism", "no reset", "best reset without the store", "by the store",
        "published (1.5B / 3B / 7B)", "seconds a state",
    )  # fmt: skip
    return table(header, lines)


def fidelity(row: dict[str, Any]) -> float:
    """RF of a row, the least of all where it is undefined."""
    found = mean(row, "rf")
    return -math.inf if found is None else found


def percent(row: dict[str, Any] | None) -> str:
    """100 RF, never clamped."""
    found = mean(row, "rf")
    return "–" if found is None else f"{100 * found:.4g} %"


def behaviors_table(studies: dict[str, Rows], names: Sequence[str]) -> str:
    """How far each behavior moves the outputs, when nothing of it is left, and what taking it out gives."""
    lines = []
    for name in names:
        rows = studies[f"mechanisms-{name}"]
        before = rows.one(behavior=name, reset="none")
        after = rows.one(behavior=name, reset="unload") or rows.one(behavior=name, reset="store")
        star = studies[f"elimination-{name}"].figures["epsilon_star_bit_equal"]
        exact = "–" if after is None else equal(after)
        lines.append(
            (f"`{name}`", told(before, "kl"), told(before, "js"), number(star), number(mean(after, "rf")), exact)
        )
    header = (
        "behavior",
        "KL with it, nats",
        "JS with it, nats",
        "bit-equal from ε",
        "RF without it",
        "bit-equal",
    )
    return table(header, lines)


def environment_table(result: Rows, arguments: Sequence[str]) -> str:
    """Where all of it was measured."""
    names = ("device", "dtype", "threads", "machine", "cpu_capability", "torch", "transformers", "peft", "attention")
    lines = [(name, f"`{result.environment[name]}`") for name in names if name in result.environment]
    command = " ".join(["python examples/paper_tables.py", *(without_folders(one) for one in arguments)])
    return f"```\n{command}\n```\n\n{table(('what', 'value'), [('rblstore', f'`{rblstore.__version__}`'), *lines])}"


def without_folders(argument: str) -> str:
    """An option as it was given, but for where on somebody's disk things lie."""
    name, equals, path = argument.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if "/" in path else argument
