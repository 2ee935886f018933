"""``rbl report`` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

from cli_story import Story, run


def test_a_report_goes_into_a_file_and_over_none(story: Story, tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    said = story.ok("report", "-o", target)
    assert "written to" in said
    assert "HEAD -> main" in said
    page = target.read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "brief" in page
    refused = story.run("report", "v1", "-o", target)
    assert refused.exit_code == 4
    assert "--force" in refused.stderr
    assert target.read_text("utf-8") == page
    story.ok("report", "v1", "-o", target, "--force", "--format", "md")
    assert target.read_text("utf-8").startswith("# polite\n")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".html"] == ["out.html"]


def test_a_report_goes_to_stdout(story: Story) -> None:
    page = story.run("report", "-o", "-")
    assert page.exit_code == 0
    assert page.stdout.startswith("<!DOCTYPE html>")
    assert page.stdout.endswith("</html>\n")
    document = json.loads(story.ok("report", "v1", "-o", "-", "--format", "json"))
    assert [one["role"] for one in document["parts"]] == ["identity", "behavior"]
    assert document["parts"][1]["name"] == "polite"


def test_json_prints_the_facts_and_says_what_was_written(story: Story, tmp_path: Path) -> None:
    document = story.json("report")
    assert document["output"] is document["format"] is document["bytes"] is None
    assert [one["message"].split("\n")[0] for one in document["lineage"]] == ["brief", "polite", "base"]
    written = story.json("report", "-o", tmp_path / "facts.json")
    assert written["format"] == "json"
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert {key: written[key] for key in facts} == facts
    assert written["bytes"] == (tmp_path / "facts.json").stat().st_size


def test_what_cannot_be_done_is_said_before_anything_is_read(story: Story, tmp_path: Path) -> None:
    assert story.run("report").exit_code == 2
    assert story.run("report", "-o", "").exit_code == 2
    assert story.run("report", "-o", "-", "--json").exit_code == 2
    assert story.run("report", "-o", tmp_path / "a.html", "--format", "pdf").exit_code == 2
    assert story.json("report", "nowhere", "-o", tmp_path / "a.html", code=1)["code"] == "unknown_revision"
    missing = story.json("report", "-o", tmp_path / "none" / "a.html", code=1)
    assert missing["code"] == "write_failed"
    assert story.run("report", "-o", tmp_path, "--force").exit_code == 1
    assert not (tmp_path / "a.html").exists()
    assert run("init", tmp_path / "empty").exit_code == 0
    empty = run("-C", tmp_path / "empty", "report", "-o", "-")
    assert empty.exit_code == 1
    assert "no commit yet" in empty.stderr
    assert empty.stdout == ""
