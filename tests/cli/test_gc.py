"""``rbl gc``, as a user types it."""

from __future__ import annotations

import os

import pytest
from cli_story import Story


def forgetful(story: Story) -> None:
    """No operation holds anything from now on."""
    (story.store / ".rbl" / "config.toml").write_text("[gc]\noperations = 0\n")


def drop_last(story: Story) -> str:
    """Moves the branch back by a commit; returns that commit."""
    commit: str = story.json("log")[0]["commit"]
    story.ok("branch", "kept", "HEAD~1")
    story.ok("switch", "kept")
    story.ok("branch", "--delete", "main")
    return commit


def test_there_is_nothing_to_collect_where_everything_is_needed(story: Story) -> None:
    assert story.ok("gc") == "nothing to collect\n"
    assert story.ok("gc", "--apply", "--grace", "0") == "nothing to collect\n"
    assert story.ok("gc", "--restore") == "the trash is empty\n"


def test_a_plan_then_the_trash_then_back_then_for_good(story: Story) -> None:
    commit = drop_last(story)
    assert story.json("gc", "--grace", "0")["changed"] is False, "undo could bring it back"
    forgetful(story)
    assert story.json("gc")["changed"] is False, "the packs are young"
    plan = story.json("gc", "--grace", "0")
    assert (plan["applied"], plan["changed"], plan["bytes_written"]) == (False, True, None)
    assert [one["id"] for one in plan["commits"]] == [commit]
    text = story.ok("gc", "--grace", "0").splitlines()
    assert text[0].startswith("nothing reaches: 1 commit")
    assert commit[:12] in text[1]
    assert any(line.startswith("would go to the trash: ") for line in text)
    assert text[-1] == "nothing was changed; to do it: rbl gc --apply"
    before = story.state()
    done = story.json("gc", "--apply", "--grace", "0")
    assert (done["applied"], done["packs"], done["commits"]) == (True, plan["packs"], plan["commits"])
    assert story.json("fsck", "--full")["ok"]
    failure = story.json("branch", "again", commit, code=1)
    assert failure["code"] == "unknown_revision"
    assert "rbl gc --restore" in failure["hint"]
    text = story.ok("gc", "--restore")
    assert "1 commit on no branch:" in text
    assert f"to keep one: rbl branch NAME {commit[:12]}" in text
    assert story.state() == before
    assert story.json("fsck", "--full")["ok"]
    story.ok("branch", "again", commit)
    story.ok("branch", "--delete", "again")
    text = story.ok("gc", "--apply", "--grace", "0")
    assert "went to the trash: " in text
    assert "rbl gc --restore" in text
    text = story.ok("gc", "--apply", "--grace", "0")
    assert text.startswith("deleted for good: ")
    assert story.ok("gc", "--restore") == "the trash is empty\n"
    assert story.json("fsck", "--full")["ok"]


def test_an_undo_of_what_was_collected_is_refused(story: Story) -> None:
    commit = drop_last(story)
    forgetful(story)
    story.ok("gc", "--apply", "--grace", "0")
    before = story.state()
    failure = story.json("undo", code=4)
    assert (failure["code"], failure["object"]) == ("dangling_reference", commit)
    assert "rbl gc --restore" in failure["hint"]
    assert story.state() == before


@pytest.mark.parametrize(
    "arguments", [["--grace", "-1"], ["--grace", "x"], ["--grace", "36501"], ["--restore", "--apply"], ["nothing"]]
)
def test_a_bad_request_is_refused(story: Story, arguments: list[str]) -> None:
    assert story.run("gc", *arguments).exit_code == 2


def test_what_should_be_known_is_said(story: Story) -> None:
    pack = story.store / ".rbl" / "packs" / "ab" / f"{'ab' * 32}.pack"
    pack.parent.mkdir(exist_ok=True)
    pack.write_bytes(b"no pack")
    for path in story.store.rglob("*.pack"):
        if path != pack:
            os.utime(path, (2**33, 2**33))
    result = story.run("gc", "--grace", "0")
    assert result.exit_code == 0
    assert "of a time in the future" in result.stderr
    assert "is in no use and cannot be read" in result.stderr
    assert len(story.json("gc")["future"]) > 1
