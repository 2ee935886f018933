"""The report as Markdown: the tables and the evidence, without pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rblstore.divergence.intervals import Interval
from rblstore.operations.report_facts import PartFact, ReportResult, StudyFact, VerificationFact
from rblstore.report.html_model import byte_text
from rblstore.report.measures import condition_labels, measure
from rblstore.report.safe_text import figure_text, one_line

# What Markdown would read as markup, at the least: table cells, emphasis, code, links, HTML, and math of some readers.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#|~$!&@:+=-])")


def plain(text: str, longest: int = 400) -> str:
    """Somebody else's text on one line, with nothing in it that Markdown would read as markup."""
    return _MARKUP.sub(r"\\\1", one_line(text, longest))


def markdown_report(report: ReportResult) -> str:
    """The text.

    Args:
        report: What is known.
    """
    lines = [
        f"# {plain(report.message.split(chr(10), 1)[0], 120) or 'Report'}",
        "",
        f"Report on commit `{report.commit}`{_refs(report)}, by {plain(report.author)}, {report.time}.",
        "",
        *(f"- To know: {plain(warning)}" for warning in report.warnings),
        "",
        "## What it is made of",
        "",
        *_table(
            ("", "name", "form", "weight", "rank", "tensors", "bytes", "licence claimed", "id"),
            [_part(at, part) for at, part in enumerate(report.parts)],
        ),
        "",
        "## Where it comes from",
        "",
        *_lineage(report),
        "",
        "## Verifications",
        "",
        *(_verifications(report) or ["Nothing was verified."]),
        "",
        "## Prompt by prompt",
        "",
        "KL in nats that is left on each prompt (ILS); `!` marks what is above the tolerance.",
        "",
        *_prompts(report),
        "## Entropy before and after",
        "",
        *(_entropy(report) or ["No baseline is recorded of any composition here."]),
        "",
        "## What each behavior changed",
        "",
        "Frobenius norms of what is added to the stored weights.",
        "",
        *_changes(report),
        "## Studies",
        "",
        *([line for study in report.studies for line in _study(study)] or ["There are none of these commits.", ""]),
        "## Environments",
        "",
        *(f"{at}. {_environment(one)}" for at, one in enumerate(report.environments, 1)),
        "",
        "## Evidence",
        "",
        *(f"- {kind} `{id}`" for kind, id in _ids(report)),
        "",
        f"Made by rblstore {report.version} from the repository alone. `rbl show ID` shows any of it whole.",
    ]
    return "\n".join(lines) + "\n"


def _refs(report: ReportResult) -> str:
    return f" ({', '.join(plain(ref) for ref in report.refs)})" if report.refs else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _part(at: int, part: PartFact) -> tuple[str, ...]:
    return (
        "identity" if part.role == "identity" else str(at),
        plain(part.name) or "–",
        f"{part.form}{f' ({part.type})' if part.type else ''}",
        figure_text(part.weight),
        ", ".join(str(rank) for rank in part.ranks) or "–",
        f"{part.tensors:,}",
        byte_text(part.bytes),
        "; ".join(plain(one) for one in part.licenses) or "none stated",
        f"`{part.id.short}`",
    )


def _lineage(report: ReportResult) -> list[str]:
    rows = [
        (
            f"`{one.commit.short}`",
            " ".join(f"`{parent.short}`" for parent in one.parents) or "–",
            plain(one.message.split("\n", 1)[0], 80),
            ", ".join(plain(slot.name) for slot in one.slots) or "–",
            one.verdict.replace("_", " "),
            one.time,
        )
        for one in report.lineage
    ]
    found = _table(("commit", "parents", "message", "behaviors", "verdict", "time"), rows)
    if report.older:
        found += ["", f"{report.older} older ancestors are not shown."]
    if report.operations:
        found += ["", "Operations of note:", ""]
        found += [
            f"- {one.sequence}: {plain(one.description)}{' (undone later)' if one.undone else ''}, {one.time}"
            for one in report.operations
        ]
    return found


def _number(value: float | None, found: Interval | None = None) -> str:
    text = figure_text(value)
    if found is None or value is None or found.low == found.high:
        return text
    return f"{text} ({figure_text(found.low)} to {figure_text(found.high)})"


def _verifications(report: ReportResult) -> list[str]:
    if not report.verifications:
        return []
    rows = [_verification(at, one) for at, one in enumerate(report.verifications, 1)]
    header = ("", "verdict", "RF", "KL (nats)", "JS (nats)", "KL before (nats)", "bit-equal", "taken out", "evidence")
    return [*_table(header, rows), "", "In brackets: 95 % bootstrap intervals over prompts."]


