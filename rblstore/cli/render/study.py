"""Studies, in text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from rblstore.cli.render.studies_together import TOGETHER
from rblstore.cli.render.text import columns, environment_lines, number, plural, short

# Shown where a study has them, in this order; everything else is in --json and --csv.
_MEASURES: Final = {
    "kl": "KL",
    "js": "JS",
    "rf": "RF",
    "entropy": "entropy",
    "top1_agreement": "top-1",
    "relative_l2": "relative L2",
    "cosine": "cosine",
}
_PLAIN: Final = 6


def study_lines(result: Any) -> Iterator[str]:
    """A study: what it is about, its figures, and one line for each condition.

    Args:
        result: The document of a ``StudyResult``.
    """
    yield click.style(f"study {result['study']} {result['id']}", fg="yellow")
    yield from study_body(result)


def study_body(result: Any) -> Iterator[str]:
    """The same without its first line.

    Args:
        result: The document of a ``StudyResult``.
    """
    yield f"commits      {', '.join(short(one) for one in result['commits'])}"
    if result["probes"]:
        yield f"probes       {', '.join(short(one) for one in result['probes'])}"
    for name, value in sorted(result["parameters"].items()):
        yield f"{name:12} {_parameter(value)}"
    yield f"author       {result['author']}"
    yield f"time         {result['time']}"
    yield from environment_lines("environment  ", result["environment"])
    if (together := TOGETHER.get(result["study"])) is not None:
        yield ""
        yield from together(result)
        return
    for name, value in result["figures"].items():
        yield f"{name:12} {_figure(value)}"
    yield ""
    yield from summary_lines(result["summary"])


def summary_lines(rows: Sequence[Any]) -> Iterator[str]:
    """One line for each condition: means, with their 95 % intervals where they have one.

    Args:
        rows: Documents of ``SummaryRow``.
    """
    keys = list(dict.fromkeys(name for row in rows for name in row["condition"]))
    named = [name for name in _MEASURES if any(name in row["measures"] for row in rows)]
    if not named:
        named = list(dict.fromkeys(name for row in rows for name in row["measures"]))[:_PLAIN]
    header = [*(key.replace("_", " ") for key in keys), *(_MEASURES.get(name, name) for name in named)]
    table = [
        (
            *(_scalar(row["condition"].get(key)) for key in keys),
            *(_interval(row["measures"].get(name)) for name in named),
            *(("-" if row["bit_equal"] is None else "yes" if row["bit_equal"] else "no"),),
        )
        for row in rows
    ]
    yield from columns(table, header=(*header, "bit-equal"))
    reasons = dict.fromkeys(row["reason"] for row in rows if row["reason"])
    for reason in reasons:
        yield f"- is unknown: {reason}"


def studies_lines(found: Any) -> Iterator[str]:
    """Every study.

    Args:
        found: Documents of ``StudyInfo``.
    """
    yield from columns(
        (
            (
                short(one["id"]),
                one["study"],
                ", ".join(short(commit) for commit in one["commits"]),
                plural(one["points"], "point"),
                one["time"],
                one["author"],
            )
            for one in found
        ),
        header=("study", "kind", "commits", "points", "time", "author"),
    )


def _interval(found: Any) -> str:
    if found is None:
        return "-"
    mean, low, high = found["mean"], found["low"], found["high"]
    return number(mean) if low == high else f"{number(mean)} [{number(low)}, {number(high)}]"


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return _interval(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if value is None or isinstance(value, (int, float)) else str(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return "-" if value is None else str(value)


def _parameter(value: Any) -> str:
    return ", ".join(_scalar(one) for one in value) if isinstance(value, list) else _scalar(value)
