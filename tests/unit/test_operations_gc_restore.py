"""What gc took: who asks for it is told, and it comes back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gc_stories import (
    WHEN,
    Stopped,
    age,
    base,
    check,
    collect,
    difference,
    model,
    only_main,
    orphan,
    packs,
    refuse,
    rows,
    side_branch,
    whole,
)
from tiny_checkpoints import digests, write_adapter, write_base

from rblstore.catalog.writer import CatalogWriter
from rblstore.errors import ConflictError, NotFoundError
from rblstore.forgotten import contents_named_by
from rblstore.objects.ids import ContentId, PackId
from rblstore.storage.disk import DiskBackend
from rblstore.storage.pack_format import pack_key
from rblstore.storage.pack_writer import PackWriter


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Any]:
    with whole(tmp_path / "store") as repository:
        yield repository


def test_what_gc_took_is_named_where_somebody_asks_for_it(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    made = side_branch(repo, tmp_path)
    operation = repo.operations()[2].id
    collect(repo)
    with pytest.raises(ConflictError) as undone:
        repo.undo()
    assert (undone.value.code, undone.value.object) == ("dangling_reference", made.commit)
    assert "rbl gc --restore" in (undone.value.hint or "")
    for text in (made.commit, made.commit[:12], f"side@{{{operation}}}"):
        with pytest.raises(NotFoundError) as unknown:
            repo.create_branch("again", text)
        assert unknown.value.code == "unknown_revision"
        assert unknown.value.object in (made.commit, text)
        assert "rbl gc --restore" in (unknown.value.hint or "")
        with pytest.raises(NotFoundError):
            repo.checkout(text, tmp_path / "out")
    assert repo.operations()[0].description == "branch: delete side"
    check(repo)


def test_what_lies_in_the_trash_comes_back(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    before = packs(repo)
    repo.switch("side", create=True)
    one = repo.commit("one", behaviors={"one": write_adapter(tmp_path / "one", seed=1)})
    two = repo.commit("two", behaviors={"two": write_adapter(tmp_path / "two", seed=2)})
    only_main(repo)
    whole, fresh = rows(repo), packs(repo) - before
    age(repo, 30)
    collect(repo, grace_days=14)
    result = repo.restore_trash()
    assert (set(result.packs), result.stayed, packs(repo, "trash")) == (fresh, (), set())
    assert (result.commits, [commit.id for commit in result.named]) == (2, [two.commit, one.commit])
    assert rows(repo)[0] == whole[0]
    check(repo)
    assert rows(repo)[1:5] == whole[1:5]
    assert not repo.gc(grace_days=14).changed
    repo.create_branch("side", two.commit)
    repo.checkout("side", tmp_path / "out")
    assert not collect(repo).changed
    assert repo.restore_trash().packs == ()


def test_what_was_mostly_dead_comes_back(repo: Any, tmp_path: Path) -> None:
    orphan(repo, "four", model(tmp_path / "four", 1, 2, 3, 4))
    made = repo.head
    orphan(repo, "main", model(tmp_path / "less", 1))
    only_main(repo)
    collect(repo)
    assert repo.restore_trash().commits == 1
    check(repo)
    repo.checkout(made, tmp_path / "out")
    assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "four")["model.safetensors"]
    collect(repo)
    collect(repo)
    repo.checkout("main", tmp_path / "out-main")


def test_what_was_written_again_meanwhile_stays(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rblstore.operations.commit.utc_now", lambda: WHEN)
    base(repo, tmp_path)
    side_branch(repo, tmp_path)
    collect(repo)
    trash = packs(repo, "trash")
    side_branch(repo, tmp_path)
    assert trash & packs(repo)
    result = repo.restore_trash()
    assert {pack for pack, _ in result.stayed} == trash & packs(repo)
    assert packs(repo, "trash") == {pack for pack, _ in result.stayed}
    check(repo)
    result = repo.gc(apply=True)
    assert packs(repo, "trash") >= {pack for pack, _ in repo.restore_trash().stayed}
    check(repo)


def test_the_same_pack_goes_to_the_trash_twice(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rblstore.operations.commit.utc_now", lambda: WHEN)
    base(repo, tmp_path)
    for _ in range(2):
        side_branch(repo, tmp_path)
        age(repo, 30)
        repo.gc(grace_days=14, apply=True)
        age(repo, 13, room="trash")
    trash = packs(repo, "trash")
    assert len(trash) == 2
    age(repo, 2, room="trash")
    side_branch(repo, tmp_path)
    age(repo, 30)
    result = repo.gc(grace_days=14, apply=True)
    assert packs(repo, "trash") == trash, "it went there just now"
    assert result.trash_packs == 2
    check(repo)


@pytest.mark.parametrize("kind", ["C", "R"])
def test_what_is_damaged_stays_in_the_trash_with_what_needs_it(repo: Any, tmp_path: Path, kind: str) -> None:
    base(repo, tmp_path)
    side_branch(repo, tmp_path, "one", seed=1)
    side_branch(repo, tmp_path, "two", seed=2)
    collect(repo)
    trash = sorted(packs(repo, "trash"))
    paths = {one: repo.path / ".rbl" / pack_key(PackId(one), "trash") for one in trash}
    harmed = next(one for one in trash if paths[one].read_bytes()[8:9] == kind.encode())
    data = bytearray(paths[harmed].read_bytes())
    data[20] ^= 1
    paths[harmed].chmod(0o644)
    paths[harmed].write_bytes(data)
    result = repo.restore_trash()
    stayed = {pack for pack, _ in result.stayed}
    assert harmed in stayed
    assert len(stayed) == (2 if kind == "C" else 1)
    assert (packs(repo, "trash"), result.commits) == (stayed, 1)
    check(repo)


def test_of_a_pack_that_lacks_something_the_other_records_come_back(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    one = side_branch(repo, tmp_path, "one", seed=1)
    contents = {pack for pack in packs(repo) if repo._store.pack(PackId(pack)).kind() == "C"}
    two = side_branch(repo, tmp_path, "two", seed=2)
    lost = {pack for pack in packs(repo) if repo._store.pack(PackId(pack)).kind() == "C"} - contents
    records = [PackId(pack) for pack in packs(repo) if repo._store.pack(PackId(pack)).kind() == "R"]
    with PackWriter(repo._store.backend, "R", is_stored=lambda content: False) as writer:
        for pack in records:
            for at in repo._store.pack(pack).summary().locations:
                writer.copy(repo._store.pack(pack).stored(at))
        summary = writer.finish()
    assert summary is not None
    with repo._store.catalog.write() as index:
        index.add_pack(summary)
        index.forget_packs(records)
    for pack in records:
        repo._store.backend.delete(pack_key(pack))
    collect(repo)
    for pack in lost:
        repo._store.backend.delete(pack_key(PackId(pack), "trash"))
    result = repo.restore_trash()
    assert [(commit.id, commit.subject) for commit in result.named] == [(one.commit, "one")]
    assert [pack for pack, _ in result.stayed] == [summary.pack]
    check(repo)
    repo.checkout(one.commit, tmp_path / "out")
    with pytest.raises(NotFoundError):
        repo.resolve(two.commit)


def test_a_restore_that_is_cut_off_is_finished_by_another(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base(repo, tmp_path)
    made = side_branch(repo, tmp_path)
    collect(repo)
    for owner, name in ((DiskBackend, "move"), (CatalogWriter, "add_pack")):
        with monkeypatch.context() as patches:
            patches.setattr(owner, name, refuse)
            with pytest.raises(Stopped):
                repo.restore_trash()
        assert repo.fsck(full=True).damages == ()
    result = repo.restore_trash()
    assert [one.id for one in result.named] == [made.commit]
    check(repo)


def test_differences_come_back_with_what_they_are_taken_from(repo: Any, tmp_path: Path) -> None:
    under, over = difference(repo, tmp_path)
    packs_of = {one: repo._store.contents.find(one).location.pack for one in (under, over)}
    orphan(repo, "last", write_base(tmp_path / "last"))
    repo.delete_branch("main")
    collect(repo)
    assert repo.restore_trash().commits == 2
    check(repo)
    collect(repo)
    path = repo.path / ".rbl" / pack_key(packs_of[under], "trash")
    path.rename(tmp_path / "aside")
    result = repo.restore_trash()
    assert packs_of[over] in {pack for pack, _ in result.stayed}
    assert not repo._store.has(over)
    check(repo)
    (tmp_path / "aside").rename(path)
    repo.restore_trash()
    check(repo)
    assert repo._store.has(over)


def test_of_a_pack_with_what_was_removed_on_purpose_the_rest_comes_back(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    repo.switch("side", create=True)
    for seed, name in enumerate(("polite", "brief"), start=1):
        repo.commit(name, behaviors={name: write_adapter(tmp_path / name, seed=seed)})
    made = repo.commit("without", remove=["polite"])
    polite, brief = (one.behavior for one in repo.show("HEAD^").behaviors)
    removed = contents_named_by(repo._store, polite) - contents_named_by(repo._store, brief)
    repo.repack()
    repo.forget(str(polite), reason="withdrawn", apply=True)
    only_main(repo)
    collect(repo)
    kept = digests(tmp_path / "brief")
    for _ in range(2):  # another one finds nothing more to do
        result = repo.restore_trash()
        assert not [one for one in removed if repo._store.has(ContentId(one))]
        check(repo)
        repo.checkout(made.commit, tmp_path / "out")
        assert digests(tmp_path / "out" / "behaviors" / "brief") == kept
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(NotFoundError) as refused:
            repo.checkout(f"{made.commit}^", tmp_path / "refused")
        assert refused.value.code == "forgotten"
    assert result.packs == ()
    repo.create_branch("side", made.commit)
    collect(repo)
    held = {at.content for one in packs(repo) for at in repo._store.pack(PackId(one)).summary().locations}
    assert not held & removed


def test_what_comes_back_is_named_apart_from_what_stays(repo: Any, tmp_path: Path) -> None:
    base(repo, tmp_path)
    repo.switch("side", create=True)
    for seed, name in enumerate(("polite", "brief"), start=1):
        repo.commit(name, behaviors={name: write_adapter(tmp_path / name, seed=seed)})
    repo.repack()
    repo.forget("polite", reason="withdrawn", apply=True)
    only_main(repo)
    collect(repo)
    result = repo.restore_trash()
    whys = {why for _, why in result.stayed}
    assert "it holds what was removed on purpose; the rest of it came back in a new pack" in whys
    assert set(result.packs) <= packs(repo)
    check(repo)


def test_a_difference_from_what_was_removed_comes_back_encoded_by_itself(repo: Any, tmp_path: Path) -> None:
    under, over = difference(repo, tmp_path)
    made = repo.head
    repo.forget("identity", reason="withdrawn", revision="HEAD^", apply=True)
    orphan(repo, "last", write_base(tmp_path / "last"))
    repo.delete_branch("main")
    collect(repo)
    assert not repo._store.has(over)
    result = repo.restore_trash()
    assert any("differences from what was removed" in why for _, why in result.stayed)
    assert (repo._store.has(over), repo._store.has(under)) == (True, False)
    assert repo._store.contents.stored([over])[0].bases == frozenset()
    check(repo)
    repo.checkout(made, tmp_path / "out")
    assert digests(tmp_path / "out")["model.safetensors"] == digests(tmp_path / "over")["model.safetensors"]


def test_a_restore_that_is_cut_off_after_the_rest_was_written(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under, over = difference(repo, tmp_path)
    repo.forget("identity", reason="withdrawn", revision="HEAD^", apply=True)
    orphan(repo, "last", write_base(tmp_path / "last"))
    repo.delete_branch("main")
    collect(repo)
    with monkeypatch.context() as patches:
        patches.setattr(CatalogWriter, "add_pack", refuse)
        with pytest.raises(Stopped):
            repo.restore_trash()
    assert repo.fsck(full=True).damages == ()
    repo.restore_trash()
    assert (repo._store.has(over), repo._store.has(under)) == (True, False)
    check(repo)
