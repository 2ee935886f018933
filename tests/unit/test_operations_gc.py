"""What gc takes, and what it leaves."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gc_stories import (
    DAY,
    WHEN,
    Clock,
    Stopped,
    age,
    base,
    check,
    collect,
    composition_of,
    difference,
    model,
    only_main,
    opened,
    orphan,
    packs,
    refuse,
    rows,
    side_branch,
    stored_records,
    whole,
)
from tiny_checkpoints import Tensor, digests, write_adapter, write_base, write_safetensors

import rblstore
from rblstore.catalog.forgetting import LastCopyError, StillNeededError
from rblstore.catalog.writer import CatalogWriter
from rblstore.errors import CorruptError, NotFoundError, UsageError
from rblstore.objects.content_records import Behavior
from rblstore.objects.evidence_records import (
    Baseline,
    Claim,
    Probe,
    Prompt,
    PromptDivergence,
    PromptOutput,
    Statement,
    Verification,
)
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, ContentId, PackId, RecordId
from rblstore.objects.locations import ContentLocation
from rblstore.objects.references import references
from rblstore.operations import gc_plan
from rblstore.operations.content_needs import names_in
from rblstore.operations.gc_marking import Reached, Stored, StoredPack
from rblstore.storage.pack_format import pack_key
from rblstore.storage.pack_writer import PackWriter

LOGITS = np.arange(8, dtype="<f4").tobytes()


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Any]:
    with whole(tmp_path / "store") as repository:
        yield repository


@pytest.fixture
def unchecked(tmp_path: Path) -> Iterator[Any]:
    """A repository that a test may damage."""
    with opened(tmp_path / "store") as repository:
        yield repository


def test_a_commit_on_no_branch_goes_to_the_trash_and_then_for_good(repo: Any, tmp_path: Path) -> None:
    kept = base(repo, tmp_path)
    before, whole = packs(repo), rows(repo)
    made = side_branch(repo, tmp_path)
    gone = packs(repo) - before
    result = collect(repo)
    assert [(one.id, one.subject) for one in result.commits] == [(made.commit, "side")]
    assert (result.dead["commit"], result.dead["behavior"], result.dead["composition"]) == (1, 1, 1)
    assert "identity" not in result.dead
    assert {(one.pack, one.reason, one.kept) for one in result.packs} == {(one, "unreachable", 0) for one in gone}
    assert (packs(repo), packs(repo, "trash"), result.bytes_freed) == (before, gone, 0)
    assert rows(repo)[:5] == whole[:5]
    again = collect(repo)
    assert (set(again.deleted), again.bytes_freed, again.trash_packs) == (gone, result.bytes_to_trash, 0)
    assert (again.packs, again.dead) == ((), {})
    assert not collect(repo).changed
    repo.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "base-0")["model.safetensors"]
    assert repo.head == kept.commit


def test_tags_and_heads_of_all_branches_hold_what_they_name(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    repo.switch("side", create=True)
    repo.commit("one", behaviors={"one": write_adapter(tmp_path / "one", seed=1)})
    repo.create_tag("v1", message="kept")
    repo.commit("two", behaviors={"two": write_adapter(tmp_path / "two", seed=2)})
    assert not collect(repo).changed
    repo.switch("main")
    repo.delete_branch("side")
    result = collect(repo)
    assert [one.subject for one in result.commits] == ["two"]
    assert "tag" not in result.dead
    repo.checkout("v1", tmp_path / "out")
    repo.delete_tag("v1")
    result = collect(repo)
    assert ([one.subject for one in result.commits], result.dead["tag"]) == (["one"], 1)


def test_operations_hold_what_they_could_bring_back(tmp_path: Path) -> None:
    with opened(tmp_path / "store", operations=90) as repo:
        base(repo, tmp_path)
        made = side_branch(repo, tmp_path)
        assert not collect(repo).changed
    for days, gone in ((89, False), (91, True)):
        with opened(tmp_path / "store", operations=90) as repo, Clock(repo, days):
            assert repo.gc().changed is gone
    with opened(tmp_path / "store", operations=90) as repo:
        repo.undo()
        assert repo.branches()[-1].commit == made.commit


@pytest.mark.parametrize("when", ["1999-01-01T00:00:00Z", "2999-01-01T00:00:00+02:00", "0001-01-01T00:00:00+23:59"])
def test_operations_of_clocks_that_are_wrong_hold_as_well(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "store", operations=90) as repo:
        base(repo, tmp_path)
        monkeypatch.setattr("rblstore.transaction.utc_now", lambda: when)
        side_branch(repo, tmp_path)
        assert not collect(repo).changed


def test_a_future_operation_does_not_hold_those_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "store", operations=90) as repo:
        monkeypatch.setattr("rblstore.transaction.utc_now", lambda: "2999-01-01T00:00:00Z")
        base(repo, tmp_path)
        monkeypatch.setattr("rblstore.transaction.utc_now", lambda: "2001-01-01T00:00:00Z")
        side_branch(repo, tmp_path)
        with Clock(repo, 100):
            assert [one.subject for one in repo.gc().commits] == ["side"]


def add(repo: Any, *records: Any, content: bytes = b"") -> list[Any]:
    """Records without a command around them."""
    with repo._store.transaction("Ada") as transaction:
        if content:
            transaction.add_content([content])
        return [transaction.add_record(record) for record in records]


def measured(repo: Any, composition: Any) -> tuple[Any, Any]:
    """A probe, and a baseline of a composition under it."""
    (probe,) = add(repo, Probe((Prompt("p", (1, 2), None),), ((0,),), "all", None))
    output = PromptOutput("p", (2, 4), ContentId(hashlib.sha256(LOGITS).hexdigest()))
    record = Baseline(composition, probe, {"device": "cpu"}, "logits", "F32", (output,), "Ada", WHEN)
    (baseline,) = add(repo, record, content=LOGITS)
    return probe, baseline


def verified(repo: Any, commit: Any, composition: Any, adapted: Any, probe: Any, baseline: Any) -> Any:
    divergence = PromptDivergence("p", 0.0, 0.0, True)
    record = Verification(
        commit, composition, adapted, (), probe, baseline, {"device": "cpu"}, "exact", 1e-6, True,
        0.0, 0.0, None, None, None, "none", (divergence,), "Ada", WHEN,
    )  # fmt: skip
    return add(repo, record)[0]


def test_evidence_lives_with_what_it_is_about(repo: Any, tmp_path: Path) -> None:
    kept = base(repo, tmp_path)
    one, other = composition_of(repo, kept.commit), None
    probe, baseline = measured(repo, one)
    verification = verified(repo, kept.commit, one, None, probe, baseline)
    claims = (Claim("license", "mit", "api"),)
    identity = repo._store.record(one, Composition).identity
    (statement,) = add(repo, Statement(identity, claims, "Ada", WHEN))
    made = side_branch(repo, tmp_path)
    other = composition_of(repo, made.commit)
    _, second = measured(repo, other)
    third = verified(repo, made.commit, other, None, probe, second)
    fourth = verified(repo, None, one, other, probe, baseline)
    behavior = next(one for one, kind in stored_records(repo).items() if kind == "behavior")
    fifth, sixth = add(
        repo, Statement(behavior, claims, "Ada", WHEN), Probe((Prompt("q", (3,), None),), ((0,),), "all", None)
    )
    result = collect(repo)
    left = stored_records(repo)
    assert {probe, baseline, verification, statement} <= left.keys()
    assert not {second, third, fourth, fifth, sixth} & left.keys()
    assert (result.dead["baseline"], result.dead["verification"], result.dead["probe"]) == (1, 2, 1)
    assert repo._store.has(ContentId(hashlib.sha256(LOGITS).hexdigest()))


def test_a_revert_does_not_hold_what_it_took_out_once_nobody_reaches_it(repo: Any, tmp_path: Path) -> None:
    kept = base(repo, tmp_path)
    one = composition_of(repo, kept.commit)
    repo.switch("side", create=True)
    made = repo.commit("side", behaviors={"side": write_adapter(tmp_path / "side")})
    back = repo.revert(behavior="side", verify=False)
    assert composition_of(repo, back.commit) == one
    probe, baseline = measured(repo, one)
    proof = verified(repo, back.commit, one, composition_of(repo, made.commit), probe, baseline)
    assert not collect(repo).changed
    repo.switch("main")
    repo.delete_branch("side")
    result = collect(repo)
    assert (result.dead["commit"], result.dead["behavior"], result.dead["verification"]) == (2, 1, 1)
    assert proof not in stored_records(repo)
    assert {probe, baseline} <= stored_records(repo).keys()


def test_a_probe_lives_by_its_ref(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    probe = Probe((Prompt("p", (1, 2), None),), ((0,),), "all", None)
    with repo._store.transaction("Ada") as transaction:
        transaction.set_ref("refs/probes/p", None, transaction.add_record(probe))
    assert not collect(repo).changed


def test_a_young_pack_stays_with_everything_that_its_records_reach(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    before = packs(repo)
    made = side_branch(repo, tmp_path)
    fresh = packs(repo) - before
    assert not collect(repo, grace_days=14).changed
    age(repo, 15)
    (contents,) = (one for one in fresh if repo._store.pack(PackId(one)).kind() == "C")
    (records,) = fresh - {contents}
    age(repo, -15, which={records})
    result = collect(repo, grace_days=14)
    assert (result.changed, result.young) == (False, 1)
    age(repo, 13.9, which={records})
    assert not collect(repo, grace_days=14).changed
    age(repo, 0.2, which={records})
    assert [one.id for one in collect(repo, grace_days=14).commits] == [made.commit]


def test_what_lies_in_the_future_is_neither_taken_nor_deleted(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    before = packs(repo)
    side_branch(repo, tmp_path)
    fresh = packs(repo) - before
    age(repo, -1, which=fresh)
    result = collect(repo)
    assert (result.changed, set(result.future), result.young) == (False, fresh, 2)
    age(repo, 1, which=fresh)
    assert collect(repo).trash_packs == 2
    age(repo, -1, room="trash")
    result = collect(repo)
    assert (result.deleted, result.trash_packs, result.changed) == ((), 2, False)
    age(repo, 1, room="trash")
    assert len(collect(repo).deleted) == 2


def test_the_trash_has_a_grace_of_its_own(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    side_branch(repo, tmp_path)
    age(repo, 100)
    result = collect(repo, grace_days=14)
    assert (len(result.packs), result.deleted) == (2, ())
    assert result.trash_until is not None
    assert result.trash_until[:10] == time.strftime("%Y-%m-%d", time.gmtime(repo._store.backend.now() + 14 * DAY))
    age(repo, 13.9, room="trash")
    assert not collect(repo, grace_days=14).changed
    age(repo, 0.2, room="trash")
    assert len(collect(repo, grace_days=14).deleted) == 2


def test_grace_is_a_number_of_days(repo: Any) -> None:
    for bad in (-1, 1.5, True, "3", 36_501):
        with pytest.raises(UsageError):
            repo.gc(grace_days=bad)


def test_the_settings_say_how_long(tmp_path: Path) -> None:
    with opened(tmp_path / "store", grace=5) as repo:
        base(repo, tmp_path)
        side_branch(repo, tmp_path)
        assert (collect(repo).grace_days, repo.gc(grace_days=0).changed) == (5, True)


@pytest.mark.parametrize("needed", [1, 3])
def test_a_pack_is_written_anew_where_most_of_it_is_dead(repo: Any, tmp_path: Path, needed: int) -> None:
    """The first commit's pack has four tensors, of which a later identity on another branch needs some."""
    orphan(repo, "four", model(tmp_path / "four", 1, 2, 3, 4))
    (old,) = (one for one in packs(repo) if repo._store.pack(PackId(one)).kind() == "C")
    orphan(repo, "main", model(tmp_path / "less", *range(1, 1 + needed)))
    only_main(repo)
    result = collect(repo)
    reasons = {one.pack: one.reason for one in result.packs}
    if needed == 1:
        assert reasons[PackId(old)] == "mostly_unreachable"
        assert (old in packs(repo), result.packs_written) == (False, 1)
        assert next(one for one in result.packs if one.pack == old).kept == 2  # and config.json
    else:
        assert old not in reasons
        assert result.bytes_staying > 40 * 256 * 0.9
    repo.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "less")["model.safetensors"]
    age(repo, 1)
    assert [one.reason for one in collect(repo).packs] == []


