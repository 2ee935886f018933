"""``rbl audit``, ``rbl diff --licenses``, and the licence effect that commands say at their end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_story import Story

RULES = """
schema = 1
name = "acme"
version = "1"
[[rule]]
id = "acme.no-apache"
level = "conflict"
licenses = ["Apache-2.0"]
message = "{part} is under {license}"
citation = { document = "Handbook" }
"""


def found(document: Any, *levels: str) -> set[str]:
    return {one["rule"] for one in document["findings"] if one["level"] in levels or not levels}


def test_findings_have_rule_and_citation(story: Story) -> None:
    document = story.json("audit", "--distribute")
    assert document["use"] == ["distribute"]
    assert {"apache.notices", "apache.changes", "gap.without-license", "gap.unverified"} <= found(document)
    assert all(one["citation"]["document"] for one in document["findings"])
    text = story.ok("audit", "--distribute")
    assert "[apache.changes] Apache License, Section 4(b)" in text
    assert text.index("gap: ") < text.index("obligation: ")
    assert "apache.changes" not in story.ok("audit", "--use")


def test_the_text_is_for_somebody_in_a_hurry(story: Story) -> None:
    story.ok("state", "polite", "--license", "mit", "--dataset", "org/talk@v1=cc-by-nc-4.0")
    lines = story.ok("audit", "--distribute").splitlines()
    assert lines[2].startswith("found: 1 conflict, ")  # before anything long
    first = next(number for number, line in enumerate(lines) if line.startswith("conflict: "))
    assert lines.index("dataset org/talk@v1: CC-BY-NC-4.0") < first < 25
    unverified = [number for number, line in enumerate(lines) if "no verification vouches" in line]
    assert unverified == [unverified[0], unverified[0] + 1]  # what asks for the same stands together, and asks once
    assert sum("-> Record a baseline" in line for line in lines) == 1
    assert any("(stated as" in line for line in lines) is False  # "mit" is MIT
    assert "next: settle the conflicts. 'rbl state polite' states what holds" in " ".join(lines)
    story.ok("state", "polite", "--concluded", "cc-by-nc-4.0")
    assert "next: close the gaps" in story.ok("audit")


def test_data_without_licences_takes_few_lines(story: Story) -> None:
    names = [f"org/set-{at}" for at in range(9)]
    story.ok("state", "polite", "--dataset", "org/talk=mit", *(word for name in names for word in ("--dataset", name)))
    text = " ".join(story.ok("audit", "--use").split())
    assert f"9 data sets of which no licence is stated: {', '.join(names)}" in text
    assert "dataset org/talk: MIT" in text
    assert text.count("State it: rbl state NAME --dataset NAME=LICENSE") == 1
    assert "dataset org/set-1: none stated" not in text


def test_an_audit_at_a_time_says_what_came_since(story: Story) -> None:
    at = story.json("op", "log")[0]["time"]
    assert "since then: nothing was stated or proved" in story.ok("audit", "main", "--at", "9999-01-01")
    story.ok("state", "polite", "--license", "gemma")
    assert "since then: 1 statement, left out here" in story.ok("audit", "--at", at)
    document = story.json("audit", "--at", at)
    assert document["since"] == {"statements": 1, "verifications": 0, "signatures": 0}
    assert story.json("audit")["since"] is None
    refused = story.json("audit", story.models / "polite", "--at", at, code=2)
    assert "--at goes with a revision" in refused["error"]


def test_fail_on_exits_with_1(story: Story, tmp_path: Path) -> None:
    assert story.run("audit", "--fail-on", "conflict").exit_code == 0
    assert story.run("audit", "--fail-on", "gap").exit_code == 1
    assert story.json("audit", "--fail-on", "note", code=1)["findings"]
    assert story.run("audit", "--fail-on", "fatal").exit_code == 2
    (tmp_path / "acme.toml").write_text(RULES)
    document = story.json("audit", "--rules", tmp_path / "acme.toml", "--fail-on", "conflict", code=1)
    assert found(document, "conflict") == {"acme.no-apache"}
    assert document["rules"][1] == {"name": "acme", "version": "1"}
    (tmp_path / "acme.toml").write_text(RULES.replace("level", "weight"))
    refused = story.json("audit", "--rules", tmp_path / "acme.toml", code=2)
    assert refused["code"] == "bad_rules"
    assert "rule acme.no-apache" in refused["error"]


def test_a_revision_comes_before_a_path(story: Story, tmp_path: Path) -> None:
    story.ok("checkout", "v1", story.store / "main")
    assert story.json("audit", "main")["path"] is None
    document = story.json("audit", "./main")
    assert (document["path"], document["commit"]) == (str(story.store / "main"), story.json("audit", "v1")["commit"])
    assert story.json("audit", tmp_path / "nothing", code=1)["code"] == "unknown_revision"
    file = story.models / "polite" / "adapter_model.safetensors"
    assert story.json("audit", file)["files"][0]["parts"] == ["behavior polite"]
    assert "behavior polite" in story.ok("audit", file)


def test_history_names_who_did_it(story: Story) -> None:
    document = story.json("audit", "--history")
    assert [one["name"] for one in document["components"]] == ["", "polite", "brief"]
    assert document["components"][1]["entered"]["author"] == "Ada"
    assert "is there still" in story.ok("audit", "--history", "main")
    assert story.run("audit", "--history", "--merged").exit_code == 2
    assert story.json("audit", "HEAD", "--at", "9999-01-01")["commit"] == story.json("show")["id"]
    assert story.json("audit", "--at", "soon", code=2)["code"] == "usage"
    assert story.json("audit", "--at", "1999-01-01", code=1)["code"] == "too_early"


def test_commands_say_what_their_licence_effect_is(story: Story, tmp_path: Path) -> None:
    made = story.json("commit", "-m", "less", "--remove", "brief")["license_effect"]
    assert (made["added"], {one["subject"] for one in made["removed"]}) == ([], {"behavior brief"})
    text = story.ok("revert", "HEAD", "--no-verify")
    assert "licence effect: adds " in text
    document = story.json("checkout", "HEAD~1", tmp_path / "out")
    assert {one["subject"] for one in document["license_effect"]["removed"]} == {"behavior brief"}
    assert document["license_effect"]["before"] == story.json("show")["id"]
    assert "licence effect" not in story.ok("checkout", "HEAD", tmp_path / "same")
    part = story.json("checkout", "HEAD", tmp_path / "part", "--only", "config.json")
    assert part["license_effect"] is None
    effect = story.json("diff", "--licenses", "HEAD~1", "HEAD")
    assert {one["subject"] for one in effect["added"]} == {"behavior brief"}
    assert "added: " in story.ok("diff", "--licenses")
    assert "no difference" in story.ok("diff", "--licenses", "HEAD", "HEAD")


def test_an_effect_that_cannot_be_told_fails_nothing(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rblstore.errors import CorruptError
    from rblstore.operations import license_effect

    def fail(*_: Any) -> Any:
        raise CorruptError("a record is damaged")

    monkeypatch.setattr(license_effect, "components_of", fail)
    result = story.run("checkout", "v1", tmp_path / "out", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["license_effect"] is None


@pytest.mark.parametrize("arguments", [["--distribute"], ["--history"], ["--merged", "--data-reaches-weights", "no"]])
def test_what_is_printed_fits_80_columns(story: Story, arguments: list[str]) -> None:
    story.ok("state", "polite", "--license", "gemma", "--dataset", "org/a-data-set-with-a-long-name@v1=cc-by-nc-sa-4.0")
    story.ok(
        "state", "identity", "--license", "LicenseRef-scancode-llama-3.1-license-2024", "--source", f"org/{'x' * 90}"
    )
    for line in story.ok("audit", *arguments).splitlines():
        assert len(line) <= 80
        assert line == line.rstrip()
