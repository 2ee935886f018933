"""Contents found through the catalog, while packs are replaced, are lost, or rot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storage_samples import noise, nudged, sha256, weights

import rblstore
from rblstore.catalog.engine import CatalogFailedError
from rblstore.objects.ids import PackId
from rblstore.storage.backend import MissingObjectError
from rblstore.storage.pack_format import MalformedPackError, pack_key
from rblstore.storage.pack_reader import ContentTooLargeError, PackReader
from rblstore.storage.pack_writer import PackWriter
from rblstore.storage.rooms import scratch

BASE = weights(4096)
FINE = nudged(BASE)


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    with rblstore.init(tmp_path / "store") as opened:
        yield opened


def write(repo: Any, *contents: bytes, base: bytes | None = None) -> PackId:
    """A pack that the catalog lists, whatever is stored already."""
    store = repo._store
    beneath = None if base is None else store.contents.stored([sha256(base)])[0]
    with PackWriter(store.backend, "C", is_stored=lambda content: False) as writer:
        for data in contents:
            source = type("Source", (), {"size": len(data), "read_into": staticmethod(_reads(data))})()
            writer.add_source(source, element_width=2, base=beneath)
        summary = writer.finish()
    assert summary is not None
    with store.catalog.write() as index:
        index.add_pack(summary)
    return summary.pack


def _reads(data: bytes) -> Callable[[memoryview, int], None]:
    def read_into(out: memoryview, start: int) -> None:
        out[:] = data[start : start + len(out)]

    return read_into


def test_contents_of_one_pack_are_looked_up_together_in_any_order(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [noise(10, seed) for seed in range(30)]
    write(repo, *data)
    index_bytes, reads = PackReader._index_bytes, []

    def counted(reader: PackReader, first: int, count: int) -> bytes:
        reads.append(first)
        return index_bytes(reader, first, count)

    monkeypatch.setattr(PackReader, "_index_bytes", counted)
    for wanted in (data, data[::-1], data[::2] + data[1::2]):
        repo._store.contents.close()
        reads.clear()
        found = repo._store.contents.stored(sha256(one) for one in wanted)
        assert [one.content for one in found] == [sha256(one) for one in wanted]
        assert len(reads) == 1


def test_a_content_whose_packs_are_all_gone_is_missing(repo: Any) -> None:
    store = repo._store
    for pack in (write(repo, BASE, noise(10, 1)), write(repo, BASE, noise(10, 2))):
        store.backend.delete(pack_key(pack))
    with pytest.raises(MissingObjectError):
        store.contents.read_small(sha256(BASE), len(BASE))
    with pytest.raises(MissingObjectError):
        store.contents.find(sha256(BASE))


def test_a_copy_that_is_left_is_found(repo: Any) -> None:
    store = repo._store
    lost = write(repo, BASE, noise(10, 1))
    write(repo, BASE, noise(10, 2))
    store.backend.delete(pack_key(lost))
    assert store.contents.read_small(sha256(BASE), len(BASE)) == BASE


def rot(repo: Any, pack: PackId, at: int) -> None:
    """Turns a bit of a pack over; a negative place counts from its end."""
    path = repo._store.folder / pack_key(pack)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("at", [100, -20, -120], ids=["frame", "footer", "index"])
def test_a_whole_copy_in_another_pack_serves(repo: Any, at: int) -> None:
    store = repo._store
    first = write(repo, BASE, noise(10, 1))
    tuned = write(repo, FINE, base=BASE)
    write(repo, BASE, noise(10, 2))
    store.close()
    rot(repo, first, at)
    with rblstore.open(store.root) as again:
        contents = again._store.contents
        assert contents.read_small(sha256(BASE), len(BASE)) == BASE
        assert contents.read_buffer(sha256(BASE), len(BASE)) == BASE
        assert b"".join(contents.read(contents.stored([sha256(BASE)]))) == BASE
        assert contents.find(sha256(BASE)) is not None
        assert contents.read_small(sha256(FINE), len(FINE)) == FINE
        again._store.backend.delete(pack_key(tuned))
        with pytest.raises(MissingObjectError):
            contents.read_small(sha256(FINE), len(FINE))


def test_a_buffer_is_the_callers_own_and_no_larger_than_allowed(repo: Any) -> None:
    large = noise(9 << 20, 3)  # of several frames, which are decoded side by side
    write(repo, large, b"")
    contents = repo._store.contents
    found = contents.read_buffer(sha256(large), len(large))
    assert found == large
    found[:4] = b"\0\0\0\0"
    assert contents.read_buffer(sha256(large), len(large)) == large
    with pytest.raises(ContentTooLargeError, match=str(len(large))):
        contents.read_buffer(sha256(large), len(large) - 1)


def test_where_every_copy_is_damaged_the_first_is_named(repo: Any) -> None:
    first, second = write(repo, BASE, noise(10, 1)), write(repo, BASE, noise(10, 2))
    for pack in (first, second):
        rot(repo, pack, -20)
    with pytest.raises(MalformedPackError, match=first):
        repo._store.contents.find(sha256(BASE))
    with pytest.raises(MalformedPackError, match=first):
        repo._store.contents.read_small(sha256(BASE), len(BASE))


def test_what_was_a_difference_serves_as_a_base_once_it_is_none(repo: Any) -> None:
    store = repo._store
    write(repo, BASE)
    old = write(repo, FINE, base=BASE)
    assert store.contents.find(sha256(FINE)).bases == {sha256(BASE)}
    # What another process does: the difference is stored whole, and something else becomes a difference from it.
    with PackWriter(store.backend, "C", is_stored=lambda content: False) as writer:
        writer.add_bytes(FINE, element_width=2)
        summary = writer.finish()
    assert summary is not None
    with store.catalog.write() as index:
        index.add_pack(summary)
        index.forget_packs([old])
    store.backend.delete(pack_key(old))
    finer = nudged(FINE, 2)
    write(repo, finer, base=FINE)
    assert store.contents.stored([sha256(finer)])[0].bases == {sha256(FINE)}
    assert store.contents.read_small(sha256(finer), len(finer)) == finer


def test_a_catalog_that_is_gone_is_typed(repo: Any) -> None:
    repo._store.catalog.path.unlink()
    with pytest.raises(CatalogFailedError):
        repo._store.has(sha256(BASE))


def test_a_base_that_no_pack_holds_is_named(repo: Any, tmp_path: Path) -> None:
    store = repo._store
    lost = write(repo, BASE)
    write(repo, FINE, base=BASE)
    assert repo.fsck().damages == ()
    store.backend.delete(pack_key(lost))
    repo.close()
    rblstore.reindex(tmp_path / "store")
    with rblstore.open(tmp_path / "store") as again:
        (damage,) = again.fsck().damages
    assert (damage.object, damage.kind) == (sha256(BASE), "reference")
    assert sha256(FINE)[:8] in damage.problem


def test_a_base_that_rotted_is_what_a_full_check_blames(repo: Any) -> None:
    pack = write(repo, BASE)
    write(repo, FINE, base=BASE)
    rot(repo, pack, 100)
    problems = {damage.object: damage.problem for damage in repo.fsck(full=True).damages}
    assert problems.keys() == {sha256(BASE), sha256(FINE)}
    assert sha256(BASE) in problems[sha256(FINE)]


def test_a_forked_process_has_scratch_memory_of_its_own() -> None:
    mine = scratch(100, "fork")
    mine[0] = 1
    child = os.fork()
    if child == 0:
        scratch(100, "fork")[0] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert mine[0] == 1


def test_a_reader_of_a_pack_is_kept_by_whoever_asked_when_another_thread_forgets_it(repo: Any) -> None:
    class Forgetful(dict[PackId, Any]):
        def __setitem__(self, key: PackId, value: Any) -> None:
            super().__setitem__(key, value)
            self.clear()

    pack = write(repo, BASE)
    repo._store.contents._packs = Forgetful()
    assert repo._store.contents.pack(pack).kind() == "C"