def test_what_is_left_of_small_packs_goes_into_one(repo: Any, tmp_path: Path) -> None:
    for at in range(3):
        orphan(repo, f"b{at}", model(tmp_path / f"b{at}", *range(10 * at, 10 * at + 4)))
    orphan(repo, "main", model(tmp_path / "main", 0, 10, 20))
    only_main(repo)
    result = collect(repo)
    assert [one.reason for one in result.packs if one.kind == "C"] == ["mostly_unreachable"] * 3
    assert result.packs_written == 1


def test_a_record_pack_keeps_what_is_reached(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    made = side_branch(repo, tmp_path)
    repo.repack()
    result = collect(repo)
    assert ("R", "dead_records") in {(one.kind, one.reason) for one in result.packs}
    assert result.packs_written == len(result.packs)
    with pytest.raises(NotFoundError):
        repo.resolve(made.commit)
    repo.checkout("main", tmp_path / "out")


def test_what_a_difference_is_taken_from_stays(repo: Any, tmp_path: Path) -> None:
    under, over = difference(repo, tmp_path)
    assert repo._store.contents.find(over).bases == {under}
    orphan(repo, "only", tmp_path / "over")
    repo.delete_branch("main")
    result = collect(repo)
    assert result.dead["identity"] == 1
    assert repo._store.has(under)
    repo.checkout("only", tmp_path / "out")
    assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "over")["model.safetensors"]
    age(repo, 1)
    assert not [one for one in collect(repo).packs if one.kind == "C"]
    repo.switch("last", orphan=True)
    repo.commit("last", identity=write_base(tmp_path / "last"))
    repo.delete_branch("only")
    assert collect(repo).changed
    assert not repo._store.has(under)
    assert not repo._store.has(over)


