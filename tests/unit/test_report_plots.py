"""Pictures of studies: the same bytes for the same record, every kind drawn, zero told from small, colours apart."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rblstore.errors import UsageError
from rblstore.objects.ids import CommitId, ProbeId
from rblstore.objects.study_records import PromptMeasures, Scalar, Study, StudyPoint
from rblstore.report.drawing import UnknownPlotFormatError, drawing
from rblstore.report.measures import condition_labels
from rblstore.report.palette import SERIES, luminance, shade
from rblstore.report.safe_text import figure_text, one_line, short_figure, visible
from rblstore.report.study_plots import plot_study, study_caption, study_figure
from rblstore.report.writing import FileWriteError
from rblstore.report.zero_axis import ZeroScale, decade_text

HOSTILE = 'a $\\frac{1}{0}$ <script>alert("1")</script> \u202egnp.exe &amp; ' + "w" * 300


def point(condition: dict[str, Scalar], seed: int | None, size: float, **values: float | None) -> StudyPoint:
    """A point on three prompts whose KL is about ``size``; bit-equal where that is 0."""
    prompts = tuple(
        PromptMeasures(f"p{at}", {"kl": size * (1 + at / 10), "js": min(size / 5, 0.6), "entropy": 2.0 + at})
        for at in range(3)
    )
    return StudyPoint(condition, seed, size == 0.0, dict(values), None, prompts)


def study(kind: str, points: list[StudyPoint]) -> Study:
    """A record around some points."""
    return Study(
        kind, (CommitId("a" * 64),), (ProbeId("b" * 64),), {"seeds": [0.0, 1.0]}, {"device": "cpu"}, tuple(points),
        "Ada", "2026-01-01T00:00:00.000Z",
    )  # fmt: skip


def cell(part: str, behavior: str, given: str | None, **values: float | None) -> StudyPoint:
    return StudyPoint(
        {"part": part, "behavior": behavior, "given": given, "tensor": None}, None, None, values, None, ()
    )


STUDIES = {
    "elimination": [point({"epsilon": e}, s, 0.3 * (1 - e), rf=e) for e in (0.0, 0.01, 0.5, 1.0) for s in (0, 1)],
    "mutation": [
        point({"alpha": alpha, "recovery": way}, s, size if way == "none" else 0.0, rf=float(way == "store"))
        for alpha, size in ((0.001, 0.1), (0.01, 6.0), (0.05, 15.0)) for way in ("none", "store") for s in (0, 1)
    ],
    "svar": [point({"perturbation": name}, s, size) for name, size in (("drop:0.25", 0.1), ("scale:0.9", 1e-4))
             for s in (0, 1)],
    "mechanisms": [
        point({"mechanism": "mutation", "reset": "pull back"}, 0, 6.0, rf=-0.5, kl_adapted=4.0),
        point({"mechanism": "mutation", "reset": "none"}, 0, 6.0, rf=None),
        point({"mechanism": "reversible", "reset": "unload"}, 0, 0.0, rf=1.0),
    ],
    "entropy": [point({"run": float(run)}, None, 0.0) for run in (1, 2, 3)],
    "scale": [point({"identity": name, "mechanism": "reversible"}, 0, 0.0, rf=1.0) for name in ("small", "large")],
    "interference": [cell("given", a, b, kept=0.5) for a in "xyz" for b in "xyz" if a != b]
    + [cell("subspaces", "y", "x", output_overlap=0.25, output_chance=0.03125, delta_cosine=-0.1)],
    "attribution": [point({"part": "without", "behavior": name}, None, 0.1) for name in ("x", "y")]
    + [point({"part": "whole", "behavior": None}, None, 0.3)],
    "shift": [point({"probe": name}, None, size) for name, size in (("ten", 0.0), ("held out", 0.2))],
    "of_no_known_kind": [point({"name": HOSTILE, "flag": flag}, 7, 0.1, weird=3.0) for flag in (True, False)],
}  # fmt: skip


def drawn(record: Study, format: str = "svg") -> bytes:
    out = io.BytesIO()
    plot_study(record, out, format)
    return out.getvalue()


@pytest.mark.parametrize("kind", STUDIES)
def test_every_kind_is_drawn(kind: str) -> None:
    record = study(kind, STUDIES[kind])
    first = drawn(record)
    if kind in ("elimination", "interference"):
        assert drawn(Study.parse(record.encode())) == first
    root = ET.fromstring(first)
    assert root.tag.endswith("svg")
    assert len(list(root.iter())) > 50
    assert b"<script" not in first
    assert b"<dc:date" not in first


def panels(kind: str, points: list[StudyPoint] | None = None) -> list[Any]:
    with drawing(text="paths"):
        return list(study_figure(study(kind, points or STUDIES[kind])).axes)


def test_elimination_is_a_curve_whose_zero_lies_in_a_strip() -> None:
    axis, below = panels("elimination")
    assert next(text.get_text() for text in axis.get_yticklabels()) == "0"
    (line,) = [line for line in axis.get_lines() if line.get_label() == "KL"]
    assert list(line.get_xdata()) == [0.0, 0.01, 0.5, 1.0]
    smallest = min(value for value in line.get_ydata()[:-1])
    assert line.get_ydata()[-1] < smallest / 10, "zero is not a number a little below the others"
    zero, lowest = axis.get_yticks()[:2]
    assert axis.get_ylim()[0] < zero < lowest, "below every number that the axis has"
    assert line.get_ydata()[-1] == zero
    assert "outputs bit-equal" in [text.get_text() for text in axis.get_legend().get_texts()]
    assert "nats" in axis.get_ylabel()
    assert below.get_ylabel() == "RF"


def test_mutation_has_ln_2_and_a_curve_for_each_recovery() -> None:
    axis, below = panels("mutation")
    heights = [line.get_ydata()[0] for line in axis.get_lines() if len(set(line.get_ydata())) == 1]
    assert any(math.isclose(height, math.log(2)) for height in heights)
    labels = [line.get_label() for line in axis.get_lines()]
    assert {"KL, recovery none", "JS, recovery none", "KL, recovery store"} <= set(labels)
    of = {line.get_label(): line.get_color() for one in (axis, below) for line in one.get_lines()}
    assert of["RF, recovery store"] == of["KL, recovery store"]


def test_rf_that_is_undefined_says_so_and_is_no_zero() -> None:
    axis = panels("mechanisms")[0]
    assert "undefined" in [text.get_text() for text in axis.texts]
    xs = [x for line in axis.get_lines() if line.get_marker() == "o" for x in line.get_xdata()]
    assert sorted(xs) == [-0.5, 1.0]


def test_matrices_show_their_numbers() -> None:
    kept, overlap = panels("interference")
    assert [text.get_text() for text in kept.texts].count("0.500") == 6
    assert sorted(text.get_text() for text in overlap.texts) == ["0.250 (0.031)", "0.250 (0.031)"] + ["–"] * 2
    assert "random subspaces" in overlap.get_title(loc="left").replace("\n", " ")
    assert "random" not in kept.get_title(loc="left")
    (prompts,) = panels("attribution")
    assert [text.get_text() for text in prompts.get_yticklabels()] == ["p0", "p1", "p2"]
    assert [text.get_text() for text in prompts.get_xticklabels()] == ["x", "y", "all of them"]


def test_what_was_not_measured_in_a_panel_has_no_row_in_it() -> None:
    conditions: list[dict[str, Scalar]] = [
        {"part": part, "probe": "other", "role": "held_out"} for part in ("adapted", "recovered")
    ]
    divergences, recovery = panels("shift", [point(conditions[0], None, 0.2), point(conditions[1], None, 0.0, rf=1.0)])
    (label,) = (text.get_text().replace("\u00a0", " ") for text in recovery.get_yticklabels())
    assert label == "recovered: other ·\nheld out"
    assert len(divergences.get_yticklabels()) == 2
    assert not recovery.texts


def test_marks_of_equality_at_the_edge_are_whole() -> None:
    for axis in panels("elimination"):
        assert not any(line.get_clip_on() for line in axis.get_lines() if line.get_marker() == "D")


def test_a_behavior_that_cannot_be_left_out_has_a_column_without_values() -> None:
    refused = StudyPoint({"part": "without", "behavior": "sft"}, None, None, {}, "another stands on it", ())
    (prompts,) = panels("attribution", [refused, *STUDIES["attribution"]])
    assert [text.get_text() for text in prompts.get_xticklabels()] == ["sft", "x", "y", "all of them"]
    assert [text.get_text() for text in prompts.texts].count("–") == 3


def test_the_footer_counts_the_prompts_of_each_probe() -> None:
    def footer(points: list[StudyPoint]) -> str:
        with drawing(text="paths"):
            return str(study_figure(study("shift", points)).get_supxlabel())

    ten, held_out = STUDIES["shift"]
    assert footer([ten, held_out]).startswith("Means over 3 prompts;")
    with drawing(text="paths"):
        merged = replace(study("svar", STUDIES["svar"]), parameters={"behavior": "polite", "form": "merged"})
        assert "; behavior polite, merged in; study" in str(study_figure(merged).get_supxlabel())
    fewer = replace(held_out, prompts=held_out.prompts[:1])
    assert footer([ten, fewer]).startswith("Means over 3 prompts (ten), 1 prompt (held out);")


def test_only_zeros_are_no_logarithmic_axis() -> None:
    axis = panels("elimination", [point({"epsilon": e}, 0, 0.0) for e in (0.0, 1.0)])[0]
    assert axis.get_yscale() == "linear"


def test_suffixes_decide_the_format(tmp_path: Path) -> None:
    record = study("svar", STUDIES["svar"])
    for name, start in (("a.svg", b"<?xml"), ("b.PNG", b"\x89PNG"), ("c.pdf", b"%PDF")):
        plot_study(record, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    plot_study(record, str(tmp_path / "a.svg"))  # what is there is replaced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.PNG", "c.pdf"]
    for bad in ("plot", "plot.jpeg"):
        with pytest.raises(UnknownPlotFormatError) as caught:
            plot_study(record, tmp_path / bad)
        assert isinstance(caught.value, UsageError)
        assert ".svg" in str(caught.value.hint)
    with pytest.raises(UnknownPlotFormatError):
        plot_study(record, io.BytesIO())
    with pytest.raises(FileWriteError):
        plot_study(record, tmp_path / "nowhere" / "a.svg")
    assert len(list(tmp_path.iterdir())) == 3


def test_nobody_else_sees_that_something_was_drawn() -> None:
    import sys

    import matplotlib as mpl

    before = mpl.rcParams.copy()
    with mpl.rc_context({"axes.facecolor": "red", "svg.hashsalt": "theirs", "font.size": 30}):
        other = drawn(study("svar", STUDIES["svar"]))
    assert other == drawn(study("svar", STUDIES["svar"])), "their settings change nothing"
    assert mpl.rcParams.copy() == before
    assert "matplotlib.pyplot" not in sys.modules


def test_series_stay_apart_in_grey_and_for_colour_blind_eyes() -> None:
    assert len({style.marker for style in SERIES}) == len({style.line for style in SERIES}) == len(SERIES)
    for number, one in enumerate(SERIES):
        for other in SERIES[number + 1 :]:
            assert abs(luminance(one.colour) - luminance(other.colour)) > 0.1, (one, other)
    previous = 2.0
    for step in range(101):
        background, ink = shade(step / 100)
        assert luminance(background) <= previous + 1e-9, "darker means more, in grey as well"
        previous = luminance(background)
        bright, dark = sorted((luminance(background), luminance(ink)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, step


def test_text_of_others_is_made_harmless() -> None:
    assert visible("a\u202eb\x1b[0m\u200d") == "a\\u202eb\\x1b[0m\\u200d"
    assert one_line(" a\n  b\t" + "c" * 99, 10) == "a b ccccc…"
    label = condition_labels([{"name": HOSTILE}])[0]
    assert "\u202e" not in label
    assert len(label) < 60
    assert "epsilon 0.5" in study_caption(study("elimination", STUDIES["elimination"]))


def test_what_is_nearly_0_or_1_is_not_written_as_0_or_1() -> None:
    assert figure_text(0.0) == "0"
    assert figure_text(1.0) == "1"
    assert figure_text(0.99999999) != "1"
    assert figure_text(-1e-30) == "-1e-30"
    assert short_figure(0.99999) == "0.99999"
    assert short_figure(1e-12) == "1e-12"
    assert (figure_text(None), short_figure(None)) == ("–", "–")


def test_the_scale_covers_what_it_is_given() -> None:
    scale = ZeroScale.of([0.0, 3e-7, 2.0])
    assert (scale.low, scale.high, scale.zero) == (-7, 1, True)
    assert scale.place(0.0) < 1e-7
    assert scale.place(5e-7) == 5e-7
    assert not ZeroScale.of([]).logarithmic
    assert [decade_text(decade) for decade in (-6, -3, 0, 2, 10)] == ["10⁻⁶", "0.001", "1", "100", "10¹⁰"]
