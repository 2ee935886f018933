"""What things take: counted anew from parsed records, and what bases, baselines and lost contents do to it."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import WIDTH, Tensor, base_tensors, values, write_adapter, write_base, write_safetensors

import rblstore
from rblstore.objects.content_records import Behavior, FileManifest, Identity
from rblstore.objects.evidence_records import Baseline, PromptOutput
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, ContentId, ProbeId, RecordId
from rblstore.operations import content_needs
from rblstore.operations.du import Amount, CommitUsage, PartUsage, RepositoryUsage
from rblstore.transaction import Transaction

NORM = "model.norm.weight"


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    """base <- a <- a, b (main); base <- tuned (other, tagged); an undone commit that nothing reaches."""
    base = write_base(tmp_path / "base")
    tuned = write_base(tmp_path / "tuned", model__norm__weight=values(WIDTH, seed=7))
    first, second = write_adapter(tmp_path / "a", seed=1), write_adapter(tmp_path / "b", seed=2)
    # One tensor of the base in an adapter's folder, too: a content that two parts have.
    write_safetensors(second / "extra.safetensors", {"beside": base_tensors()[NORM]})
    with rblstore.init(tmp_path / "store") as opened:
        opened.commit("base", identity=base)
        opened.create_branch("other")
        opened.commit("a", behaviors={"a": first})
        opened.commit("b", behaviors={"b": second})
        opened.commit("lost", behaviors={"c": write_adapter(tmp_path / "c", seed=3)})
        opened.undo()
        opened.switch("other")
        opened.commit("tuned", identity=tuned)
        opened.create_tag("v1", "other")
        opened.switch("main")
        yield opened


def contents_of(store: Any, part: RecordId) -> set[ContentId]:
    """What an identity or behavior names, by the strict parsers."""
    record = store.any_record(part)
    assert isinstance(record, (Identity, Behavior))
    found: set[ContentId] = set()
    for entry in record.files:
        found.update(
            [entry.sha256] if entry.manifest is None else store.record(entry.manifest, FileManifest).contents()
        )
    return found


def files_of(store: Any, part: RecordId) -> int:
    return sum(entry.size for entry in store.any_record(part).files)


def stored(store: Any, contents: set[ContentId]) -> int:
    return sum(store.location(content).stored for content in contents)


def amount(store: Any, contents: set[ContentId]) -> Amount:
    raw, taken = sum(store.location(content).size for content in contents), stored(store, contents)
    return Amount(len(contents), raw, taken, raw / taken if taken else None)


def parts_at(repo: Any, revision: str) -> list[RecordId]:
    store = repo._store
    composition = store.record(store.record(repo.resolve(revision), Commit).composition, Composition)
    return [composition.identity, *(slot.behavior for slot in composition.slots)]


def needed_at(repo: Any, revision: str) -> set[ContentId]:
    return set().union(*(contents_of(repo._store, part) for part in parts_at(repo, revision)))


REACHED = ("main", "main~1", "main~2", "other")


@pytest.mark.parametrize("revision", REACHED)
def test_a_commit_takes_what_its_records_name(repo: Any, revision: str) -> None:
    store, usage = repo._store, repo.du(revision)
    assert isinstance(usage, CommitUsage)
    everyone = {part for one in REACHED for part in parts_at(repo, one)}
    parts = parts_at(repo, revision)
    assert [part.id for part in (usage.identity, *usage.behaviors)] == parts
    for part in (usage.identity, *usage.behaviors):
        own = contents_of(store, part.id)
        others = set().union(*(contents_of(store, other) for other in everyone - {part.id}))
        assert (part.contents, part.raw, part.stored) == (len(own), files_of(store, part.id), stored(store, own))
        assert (part.shared, part.unique) == (stored(store, own & others), stored(store, own - others))
        assert part.ratio == part.raw / part.stored
    whole = needed_at(repo, revision)
    elsewhere = set().union(*(needed_at(repo, other) for other in REACHED if other != revision))
    total = usage.total
    assert (total.contents, total.stored) == (len(whole), stored(store, whole))
    assert total.raw == sum(files_of(store, part) for part in parts)
    assert (total.shared, total.unique) == (stored(store, whole & elsewhere), stored(store, whole - elsewhere))
    parent = {"main": "main~1", "main~1": "main~2", "other": "main~2"}.get(revision)
    assert usage.added == amount(store, whole - (needed_at(repo, parent) if parent else set()))
    assert usage.baselines == Amount(0, 0, 0, None)


def test_what_two_parts_have_counts_once(repo: Any) -> None:
    norm = stored(repo._store, {ContentId(content_id(base_tensors()[NORM]))})
    usage = repo.du("main")
    parts = (usage.identity, *usage.behaviors)
    assert min(usage.identity.shared, usage.behaviors[1].shared) >= norm
    assert usage.total.stored == stored(repo._store, needed_at(repo, "main")) <= sum(one.stored for one in parts) - norm


def content_id(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.data).hexdigest()


def test_the_repository_takes_what_is_on_disk(repo: Any) -> None:
    store, usage = repo._store, repo.du()
    assert isinstance(usage, RepositoryUsage)
    folder = repo.path / ".rbl"
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    packs = [size for name, size in sizes.items() if name.startswith("packs/")]
    assert (usage.packs.count, usage.packs.bytes) == (len(packs), sum(packs))
    assert (usage.catalog, usage.log, usage.total) == (sizes["catalog.db"], sizes["refs.log"], sum(sizes.values()))
    assert usage.other == usage.total - usage.packs.bytes - usage.catalog - usage.log > 0
    kept = {
        kind: {
            location.content
            for pack in store.packs()
            if (summary := store.pack(pack).summary()).kind == kind
            for location in summary.locations
        }
        for kind in "CR"
    }
    reached = set().union(*(needed_at(repo, one) for one in REACHED))
    assert usage.contents == amount(store, kept["C"])
    assert usage.records == amount(store, kept["R"])
    assert usage.unreached == amount(store, kept["C"] - reached)
    assert usage.unreached.contents > 0
    assert usage.packs.overhead == usage.packs.bytes - usage.contents.stored - usage.records.stored > 0


def test_a_branch_has_for_itself_what_no_other_ref_reaches(repo: Any) -> None:
    store = repo._store
    main, other = repo.du().branches
    assert [(one.name, one.commit) for one in (main, other)] == [
        (name, repo.resolve(name)) for name in ("main", "other")
    ]
    for one in (main, other):
        assert one.raw == sum(files_of(store, part) for part in parts_at(repo, one.name))
        assert one.stored == stored(store, needed_at(repo, one.name))
    history = needed_at(repo, "main") | needed_at(repo, "main~1")
    assert main.unique == stored(store, history - needed_at(repo, "main~2") - needed_at(repo, "other"))
    assert other.unique == 0  # the tag reaches all of it
    repo.delete_tag("v1")
    assert repo.du().branches[1].unique == stored(store, needed_at(repo, "other") - history)


def lost_commit(repo: Any) -> str:
    (made,) = (one for one in repo.operations() if one.description == "commit: lost")
    return str(made.changes[0].after)


def test_a_commit_that_no_ref_reaches_can_be_asked_about(repo: Any) -> None:
    lost = lost_commit(repo)
    usage = repo.du(lost)
    assert [part.name for part in usage.behaviors] == ["a", "b", "c"]
    assert usage.behaviors[2].unique > 0
    assert usage.total.unique == usage.added.stored == usage.behaviors[2].unique


def test_an_empty_repository_takes_a_record_or_two(tmp_path: Path) -> None:
    with rblstore.init(tmp_path / "store") as repo:
        usage = repo.du()
        assert isinstance(usage, RepositoryUsage)
        assert (usage.contents, usage.unreached, usage.branches) == (Amount(0, 0, 0, None), Amount(0, 0, 0, None), ())
        with pytest.raises(rblstore.NotFoundError) as caught:
            repo.du("HEAD")
    assert caught.value.code == "no_commits"


def test_a_commit_without_change_shares_everything(repo: Any) -> None:
    before = repo.du("main").total
    repo.commit("again", allow_empty=True)
    usage = repo.du("main")
    assert usage.added == Amount(0, 0, 0, None)
    assert (usage.total.shared, usage.total.unique) == (before.stored, 0)
    assert repo.du("main").behaviors[0].unique > 0  # but nothing other than the behavior needs these


def tuned_norm() -> str:
    return content_id(values(WIDTH, seed=7))


def test_a_base_that_nothing_else_has_belongs_to_what_stands_on_it(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = repo._store
    lost = lost_commit(repo)
    unreached = needed_at(repo, lost) - set().union(*(needed_at(repo, one) for one in REACHED))
    base = max(unreached, key=lambda content: store.location(content).stored)
    kept = ContentId(tuned_norm())
    alone, before = repo.du("other"), repo.du()
    monkeypatch.setattr("rblstore.operations.du.read_bases", lambda _: {str(kept): (str(base),)})
    usage, size = repo.du("other"), stored(store, {base})
    assert size > 0
    for now, then in ((usage.identity, alone.identity), (usage.total, alone.total)):
        assert (now.contents, now.stored, now.unique) == (then.contents + 1, then.stored + size, then.unique + size)
        assert (now.raw, now.shared) == (then.raw, then.shared)
    assert usage.added.stored == alone.added.stored + size
    whole = repo.du()
    assert whole.unreached.stored == before.unreached.stored - size
    assert whole.branches[1].stored == before.branches[1].stored + size


def test_an_identity_shares_the_bases_of_another(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = repo._store
    mine = ContentId(tuned_norm())  # only the fine-tuned identity has it
    theirs = next(iter(contents_of(store, repo.du("main").behaviors[0].id) - needed_at(repo, "main~2")))
    before, whole = repo.du("other"), repo.du()
    assert before.identity.unique == before.total.unique == stored(store, {mine})
    monkeypatch.setattr("rblstore.operations.du.read_bases", lambda _: {str(theirs): (str(mine),)})
    usage = repo.du("other")
    assert (usage.identity.stored, usage.identity.unique, usage.total.unique) == (before.identity.stored, 0, 0)
    assert usage.added == before.added
    repo.delete_tag("v1")
    assert [one.stored for one in repo.du().branches] == [one.stored for one in whole.branches]
    assert repo.du().branches[1].unique == 0  # main needs it now


def test_a_fine_tune_that_is_stored_as_a_difference_shares_its_base(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal((128, 128)).astype("<f4")
    nudged = drawn.view("<u4") ^ np.random.default_rng(1).integers(0, 4, drawn.shape, "<u4")
    before, after = (Tensor("F32", (128, 128), array.tobytes()) for array in (drawn, nudged))
    base = write_base(tmp_path / "base", model__wide__weight=before)
    tuned = write_base(tmp_path / "tuned", model__wide__weight=after)
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        repo.commit("tuned", behaviors={"ft": tuned})
        wide, mine = ContentId(content_id(before)), ContentId(content_id(after))
        assert content_needs.read_bases(repo._store) == {mine: (wide,)}
        usage = repo.du("HEAD")
        assert usage.identity.shared == usage.identity.stored  # all but one tensor as such, and that one as a base
        assert usage.behaviors[0].unique == usage.added.stored == stored(repo._store, {mine})


def test_baselines_are_counted_apart(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "_require_whole", lambda *_: None)  # there is no such probe
    store = repo._store
    outputs = [values(3, 8, seed=at).data for at in range(2)]
    composition = CompositionId(repo.du("main").composition)
    with store.transaction("Ada") as transaction:
        made = [transaction.add_content([data]).content for data in outputs]
        prompts = tuple(PromptOutput(f"p{at}", (3, 8), content) for at, content in enumerate(made))
        probe = ProbeId("0" * 64)
        transaction.add_record(
            Baseline(composition, probe, {"content": "f" * 64}, "logits", "F32", prompts, "Ada", "2026-03-01T12:00:00Z")
        )
    before = repo.du("main~1")
    usage = repo.du("main")
    assert usage.baselines == amount(store, set(made))
    assert usage.total.contents == len(needed_at(repo, "main"))
    assert before.baselines == Amount(0, 0, 0, None)
    assert repo.du("main~1").total == before.total
    unreached = repo.du().unreached
    repo.switch("other")
    repo.delete_branch("main")
    assert repo.du().unreached.stored >= unreached.stored + usage.baselines.stored


@pytest.mark.parametrize("what", ["content", "record"])
def test_what_is_lost_is_named(repo: Any, what: str) -> None:
    store = repo._store
    behavior = repo.du("main").behaviors[0].id
    lost = behavior if what == "record" else min(contents_of(store, behavior) - needed_at(repo, "main~2"))
    with closing(sqlite3.connect(repo.path / ".rbl" / "catalog.db")) as connection, connection:
        connection.execute("DELETE FROM contents WHERE content = ?", [str(lost)])
    for revision in (None, "main") if what == "content" else (None, "main", "other"):
        with pytest.raises(rblstore.CorruptError) as caught:
            repo.du(revision)
        assert (caught.value.code, caught.value.object) == ("missing_content", lost)
        assert "fsck" in (caught.value.hint or "")


def test_names_cannot_pass_for_contents(tmp_path: Path) -> None:
    """What looks like a member inside a string is escaped there."""
    fake = '{"content":"' + "a" * 64 + '","dtype":"F32"}'
    base = write_base(tmp_path / "base", **{fake: values(2, seed=9)})
    (base / "b\u00e9\u4e00.txt").write_text("a name beyond ASCII")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        identity = repo.du("HEAD").identity.id
        (part,) = content_needs.read_parts(repo._store, [identity])
        assert part.contents == contents_of(repo._store, identity)
        assert part.raw == files_of(repo._store, identity)


def test_a_part_is_an_identity_a_behavior_or_a_baseline(repo: Any) -> None:
    with pytest.raises(rblstore.CorruptError) as caught:
        next(content_needs.read_parts(repo._store, [repo.head]))
    assert caught.value.object == repo.head


def test_results_are_plain(repo: Any) -> None:
    usage = repo.du("main")
    assert isinstance(usage.total, PartUsage)
    document = usage.as_json()
    assert document["total"]["id"] == usage.composition
    assert isinstance(usage.commit, CommitId)
    assert document["behaviors"][0]["unique"] == usage.behaviors[0].unique
