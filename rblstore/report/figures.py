"""The report's own pictures: entropy before and after, and how large each behavior's changes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rblstore.operations.report_facts import BaselineFact, PartFact, ReportResult, StudyFact
from rblstore.report.drawing import drawing, figure_bytes, new_figure
from rblstore.report.markup import Markup, inline_svg
from rblstore.report.palette import SERIES
from rblstore.report.panels import Mark, draw_curves, draw_dots, draw_matrix, series
from rblstore.report.safe_text import figure_text, one_line
from rblstore.report.study_plots import study_caption, study_figure

WIDTH: Final = 4.4
"""Inches of a picture on a page: narrow enough to be read on a phone."""
_MOST_LAYERS: Final = 96
_WIDE: Final = 20.0
"""Norms that differ by more than this factor have a logarithmic axis."""


def study_svg(study: StudyFact) -> Markup:
    """The picture of a study, for a page."""
    with drawing(text="text"):
        drawn = figure_bytes(study_figure(study.record, WIDTH, titled=False), "svg")
    return inline_svg(drawn, f"s{study.id[:16]}", f"Study: {study.record.study}", study_caption(study.record))


def composition_label(baseline: BaselineFact, longest: int = 40) -> str:
    """What a baseline was measured of, in words."""
    return one_line(", ".join(baseline.behaviors), longest) if baseline.behaviors else "the identity alone"


def entropy_svg(baselines: Sequence[BaselineFact]) -> Markup | None:
    """Mean entropy of each composition under one probe; None where less than one was computed."""
    shown = [one for one in baselines if one.entropy is not None]
    if not shown:
        return None
    from matplotlib.ticker import MaxNLocator

    labels = [f"{composition_label(one, 24)}\n{one.id.short}" for one in shown]
    marks = [Mark(one.entropy.mean, one.entropy.low, one.entropy.high) for one in shown if one.entropy is not None]
    with drawing(text="text"):
        figure = new_figure(WIDTH, 0.85 + 0.45 * len(shown))
        axis = figure.subplots()
        draw_dots(axis, labels, series(["entropy"], [marks]), x_log=False)
        low, high = min(mark.low for mark in marks), max(mark.high for mark in marks)
        room = 0.1 * (high - low) or 0.1 * high or 0.1
        axis.set_xlim(max(0.0, low - room), high + room)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel("entropy (nats), mean over prompts; bars: 95 %")
        drawn = figure_bytes(figure, "svg")
    said = "; ".join(
        f"{composition_label(one)}: {figure_text(mark.value)} nats" for one, mark in zip(shown, marks, strict=True)
    )
    return inline_svg(drawn, f"h{shown[0].id[:16]}", "Mean entropy of the outputs", said)


def norms_svg(report: ReportResult) -> Markup | None:
    """How large each behavior's changes are, layer by layer; None where nothing of them is measured."""
    from matplotlib.ticker import MaxNLocator

    parts = [one for one in report.parts if any(layer.layer and layer.norm is not None for layer in one.layers)]
    layers = _layers(parts)
    if not parts or not layers:
        return None
    found = [{layer.layer: layer.norm for layer in one.layers} for one in parts]
    shown = layers[:_MOST_LAYERS]
    names = [one_line(one.name, 20) for one in parts]
    prefix, numbers = _numbers(shown)
    with drawing(text="text"):
        if len(parts) <= len(SERIES) and numbers is not None and len(shown) > 1:
            figure = new_figure(WIDTH, 3.0)
            axis = figure.subplots()
            marks = [
                [None if (norm := of.get(layer)) is None else Mark(norm, norm, norm) for layer in shown] for of in found
            ]
            known = [mark.value for of in marks for mark in of if mark is not None]
            log = max(known) > _WIDE * min(known)
            draw_curves(axis, [float(number) for number in numbers], series(names, marks), x_log=False, y_log=log)
            if not log:
                axis.set_ylim(0.0, 1.1 * max(known) or 1.0)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_xlabel(f"layer ({one_line(prefix, 40)}N)")
            axis.set_ylabel("Frobenius norm of the change" + (", log" if log else ""))
            axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.1)
        else:
            figure = new_figure(WIDTH, 0.9 + 0.27 * len(shown))
            axis = figure.subplots()
            cells = [[of.get(layer) for of in found] for layer in shown]
            draw_matrix(axis, [one_line(layer, 22) for layer in shown], [name[:14] for name in names], cells)
            axis.set_title("Frobenius norm of the change", fontsize=8.5)
        drawn = figure_bytes(figure, "svg")
    said = "; ".join(
        f"{name}: largest {figure_text(max((norm for norm in of.values() if norm is not None), default=None))}"
        for name, of in zip(names, found, strict=True)
    )
    return inline_svg(drawn, "norms", "Norm of what each behavior changed, by layer", said)


def _layers(parts: Sequence[PartFact]) -> list[str]:
    from rblstore.operations.report_changes import layer_order

    found = {layer.layer for one in parts for layer in one.layers if layer.layer}
    return sorted(found, key=layer_order)


def _numbers(layers: Sequence[str]) -> tuple[str, list[int] | None]:
    """The numbers of layers that differ by nothing else, and what stands before them."""
    prefixes = {layer.rpartition(".")[0] for layer in layers}
    if len(prefixes) != 1:
        return "", None
    prefix = prefixes.pop()
    return f"{prefix}." if prefix else "", [int(layer.rpartition(".")[2][:9]) for layer in layers]
