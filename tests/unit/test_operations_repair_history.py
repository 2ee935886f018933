"""Repair of history: commits whose parents are lost, refs whose commits are, and the operation log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from repair_stories import Story, make_story, moved, rewrite

import rblstore
from rblstore.objects.evidence_records import Probe, Prompt, PromptDivergence, Verification
from rblstore.objects.history_records import Operation, RefChange
from rblstore.objects.ids import BaselineId, CommitId, CompositionId, RecordId
from rblstore.operations.repair import RepairResult
from rblstore.operations.repair_log import operation_id, plan_log
from rblstore.repository import utc_now
from rblstore.storage.disk import DiskBackend
from rblstore.storage.log_salvage import encode_log, salvage_log
from rblstore.storage.pack_writer import PackWriter


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return make_story(tmp_path_factory.mktemp("story"))


@pytest.fixture
def story(original: Story, tmp_path: Path) -> Story:
    return moved(original, tmp_path / "store")


def mend(story: Story, *sources: Path) -> RepairResult:
    plan = rblstore.repair(story.root, sources=sources)
    result = rblstore.repair(story.root, sources=sources, apply=True)
    assert result.steps == plan.steps
    return result


def lines(story: Story) -> list[bytes]:
    return (story.folder / "refs.log").read_bytes().splitlines(keepends=True)


def record(story: Story, record_id: str) -> Any:
    with rblstore.open(story.root) as repo:
        return repo._store.any_record(RecordId(record_id))


class TestLostParents:
    def test_rows_of_the_catalog_have_commits(self, story: Story) -> None:
        refs = story.refs()
        story.lose_pack(story.commits["polite"])
        result = mend(story)
        found = {(one.kind, one.source) for one in result.restored}
        assert found == {("commit", "rows of the catalog"), ("composition", "rows of the catalog")}
        assert result.rescued == ()
        assert story.refs() == refs
        # The adapter itself was in the same pack.
        assert {one.kind for one in result.lost} == {"record"}
        assert mend(story, story.copy).whole

    def test_what_follows_is_rescued(self, story: Story, tmp_path: Path) -> None:
        """Without a catalog: polite is lost, and brief, which has it for a parent, is committed anew without it."""
        before = record(story, story.commits["brief"])
        story.lose_pack(story.commits["polite"])
        story.lose_catalog()
        result = mend(story)
        rescued = {one.before: one for one in result.rescued}
        brief = rescued[CommitId(story.commits["brief"])]
        assert brief.kind == "commit"
        assert brief.after is not None
        (moved_ref,) = [ref for ref in result.refs if ref.ref == "refs/heads/main"]
        assert (moved_ref.before, moved_ref.after) == (story.commits["brief"], brief.after)
        assert "rescued" in moved_ref.why
        now = record(story, brief.after)
        assert (now.composition, now.author, now.time) == (before.composition, before.author, before.time)
        assert now.parents == ()
        assert now.message == f"brief\n\nrescued from {story.commits['brief']}"
        # The tag's commit is lost: its ref goes, and its record is in quarantine alone.
        assert {(ref.ref, ref.after) for ref in result.refs} >= {("refs/tags/v1", None)}
        assert [one.kind for one in result.rescued if one.after is None] == ["tag"]
        assert any(one.object == story.commits["polite"] for one in result.lost)
        with rblstore.open(story.root) as repo:
            assert repo.operations()[0].description == "repair"
            assert [entry.message.splitlines()[0] for entry in repo.log("main")] == ["brief"]
            assert [entry.message for entry in repo.log("side")] == ["tuned", "base"]
            kinds = {damage.kind for damage in repo.fsck(full=True).damages}
            assert kinds <= {"reference"}, "of the lost adapter"
            repo.checkout("side", tmp_path / "side")
        again = mend(story)
        assert (again.rescued, again.refs, again.steps) == ((), (), ())

    def test_it_is_all_there_with_another_copy(self, story: Story) -> None:
        refs = story.refs()
        story.lose_pack(story.commits["polite"])
        story.lose_catalog()
        result = mend(story, story.copy)
        assert result.whole
        assert result.rescued == ()
        assert story.refs() == refs

    def test_the_root_is_lost(self, story: Story) -> None:
        """Everything stands on it: all of history is taken over, parents first, tags and evidence too."""
        with rblstore.open(story.root) as repo:
            polite = CommitId(story.commits["polite"])
            store = repo._store
            composition = CompositionId(repo.log(polite)[0].composition)
            probe = Probe((Prompt("p", (1,), None),), ((0,),), "last", None)
            with store.transaction("Ada") as transaction:
                probe_id = transaction.add_record(probe)
                transaction.set_ref("refs/probes/one", None, probe_id)
                transaction.set_ref("PROBE", None, "ref: refs/probes/one")
                transaction.describe("probe")
            evidence = Verification(
                commit=polite, composition=composition, adapted=None, removed=(), probe=probe_id,
                baseline=BaselineId(probe_id), environment={"device": "cpu"}, verdict="exact", tolerance=1e-6,
                bit_equal=True, kl=0.0, js=0.0, rf=None, kl_adapted=None, js_adapted=None, reason="none",
                prompts=(PromptDivergence("p", 0.0, 0.0, True),), author="Ada", time=utc_now(),
            )  # fmt: skip
            with store.transaction("Ada") as transaction:
                transaction.add_record(evidence)
        story.lose_pack(story.commits["base"])
        story.lose_catalog()
        result = mend(story)
        by_kind = {one.kind for one in result.rescued}
        assert by_kind == {"commit", "tag", "verification"}
        assert all(one.after is not None for one in result.rescued)
        with rblstore.open(story.root) as repo:
            subjects = [entry.message.splitlines()[0] for entry in repo.log("main")]
            assert subjects == ["brief", "polite"]
            assert [one.verdict for one in repo.log("main~1")[0].verifications] == ["exact"]
            (tag,) = repo.tags()
            assert tag.commit == repo.resolve("main~1")
            assert tag.message.startswith("first\n\nrescued from ")
            assert repo.probes()[0].default

    def test_a_branch_goes_back_to_what_is_left(self, story: Story) -> None:
        """Its commit is lost altogether; what it was before is not."""
        story.lose_pack(story.commits["tuned"])
        story.lose_catalog()
        result = mend(story)
        (ref,) = result.refs
        assert (ref.ref, ref.before, ref.after) == ("refs/heads/side", story.commits["tuned"], story.commits["base"])
        assert "lost" in ref.why
        with rblstore.open(story.root) as repo:
            assert repo.fsck(full=True).ok
        assert not result.whole, "a commit is lost, and said to be"
        assert mend(story).whole

    def test_what_a_later_version_wrote_is_left_alone(self, story: Story) -> None:
        """A branch names a commit that this version cannot read: nothing of it is moved."""
        with PackWriter(DiskBackend(story.folder), "R", is_stored=lambda content: False) as writer:
            later = writer.add([b'rblstore/commit/2\n{"composition":"later"}']).content
            writer.finish()
        operations = salvage_log(b"".join(lines(story))).operations
        change = RefChange("refs/heads/later", None, later)
        operations += (
            Operation(len(operations) + 1, operation_id(operations[-1]), "x", (change,), None, "A", utc_now()),
        )
        rewrite(story.folder / "refs.log", encode_log(operations))
        story.lose_catalog()
        result = mend(story)
        assert result.refs == ()
        assert story.refs()["refs/heads/later"] == later
        assert not any(step.action == "quarantine" for step in result.steps)


class TestLog:
    @pytest.mark.parametrize("catalog", [True, False], ids=["with a catalog", "without"])
    @pytest.mark.parametrize("line", ["the last but one", "the last"])
    def test_a_lost_newline(self, line: str, catalog: bool, story: Story) -> None:
        """It joins the last two lines, or spoils the last: acknowledged operations, without a line of their own."""
        refs, found = story.refs(), lines(story)
        last = -1 if line == "the last" else -2
        found[last] = found[last][:-1] + b"*"
        rewrite(story.folder / "refs.log", b"".join(found))
        if not catalog:
            story.lose_catalog()
            with pytest.raises(rblstore.CorruptError) as caught:
                rblstore.reindex(story.root)
            assert "rbl repair" in str(caught.value.hint)
        result = mend(story)
        assert result.whole
        assert story.refs() == refs
        with rblstore.open(story.root) as repo:
            assert repo.operations()[0].description != "repair"
        assert lines(story) == lines(Story(story.copy, story.copy, story.sources, {}))
        assert any(path.name.startswith("refs.log-") for path in (story.folder / "quarantine").iterdir())

    def test_a_lost_line_without_a_catalog(self, story: Story) -> None:
        """What follows it is still readable by itself, and refs are what it says, by an operation of their own."""
        refs, found = story.refs(), lines(story)
        del found[2]
        rewrite(story.folder / "refs.log", b"".join(found))
        story.lose_catalog()
        result = mend(story)
        assert result.whole
        with rblstore.open(story.root) as repo:
            assert repo.operations()[0].description == "repair"
            assert len(repo.operations()) == 3
        assert {name: value for name, value in story.refs().items() if name in refs} == refs
        assert not [name for name in story.refs() if "rescued" in name], "the end of the log is whole"

    def test_another_copy_closes_the_gap(self, story: Story) -> None:
        found = lines(story)
        rewrite(story.folder / "refs.log", b"".join(found[:1] + found[3:]))
        story.lose_catalog()
        result = mend(story, story.copy)
        assert (result.whole, result.refs) == (True, ())
        assert lines(story) == found

    def test_another_copy_decides_nothing(self, story: Story, tmp_path: Path) -> None:
        """What a copy did after this repository's last readable line is its own business."""
        other = tmp_path / "other"
        shutil.copytree(story.copy, other)
        with rblstore.open(other) as repo:
            repo.create_branch("theirs")
        found = lines(story)
        rewrite(story.folder / "refs.log", b"".join(found[:-1]) + b"nonsense that was no line\n" * 2)
        story.lose_catalog()
        mend(story, other)
        assert "refs/heads/theirs" not in story.refs()

    def test_log_and_catalog_are_lost(self, story: Story) -> None:
        """Nobody knows what refs were: the tips of history, and tags, get names."""
        story.lose_catalog()
        (story.folder / "refs.log").unlink()
        result = mend(story)
        assert result.whole
        refs = story.refs()
        tips = {refs[name] for name in refs if name.startswith("refs/heads/rescued/")}
        assert tips == {story.commits["brief"], story.commits["tuned"]}
        assert refs["HEAD"].startswith("ref: refs/heads/rescued/")
        with rblstore.open(story.root) as repo:
            assert [tag.name for tag in repo.tags()] == ["v1"]
            assert repo.status().commit in tips
        assert mend(story).steps == ()

    @pytest.mark.parametrize("what", ["folder", "link"])
    def test_something_else_is_in_its_place(self, what: str, story: Story) -> None:
        refs = story.refs()
        path = story.folder / "refs.log"
        path.unlink()
        if what == "folder":
            path.mkdir()
        else:
            path.symlink_to(story.copy / ".rbl" / "refs.log")
        assert mend(story).whole
        assert story.refs() == refs
        assert lines(Story(story.copy, story.copy, story.sources, {})) == lines(story)

    def test_another_history(self) -> None:
        """Operations that the catalog has, and that do not follow, take no place."""
        first = Operation(1, None, "one", (), None, "A", "2026-01-01T00:00:00Z")
        other = Operation(1, None, "other", (), None, "A", "2026-01-01T00:00:00Z")
        plan = plan_log(encode_log([first]), [other], dict)
        assert plan.operations == (first,)
        assert (plan.damage, plan.missing, plan.complete) == (None, False, True)


def test_a_fresh_repository_without_log_and_catalog(tmp_path: Path) -> None:
    rblstore.init(tmp_path).close()
    for name in ("catalog.db", "refs.log"):
        (tmp_path / ".rbl" / name).unlink()
    assert rblstore.repair(tmp_path, apply=True).whole
    with rblstore.open(tmp_path) as repo:
        assert repo.branch == "main"
