"""The sections of the page on what was measured: verifications, prompts, entropy, studies, environments, ids."""

from __future__ import annotations

from collections.abc import Iterable

from rblstore.objects.study_records import Scalar
from rblstore.operations.report_facts import (
    BaselineFact,
    ProbeFact,
    PromptFact,
    ReportResult,
    StudyFact,
    VerificationFact,
)
from rblstore.report.figures import composition_label, entropy_svg, study_svg
from rblstore.report.html_model import byte_text
from rblstore.report.html_parts import (
    HeatCell,
    by,
    evidence,
    facts,
    heat_table,
    number,
    short_id,
    table,
    verdict,
    with_interval,
)
from rblstore.report.markup import Markup, element, foreign, join
from rblstore.report.measures import condition_labels, measure, scalar_text, study_title
from rblstore.report.safe_text import one_line, short_figure

_DECIDED = {
    "bits": "by the bits of the outputs",
    "upper_95": "by the upper ends of the 95 % intervals of KL and JS",
    "mean": "by the means of KL and JS",
}
_FIRST = ("kl", "js", "rf", "relative_l2", "entropy", "kept", "svar")
_MOST_MEASURES = 8
_MOST_ROWS = 60


def verification_section(report: ReportResult) -> Markup:
    """RF, KL and JS of every verification, with intervals."""
    if not report.verifications:
        body: Markup = element("p", "Nothing was verified. ", element("code", "rbl verify"), " compares outputs with a "
                               "recorded baseline; ", element("code", "rbl revert"), " proves that a behavior is gone.",
                               class_="notice")  # fmt: skip
    else:
        cards = [_verification(at, one, report) for at, one in enumerate(report.verifications, 1)]
        body = join(
            element("p", "Newest first. KL and JS are means over the prompts of how far the measured outputs are from "
                         "the baseline's, in nats; RF is the part of a behavior's divergence that is gone. Intervals "
                         "are bootstraps over prompts."),
            element("div", cards, class_="cards"),
        )  # fmt: skip
    return element("section", element("h2", "Verifications", id="verifications"), body)


def _verification(at: int, one: VerificationFact, report: ReportResult) -> Markup:
    probe = next((probe for probe in report.probes if probe.id == one.probe), None)
    reverted = one.adapted is not None
    flagged = sum(prompt.flagged for prompt in one.prompts)
    rows: list[tuple[str, str | Markup | None]] = [
        ("RF", with_interval(one.rf, one.intervals.get("rf")) if one.rf is not None else
         join(number(None), element("small", f" {one.reason or ''}"))),
        ("KL", with_interval(one.kl, one.intervals.get("kl"), "nats")),
        ("JS", with_interval(one.js, one.intervals.get("js"), "nats")),
        ("KL before", with_interval(one.kl_adapted, one.intervals.get("kl_adapted"), "nats") if reverted else None),
        ("JS before", with_interval(one.js_adapted, one.intervals.get("js_adapted"), "nats") if reverted else None),
        ("relative L2", with_interval(one.intervals["relative_l2"].mean, one.intervals["relative_l2"])
         if "relative_l2" in one.intervals else None),
        ("bit-equal", "yes" if one.bit_equal else "no"),
        ("decided", f"{_DECIDED.get(one.decided_by, one.decided_by)}; tolerance {one.tolerance:g} nats"),
        ("prompts", f"{len(one.prompts)}, {flagged} of them above the tolerance"),
        ("taken out", foreign(", ".join(one.removed)) if one.removed else None),
        ("commit", join(evidence(one.commit), " (undone later)" if one.undone else "") if one.commit else
         "none: it vouches for no commit"),
        ("composition", short_id(one.composition)),
        ("probe", join(foreign(probe.name), " ", evidence(one.probe)) if probe else evidence(one.probe)),
        ("baseline", evidence(one.baseline)),
        ("environment", element("a", f"no. {one.environment}", href=f"#environment-{one.environment}")),
        ("by", by(one.author, one.time)),
        ("evidence", evidence(one.id)),
    ]  # fmt: skip
    return element("div", element("h3", f"V{at} ", verdict(one.verdict)), facts(rows), class_="card", id=f"v{at}")


def prompts_section(report: ReportResult) -> Markup:
    """ILS of every prompt in every verification."""
    body = []
    for probe in report.probes:
        about = [(at, one) for at, one in enumerate(report.verifications, 1) if one.probe == probe.id]
        if about:
            body.append(element("h3", "Probe ", foreign(probe.name or probe.id[:12])))
            body.append(_residue_table(probe, about))
    if not body:
        body.append(element("p", "There is no verification to show prompt by prompt."))
    introduction = element(
        "p",
        "ILS: the divergence that is left on each single prompt, which a mean over prompts can hide. Each cell is KL "
        "in nats, JS beneath; ▲ marks what is above the verification's tolerance.",
    )
    return element("section", element("h2", "Prompt by prompt", id="prompts"), introduction, body)


