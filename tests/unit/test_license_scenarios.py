"""What the rules find in scenarios of licences, and that no rule could be left out unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
from scenario_parts import found, scenarios, subject

from rblstore.provenance.engine import find
from rblstore.provenance.findings import LEVELS, without
from rblstore.provenance.hub_licenses import HUB_LICENSES, NOASSERTION
from rblstore.provenance.rule import matches
from rblstore.provenance.rulebook import built_in

SCENARIOS = scenarios()


def test_there_are_enough_and_none_twice() -> None:
    assert len({scenario["name"] for scenario in SCENARIOS}) == len(SCENARIOS) >= 20


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_a_scenario_has_its_findings(scenario: dict[str, Any]) -> None:
    assert found(scenario, built_in().rules) == sorted(scenario["finds"])


def test_without_any_one_rule_a_scenario_fails() -> None:
    rules = built_in().rules
    unneeded = set(rules)
    for scenario in SCENARIOS:
        for name in {line.split()[1].rstrip(":") for line in scenario["finds"]} & unneeded:
            left = {id: rule for id, rule in rules.items() if id != name}
            if found(scenario, left) != sorted(scenario["finds"]):
                unneeded.discard(name)
    assert not unneeded


def test_every_licence_of_the_hub_has_a_rule() -> None:
    keys = set(HUB_LICENSES.values()) - {NOASSERTION}
    rules = built_in().rules.values()
    assert not [key for key in keys if not any(matches(rule.licenses, key) for rule in rules)]


def test_every_finding_says_where_it_is_written_and_comes_severest_first() -> None:
    for scenario in SCENARIOS:
        findings = find(subject(scenario), built_in().rules)
        levels = [LEVELS.index(finding.level) for finding in findings]
        assert levels == sorted(levels, reverse=True)
        for finding in findings:
            assert finding.citation.document
            assert finding.message
            assert "{" not in finding.message + finding.obligation
            assert not finding.license or finding.through


def test_terms_of_the_base_name_the_parts_that_they_reach() -> None:
    (scenario,) = (one for one in SCENARIOS if one["name"] == "Gemma 3 with an adapter under its own terms")
    reaching = [one for one in find(subject(scenario), built_in().rules) if one.subject == "identity gemma"]
    assert {one.reaches for one in reaching if one.rule.startswith("gemma.")} == {("behavior polite",)}
    assert {one.citation.section[:11] for one in reaching} >= {"Section 3.1", "Section 3.2"}


def test_two_audits_are_subtracted() -> None:
    scenario = {"parts": [{"role": "identity", "name": "gemma", "licenses": ["gemma"]}], "use": ["distribute"]}
    adapter = {"role": "adapter", "name": "polite", "licenses": ["apache-2.0"]}
    before = find(subject(scenario), built_in().rules)
    after = find(subject({**scenario, "parts": [*scenario["parts"], adapter]}), built_in().rules)
    added = without(after, before)
    assert {one.rule for one in added} == {"gemma.relicensed", "apache.notices", "apache.changes"}
    assert without(before, after) == ()