def test_what_a_dead_difference_in_a_pack_that_stays_is_taken_from_stays(repo: Any, tmp_path: Path) -> None:
    under, over = difference(repo, tmp_path)
    (pack,) = (at.pack for at in [repo._store.contents.find(over).location])
    only = tmp_path / "only"
    big = Tensor("F32", (200, 64), np.random.default_rng(5).bytes(200 * 256))
    drawn = np.frombuffer((tmp_path / "over" / "model.safetensors").read_bytes()[-256 * 128 :], dtype="<u2")
    write_safetensors(
        only / "model.safetensors", {"model.weight": Tensor("BF16", (256, 64), drawn.tobytes()), "model.more": big}
    )
    (only / "config.json").write_text('{"model_type": "llama"}')
    assert pack in packs(repo)
    repo.switch("both", create=True)
    tuned = (drawn + 1).astype("<u2").reshape(256, 64)
    write_safetensors(
        tmp_path / "both" / "model.safetensors",
        {"model.weight": Tensor("BF16", (256, 64), tuned.tobytes()), "model.more": big},
    )
    (tmp_path / "both" / "config.json").write_text('{"model_type": "llama"}')
    repo.commit("both", identity=tmp_path / "both")
    found = repo._store.contents.find(ContentId(hashlib.sha256(tuned.tobytes()).hexdigest()))
    assert found.bases == {under}
    write_safetensors(tmp_path / "more" / "model.safetensors", {"model.more": big})
    (tmp_path / "more" / "config.json").write_text('{"model_type": "llama"}')
    orphan(repo, "last", tmp_path / "more")
    for name in ("main", "both"):
        repo.delete_branch(name)
    result = collect(repo)
    assert result.dead["identity"] == 3
    assert found.location.pack in packs(repo)
    assert repo._store.has(under)
    assert not repo._store.has(over)