def _residue_table(probe: ProbeFact, about: list[tuple[int, VerificationFact]]) -> Markup:
    columns = [join(element("a", f"V{at}", href=f"#v{at}"), " ", verdict(one.verdict)) for at, one in about]
    by_prompt = [{prompt.id: prompt for prompt in one.prompts} for _, one in about]
    rows = []
    for prompt in probe.prompts:
        cells: list[HeatCell | None] = []
        for found in by_prompt:
            one = found.get(prompt.id)
            if one is None:
                cells.append(None)
                continue
            notes = [f"JS {short_figure(one.js)}"] if one.js is not None else []
            if (before := one.values.get("kl_adapted")) is not None:
                notes.append(f"KL before {short_figure(before)}")
            if one.bit_equal:
                notes.append("bit-equal")
            cells.append(HeatCell(0.0 if one.bit_equal and one.kl is None else one.kl, ", ".join(notes), one.flagged))
        rows.append((prompt_head(prompt), cells))
    return heat_table(
        "Divergence left on each prompt (KL, nats).",
        columns,
        rows,
        logarithmic=True,
        first="Above each row: the prompt.",
    )


def prompt_head(prompt: PromptFact) -> Markup:
    """A prompt so that it can be read: its id and its text."""
    if prompt.text is None:
        tokens = " ".join(str(token) for token in prompt.first_tokens)
        more = " …" if prompt.tokens > len(prompt.first_tokens) else ""
        said: Markup = element("span", f"token ids {tokens}{more}", class_="soft")
    else:
        cut = prompt.text if len(prompt.text) <= 600 else prompt.text[:599] + "…"
        said = foreign(cut, class_="prompt")
    return join(element("code", foreign(prompt.id)), " ", said, element("small", f" ({prompt.tokens} tokens)"))


def entropy_section(report: ReportResult) -> Markup:
    """What the recorded outputs of before and after look like."""
    introduction = element(
        "p",
        "Shannon entropy of the next-token distributions in recorded baselines, in nats: how sure of itself the model "
        "is, before and after its behaviors were put on. Computed from the stored outputs.",
    )
    body = []
    for probe in report.probes:
        about = [one for one in report.baselines if one.probe == probe.id]
        if about:
            shown = sorted(about, key=lambda one: (len(one.behaviors), one.behaviors, one.time, one.id))
            picture = entropy_svg(shown)
            body += [
                element("h3", "Probe ", foreign(probe.name or probe.id[:12])),
                element("figure", picture) if picture is not None else Markup(""),
                table("Recorded baselines", ("of", "entropy (nats)", "bytes", "environment", "by", "baseline"),
                      [_baseline(one) for one in shown]),
                _entropy_table(probe, [one for one in shown if one.entropies]),
            ]  # fmt: skip
    if not body:
        body.append(element("p", "No baseline is recorded of any composition here. ", element("code", "rbl baseline"),
                            " records one."))  # fmt: skip
    return element("section", element("h2", "Entropy before and after", id="entropy"), introduction, body)


def _baseline(one: BaselineFact) -> tuple[str | Markup, ...]:
    entropy = (
        with_interval(one.entropy.mean, one.entropy)
        if one.entropy is not None
        else element("small", f"not computed: {one.reason}")
    )
    where = element("a", f"no. {one.environment}", href=f"#environment-{one.environment}")
    who = by(one.author, one.time)
    return foreign(composition_label(one, 80)), entropy, byte_text(one.bytes), where, who, evidence(one.id)


def _entropy_table(probe: ProbeFact, about: list[BaselineFact]) -> Markup:
    if not about:
        return Markup("")
    columns = [join(foreign(composition_label(one, 32)), " ", evidence(one.id)) for one in about]
    found = [{prompt.id: prompt.entropy for prompt in one.entropies} for one in about]
    rows = [
        (prompt_head(prompt), [HeatCell(of[prompt.id]) if prompt.id in of else None for of in found])
        for prompt in probe.prompts
    ]
    return heat_table(
        "Entropy on each prompt (nats).", columns, rows, logarithmic=False, first="Above each row: the prompt."
    )


def studies_section(report: ReportResult) -> Markup:
    """Every study: its picture, and its numbers."""
    if not report.studies:
        body: Markup = element(
            "p", "There are no studies of these commits. ", element("code", "rbl study"), " makes them."
        )
    else:
        body = element("div", [_study(one) for one in report.studies])
    return element("section", element("h2", "Studies", id="studies"), body)


