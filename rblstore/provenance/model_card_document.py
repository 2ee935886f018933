"""A model card for a checkout that is to be published: front matter for the hub, and a page for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from rblstore.objects.ids import RecordId
from rblstore.provenance.document_facts import (
    DocumentFacts,
    MetricFact,
    PartFact,
    citation_text,
    finding_text,
    hub_id,
)
from rblstore.provenance.findings import LEVELS, Finding
from rblstore.provenance.hub_licenses import HUB_LICENSES, NOASSERTION
from rblstore.provenance.markdown_text import NOT_STATED, code, one_line, plain, table

_NAMES: Final = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0
    postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
    llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma intel-research h-research
    """
_HUB_NAMES: Final = frozenset(_NAMES.split())
"""Licences that the hub has a name for."""
_BY_KEY: Final = {key: name for name, key in HUB_LICENSES.items() if name in _HUB_NAMES}
_TASKS: Final = {
    "ForCausalLM": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
}
_SEVERAL: Final = "several-see-model-card"
_NAME_LENGTH: Final = 96


def model_card(facts: DocumentFacts) -> bytes:
    """A ``README.md``: YAML front matter and Markdown, both with what others wrote as plain text.

    Args:
        facts: Of one commit.

    Returns:
        UTF-8, the same for the same facts.
    """
    import yaml

    matter = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=False, width=1 << 20)
    return f"---\n{matter}---\n\n{chr(10).join(_body(facts))}\n".encode()


def front_matter(facts: DocumentFacts) -> dict[str, Any]:
    """What the hub reads; a member is left out where nobody stated what it would say."""
    adapters = [part for part in facts.behaviors if part.form == "adapter"]
    found: dict[str, Any] = {**_license(facts)}
    base = _base_models(facts)
    if base:
        found["base_model"] = base[0] if len(base) == 1 else base
        relation = _relation(facts)
        if relation:
            found["base_model_relation"] = relation
    datasets = [name for part in facts.parts for data in part.said.datasets if (name := hub_id(data.name)) is not None]
    if datasets:
        found["datasets"] = list(dict.fromkeys(datasets))
    if adapters:
        found["library_name"] = "peft"
    elif facts.identity.model_type is not None:
        found["library_name"] = "transformers"
    found["tags"] = ["rblstore", *sorted({part.type.lower() for part in adapters if part.type})]
    results = _results(facts)
    if results:
        found["model-index"] = [{"name": _name(facts.name), "results": results}]
    return found


def _license(facts: DocumentFacts) -> dict[str, str]:
    """One licence where every part is under that one; none where a part states none, since then nobody knows."""
    stated = [part.said.licenses for part in facts.parts]
    if not all(stated):
        return {}
    every = {expression for one in stated for expression in one}
    if len(every) > 1:
        return {"license": "other", "license_name": _SEVERAL}
    key = every.pop()
    if key == NOASSERTION:
        return {}
    name = _BY_KEY.get(key) or key.lower()
    if name in _HUB_NAMES:
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+]+", "-", key.lower())[:_NAME_LENGTH].strip("-")}


def _base_models(facts: DocumentFacts) -> list[str]:
    """The hub's names of what it was made from: the identity, or that one's base where nothing is added."""
    known = facts.identity.said
    if not facts.behaviors:
        return list(dict.fromkeys(name for base in known.base_models if (name := hub_id(base)) is not None))
    return [name for source in known.sources if (name := hub_id(source)) is not None][:1]


def _relation(facts: DocumentFacts) -> str | None:
    forms = {part.form for part in facts.behaviors}
    if "overlay" in forms:
        return "finetune"
    if forms:
        return "adapter"
    relation = facts.identity.said.relation
    return relation if relation in ("adapter", "finetune", "merge", "quantized") else None


def _results(facts: DocumentFacts) -> list[dict[str, Any]]:
    """Measurements as the hub's index of results has them; none where the config does not say what the model is for."""
    task = next(
        (task for name in facts.identity.architectures for end, task in _TASKS.items() if name.endswith(end)), None
    )
    if task is None:
        return []
    by_probe: dict[RecordId, list[dict[str, Any]]] = {}
    for metric in facts.metrics:
        by_probe.setdefault(metric.probe, []).append(
            {
                "type": metric.name.lower().replace(" ", "_"),
                "value": metric.value,
                "name": f"{metric.name} ({metric.kind} {metric.evidence.short})",
            }
        )
    return [
        {
            "task": {"type": task},
            "dataset": {"type": "rblstore-probe", "name": f"rblstore probe {probe.short}"},
            "metrics": metrics,
        }
        for probe, metrics in by_probe.items()
    ]


def _name(text: str) -> str:
    return one_line(text, _NAME_LENGTH)


