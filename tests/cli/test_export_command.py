"""``rbl export`` as it is typed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import export_story
import pytest
from cli_story import Story


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("exported")
    export_story.tell(folder).repo.close()
    return Story(folder / "store", folder)


@pytest.mark.parametrize("format", ["cyclonedx", "spdx3", "in-toto", "model-card", "annex-xi"])
def test_a_document_goes_to_stdout_or_into_a_file_and_over_none(told: Story, tmp_path: Path, format: str) -> None:
    printed = told.ok("export", "--format", format)
    target = tmp_path / "document"
    said = told.ok("export", "--format", format, "-o", target)
    data = target.read_bytes()
    assert data.decode() == printed == told.ok("export", "HEAD", "--format", format, "-o", "-")
    assert hashlib.sha256(data).hexdigest() in said
    refused = told.run("export", "--format", format, "-o", target)
    assert refused.exit_code == 4
    assert "--force" in refused.stderr
    assert told.json("export", "--format", format, "-o", target, "--force")["size"] == len(data)
    assert [path.name for path in tmp_path.iterdir()] == ["document"]


def test_json_holds_the_document_unless_it_went_into_a_file(told: Story, tmp_path: Path) -> None:
    document = told.json("export", "--format", "cyclonedx")
    assert document["document"] == json.loads(told.ok("export", "--format", "cyclonedx"))
    assert document["output"] is None
    assert document["media_type"].startswith("application/vnd.cyclonedx+json")
    assert told.json("export", "--format", "model-card")["document"] == told.ok("export", "--format", "model-card")
    assert told.json("export", "--format", "annex-xi")["document"]["draft"] is True
    written = told.json("export", "--format", "spdx3", "-o", tmp_path / "a.json")
    assert written["document"] is None
    assert written["output"] == str(tmp_path / "a.json")


def test_what_cannot_be_exported_is_said(told: Story, tmp_path: Path) -> None:
    assert told.run("export").exit_code == 2
    assert told.run("export", "--format", "pdf").exit_code == 2
    assert told.run("export", "--format", "spdx3", "-o", "").exit_code == 2
    assert told.run("export", "--format", "spdx3", "-o", "-", "--json").exit_code == 2
    assert told.json("export", "--format", "spdx3", "--behavior", "polite", code=2)["code"] == "usage"
    assert told.json("export", "nowhere", "--format", "spdx3", code=1)["code"] == "unknown_revision"
    # Of the base there is a verification, of how the adapter was trained nothing is known.
    assert json.loads(told.ok("export", "HEAD~1", "--format", "in-toto"))["predicate"]["kl"] == 9
    nothing = told.json("export", "--format", "in-toto", "--behavior", "polite", "-o", tmp_path / "a.json", code=1)
    assert nothing["code"] == "nothing_to_attest"
    assert not list(tmp_path.iterdir())
