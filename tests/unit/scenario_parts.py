"""Scenarios of licences as they stand in license_scenarios/*.toml, and what the rules find in them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rblstore.objects.evidence_records import Claim
from rblstore.provenance.engine import find
from rblstore.provenance.findings import USES, Finding
from rblstore.provenance.parts import Part, Subject
from rblstore.provenance.rule import Rule
from rblstore.provenance.said import said

FOLDER = Path(__file__).parent / "license_scenarios"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def scenarios() -> list[dict[str, Any]]:
    """Every scenario of every file."""
    return [
        scenario
        for file in sorted(FOLDER.glob("*.toml"))
        for scenario in tomllib.loads(file.read_text(encoding="utf-8"))["scenario"]
    ]


def subject(scenario: Mapping[str, Any]) -> Subject:
    """What a scenario is about: claims as cards and people make them, read as an audit reads them."""
    parts: list[Part] = []
    trained: dict[str, Part] = {}
    for entry in scenario["parts"]:
        part = _part(entry)
        parts.append(part)
        for data in part.said.datasets:
            revision = REVISION if entry.get("pinned", True) else None
            own = said([])
            one = type(own)(data.name, data.licenses, source_revision=revision)
            of = (*trained[data.name].of, part.label) if data.name in trained else (part.label,)
            trained[data.name] = Part("dataset", f"dataset {data.name}", "", one, of)
    return Subject(
        (*parts, *trained.values()),
        tuple(scenario.get("use", USES)),
        scenario.get("merged", False),
        scenario.get("data_reaches_weights", True),
        scenario.get("signed"),
        tuple(scenario.get("differences", ())),
        tuple(scenario.get("unknown", ())),
    )


def _part(entry: Mapping[str, Any]) -> Part:
    role, form = ("identity", "") if entry["role"] == "identity" else ("behavior", entry["role"])
    source = entry.get("source", f"org/{entry['name']}@{REVISION}")
    claims = [Claim("license", license, f"file-{number}") for number, license in enumerate(entry.get("licenses", ()))]
    claims += [Claim("source", source, "api")] if source else []
    claims += [Claim("base_model", entry["base_model"], "card")] if "base_model" in entry else []
    for text in entry.get("datasets", ()):
        name, _, license = text.partition("=")
        claims.append(Claim("dataset", name, "api"))
        claims += [Claim("dataset_license", text, "api")] if license else []
    verdicts = tuple(entry.get("verdicts", ["exact"] if role == "behavior" else []))
    label = f"{role} {entry['name']}"
    return Part(role, label, form, said(claims), (), verdicts, entry.get("missing", ""))


def found(scenario: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """What the rules find, a line each: level, rule, subject."""
    return sorted(line(finding) for finding in find(subject(scenario), rules))


def line(finding: Finding) -> str:
    """One finding as scenarios write it."""
    return f"{finding.level} {finding.rule}: {finding.subject}"