def _verification(at: int, one: VerificationFact) -> tuple[str, ...]:
    return (
        f"V{at}",
        one.verdict.replace("_", " "),
        _number(one.rf, one.intervals.get("rf")) if one.rf is not None else f"– ({plain(one.reason or '')})",
        _number(one.kl, one.intervals.get("kl")),
        _number(one.js, one.intervals.get("js")),
        _number(one.kl_adapted, one.intervals.get("kl_adapted")),
        "yes" if one.bit_equal else "no",
        (", ".join(plain(name) for name in one.removed) or "–") + (" (undone later)" if one.undone else ""),
        f"`{one.id.short}`",
    )


def _prompts(report: ReportResult) -> list[str]:
    lines: list[str] = []
    for probe in report.probes:
        about = [(at, one) for at, one in enumerate(report.verifications, 1) if one.probe == probe.id]
        if not about:
            continue
        found = [{prompt.id: prompt for prompt in one.prompts} for _, one in about]
        rows = []
        for prompt in probe.prompts:
            cells = []
            for of in found:
                one = of.get(prompt.id)
                cells.append("–" if one is None else figure_text(one.kl) + (" !" if one.flagged else ""))
            text = plain(prompt.text, 160) if prompt.text is not None else f"{prompt.tokens} token ids"
            rows.append((plain(prompt.id), text, *cells))
        lines += [f"Probe {plain(probe.name) or probe.id.short}:", ""]
        lines += _table(("id", "prompt", *(f"V{at}" for at, _ in about)), rows)
        lines.append("")
    return lines


def _entropy(report: ReportResult) -> list[str]:
    rows = [
        (
            ", ".join(plain(name) for name in one.behaviors) or "the identity alone",
            _number(one.entropy.mean, one.entropy) if one.entropy is not None else f"– ({one.reason})",
            byte_text(one.bytes),
            str(one.environment),
            f"`{one.id.short}`",
        )
        for one in report.baselines
    ]
    return _table(("of", "mean entropy (nats)", "bytes", "environment", "baseline"), rows) if rows else []


def _changes(report: ReportResult) -> list[str]:
    lines: list[str] = []
    for part in report.parts[1:]:
        lines += [f"### {plain(part.name)}", ""]
        if not part.norms:
            lines += [f"Not measured: {plain(part.not_measured or 'it changes no tensor')}.", ""]
            continue
        rows = [
            (plain(layer.layer) or "outside the layers", str(layer.tensors), figure_text(layer.norm))
            for layer in part.layers
        ]
        lines += [*_table(("layer", "tensors", "norm"), rows), ""]
        reasons = dict.fromkeys(one.reason for one in part.norms if one.reason is not None)
        lines += [f"- Not measured: {plain(reason)}" for reason in reasons]
        lines += [""] if reasons else []
    return lines or ["There are no behaviors.", ""]


def _study(one: StudyFact) -> list[str]:
    from rblstore.operations.study_summary import summarise

    rows = summarise(one.record)
    names = list(dict.fromkeys(name for row in rows for name, found in row.measures.items() if found is not None))
    labels = condition_labels([row.condition for row in rows], 60)
    cells = []
    for label, row in zip(labels, rows, strict=True):
        found = [row.measures.get(name) for name in names]
        numbers = [_number(one.mean, one) if one is not None else "–" for one in found]
        cells.append((plain(label), *numbers, {True: "yes", False: "no", None: "–"}[row.bit_equal]))
    title = f"### {one.record.study.replace('_', ' ')} `{one.id.short}`"
    header = ("condition", *(plain(measure(name).label) for name in names), "bit-equal")
    return [title, "", *_table(header, cells), ""]


def _environment(settings: dict[str, str]) -> str:
    return ", ".join(f"{plain(key)} {plain(value)}" for key, value in sorted(settings.items()))


def _ids(report: ReportResult) -> list[tuple[str, str]]:
    found = {
        **{str(one.commit): "commit" for one in report.lineage},
        **{str(part.id): part.role for part in report.parts},
        **{str(one.id): "probe" for one in report.probes},
        **{str(one.id): "verification" for one in report.verifications},
        **{str(one.id): "baseline" for one in report.baselines},
        **{str(one.id): "study" for one in report.studies},
    }
    return sorted((kind, id) for id, kind in found.items())