def _study(one: StudyFact) -> Markup:
    from rblstore.operations.study_summary import summarise

    record = one.record
    every = summarise(record)
    rows = [row for row in every if row.condition.get("tensor") is None]
    labels = condition_labels([row.condition for row in rows], 60)
    measured = dict.fromkeys(name for row in rows for name, found in row.measures.items() if found is not None)
    names = sorted(measured, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))[:_MOST_MEASURES]
    cells = []
    for label, row in zip(labels[:_MOST_ROWS], rows, strict=False):
        values = [(row.measures.get(name), measure(name)) for name in names]
        cells.append(
            (
                foreign(label),
                *(with_interval(found.mean, found) if found is not None else number(None) for found, _ in values),
                {True: "yes", False: "no", None: "–"}[row.bit_equal],
                str(len(row.seeds) or "–"),
            )
        )
    header = ("condition", *(f"{measure(name).label}{_unit(name)}" for name in names), "bit-equal", "seeds")
    shown = min(len(rows), _MOST_ROWS)
    cut = f" {shown} of {len(every)} conditions; rbl show has all." if shown < len(every) else ""
    details = facts(
        [
            ("commits", join([join(" " if at else "", evidence(id)) for at, id in enumerate(record.commits)])),
            ("probes", join([join(" " if at else "", evidence(id)) for at, id in enumerate(record.probes)]) or "none"),
            ("asked for", foreign(_parameters(record.parameters.items())) if record.parameters else None),
            ("environment", element("a", f"no. {one.environment}", href=f"#environment-{one.environment}")),
            ("by", by(record.author, record.time)),
            ("evidence", evidence(one.id)),
        ]
    )
    return element(
        "div",
        element("h3", study_title(record.study)),
        element("figure", study_svg(one)),
        details,
        element("details", element("summary", "Its numbers"),
                table(f"{record.study}: means with intervals.{cut}", header, cells), open=True),
    )  # fmt: skip


def _unit(name: str) -> str:
    return " (nats)" if measure(name).unit == "nats" else ""


def _parameters(items: Iterable[tuple[str, Scalar | list[Scalar]]]) -> str:
    said = []
    for name, value in items:
        listed = value if isinstance(value, list) else [value]
        said.append(f"{name.replace('_', ' ')}: {', '.join(scalar_text(one, 60) for one in listed)}")
    return one_line("; ".join(said), 2000)


def environments_section(report: ReportResult) -> Markup:
    """Where everything was measured."""
    cards = []
    for at, settings in enumerate(report.environments, 1):
        rows = facts([(one_line(key, 80), foreign(value)) for key, value in sorted(settings.items())])
        cards.append(element("div", element("h3", f"No. {at}"), rows, class_="card", id=f"environment-{at}"))
    body = element("div", cards, class_="cards") if cards else element("p", "Nothing was measured.")
    note = "Outputs are asked to be equal to the bit only within one environment."
    return element("section", element("h2", "Environments", id="environments"), element("p", note), body)


def ids_section(report: ReportResult) -> Markup:
    """The whole id of everything, and what shows it again."""
    listed: dict[str, str] = {}
    for one in report.lineage:
        listed.setdefault(one.commit, "commit")
        for parent in one.parents:
            listed.setdefault(parent, "commit")
    for part in report.parts:
        listed.setdefault(part.id, part.role)
    for kind, ids in (
        ("verification", [found.id for found in report.verifications]),
        ("verification", [found.verification for found in report.lineage if found.verification]),
        ("baseline", [found.id for found in report.baselines]),
        ("baseline", [found.baseline for found in report.verifications]),
        ("probe", [found.id for found in report.probes]),
        ("study", [found.id for found in report.studies]),
        ("commit", [id for found in report.studies for id in found.record.commits]),
        ("commit", [found.commit for found in report.verifications if found.commit]),
        ("probe", [id for found in report.studies for id in found.record.probes]),
    ):
        for id in ids:
            listed.setdefault(id, kind)
    rows = [
        element("li", kind, " ", element("code", id, id=f"e-{id}"), class_="soft")
        for id, kind in sorted(listed.items(), key=lambda one: (one[1], one[0]))
    ]
    return element(
        "section",
        element("h2", "Evidence", id="evidence"),
        element("p", "Every figure comes from an object of the repository. ", element("code", "rbl show ID"),
                " shows one whole, ", element("code", "rbl verify"), " and ", element("code", "rbl study"),
                " measure again, and ", element("code", "rbl report --format json"), " gives all numbers unrounded."),
        element("ul", rows),
    )  # fmt: skip
