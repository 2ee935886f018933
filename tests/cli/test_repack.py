"""``rbl repack`` and ``rbl commit --compression``, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_story import Story, run


def content_bytes(story: Story) -> tuple[int, int]:
    amount = story.json("du")["contents"]
    return amount["raw"], amount["stored"]


def test_repack_there_and_back(story: Story) -> None:
    before = story.state()
    dry = story.json("repack", "--compression", "none", "--dry-run")
    assert (dry["dry_run"], dry["changed"], dry["bytes_after"]) == (True, True, None)
    assert story.json("repack", "--compression", "none", "--dry-run") == dry
    text = story.ok("repack", "--compression", "none", "--dry-run").splitlines()
    assert text[-1] == f"packs: {dry['packs_before']} -> {dry['packs_after']}"
    assert text[-2].startswith(f"would be encoded anew: {dry['reencoded']} content")
    done = story.json("repack", "--compression", "none")
    assert done["rewrites"] == dry["rewrites"]
    assert (done["compression"], done["packs_after"], done["left"]) == ("none", 2, [])
    raw, stored = content_bytes(story)
    assert raw == stored
    text = story.ok("repack")
    assert "stored under another policy" in text
    assert content_bytes(story)[1] < stored
    assert story.ok("repack").startswith("nothing to repack: 2 packs, ")
    assert story.state() == before
    assert story.json("fsck", "--full")["ok"]


def test_one_commit_has_a_policy_of_its_own(story: Story, tmp_path: Path) -> None:
    other, again = Story(tmp_path / "other", story.models), Story(tmp_path / "again", story.models)
    for store in (other.store, again.store):
        run("init", store)
    document = other.json("commit", "-m", "base", "--identity", story.models / "base", "--compression", "none")
    assert document["stored_bytes"] == document["new_bytes"]
    smaller = again.json("commit", "-m", "base", "--identity", story.models / "base", "--compression", "max")
    assert smaller["identity"] == document["identity"]
    assert smaller["stored_bytes"] < document["stored_bytes"]


def test_what_is_no_policy(story: Story) -> None:
    for command in (["repack"], ["commit", "-m", "x"]):
        failure = story.json(*command, "--compression", "best", code=2)
        assert failure["code"] == "usage"
        assert "best" in failure["error"]


def test_what_could_not_be_deleted_is_a_warning(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def refuse(self: Path, **options: bool) -> None:
        if self.suffix == ".pack":
            raise PermissionError(1, "Operation not permitted")
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = story.run("repack", "--compression", "none")
    assert result.exit_code == 0
    assert "could not be deleted" in result.stderr
