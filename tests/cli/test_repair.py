"""``rbl repair``, as a user types it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cli_story import Story, run


def spoil(story: Story, name: str = "base/config.json") -> str:
    """Damages the stored bytes of a file that is kept whole; returns its content's id."""
    wanted = hashlib.sha256((story.models / name).read_bytes()).digest()
    for pack in (story.store / ".rbl" / "packs").rglob("*.pack"):
        data = bytearray(pack.read_bytes())
        index = int.from_bytes(data[-80:-72], "little")
        for at in range(index, len(data) - 80, 128):
            if data[at : at + 32] == wanted:
                data[int.from_bytes(data[at + 48 : at + 56], "little")] ^= 1
                pack.chmod(0o644)
                pack.write_bytes(data)
                return wanted.hex()
    raise AssertionError(name)


def test_there_is_nothing_to_repair(story: Story) -> None:
    assert story.ok("repair").strip() == "whole: there is nothing to repair"
    assert story.ok("repair", "--apply", "--from", story.models).strip() == "whole: there is nothing to repair"


def test_plan_and_apply(story: Story) -> None:
    before = story.state()
    content = spoil(story)
    plan = story.json("repair", "--from", story.models / "base", code=6)
    assert (plan["applied"], plan["whole"], plan["lost"]) == (False, False, [])
    assert plan["found"] == plan["remaining"]
    assert "rbl repair --from" in plan["found"][0]["hint"]
    assert [one["object"] for one in plan["restored"]] == [content]
    assert not list((story.store / ".rbl" / "quarantine").iterdir())
    text = story.run("repair", "--from", story.models / "base")
    assert text.exit_code == 6
    assert "to do it: rbl repair --apply" in text.stdout
    done = story.json("repair", "--from", story.models / "base", "--apply")
    assert (done["applied"], done["whole"], done["remaining"]) == (True, True, [])
    assert done["steps"] == plan["steps"]
    assert story.json("fsck", "--full")["ok"]
    assert story.state() == before


def test_what_nothing_has(story: Story) -> None:
    content = spoil(story)
    text = story.run("repair", "--apply")
    assert text.exit_code == 6
    assert f"lost content {content[:12]}: nothing has it" in text.stdout
    assert "needed by commit" in text.stdout
    assert "another copy may have it: rbl repair --from PATH" in text.stdout
    text = story.run("repair", "--apply")
    assert text.exit_code == 6
    assert "nothing can be done about it" in text.stdout
    assert "everything was repaired" in story.ok("repair", "--apply", "--from", story.models)


def test_a_repository_that_does_not_open(story: Story, tmp_path: Path) -> None:
    before = story.state()
    for name in ("catalog.db", "format"):
        (story.store / ".rbl" / name).unlink()
    (story.store / ".rbl" / "config.toml").write_text("nonsense")
    assert story.run("log").exit_code == 3
    document = story.json("repair", code=6)
    assert {damage["kind"] for damage in document["found"]} == {"catalog", "format", "settings"}
    assert "rebuilt from packs and refs.log" in story.ok("repair", "--apply")
    assert story.state() == before


def test_bad_input(story: Story, tmp_path: Path) -> None:
    assert story.json("repair", "--from", tmp_path / "nowhere", code=1)["code"] == "no_such_source"
    assert story.json("repair", "--from", story.store, code=2)["code"] == "usage"
    assert run("-C", tmp_path, "repair").exit_code == 3