def test_an_unlisted_pack_goes_when_it_is_old(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base(repo, tmp_path)
    before = packs(repo)
    with monkeypatch.context() as patches:
        patches.setattr(CatalogWriter, "apply", refuse)
        with pytest.raises(Stopped):
            repo.commit("killed", behaviors={"b": write_adapter(tmp_path / "b")})
    fresh = packs(repo) - before
    assert len(fresh) == 2
    assert not repo.gc(grace_days=1, apply=True).changed
    assert packs(repo) == before | fresh
    result = repo.gc(apply=True)
    assert {(one.pack, one.reason) for one in result.packs} == {(one, "unlisted") for one in fresh}
    assert (packs(repo), packs(repo, "trash")) == (before, fresh)
    check(repo)


def test_what_a_young_unlisted_pack_needs_stays(
    unchecked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a catalog that is rebuilt, which lists it, lacks nothing."""
    repo = unchecked
    base(repo, tmp_path)
    side_branch(repo, tmp_path)
    age(repo, 100)
    before = packs(repo)
    with monkeypatch.context() as patches:
        patches.setattr(CatalogWriter, "apply", refuse)
        with pytest.raises(Stopped):
            repo.commit("killed", behaviors={"again": tmp_path / "side"})
    assert packs(repo) - before
    repo.gc(grace_days=14, apply=True)
    assert repo.fsck(full=True).damages == ()
    rblstore.reindex(repo.path)
    assert repo.fsck(full=True).damages == ()
    commits = [RecordId(one) for one, kind in stored_records(repo).items() if kind == "commit"]
    assert {repo._store.record(one, Commit).subject for one in commits} == {"base", "killed"}


def test_an_unlisted_pack_that_cannot_be_read_stays(unchecked: Any, tmp_path: Path) -> None:
    repo = unchecked
    base(repo, tmp_path)
    name = "ab" * 32
    path = repo.path / ".rbl" / pack_key(PackId(name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"RBLPACK1 and no more")
    result = repo.gc(apply=True)
    assert ([pack for pack, _ in result.unreadable], result.changed, path.exists()) == ([name], False, True)


def test_nothing_is_collected_from_what_is_damaged(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    made = side_branch(repo, tmp_path)
    kind = {one: repo._store.pack(PackId(one)).kind() for one in packs(repo)}
    names = packs(repo)
    for one in (one for one in kind if kind[one] == "R"):
        path = repo.path / ".rbl" / pack_key(PackId(one))
        data = path.read_bytes()
        path.chmod(0o644)
        for harm in (data[:20] + bytes([data[20] ^ 1]) + data[21:], data[:-1], None):
            path.unlink() if harm is None else path.write_bytes(harm)
            repo._store.contents.close()
            with pytest.raises(CorruptError):
                repo.gc(apply=True)
        path.write_bytes(data)
    repo._store.contents.close()
    assert packs(repo) == names
    assert [one.id for one in collect(repo).commits] == [made.commit]


def test_a_catalog_that_lost_an_edge_costs_nobody_a_model(unchecked: Any, tmp_path: Path) -> None:
    repo = unchecked
    base(repo, tmp_path)
    repo.commit("more", behaviors={"more": write_adapter(tmp_path / "more")})
    with sqlite3.connect(repo.path / ".rbl" / "catalog.db") as connection:
        connection.execute("DELETE FROM commit_parents")
        connection.execute("DELETE FROM slots")
        connection.execute("DELETE FROM evidence")
    connection.close()
    assert not repo.gc(apply=True).changed


def test_nothing_is_deleted_while_something_is_missing(unchecked: Any, tmp_path: Path) -> None:
    repo = unchecked
    base(repo, tmp_path)
    side_branch(repo, tmp_path)
    collect(repo)
    repo.commit("more", behaviors={"more": write_adapter(tmp_path / "more", seed=3)})
    behavior = next(RecordId(one) for one, kind in stored_records(repo).items() if kind == "behavior")
    contents = repo._store.record(behavior, Behavior)
    wanted = contents.files[0].sha256
    pack = repo._store.contents.find(ContentId(wanted)).location.pack
    (repo.path / ".rbl" / pack_key(pack)).unlink()
    with sqlite3.connect(repo.path / ".rbl" / "catalog.db") as connection:
        connection.execute("DELETE FROM contents WHERE pack = (SELECT number FROM packs WHERE id = ?)", (pack,))
        connection.execute("DELETE FROM packs WHERE id = ?", (pack,))
    connection.close()
    repo._store.contents.close()
    result = repo.gc(apply=True)
    assert result.missing > 0
    assert (result.deleted, len(packs(repo, "trash"))) == ((), 2)


def test_the_catalog_refuses_to_forget_what_is_needed(unchecked: Any, tmp_path: Path) -> None:
    repo = unchecked
    kept = base(repo, tmp_path)
    repo.commit("more", behaviors={"more": write_adapter(tmp_path / "more")})
    before = rows(repo)
    records = [RecordId(one) for one in stored_records(repo)]
    here = [PackId(one) for one in packs(repo)]
    of_records = [one for one in here if repo._store.pack(one).kind() == "R"]
    contents = frozenset(at.content for one in here for at in repo._store.pack(one).summary().locations)
    with repo._store.catalog.read() as reader:
        composition = reader.commit(kept.commit).composition
        identity = reader.composition(composition).identity
        head = CommitId(reader.ref("refs/heads/main"))
        behavior = next(slot.behavior for slot in reader.composition(reader.commit(head).composition).slots)
        manifest = next(one for one, kind in reader.records("file-manifest"))
    for error, forgotten, dead, unneeded in (
        (LastCopyError, here, [], contents),
        (LastCopyError, here, records, frozenset()),
        (LastCopyError, [], [manifest], contents),
        (LastCopyError, [PackId("ab" * 32)], [], contents),
        (StillNeededError, of_records, records, contents),
    ):
        with pytest.raises(error), repo._store.catalog.write() as index:
            index.forget_dead(forgotten, dead, unneeded)
        assert rows(repo) == before
    for dead in (kept.commit, head, composition, identity, behavior):
        others = [one for one in records if one != dead]
        with PackWriter(repo._store.backend, "R", is_stored=lambda content: False) as writer:
            for one in others:
                writer.add([repo._store.content_bytes(one, 1 << 20)])
            summary = writer.finish()
        assert summary is not None
        with pytest.raises(StillNeededError), repo._store.catalog.write() as index:  # noqa: PT012
            index.add_pack(summary)
            index.forget_dead(of_records, [dead], frozenset())
        assert rows(repo) == before


def test_a_dead_copy_is_not_taken_for_a_live_one(unchecked: Any, tmp_path: Path) -> None:
    """Two packs hold what is needed; forgetting both at once is refused whatever the order."""
    repo = unchecked
    base(repo, tmp_path)
    (pack,) = (PackId(one) for one in packs(repo) if repo._store.pack(PackId(one)).kind() == "C")
    reader = repo._store.pack(pack)
    with PackWriter(repo._store.backend, "C", is_stored=lambda content: False) as writer:
        for at in reversed(reader.summary().locations):
            writer.copy(reader.stored(at))
        summary = writer.finish()
    assert summary is not None
    assert summary.pack != pack
    with pytest.raises(LastCopyError), repo._store.catalog.write() as index:  # noqa: PT012
        index.add_pack(summary)
        index.forget_dead([pack, summary.pack], [], frozenset())


def test_names_are_those_that_records_say(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    repo.commit("adapter", behaviors={"a": write_adapter(tmp_path / "a")})
    changed = Tensor("F32", (8, 4), bytes(128))
    repo.commit("overlay", behaviors={"o": write_base(tmp_path / "o", lm_head__weight=changed)})
    seen = set()
    for one, kind in stored_records(repo).items():
        data = repo._store.content_bytes(RecordId(one), 1 << 20)
        _, record = repo._store.parse(RecordId(one), data)
        named = names_in(data.decode())
        if named is not None:
            seen.add(kind)
            told = {(name, "record") for name in named[0]} | {(name, "content") for name in named[1]}
            assert told == set(references(record))
    assert seen == {"identity", "behavior", "file-manifest"}


def test_packs_are_ordered_by_need() -> None:
    a, b, c, d = (PackId(f"{number:064x}") for number in range(4))
    order = gc_plan.before_what_they_need({a: {b}, b: {c}, c: set(), d: {a, c}})
    assert order == [d, a, b, c]
    assert sorted(gc_plan.before_what_they_need({a: {b}, b: {a}, c: {c}})) == [a, b, c]
    chain = {PackId(f"{number:064x}"): {PackId(f"{number + 1:064x}")} for number in range(5000)}
    chain[PackId(f"{5000:064x}")] = set()
    assert gc_plan.before_what_they_need(chain) == list(chain)


def test_of_two_copies_the_one_that_is_no_difference_is_kept() -> None:
    """Others may be differences from it."""
    content, base_of_it = ContentId("c" * 64), "b" * 64
    packs_of_both = []
    for number, bases in ((1, {content: (base_of_it,)}), (2, {}), (3, {content: (base_of_it,)})):
        pack = PackId(f"{number:064x}")
        at = ContentLocation(content, 10, pack, 0, 1, 10)
        packs_of_both.append(StoredPack(pack, "C", 100, True, False, (at,), bases))
    reached = Reached(Stored())
    reached.contents.add(content)
    (rewrite,) = gc_plan._rewrites(packs_of_both, reached)
    assert [at.pack for at in rewrite.copies] == [PackId(f"{2:064x}")]


def change_catalog(repo: Any, *statements: str) -> None:
    repo._store.contents.close()
    connection = sqlite3.connect(repo.path / ".rbl" / "catalog.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_pack_that_the_catalog_misplaces_is_left_alone(unchecked: Any, tmp_path: Path) -> None:
    repo = unchecked
    base(repo, tmp_path)
    side_branch(repo, tmp_path)
    names = packs(repo)
    change_catalog(repo, "UPDATE contents SET stored = stored + 1")
    with pytest.raises(CorruptError):
        repo.gc(apply=True)
    assert packs(repo) == names


def test_an_unlisted_pack_with_what_is_needed_stays(unchecked: Any, tmp_path: Path) -> None:
    repo = unchecked
    base(repo, tmp_path)
    names = packs(repo)
    (pack,) = (one for one in names if repo._store.pack(PackId(one)).kind() == "C")
    change_catalog(
        repo,
        f"DELETE FROM contents WHERE pack = (SELECT number FROM packs WHERE id = '{pack}')",
        f"DELETE FROM packs WHERE id = '{pack}'",
    )
    assert not repo.gc(apply=True).changed
    rblstore.reindex(repo.path)
    check(repo)


def test_a_listed_pack_that_somebody_moved_to_the_trash_is_not_deleted(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    (pack,) = (PackId(one) for one in packs(repo) if repo._store.pack(PackId(one)).kind() == "C")
    repo._store.backend.move(pack_key(pack), pack_key(pack, "trash"))
    with pytest.raises(CorruptError):
        repo.gc(apply=True)
    assert repo.restore_trash().packs == (pack,)
    repo.checkout("main", tmp_path / "out")
