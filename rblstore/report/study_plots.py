"""One picture for each kind of study, drawn from the record alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from rblstore.objects.study_records import Study
from rblstore.report.drawing import check_format, draw, plot_format
from rblstore.report.measures import LN2, axis_label, condition_labels, measure, scalar_text, study_title, varying
from rblstore.report.palette import FAINT, SERIES
from rblstore.report.panels import Series, draw_curves, draw_dots, ends, exact_handle, series
from rblstore.report.safe_text import figure_text, one_line
from rblstore.report.study_drawing import DIVERGENCES, MOST_ROWS, Drawing, mark_of, panels
from rblstore.report.study_matrices import attribution, interference
from rblstore.report.zero_axis import reference_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH: Final = 6.4
"""Inches of a picture that stands alone."""


def plot_study(record: Study, out: str | Path | BinaryIO, format: str | None = None) -> None:
    """Draws a study: the curve, the rows or the matrix that its kind asks for.

    Args:
        record: The study.
        out: A file, which is replaced whole, or a stream of bytes.
        format: ``svg``, ``png`` or ``pdf``; None for what the file's suffix says.

    Raises:
        UnknownPlotFormatError: Another format.
        FileWriteError: The system refused.
    """
    target = Path(out) if isinstance(out, str) else out
    if format is not None:
        chosen = check_format(format.lower(), format)
    else:
        chosen = plot_format(target) if isinstance(target, Path) else check_format("", "the stream")
    draw(lambda: study_figure(record), target, chosen)


def study_figure(record: Study, width: float = WIDTH, *, titled: bool = True) -> Figure:
    """The picture of a study; call it within :func:`rblstore.report.drawing.drawing`.

    Args:
        record: The study.
        width: Inches.
        titled: Whether what it is stands above it.
    """
    from rblstore.operations.study_summary import summarise

    it = Drawing(record, summarise(record), width)
    make = _KINDS.get(record.study, _anything)
    figure = make(it) or _anything(it)
    title = study_title(record.study)
    if titled:
        lines = textwrap.fill(title, int(width * 12.0))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    footer = "\n".join(textwrap.wrap(_footer(it), int(width * 19)))
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=7.5, color=FAINT)
    return figure


def study_caption(record: Study) -> str:
    """What a picture shows, in words, for those who do not see it: one line a condition."""
    from rblstore.operations.study_summary import summarise

    rows = summarise(record)
    it = Drawing(record, rows, WIDTH)
    names = [name for name in (*DIVERGENCES, "rf", "entropy", "kept") if it.known([name])]
    lines = []
    for label, row in zip(condition_labels(it.conditions), rows, strict=True):
        found = [(name, mark_of(row, name)) for name in names]
        values = ", ".join(f"{measure(name).label} {figure_text(mark.value)}" for name, mark in found if mark)
        lines.append(f"{label}: {values or 'no value'}{' (bit-equal)' if row.bit_equal else ''}")
    return "; ".join(lines[:MOST_ROWS])


def _footer(it: Drawing) -> str:
    prompts = _prompts_text(it.record)
    seeds = len({point.seed for point in it.record.points if point.seed is not None})
    parts = [f"Means over {prompts}" if prompts else "Values of whole models"]
    if seeds:
        parts[0] += f" and {seeds} seed{'s' * (seeds != 1)}"
    level = next((found.level for row in it.rows for found in row.measures.values() if found is not None), None)
    if prompts and level is not None and it.record.study not in ("attribution", "interference"):
        parts.append(f"bars: {100 * level:g} % bootstrap intervals")
    behavior = it.record.parameters.get("behavior")
    if isinstance(behavior, str):
        merged = ", merged in" if it.record.parameters.get("form") == "merged" else ""
        parts.append(f"behavior {one_line(behavior, 28)}{merged}")
    parts.append(f"study {it.record.id_of(it.record.encode()).short}")
    return "; ".join(parts) + "."


def _prompts_text(record: Study) -> str:
    """Over how many prompts the means are taken, of each probe where they are not as many; "" without any."""
    counts: dict[str, int] = {}
    for point in record.points:
        if point.prompts:
            probe = point.condition.get("probe", point.condition.get("identity"))
            counts[one_line(scalar_text(probe), 24)] = len(point.prompts)
    words = {probe: f"{count} prompt{'s' * (count != 1)}" for probe, count in counts.items()}
    if len(set(words.values())) <= 1:
        return next(iter(words.values()), "")
    return ", ".join(f"{text} ({probe})" for probe, text in words.items())


# -- the kinds --------------------------------------------------------------------------------------------------


def _elimination(it: Drawing) -> Figure:
    return _curve(it, "epsilon", "fraction of the behavior put to nothing, ε", x_log=False)


def _mutation(it: Drawing) -> Figure:
    return _curve(it, "alpha", "standard deviation of the noise, α (log)", x_log=True)


def _curve(it: Drawing, key: str, label: str, *, x_log: bool) -> Figure:
    """Curves over a number; where one more member of the conditions varies, a curve for each of its values."""
    numbers = [condition.get(key) for condition in it.conditions]
    places = {float(one) for one in numbers if isinstance(one, (int, float)) and not isinstance(one, bool)}
    others = [name for name in varying(it.conditions) if name != key]
    names, below = it.known(DIVERGENCES), it.known(["rf"])
    groups = list(dict.fromkeys(scalar_text(one.get(others[0])) if others else "" for one in it.conditions))
    if len(others) > 1 or not names or len(groups) * len(names) > len(SERIES) or None in numbers or not places:
        return _anything(it)
    xs = sorted(places)
    rows = {
        (float(one[key]), scalar_text(one.get(others[0])) if others else ""): at for at, one in enumerate(it.conditions)
    }

    def curves(measures: Sequence[str]) -> list[Series]:
        marks = [
            [it.marks(name)[rows[x, group]] if (x, group) in rows else None for x in xs]
            for group in groups
            for name in measures
        ]
        words = [
            f"{measure(name).label}{f', {others[0]} {group}' if group else ''}" for group in groups for name in measures
        ]
        # RF looks as the KL does that it is made of.
        every = len(names) if measures == below else 1
        return series(words, marks, every=every)

    figure, axes = panels(it.width, [2.9, *([1.3] if below else [])])
    found = curves(names)
    exact = draw_curves(axes[0], xs, found, x_log=x_log, y_log=True)
    axes[0].set_ylabel(f"{axis_label(names)}, log")
    if "js" in names and any(value > 0 for value in ends(found)):
        reference_line(axes[0], LN2, "ln 2: the most that JS can be")
    _legend(axes[0], exact=exact, columns=int(it.width / 1.9))
    if below:
        again = curves(below)
        draw_curves(axes[1], xs, again, x_log=x_log, y_log=False)
        _recovery(axes[1], "y", ends(again))
        axes[1].set_ylabel("RF")
    axes[-1].set_xlabel(label)
    return figure


def _entropy(it: Drawing) -> Figure:
    keys, marks = varying(it.conditions), it.marks("entropy")
    if not it.known(["entropy"]) or len(keys) > 1:
        return _anything(it)
    figure, axes = panels(it.width, [2.6])
    axis = axes[0]
    numbers = list(range(1, len(it.rows) + 1))
    found = series(["mean over the prompts"], [marks])
    draw_curves(axis, numbers, found, x_log=False, y_log=False)
    axis.set_xlim(0.5, len(numbers) + 0.5)
    labels = [scalar_text(condition.get(keys[0]), 12) for condition in it.conditions] if keys else ["1"]
    axis.set_xticks(numbers, labels, rotation=0 if max(map(len, labels)) < 8 else 30)
    axis.set_xlabel(keys[0].replace("_", " ") if keys else "run")
    axis.set_ylabel(axis_label(["entropy"]))
    low = min(0.0, *ends(found))
    axis.set_ylim(low, 1.12 * max(ends(found)) if max(ends(found)) > 0 else 1.0)
    _legend(axis, exact=any(row.bit_equal for row in it.rows))
    return figure


def _ways_back(it: Drawing) -> Figure:
    """Rows of a recovery, with what it is made of beneath: RF alone says little."""
    return _dots(it, [["rf"], list(DIVERGENCES)])


def _perturbations(it: Drawing) -> Figure:
    return _dots(it, [["svar"], list(DIVERGENCES)])


def _divergences(it: Drawing) -> Figure:
    return _dots(it, [list(DIVERGENCES), ["rf"]])


def _anything(it: Drawing) -> Figure:
    """A kind without a picture of its own: every measure, one row a condition."""
    names = list(dict.fromkeys(name for row in it.rows for name in row.measures))
    together = it.known([name for name in DIVERGENCES if name in names])
    rest = [name for name in it.known(names) if name not in together and name not in ("kl_reverse", "kl_adapted")]
    groups = [together, *([name] for name in rest)]
    return _dots(it, [group for group in groups if group][:4])


# -- layouts ----------------------------------------------------------------------------------------------------


def _dots(it: Drawing, groups: Sequence[Sequence[str]]) -> Figure:
    rows = range(min(len(it.rows), MOST_ROWS))
    letters = max(19, int(it.width * 3.9))
    labels = [_lines(one_line(label, 56), letters) for label in condition_labels(it.conditions, 40)]
    groups = [names for names in (it.known(group) for group in groups) if names]
    if not groups:
        figure, axes = panels(it.width, [0.8])
        axes[0].axis("off")
        axes[0].text(0, 0.5, "Nothing that could be drawn was measured.", color=FAINT)
        return figure
    # A row that was not measured in this way at all is left out; one without a value says so.
    shown = [[at for at in rows if any(name in it.rows[at].measures for name in names)] for names in groups]
    figure, axes = panels(it.width, [0.4 + sum(_row_height(labels[at]) for at in here) for here in shown])
    exact = False
    for axis, names, here in zip(axes, groups, shown, strict=True):
        log = all(measure(name).logarithmic for name in names)
        found = series([measure(name).label for name in names], [[it.marks(name)[at] for at in here] for name in names])
        exact |= draw_dots(axis, [labels[at] for at in here], found, x_log=log)
        axis.set_xlabel(axis_label(names) + (", log" if log else ""))
        if names == ["rf"]:
            _recovery(axis, "x", ends(found))
        for place in range(len(here)):
            if all(one.marks[place] is None for one in found):
                axis.annotate("undefined", (0.01, place), xycoords=("axes fraction", "data"), va="center", color=FAINT,
                              fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # fmt: skip
    _legend(axes[0], exact=exact)
    for axis, names in zip(axes[1:], groups[1:], strict=True):
        if len(names) > 1:
            _legend(axis, exact=False)
    if len(it.rows) > len(rows):
        axes[-1].annotate(f"{len(it.rows) - len(rows)} more are not drawn", (0, 0), (0, -32), "axes fraction",
                          textcoords="offset points", fontsize=8, color=FAINT)  # fmt: skip
    return figure


def _lines(label: str, letters: int) -> str:
    """A label in lines, broken between its members where they are short enough."""
    members = [one if len(one) > letters else one.replace(" ", "\u00a0") for one in label.split(" · ")]
    return "\n".join(textwrap.wrap("\u00a0· ".join(members), letters, break_on_hyphens=False)[:3])


def _row_height(label: str) -> float:
    return 0.3 + 0.1 * label.count("\n")


def _recovery(axis: Axes, which: Any, found: Sequence[float]) -> None:
    """The two values of RF that mean something, always in sight."""
    low, high = min([*found, 0.0]), max([*found, 1.0])
    room = 0.08 * (high - low)
    (axis.set_xlim if which == "x" else axis.set_ylim)(low - room, high + room)
    reference_line(axis, 1.0, "", which=which)
    reference_line(axis, 0.0, "", which=which)


def _legend(axis: Axes, *, exact: bool, columns: int = 4) -> None:
    handles, _ = axis.get_legend_handles_labels()
    if exact:
        handles.append(exact_handle())
    if len(handles) > 1 or exact:
        axis.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.1,
                    columnspacing=1.4, handletextpad=0.6)  # fmt: skip


_KINDS: Final[Mapping[str, Callable[[Drawing], Figure | None]]] = {
    "elimination": _elimination,
    "mutation": _mutation,
    "svar": _perturbations,
    "mechanisms": _ways_back,
    "entropy": _entropy,
    "scale": _ways_back,
    "interference": interference,
    "attribution": attribution,
    "shift": _divergences,
}
