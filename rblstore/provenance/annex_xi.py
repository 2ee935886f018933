"""A draft of what Annex XI of the EU's AI Act asks of whoever provides a general-purpose model: an aid, with its gaps.

The points are those of Annex XI, section 1, of Regulation (EU) 2024/1689. Whether it applies, and whether an answer is
enough, this module does not say. What nobody stated is a gap, and never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from rblstore.provenance.document_facts import DocumentFacts, PartFact, number_said, whole_second
from rblstore.provenance.markdown_text import NOT_STATED, code, plain

REGULATION: Final = "Regulation (EU) 2024/1689, Annex XI, section 1"
GUIDELINES: Final = "Commission guidelines on the scope of the obligations for general-purpose AI models (July 2025)"
SHARE: Final = 1 / 3
"""The part of a model's training compute above which the guidelines take a modification for a model of its own."""

# Point of the annex, what it asks, and the key under which people may state it (rbl state NAME --meta KEY=...).
_ASKED: Final = (
    ("1(a)", "Intended tasks, and the systems that it may be built into", "intended_use"),
    ("1(b)", "Acceptable use policies", None),
    ("1(c)", "Date of release", "release_date"),
    ("1(c)", "Methods of distribution", "distribution"),
    ("1(d)", "Architecture", None),
    ("1(d)", "Number of parameters", None),
    ("1(e)", "Modality and format of inputs and outputs", "modality"),
    ("1(f)", "Licence", None),
    ("2(a)", "Technical means needed to integrate it", "integration"),
    ("2(b)", "Design and training process", None),
    ("2(b)", "Key design choices, and what it is optimised for", "design"),
    ("2(c)", "Data: type and provenance", None),
    ("2(c)", "Data: curation", "data_curation"),
    ("2(c)", "Data: number of data points, scope and main characteristics", "data_points"),
    ("2(c)", "Data: measures against unsuitable sources and biases", "data_measures"),
    ("2(d)", "Computation used for training (FLOPs)", None),
    ("2(d)", "Training time", "training_time"),
    ("2(e)", "Energy consumed (kWh)", None),
)


def annex_xi(facts: DocumentFacts) -> dict[str, Any]:
    """The draft as JSON.

    Args:
        facts: Of one commit.

    Returns:
        ``points``, each with ``point``, ``asks`` and ``answers`` (``part`` and ``answer``, None where nobody stated
        one), ``modification``, ``signatures`` and ``gaps``, which names every point and part without an answer.
    """
    points = []
    for point, asks, key in _ASKED:
        answers = [{"part": part.label, "answer": _answer(asks, key, part)} for part in facts.parts]
        points.append({"point": point, "asks": asks, "answers": answers})
    gaps = [
        f"{one['point']} {one['asks']}: {answer['part']}"
        for one in points
        for answer in _listed(one["answers"])
        if answer["answer"] is None
    ]
    modification = _modification(facts)
    if modification["share"] is None:
        gaps.append(f"Modification against a third of the base's computation: {modification['reason']}")
    return {
        "draft": True,
        "regulation": REGULATION,
        "model": facts.name,
        "commit": str(facts.commit),
        "composition": str(facts.composition),
        "stated_until": whole_second(facts.stated),
        "tool": f"rblstore {facts.version}",
        "points": points,
        "modification": modification,
        "evaluations": [
            {"measure": metric.name, "value": metric.value, "unit": metric.unit, "evidence": str(metric.evidence)}
            for metric in facts.metrics
        ],
        "signatures": [
            {
                "signature": str(fact.id),
                "over": fact.over,
                "method": fact.method,
                "key": None if fact.key is None else str(fact.key),
                "identity": fact.identity,
                "author": fact.author,
                "time": fact.time,
            }
            for fact in facts.signatures
        ],
        "gaps": gaps,
    }


def annex_xi_markdown(facts: DocumentFacts) -> bytes:
    """The same draft for people, to be filled in.

    Args:
        facts: Of one commit.

    Returns:
        UTF-8, the same for the same facts.
    """
    return ("\n".join(_lines(annex_xi(facts))) + "\n").encode()


def _listed(value: object) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else []


def _answer(asks: str, key: str | None, part: PartFact) -> str | None:
    if key is not None:
        return part.notes.get(key)
    known = part.said
    found: Mapping[str, Iterable[str]] = {
        "Acceptable use policies": [
            f"{text.path} (SHA-256 {text.sha256})" for text in known.texts if "use" in text.path.lower()
        ],
        "Architecture": [*([part.model_type] if part.model_type else []), *part.architectures, *_adaptation(part)],
        "Number of parameters": [] if part.parameters is None else [str(part.parameters)],
        "Licence": [
            *(f"declared {expression}" for expression in known.declared),
            *([f"concluded {known.concluded}"] if known.concluded else []),
        ],
        "Design and training process": [f"{name}: {value}" for name, value in sorted(known.training.items())],
        "Data: type and provenance": [
            " ".join(filter(None, (data.name, data.revision, f"({', '.join(data.licenses) or 'licence not stated'})")))
            for data in known.datasets
        ],
        "Computation used for training (FLOPs)": _number(part, "flops"),
        "Energy consumed (kWh)": _number(part, "energy_kwh"),
    }
    return "; ".join(found[asks]) or None


