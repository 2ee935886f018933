"""Repair: packs set aside, contents fetched, whatever is in the way; and a crash anywhere in between."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from repair_stories import Story, content_of, make_story, moved, rewrite, spoil, tree
from tiny_checkpoints import digests

import rblstore
from rblstore.objects.ids import ContentId
from rblstore.operations import repair as repairing
from rblstore.operations.repair import RepairResult
from rblstore.storage.durable import WriteError
from rblstore.storage.encoding import SourceChangedError
from rblstore.storage.locks import writing


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return make_story(tmp_path_factory.mktemp("story"))


@pytest.fixture
def story(original: Story, tmp_path: Path) -> Story:
    return moved(original, tmp_path / "store")


def mend(story: Story, *sources: Path) -> RepairResult:
    return rblstore.repair(story.root, sources=sources, apply=True)


def config(story: Story) -> ContentId:
    return content_of(story, Path("base/config.json"))


def weights_of(story: Story, name: str = "lm_head.weight", of: str = "base") -> ContentId:
    """The content of a tensor."""
    data = (story.sources / of / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + size])[name]["data_offsets"]
    return ContentId(hashlib.sha256(data[8 + size + begin : 8 + size + end]).hexdigest())


def at_content(path: Path, content: str) -> int:
    """Where the stored bytes of a content begin in a pack."""
    data = path.read_bytes()
    index = int.from_bytes(data[-80:-72], "little")
    for at in range(index, len(data) - 80, 128):
        if data[at : at + 32].hex() == content:
            return int.from_bytes(data[at + 48 : at + 56], "little")
    raise AssertionError(content)


def spoil_content(story: Story, content: str) -> Path:
    pack = story.pack_with(content)
    spoil(pack, at_content(pack, content) + 3)
    return pack


class TestWhole:
    def test_there_is_nothing_to_do(self, story: Story) -> None:
        before = tree(story.root)
        for apply in (False, True):
            result = rblstore.repair(story.root, sources=[story.copy, story.sources], apply=apply)
            assert (result.whole, result.found, result.steps, result.remaining) == (True, (), (), ())
        assert tree(story.root).keys() - before.keys() <= {".rbl/lock.gate"}
        assert all(tree(story.root)[path] == digest for path, digest in before.items())

    def test_whoever_writes_is_not_disturbed(self, story: Story, impatient: None) -> None:
        spoil_content(story, config(story))
        with writing(story.folder), pytest.raises(rblstore.LockedError):
            mend(story, story.copy)
        assert rblstore.repair(story.root).found  # a plan needs no lock

    def test_there_is_no_repository(self, tmp_path: Path) -> None:
        with pytest.raises(rblstore.NoRepositoryError):
            rblstore.repair(tmp_path)

    def test_the_nearest_is_repaired(self, story: Story) -> None:
        """Not the one above it, whose format file is there."""
        inner = moved(story, story.root / "inner")
        (inner.folder / "format").unlink()
        for start in (inner.root, inner.folder, inner.root / "deeper"):
            assert not rblstore.repair(start).whole
        assert rblstore.repair(inner.root, apply=True).whole
        assert (inner.folder / "format").exists()


class TestPacks:
    def test_what_is_lost_is_said_and_found_later(self, story: Story, tmp_path: Path) -> None:
        lost = config(story)
        pack = spoil_content(story, lost)
        result = mend(story)
        assert [(one.object, one.kind) for one in result.lost] == [(lost, "content")]
        assert any("base" in need for need in result.lost[0].needed_by)
        assert any(need.startswith("identity") and "config.json" in need for need in result.lost[0].needed_by)
        assert not result.whole
        assert [damage.object for damage in result.remaining] == [lost]
        assert not pack.exists()
        assert (story.folder / "quarantine" / pack.parent.name / pack.name).exists()
        again = mend(story)
        assert (again.whole, again.steps) == (False, ())
        assert {one.object for one in again.lost} == {lost}
        # Only now somebody finds the directory.
        assert mend(story, story.sources).whole
        with rblstore.open(story.root) as repo:
            repo.checkout("main~2", tmp_path / "out")
        assert digests(story.sources / "base").items() <= digests(tmp_path / "out").items()

    def test_what_was_committed_again_heals(self, story: Story) -> None:
        """Commit says "stored already" of what is damaged: the directory heals it."""
        spoil_content(story, weights_of(story))
        with rblstore.open(story.root) as repo:
            result = repo.commit("again", identity=story.sources / "base", branch="again", rehash=True)
        assert result.new_bytes == 0
        assert mend(story, story.sources / "base").whole

    def test_another_pack_of_the_same_repository_has_it(self, story: Story) -> None:
        lost = weights_of(story)
        pack = story.pack_with(lost)
        shutil.copy(story.pack_with(lost), story.root / "kept")
        spoil(pack, at_content(pack, lost) + 3)
        trash = story.folder / "trash" / pack.parent.name
        trash.mkdir(parents=True)
        shutil.move(story.root / "kept", trash / pack.name)
        result = mend(story)
        assert result.whole
        assert [(one.object, one.source) for one in result.restored] == [(lost, "the trash")]

    def test_the_same_pack_twice(self, story: Story) -> None:
        """What is made anew is what it was, under the name that it had, and may be damaged again, in the same way."""
        lost = config(story)
        packs = [spoil_content(story, lost)]
        assert mend(story, story.copy).whole
        packs.append(spoil_content(story, lost))
        assert mend(story, story.copy).whole
        packs.append(spoil_content(story, lost))
        assert mend(story, story.copy).whole
        kept = sorted((story.folder / "quarantine").rglob("*.pack"))
        assert len({pack.name for pack in packs}) <= len(kept)
        assert len({path.read_bytes() for path in kept}) == len(kept)

    @pytest.mark.parametrize("what", ["folder", "link", "fifo"])
    def test_something_else_is_in_its_place(self, what: str, story: Story) -> None:
        pack = story.pack_with(config(story))
        pack.unlink()
        if what == "folder":
            pack.mkdir()
            (pack / "inside").write_text("keep me")
        elif what == "link":
            pack.symlink_to(story.root)
        else:
            os.mkfifo(pack)
        assert rblstore.repair(story.root).steps
        assert mend(story, story.copy).whole
        (aside,) = (story.folder / "quarantine").glob("*.pack-*")
        assert what != "folder" or (aside / "inside").read_text() == "keep me"

    def test_the_header_and_the_footer_are_gone(self, story: Story) -> None:
        pack = story.pack_with(config(story))
        spoil(pack, 3)
        spoil(pack, -3)
        result = mend(story)
        assert result.whole
        assert "copy" in {step.action for step in result.steps}

    def test_permission_is_no_damage(self, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        spoil_content(story, config(story))
        pack = story.pack_with(weights_of(story, of="tuned"))
        opened = os.open

        def refuse(path: Any, *rest: Any, **more: Any) -> int:
            if str(path) == str(pack):
                raise PermissionError(13, "Permission denied")
            return opened(path, *rest, **more)

        monkeypatch.setattr(os, "open", refuse)
        before = tree(story.root)
        with pytest.raises(rblstore.RblError) as caught:
            rblstore.repair(story.root)
        assert caught.value.code == "read_failed"
        assert tree(story.root) == before


class TestDifferences:
    @pytest.fixture
    def large(self, tmp_path: Path) -> Story:
        """A fine-tune stored as differences from its base."""
        from tiny_checkpoints import Tensor, write_base

        rows = 64

        def tensor(step: int) -> Tensor:
            drawn = hashlib.shake_256(b"rows").digest(rows * 64 * 2)
            words = [int.from_bytes(drawn[at : at + 2], "little") % 60000 for at in range(0, len(drawn), 2)]
            data = b"".join(
                (word + (step if at % 7 == 0 else 0)).to_bytes(2, "little") for at, word in enumerate(words)
            )
            return Tensor("BF16", (rows, 64), data)

        sources = tmp_path / "sources"
        for name, step in (("base", 0), ("tuned", 1)):
            write_base(sources / name, extra=tensor(step))
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=sources / "base")
            repo.commit("tuned", behaviors={"tuned": sources / "tuned"})
        shutil.copytree(tmp_path / "store", tmp_path / "copy")
        story = Story(tmp_path / "store", tmp_path / "copy", sources, {})
        pack = story.pack_with(weights_of(story, "extra", "tuned"))
        base = bytes.fromhex(weights_of(story, "extra"))
        assert base in pack.read_bytes(), "it is stored as a difference"
        return story

    @pytest.mark.parametrize("source", ["copy", "base", "tuned"])
    def test_a_lost_base_comes_first(self, large: Story, source: str) -> None:
        base = weights_of(large, "extra")
        large.lose_pack(base)
        result = mend(large, large.copy if source == "copy" else large.sources / source)
        assert result.whole == (source != "tuned")
        if source == "tuned":
            # What stood on it was fetched by itself; of the base there is nothing.
            assert base in {one.object for one in result.lost}
            with rblstore.open(large.root) as repo:
                assert weights_of(large, "extra", "tuned") not in {d.object for d in repo.fsck(full=True).damages}
        else:
            assert weights_of(large, "extra", "tuned") not in {one.object for one in result.restored}

    def test_a_difference_whose_base_is_lost_is_kept(self, large: Story) -> None:
        base, tuned = weights_of(large, "extra"), weights_of(large, "extra", "tuned")
        large.lose_pack(base)
        result = mend(large)
        assert {base, tuned} <= {one.object for one in result.lost}
        # With the base alone, what quarantine has of the fine-tune can be read again.
        result = mend(large, large.sources / "base")
        assert result.whole
        assert {one.source for one in result.restored if one.object == tuned} == {"the quarantine"}

    def test_a_base_in_a_damaged_pack_stays_one(self, large: Story) -> None:
        config_id = content_of(large, Path("base/config.json"))
        spoil_content(large, config_id)
        pack = large.pack_with(weights_of(large, "extra", "tuned"))
        spoil(pack, -40)
        assert mend(large, large.copy).whole


class TestCrash:
    STEPS = ("_write_contents", "_write_records", "_write_log", "_quarantine", "_keep", "build_catalog")

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", STEPS)
    def test_repairing_again_finishes(
        self, step: str, after: bool, story: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A content pack, a record pack with its commits, the log: all of them damaged, and it dies somewhere."""
        refs = story.refs()
        spoil_content(story, config(story))
        story.lose_pack(story.commits["polite"])
        rewrite(story.folder / "refs.log", (story.folder / "refs.log").read_bytes().replace(b"v1", b"v2", 1))
        place: Any = repairing if step == "build_catalog" else repairing._Repair
        with monkeypatch.context() as patch:
            patch.setattr(place, step, dies(getattr(place, step), after=after))
            with pytest.raises(Died):
                mend(story, story.copy)
        assert mend(story, story.copy).whole
        assert story.refs() == refs
        with rblstore.open(story.root) as repo:
            assert repo.fsck(full=True).ok
            assert [entry.commit for entry in repo.log()] == [
                story.commits[name] for name in ("brief", "polite", "base")
            ]

    @pytest.mark.parametrize("step", STEPS)
    def test_nothing_that_only_quarantine_has_is_lost(
        self, step: str, story: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second run has no source: what the first one fetched, or moved, must be in reach."""
        lost = config(story)
        spoil_content(story, lost)
        place: Any = repairing if step == "build_catalog" else repairing._Repair
        with monkeypatch.context() as patch:
            patch.setattr(place, step, dies(getattr(place, step), after=True))
            with pytest.raises(Died):
                mend(story, story.copy)
        again = mend(story)
        assert {one.object for one in again.lost} <= {lost}

    def test_a_source_that_changes_between_plan_and_act(self, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        lost = config(story)
        pack = spoil_content(story, lost)
        folder = story.root.parent / "changing"
        shutil.copytree(story.sources / "base", folder)
        write = repairing._Repair._write_packs

        def change(self: Any) -> None:
            data = (folder / "config.json").read_bytes()
            (folder / "config.json").write_bytes(data[::-1])
            write(self)

        monkeypatch.setattr(repairing._Repair, "_write_packs", change)
        with pytest.raises(SourceChangedError):
            mend(story, folder)
        assert pack.exists()
        monkeypatch.undo()
        assert mend(story, story.copy).whole

    def test_a_full_disk(self, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        spoil_content(story, config(story))
        before = tree(story.folder / "packs")
        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(WriteError):
            mend(story, story.copy)
        monkeypatch.undo()
        assert tree(story.folder / "packs") == before
        assert mend(story, story.copy).whole


class Died(BaseException):
    """The process is gone."""


def dies(step: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """A step after which, or before which, nothing more happens."""

    def run(*arguments: Any) -> None:
        if after:
            step(*arguments)
        raise Died

    return run


def full_disk(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("times", [1, 2])
def test_a_pack_is_set_aside_only_where_it_cannot_be_read_twice(
    times: int, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever time a pack is opened: one error loses nothing; where the disk has a hole, a copy mends it."""
    spoiled = spoil_content(story, config(story))
    opened = os.open
    for number in count(1):
        root = story.root.with_name(f"try-{number}")
        shutil.copytree(story.root, root)
        pack = max(one for one in (root / ".rbl" / "packs").glob("*/*.pack") if one.name != spoiled.name)
        seen = 0

        def failing(path: Any, *rest: Any, **more: Any) -> int:
            nonlocal seen
            if str(path) == str(pack):  # noqa: B023
                seen += 1
                if number <= seen < number + times:  # noqa: B023
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            return opened(path, *rest, **more)

        found = None
        with monkeypatch.context() as patches, suppress(rblstore.RblError):
            patches.setattr(os, "open", failing)
            found = rblstore.repair(root, sources=[story.sources / "base"], apply=True)
        if seen < number or (times, number) == (2, 6):
            break
        if times == 1:
            assert pack.is_file()
            assert found is None or found.lost == ()
        assert rblstore.repair(root, sources=[story.copy], apply=True).whole
        shutil.rmtree(root)
    assert number > 3
