"""What a transaction refuses to publish: anything that would refer to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_checkpoints import write_base

import rblstore
from rblstore.objects.content_records import FileEntry, FileManifest, Identity, NamedTensor, StoredTensor
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, ContentId, FileManifestId, IdentityId
from rblstore.objects.record import Record
from rblstore.transaction import DanglingReferenceError

NOTHING = "ab" * 32
NOW = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[rblstore.Repository]:
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=write_base(tmp_path / "base"))
        yield repo


RECORDS: dict[str, Record] = {
    "file": Identity((FileEntry("a", ContentId(NOTHING), 1, None),), NOTHING),
    "manifest": Identity((FileEntry("a", ContentId(NOTHING), 1, FileManifestId(NOTHING)),), NOTHING),
    "tensor": FileManifest(ContentId(NOTHING), (NamedTensor("a", StoredTensor("U8", (1,), ContentId(NOTHING))),)),
    "identity": Composition(IdentityId(NOTHING), ()),
    "composition": Commit(CompositionId(NOTHING), (), "me", NOW, "x"),
}


def refused(repo: rblstore.Repository, record: Record) -> DanglingReferenceError:
    with pytest.raises(DanglingReferenceError) as caught, repo._store.transaction("me") as transaction:
        transaction.add_record(record)
    return caught.value


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_refers_to_nothing_is_refused(repo: rblstore.Repository, what: str) -> None:
    operations = repo.operations()
    error = refused(repo, RECORDS[what])
    assert (error.object, error.exit_code) == (NOTHING, 4)
    assert error.hint
    assert repo.operations() == operations
    assert repo.fsck(full=True).damages == ()


def test_what_is_refused_leaves_no_record_for_a_reindex_to_find(repo: rblstore.Repository, tmp_path: Path) -> None:
    packs = repo._store.packs()
    for record in RECORDS.values():
        refused(repo, record)
    assert repo._store.packs() == packs
    repo.close()
    rblstore.reindex(tmp_path / "store")
    with rblstore.open(tmp_path / "store") as again:
        assert again.fsck(full=True).damages == ()


def test_a_parent_that_is_gone_is_refused(repo: rblstore.Repository) -> None:
    assert repo.head is not None
    composition = repo._store.record(repo.head, Commit).composition
    assert refused(repo, Commit(composition, (CommitId(NOTHING),), "me", NOW, "x")).object == NOTHING


def test_a_ref_to_nothing_is_refused(repo: rblstore.Repository) -> None:
    with pytest.raises(DanglingReferenceError, match="refs/heads/lost") as caught, repo._store.transaction("me") as one:
        one.set_ref("refs/heads/lost", None, NOTHING)
    assert caught.value.object == NOTHING
    assert [branch.name for branch in repo.branches()] == ["main"]