def _body(facts: DocumentFacts) -> Iterator[str]:
    yield f"# {plain(facts.name, 200)}"
    yield ""
    yield (
        f"Written by rblstore {plain(facts.version)} from commit {code(facts.commit)}, composition "
        f"{code(facts.composition)}, of {plain(facts.time)} by {plain(facts.author, 120)}. "
        'What others stated is given as they stated it; "not stated" means that nobody did.'
    )
    yield ""
    yield "## Composition"
    yield ""
    header = ("part", "is", "weight", "parameters", "declared licence", "concluded licence", "source", "id")
    yield from table(header, (_part_row(part) for part in facts.parts))
    yield ""
    for part in facts.parts:
        if part.removed:
            yield f"**{plain(part.label, 120)}** cannot be composed any more: {plain(part.removed)}"
            yield ""
    yield "## Training data"
    yield ""
    data = [(part, one) for part in facts.parts for one in part.said.datasets]
    if data:
        yield from table(
            ("data", "revision", "licence", "used by"),
            (
                (plain(one.name), plain(one.revision or ""), _codes(one.licenses), plain(part.label))
                for part, one in data
            ),
        )
    else:
        yield f"Which data the parts were trained on is {NOT_STATED}."
    yield ""
    yield "## Terms"
    yield ""
    yield "What an audit found for use, hosting and distribution. It is no legal advice."
    yield ""
    yield from _terms(facts)
    yield ""
    yield "## Verification"
    yield ""
    yield from _evidence(facts)
    yield ""
    yield "## Signatures"
    yield ""
    yield from _signatures(facts)
    yield ""
    yield "## How to load it"
    yield ""
    yield from _loading(facts)


def _part_row(part: PartFact) -> tuple[str, ...]:
    kind = " ".join(filter(None, (part.role, part.form, part.type)))
    return (
        plain(part.label, 120),
        plain(kind),
        f"{part.weight:g}" if part.role == "behavior" else "–",
        "" if part.parameters is None else f"{part.parameters:,}",
        _codes(part.said.declared),
        code(part.said.concluded or ""),
        _codes(part.said.sources),
        code(part.id.short),
    )


def _codes(values: tuple[str, ...]) -> str:
    return ", ".join(filter(None, (code(value, 200) for value in values)))


def _terms(facts: DocumentFacts) -> Iterator[str]:
    if not facts.rules:
        yield "No rules were asked."
        return
    rules = ", ".join(f"{name} {version}" for name, version in facts.rules)
    if not facts.findings:
        yield f"Nothing was found by the rules {plain(rules)}."
        return
    for level in reversed(LEVELS):
        found = [finding for finding in facts.findings if finding.level == level]
        if found:
            yield f"### {level.capitalize()}s"
            yield ""
            yield from (_term(finding) for finding in found)
            yield ""
    yield f"Rules: {plain(rules)}."


def _term(finding: Finding) -> str:
    asked, cited = ", ".join(finding.trigger), plain(citation_text(finding), 1000)
    return f"- {plain(finding_text(finding), 2000)} ({plain(asked)}; rule {code(finding.rule)}; {cited})"


def _evidence(facts: DocumentFacts) -> Iterator[str]:
    if not facts.verifications and not facts.metrics:
        yield "No verification of this commit is recorded: that its behaviors come out again is unproved."
        return
    if facts.verifications:
        yield from table(
            ("verification", "verdict", "bit-equal", "taken out", "probe", "baseline", "when"),
            (
                (
                    code(fact.id),
                    plain(fact.record.verdict),
                    "yes" if fact.record.bit_equal else "no",
                    plain(", ".join(fact.record.removed)) or "–",
                    code(fact.record.probe.short),
                    code(fact.record.baseline.short),
                    plain(fact.record.time),
                )
                for fact in facts.verifications
            ),
        )
    if facts.metrics:
        yield ""
        yield from table(
            ("measure", "value", "95 % interval", "unit", "what it is", "evidence"),
            (_metric_row(metric) for metric in facts.metrics),
        )


def _signatures(facts: DocumentFacts) -> Iterator[str]:
    if not facts.signatures:
        yield "No signature over this commit is recorded."
        return
    yield "What is said of them; whether it holds is found out by `rbl verify-signature`, or `model_signing verify`."
    yield ""
    yield from table(
        ("signed by", "how", "over", "recorded by", "when", "bundle, SHA-256"),
        (
            (
                ", ".join(filter(None, (plain(one.identity or ""), code(one.key or "")))),
                one.method,
                f"{one.over} {code(one.subject.short)}",
                plain(one.author),
                plain(one.time),
                code(one.bundle),
            )
            for one in facts.signatures
        ),
    )


def _metric_row(metric: MetricFact) -> tuple[str, ...]:
    interval = "–" if metric.low is None or metric.high is None else f"{metric.low:.4g} to {metric.high:.4g}"
    return (
        plain(metric.name),
        f"{metric.value:.6g}",
        interval,
        metric.unit or "–",
        plain(metric.of),
        f"{metric.kind} {code(metric.evidence)}",
    )


def _loading(facts: DocumentFacts) -> Iterator[str]:
    yield "With the behaviors attached, in a directory made by `rbl checkout`:"
    yield ""
    yield "```python"
    yield "import rblstore"
    yield ""
    yield 'model = rblstore.load_checkout("DIRECTORY")'
    yield "```"
    adapters = [part.name for part in facts.behaviors if part.form == "adapter"]
    if adapters:
        yield ""
        yield (
            "`from_pretrained` on the directory alone gives the base without the adapters, which lie in "
            f"{', '.join(code(f'behaviors/{name}') for name in adapters)}."
        )
