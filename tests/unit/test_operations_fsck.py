"""What a check of the storage finds, and what it reads to find it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from storage_samples import noise
from tiny_checkpoints import write_adapter, write_base

import rblstore
from rblstore.catalog.writer import CatalogWriter
from rblstore.objects.content_records import FileEntry, Identity
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import ContentId
from rblstore.operations.progress import ProgressEvent
from rblstore.storage.pack_format import pack_key
from rblstore.storage.pack_reader import PackReader
from rblstore.storage.pack_writer import PackWriter


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    with rblstore.init(tmp_path / "store") as opened:
        opened.commit("base", identity=write_base(tmp_path / "base"), license="mit", author="A")
        opened.commit("polite", behaviors={"polite": write_adapter(tmp_path / "adapter")}, author="A")
        opened.commit("again", weights={"polite": 0.5}, author="A")
        opened.create_tag("v1", author="A")
        yield opened


def content_packs(repo: Any) -> list[Any]:
    store = repo._store
    return [pack for pack in store.packs() if store.pack(pack).kind() == "C"]


def copy_pack(repo: Any, pack: Any) -> Any:
    """Another listed pack with everything that one holds."""
    store, reader = repo._store, repo._store.pack(pack)
    with PackWriter(store.backend, "C", is_stored=lambda content: False) as writer:
        writer.add([noise(10)])
        for location in reader.summary().locations:
            writer.copy(reader.stored(location))
        summary = writer.finish()
    assert summary is not None
    with store.catalog.write() as index:
        index.add_pack(summary)
    return summary.pack


def rot(repo: Any, pack: Any, at: int) -> None:
    path = repo._store.folder / pack_key(pack)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    repo._store.contents.close()


def in_catalog(repo: Any, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(repo._store.folder / "catalog.db")) as connection, connection:
        assert connection.execute(statement, values).rowcount > 0


@pytest.mark.parametrize("full", [False, True])
def test_a_copy_that_is_damaged_where_another_is_whole(repo: Any, tmp_path: Path, full: bool) -> None:
    pack = content_packs(repo)[0]
    first = repo._store.pack(pack).summary().locations[0].content
    second = copy_pack(repo, pack)
    rot(repo, pack, 20)
    (damage,) = repo.fsck(full=full).damages
    assert (damage.object, damage.kind) == (first, "content")
    assert f"pack {second.short} has it whole" in damage.problem
    assert damage.needed_by
    assert "Nothing is lost" in damage.hint
    repo.checkout("HEAD", tmp_path / "out")
    # Now both: it is lost.
    location = next(at for at in repo._store.pack(second).summary().locations if at.content == first)
    rot(repo, second, repo._store.pack(second).entries(location.first_entry, 1)[0].offset + 4)
    damages = repo.fsck(full=full).damages
    assert [damage.object for damage in damages] == [first, first]
    assert not any("whole" in damage.problem for damage in damages)


@pytest.mark.parametrize("full", [False, True])
def test_a_pack_that_is_lost_where_another_has_all_of_it(repo: Any, full: bool) -> None:
    pack = content_packs(repo)[0]
    copy_pack(repo, pack)
    rot(repo, pack, -20)
    (damage,) = repo.fsck(full=full).damages
    assert damage.object == pack
    assert "other packs have all of it whole" in damage.problem
    assert damage.needed_by == ()


def test_a_pack_that_is_lost_is_needed_by_commits(repo: Any) -> None:
    pack = content_packs(repo)[0]
    rot(repo, pack, -20)
    (damage,) = repo.fsck().damages
    assert any(need.startswith("commit ") for need in damage.needed_by)


def test_what_trash_and_quarantine_hold_is_no_damage(repo: Any) -> None:
    store = repo._store
    for room in ("trash", "quarantine"):
        path = store.folder / room / "ab" / f"ab{'0' * 62}.pack"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no pack")
    result = repo.fsck(full=True)
    assert result.ok
    assert result.packs == len(store.packs())


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE commits SET generation = 9 WHERE message = 'again'", "a wrong place"),
        ("UPDATE commits SET message = 'x' WHERE message = 'again'", "tells this commit wrongly"),
        ("UPDATE slots SET weight = 0.25 WHERE weight = 0.5", "tells this composition wrongly"),
        ("UPDATE packs SET size = size + 1 WHERE number = 1", "misplaces what is in this pack"),
        ("UPDATE contents SET stored = stored + 1 WHERE first_entry = 0", "misplaces what is in this pack"),
        ("DELETE FROM evidence", "not all evidence"),
        ("INSERT INTO evidence SELECT id, 3 FROM commits WHERE message = 'base'", "about something else"),
        ("UPDATE refs SET value = (SELECT id FROM commits WHERE message = 'base') WHERE name = 'refs/tags/v1'",
         "is a commit, not a tag"),
        ("UPDATE records SET kind = 'tag' WHERE kind = 'statement'", "does not know this statement"),
        ("UPDATE operations SET body = replace(body, 'polite', 'police') WHERE sequence = 3", "not what its id says"),
        ("UPDATE contents SET entries = 'many' WHERE first_entry = 0", "in the place of a number"),
    ],
)  # fmt: skip
def test_a_catalog_that_lies_is_found_and_reindex_cures_it(repo: Any, statement: str, problem: str) -> None:
    in_catalog(repo, statement)
    damages = repo.fsck().damages
    assert any(problem in damage.problem for damage in damages), damages
    assert all(damage.hint for damage in damages)
    root = repo._store.root
    repo.close()
    rblstore.reindex(root)
    with rblstore.open(root) as again:
        assert again.fsck(full=True).damages == ()


def test_a_reference_to_nothing_is_named(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = ContentId("0" * 64)
    entry = FileEntry("config.json", nothing, 4)
    monkeypatch.setattr("rblstore.transaction.Transaction._require_whole", lambda *_: None)
    with repo._store.transaction("A") as transaction:
        identity = transaction.add_record(Identity((entry,), nothing))
        composition = transaction.add_record(Composition(identity))
        commit = transaction.add_record(Commit(composition, (), "A", "2026-01-01T00:00:00Z", "hollow"))
    (damage,) = repo.fsck().damages
    assert (damage.object, damage.kind) == (nothing, "reference")
    assert f"commit {commit.short} (hollow)" in damage.needed_by


def test_a_file_that_is_not_what_its_record_says(repo: Any, tmp_path: Path) -> None:
    store = repo._store
    identity = store.record(repo.show("HEAD~2").id, Commit)
    files = store.record(store.record(identity.composition, Composition).identity, Identity)
    wrong = tuple(
        FileEntry(file.path, ContentId("1" * 64), file.size, file.manifest) if file.manifest else file
        for file in files.files
    )
    with store.transaction("A") as transaction:
        record = transaction.add_record(Identity(wrong, files.tensor_root))
    assert repo.fsck().ok
    (damage,) = repo.fsck(full=True).damages
    assert damage.object == record
    assert "model.safetensors does not compose" in damage.problem


def test_a_full_check_decodes_each_content_once(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[tuple[str, int]] = Counter()
    real = PackReader.decode_into

    def count(self: PackReader, entry: Any, out: memoryview, base: memoryview | None) -> None:
        decoded[entry.content, entry.start] += 1
        real(self, entry, out, base)

    monkeypatch.setattr(PackReader, "decode_into", count)
    assert repo.fsck(full=True).ok
    store = repo._store
    contents = [location.content for pack in content_packs(repo) for location in store.pack(pack).summary().locations]
    # Those that composing asks for besides are configurations, of a few bytes.
    large = [content for content in contents if store.location(content).size >= 64 and decoded[content, 0] > 1]
    names = {file.sha256 for record in _records(repo) for file in record.files if file.path == "adapter_config.json"}
    assert set(large) <= names


def _records(repo: Any) -> list[Any]:
    store = repo._store
    with store.catalog.read() as reader:
        found = [record for record, kind in reader.records() if kind in ("identity", "behavior")]
    return [store.any_record(record) for record in found]


def test_damage_does_not_end_the_check_of_what_follows(repo: Any) -> None:
    spoiled = []
    for pack in content_packs(repo):
        locations = repo._store.pack(pack).summary().locations
        for location in (locations[0], locations[-1]):
            entry = repo._store.pack(pack).entries(location.first_entry, 1)[0]
            rot(repo, pack, entry.offset)
            spoiled.append(location.content)
    for full in (False, True):
        assert sorted(damage.object for damage in repo.fsck(full=full).damages) == sorted(spoiled)


def test_every_stage_tells_how_far_it_is(repo: Any) -> None:
    events: list[ProgressEvent] = []
    repo.fsck(full=True, progress=events.append)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == [
        "checking indexes", "checking records", "checking references", "checking the catalog", "hashing files",
        "hashing contents", "checking compositions",
    ]  # fmt: skip
    for stage in stages:
        last = [event for event in events if event.stage == stage][-1]
        assert last.done == last.total
    events.clear()
    repo.fsck(progress=events.append)
    assert events[0].stage == "checking packs"


def test_all_evidence_is_read_page_by_page(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rblstore.catalog.content_index._PAGE", 1)
    with repo._store.catalog.write() as writer:
        assert isinstance(writer, CatalogWriter)
        pairs = list(writer.all_evidence())
        kinds = [kind for _, kind in writer.records()]
    assert len(pairs) == len(set(pairs)) == kinds.count("statement") + kinds.count("tag") >= 2