def _adaptation(part: PartFact) -> list[str]:
    return [] if part.form is None else [f"{part.form} {part.type or ''}".strip()]


def _number(part: PartFact, key: str) -> list[str]:
    value = number_said(part.said.training, key)
    return [] if value is None else [f"{value:g}"]


def _modification(facts: DocumentFacts) -> dict[str, Any]:
    """The computation of everything that was added, against a third of the base's."""
    base = number_said(facts.identity.said.training, "flops")
    added = {part.label: number_said(part.said.training, "flops") for part in facts.behaviors}
    unknown = [label for label, value in added.items() if value is None]
    total = math.fsum(value for value in added.values() if value is not None)
    reason = None
    if not base:
        reason = f"the computation that the base was trained with is {NOT_STATED}"
    elif unknown:
        reason = f"the computation of {', '.join(unknown)} is {NOT_STATED}"
    share = None if reason is not None or not base else total / base
    return {
        "source": GUIDELINES,
        "base_flops": base,
        "added_flops": total if len(unknown) < len(added) or not added else None,
        "without_statement": unknown,
        "share": share,
        "threshold": SHARE,
        # What is known is enough where it alone is above the threshold.
        "above": (total > SHARE * base) if base and (share is not None or total > SHARE * base) else None,
        "reason": reason,
    }


def _lines(draft: Mapping[str, Any]) -> Iterator[str]:
    yield f"# Draft of technical documentation: {plain(draft['model'], 200)}"
    yield ""
    yield (
        f"After {plain(draft['regulation'])}. **A draft to be completed by whoever provides the model; it is no "
        "statement that the regulation applies, or that it is met.** What nobody stated is given as "
        f'"{NOT_STATED}", and is listed at the end.'
    )
    yield ""
    yield f"Commit {code(draft['commit'])}, composition {code(draft['composition'])}."
    yield f"Written by {plain(draft['tool'])}."
    yield f"What was stated until {draft['stated_until']} went in."
    section = ""
    for one in draft["points"]:
        if one["point"][0] != section:
            section = one["point"][0]
            title = "General description" if section == "1" else "Elements of the model, and how it was developed"
            yield ""
            yield f"## {section}. {title}"
        yield ""
        yield f"### {one['point']} {one['asks']}"
        yield ""
        for answer in one["answers"]:
            text = NOT_STATED if answer["answer"] is None else plain(answer["answer"], 2000)
            yield f"- **{plain(answer['part'], 120)}**: {text}"
    yield ""
    yield "## Modification of another model"
    yield ""
    yield from _modified(draft["modification"])
    yield ""
    yield "## Evaluations on record"
    yield ""
    yield from _evaluated(draft["evaluations"])
    yield ""
    yield "## Signatures on record"
    yield ""
    yield from _signed(draft["signatures"])
    yield ""
    yield "## Gaps"
    yield ""
    yield from [f"- {plain(gap, 2000)}" for gap in draft["gaps"]] or ["None of the points above."]


def _modified(found: Mapping[str, Any]) -> Iterator[str]:
    def flops(value: float | None) -> str:
        return NOT_STATED if value is None else f"{value:g} FLOPs"

    yield f"- Computation of the base: {flops(found['base_flops'])}"
    yield f"- Computation of what was added, as far as it is stated: {flops(found['added_flops'])}"
    if found["share"] is None:
        yield f"- Share: {NOT_STATED}, since {plain(found['reason'])}"
    else:
        yield f"- Share: {found['share']:.4g} of the base's, where a third is the threshold"
    if found["above"] is not None:
        yield f"- Above a third: {'yes' if found['above'] else 'no'}"
    yield f"- Source of the threshold: {plain(found['source'])}"


def _signed(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in found:
        signer = ", ".join(filter(None, (plain(one["identity"] or ""), code(one["key"] or ""))))
        yield (
            f"- Over the {one['over']}, by {one['method']}: {signer}, recorded by {plain(one['author'], 120)} at "
            f"{plain(one['time'])} (signature {code(one['signature'])}); not verified here"
        )
    if not found:
        yield "None: nobody is on record as vouching for it."


def _evaluated(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in found:
        yield f"- {plain(one['measure'])}: {one['value']:.6g} {one['unit']} (evidence {code(one['evidence'])})".replace(
            "  ", " "
        )
    if not found:
        yield f"Measurements of this commit are {NOT_STATED}."
