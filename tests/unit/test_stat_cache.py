"""The stat cache: what must be the same for a file to be left unread, and that nothing wrong with the cache matters."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import Tensor, base_tensors, write_adapter, write_base, write_safetensors

import rblstore
from rblstore.checkpoints.adapter_config import parse_adapter_config
from rblstore.checkpoints.composition_ground import WrongBaseError
from rblstore.errors import InputError
from rblstore.objects.content_records import Behavior, FileEntry, FileManifest, Identity
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import ContentId, FileManifestId
from rblstore.operations import adapter_base, stat_cache, stat_cache_entries
from rblstore.operations.stat_cache import FileStamp, KnownFile, StatCache
from rblstore.operations.stat_cache_entries import (
    FINE_MARGIN_NS,
    MARGIN_NS,
    Entry,
    encode_entries,
    parse_entries,
    path_key,
)
from rblstore.repository import Store
from rblstore.storage import durable
from rblstore.transaction import Transaction

WEIGHTS = "model.safetensors"
SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS


@dataclass
class Clock:
    """Stands where it is put."""

    now: int

    def __call__(self) -> int:
        return self.now


def stamp_of(path: Path) -> FileStamp:
    return FileStamp.of(path.stat())


def identity_files(store: Store) -> dict[str, FileEntry]:
    head = store.head()
    assert head is not None
    composition = store.record(store.record(head, Commit).composition, Composition)
    return {entry.path: entry for entry in store.record(composition.identity, Identity).files}


def known(entry: FileEntry, *notes: str) -> KnownFile:
    return KnownFile(entry.sha256, entry.size, entry.manifest, notes)


@dataclass
class Case:
    """A repository whose HEAD is the checkpoint in ``base``, read an hour after it was written."""

    store: Store
    base: Path
    clock: Clock
    read_ns: int

    def cache(self, **options: Any) -> StatCache:
        """The cache as the next command finds it."""
        return StatCache(self.store, clock=self.clock, **options)

    def remembered(self, name: str = WEIGHTS) -> StatCache:
        """The next command's cache, once this one has read a file and saved what it is."""
        cache = self.cache()
        path = self.base / name
        cache.remember(path, stamp_of(path), self.read_ns, known(identity_files(self.store)[name], "a NaN"))
        cache.save()
        return self.cache()

    @property
    def file(self) -> Path:
        return self.store.folder / "stat-cache"


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("committed")
    write_base(folder / "base")
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=folder / "base")
    # A commit may keep a cache of its own: here only what a test says is in it.
    (folder / "store" / ".rbl" / "stat-cache").unlink(missing_ok=True)
    return folder


@pytest.fixture
def case(tmp_path: Path, committed: Path) -> Iterator[Case]:
    for name in ("base", "store"):
        shutil.copytree(committed / name, tmp_path / name)
    base = tmp_path / "base"
    with rblstore.open(tmp_path / "store") as repo:
        read_ns = stamp_of(base / WEIGHTS).ctime_ns + HOUR_NS
        yield Case(repo._store, base, Clock(read_ns + HOUR_NS), read_ns)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_an_untouched_file_is_known(case: Case, name: str) -> None:
    path, entry = case.base / name, identity_files(case.store)[name]
    cache = case.remembered(name)
    found = cache.lookup(path, stamp_of(path))
    assert found == known(entry, "a NaN")
    if entry.manifest is None:
        assert found.record is None
    else:
        assert found.record == case.store.record(entry.manifest, FileManifest)
    other = "config.json" if name == WEIGHTS else WEIGHTS
    assert cache.lookup(case.base / other, stamp_of(case.base / other)) is None


@pytest.mark.parametrize("field", ["size", "mtime_ns", "ctime_ns", "inode", "device"])
@pytest.mark.parametrize("step", [-1, 1])
def test_a_file_with_any_other_stamp_is_read(case: Case, field: str, step: int) -> None:
    path = case.base / WEIGHTS
    stamp = stamp_of(path)
    cache = case.remembered()
    assert cache.lookup(path, replace(stamp, **{field: getattr(stamp, field) + step})) is None
    assert cache.lookup(path, stamp) is not None


def test_a_file_rewritten_in_place_whose_modification_time_was_put_back_is_read(case: Case) -> None:
    path = case.base / WEIGHTS
    cache, before = case.remembered(), path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as stream:
        stream.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    stamp = stamp_of(path)
    assert (stamp.size, stamp.mtime_ns, stamp.inode) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert cache.lookup(path, stamp) is None


def test_a_file_is_known_by_whatever_path_leads_to_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = case.remembered()
    link = case.base.parent / "link"
    link.symlink_to(case.base)
    stamp = stamp_of(case.base / WEIGHTS)
    monkeypatch.chdir(case.base.parent)
    for path in (link / WEIGHTS, Path("base", WEIGHTS), Path("base", "..", "base", WEIGHTS)):
        assert cache.lookup(path, stamp) is not None


@pytest.mark.parametrize("field", ["mtime_ns", "ctime_ns"])
@pytest.mark.parametrize(
    ("old", "age", "believed"),
    [
        # A clock of whole seconds: FAT's, which counts in twos.
        (HOUR_NS, MARGIN_NS + SECOND_NS, True),
        (HOUR_NS, MARGIN_NS, False),
        (HOUR_NS, 0, False),
        (HOUR_NS, -HOUR_NS, False),
        # A clock that has fractions ticks every few milliseconds.
        (HOUR_NS + 1, FINE_MARGIN_NS + 1, True),
        (HOUR_NS + 1, FINE_MARGIN_NS, False),
        (HOUR_NS + 1, 0, False),
    ],
)
def test_both_times_lie_well_before_the_reading(case: Case, field: str, old: int, age: int, believed: bool) -> None:
    path = case.base / WEIGHTS
    case.read_ns -= case.read_ns % SECOND_NS
    stamp = replace(stamp_of(path), mtime_ns=case.read_ns - old, ctime_ns=case.read_ns - old)
    stamp = replace(stamp, **{field: case.read_ns - age})
    if field == "ctime_ns" and old % SECOND_NS and not age % SECOND_NS:
        stamp = replace(stamp, ctime_ns=stamp.ctime_ns - 1)
    cache = case.cache()
    cache.remember(path, stamp, case.read_ns, known(identity_files(case.store)[WEIGHTS]))
    cache.save()
    assert (case.cache().lookup(path, stamp) is not None) == believed
    # Also where somebody else wrote it down.
    line = Entry(stamp, case.read_ns, known(identity_files(case.store)[WEIGHTS])).encode(path_key(str(path)))
    case.file.write_bytes(encode_entries({path_key(str(path)): line}))
    assert (case.cache().lookup(path, stamp) is not None) == believed


def test_a_reading_in_the_future_is_not_believed(case: Case) -> None:
    path = case.base / WEIGHTS
    cache = case.remembered()
    case.clock.now = case.read_ns - 1
    assert cache.lookup(path, stamp_of(path)) is None
    case.clock.now = case.read_ns
    assert cache.lookup(path, stamp_of(path)) is not None


def test_what_was_read_in_the_future_is_not_remembered(case: Case) -> None:
    case.clock.now = case.read_ns - 1
    case.remembered()
    assert not case.file.exists()


def test_without_trust_nothing_is_known_and_what_is_read_is_remembered(case: Case) -> None:
    path = case.base / WEIGHTS
    case.remembered()
    doubting = case.cache(trust=False)
    assert doubting.lookup(path, stamp_of(path)) is None
    config = case.base / "config.json"
    doubting.remember(config, stamp_of(config), case.read_ns, known(identity_files(case.store)["config.json"]))
    doubting.save()
    assert all(case.cache().lookup(case.base / name, stamp_of(case.base / name)) for name in (WEIGHTS, "config.json"))


@pytest.mark.parametrize("part", ["manifest", "tensor", "header", "file"])
def test_what_is_not_stored_here_is_read(
    case: Case, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of one repository, copied into another that lacks something of the file."""
    monkeypatch.setattr(Transaction, "_require_whole", lambda *_: None)  # it would not let that come about
    name = "config.json" if part == "file" else WEIGHTS
    path, entry = case.base / name, identity_files(case.store)[name]
    case.remembered(name)
    with rblstore.init(tmp_path / "other") as other:
        store = other._store
        if entry.manifest is not None and part != "manifest":
            record = case.store.record(entry.manifest, FileManifest)
            lacking = record.header if part == "header" else record.contents()[-1]
            with store.transaction("Ada") as transaction:
                assert transaction.add_record(record) == entry.manifest
                for content in set(record.contents()) - {lacking}:
                    transaction.add_content(case.store.content(content))
        (store.folder / "stat-cache").write_bytes(case.file.read_bytes())
        assert StatCache(store, clock=case.clock).lookup(path, stamp_of(path)) is None
        if part in ("tensor", "header"):
            with store.transaction("Ada") as transaction:
                transaction.add_content(case.store.content(lacking))
            assert StatCache(store, clock=case.clock).lookup(path, stamp_of(path)) is not None


def test_a_manifest_that_is_another_kind_of_record_is_none(case: Case) -> None:
    path, head = case.base / WEIGHTS, case.store.head()
    assert head is not None
    cache = case.cache()
    entry = replace(known(identity_files(case.store)[WEIGHTS]), manifest=FileManifestId(head))
    cache.remember(path, stamp_of(path), case.read_ns, entry)
    cache.save()
    assert case.cache().lookup(path, stamp_of(path)) is None


def _resealed(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A change to everything before the digest, which is then made to fit."""

    def damage(data: bytes) -> bytes:
        body = change(data[:-65])
        return body + hashlib.sha256(body).hexdigest().encode() + b"\n"

    return damage


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "cut": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "more": lambda data: data + b"x",
    "zeros": lambda data: bytes(len(data)),
    "digest": lambda data: data[:-2] + bytes([data[-2] ^ 1]) + b"\n",
    "flipped": lambda data: data.replace(b"a NaN", b"a MaN"),
    "version": _resealed(lambda body: body.replace(b"stat-cache 1", b"stat-cache 2")),
    "twice": _resealed(lambda body: body + body.split(b"\n", 1)[1]),
    "number": _resealed(lambda body: body.replace(b" - ", b" -1 ").replace(b" [", b"0x [")),
    "leading zero": _resealed(lambda body: body.replace(b" [", b" 007 [").replace(b" 007", b"")[:-1] + b" \n"),
    "bytes": _resealed(lambda body: body + b"\xff\xfe\x00\n"),
    "empty line": _resealed(lambda body: body + b"\n"),
    "no newline": _resealed(lambda body: body.replace(b'["a NaN"]\n', b"[]]")),
    "notes": _resealed(lambda body: body.replace(b'["a NaN"]', b"[1]")),
    "notes nested": _resealed(lambda body: body.replace(b'["a NaN"]', b"[" * 5000 + b"]" * 5000)),
    "notes no JSON": _resealed(lambda body: body.replace(b'["a NaN"]', b"[NaN]")),
    "notes too long": _resealed(lambda body: body.replace(b'["a NaN"]', b'["' + b"a" * (16 << 10) + b'"]')),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_an_empty_one_and_is_replaced(case: Case, damage: str) -> None:
    path = case.base / WEIGHTS
    assert case.remembered().lookup(path, stamp_of(path)) is not None
    changed = DAMAGE[damage](case.file.read_bytes())
    assert changed != case.file.read_bytes()
    case.file.write_bytes(changed)
    assert case.cache().lookup(path, stamp_of(path)) is None
    assert case.remembered().lookup(path, stamp_of(path)) is not None
    assert len(parse_entries(case.file.read_bytes())) == 1


def test_every_flipped_bit_is_found(case: Case) -> None:
    case.remembered()
    data = case.file.read_bytes()
    for at in range(len(data)):
        with pytest.raises(InputError):
            parse_entries(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])


@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
def test_what_is_no_file_is_an_empty_cache(case: Case, kind: str) -> None:
    path = case.base / WEIGHTS
    case.remembered()
    case.file.rename(case.base.parent / "moved")
    if kind == "folder":
        case.file.mkdir()
    elif kind == "fifo":
        os.mkfifo(case.file)
    else:
        case.file.symlink_to(case.base.parent / "moved")
    assert case.cache().lookup(path, stamp_of(path)) is None
    case.remembered()  # a folder stays in the way, which is no error
    assert list((case.store.folder / "tmp").iterdir()) == []
    assert case.file.is_dir() == (kind == "folder")


def test_a_cache_that_cannot_be_written_fails_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "write", full)
    case.remembered()
    monkeypatch.undo()
    assert not case.file.exists()
    assert list((case.store.folder / "tmp").iterdir()) == []


def test_a_cache_that_is_too_large_is_not_read(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    path = case.base / WEIGHTS
    case.remembered()
    monkeypatch.setattr(stat_cache, "MAX_BYTES", case.file.stat().st_size - 1)
    assert case.cache().lookup(path, stamp_of(path)) is None
    monkeypatch.undo()
    assert case.cache().lookup(path, stamp_of(path)) is not None


def entry(number: int, *notes: str) -> Entry:
    digest = ContentId(hashlib.sha256(b"%d" % number).hexdigest())
    return Entry(FileStamp(number, -1, 0, number, 7), 10**18, KnownFile(digest, number, None, notes))


def lines(numbers: range, *notes: str) -> dict[str, bytes]:
    return {path_key(str(each)): entry(each, *notes).encode(path_key(str(each))) for each in numbers}


def test_what_is_written_is_what_is_read() -> None:
    for each in (entry(0), entry(5, "ä \u2028 \x85 \n \0 \x7f"), replace(entry(2**64 - 1), read_ns=0)):
        assert Entry.parse(each.encode(path_key("x"))) == each
    assert parse_entries(encode_entries({})) == {}
    several = lines(range(30), "one", "two")
    assert list(parse_entries(encode_entries(several)).items()) == list(several.items())


def test_the_oldest_entries_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    every = encode_entries(lines(range(30)))
    monkeypatch.setattr(stat_cache_entries, "MAX_ENTRIES", 20)
    assert list(parse_entries(encode_entries(lines(range(30))))) == list(lines(range(10, 30)))
    monkeypatch.setattr(stat_cache_entries, "MAX_ENTRIES", 29)
    with pytest.raises(InputError):
        parse_entries(every)
    monkeypatch.undo()
    whole = encode_entries(lines(range(100, 130)))
    monkeypatch.setattr(stat_cache_entries, "MAX_BYTES", len(whole) - 1)
    with pytest.raises(InputError):
        parse_entries(whole)
    assert list(parse_entries(encode_entries(lines(range(100, 130))))) == list(lines(range(101, 130)))


def test_the_newest_reading_of_a_file_comes_last_and_alone(case: Case) -> None:
    for name in (WEIGHTS, "config.json", WEIGHTS):
        case.remembered(name)
    order = [path_key(str(case.base / name)) for name in ("config.json", WEIGHTS)]
    assert list(parse_entries(case.file.read_bytes())) == order


def test_two_commands_at_once_keep_what_both_have_read(case: Case) -> None:
    path = case.base / WEIGHTS
    one = case.cache()
    assert one.lookup(path, stamp_of(path)) is None
    case.remembered("config.json")
    one.remember(path, stamp_of(path), case.read_ns, known(identity_files(case.store)[WEIGHTS]))
    one.save()
    assert len(parse_entries(case.file.read_bytes())) == 2


def test_where_nothing_new_was_read_nothing_is_written(case: Case) -> None:
    cache = case.remembered()
    before = stamp_of(case.file)
    assert cache.lookup(case.base / WEIGHTS, stamp_of(case.base / WEIGHTS)) is not None
    cache.save()
    assert stamp_of(case.file) == before


def test_what_is_temporary_or_contradicts_itself_is_not_remembered(case: Case) -> None:
    stamp, said = stamp_of(case.base / WEIGHTS), known(identity_files(case.store)[WEIGHTS])
    cache = case.cache()
    cache.remember(case.store.folder / "tmp" / "rbl-save-x" / WEIGHTS, stamp, case.read_ns, said)
    cache.remember(case.base / WEIGHTS, stamp, case.read_ns, replace(said, size=said.size + 1))
    cache.remember(case.base / WEIGHTS, stamp, case.read_ns, replace(said, notes=("x" * (17 << 10),)))
    cache.remember(case.base / WEIGHTS, stamp, case.read_ns, replace(said, notes=("\udcff",)))
    cache.save()
    assert not case.file.exists()


def test_a_name_that_is_no_text_is_a_name(case: Case) -> None:
    folder = Path(os.fsdecode(os.fsencode(case.base.parent) + b"/\xff\xfe"))
    case.base.rename(folder)
    case.base = folder
    cache = case.remembered()
    assert cache.lookup(folder / WEIGHTS, stamp_of(folder / WEIGHTS)) is not None


def test_the_cache_names_no_path(case: Case) -> None:
    case.remembered()
    assert b"base" not in case.file.read_bytes()


# -- the base that an adapter names ---------------------------------------------------------------------------------


@dataclass
class Named:
    """An adapter of the base committed in a case, and the check of the base that it names."""

    case: Case
    directory: Path
    behavior: Behavior

    def check(self, cache: StatCache) -> None:
        config = parse_adapter_config((self.directory / "adapter_config.json").read_bytes())
        adapter_base.check_named_base(self.case.store, "polite", config, self.directory, self.behavior, cache)


def _named(case: Case, base: Path) -> Named:
    directory = write_adapter(case.base.parent / "polite", base_model_name_or_path=str(base))
    repo = rblstore.Repository(case.store)
    slot = repo.commit("polite", behaviors={"polite": directory}, rebind=True).slots[0]
    (case.store.folder / "stat-cache").unlink(missing_ok=True)
    return Named(case, directory, case.store.record(slot.behavior, Behavior))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where each tensor began that was read from a named base."""
    found: list[int] = []
    chunks = adapter_base._chunks

    def counted(descriptor: int, at: int, end: int) -> Iterator[bytes]:
        found.append(at)
        return chunks(descriptor, at, end)

    monkeypatch.setattr(adapter_base, "_chunks", counted)
    return found


def test_a_named_base_that_is_known_is_not_hashed(case: Case, hashed: list[int]) -> None:
    named = _named(case, case.base)
    named.check(case.cache())
    assert len(hashed) == len(named.behavior.grounds) == 2
    hashed.clear()
    named.check(case.remembered())
    assert hashed == []
    named.check(case.cache(trust=False))
    assert len(hashed) == 2


def test_another_base_is_refused_whether_known_or_not(case: Case, hashed: list[int]) -> None:
    first = _named(case, write_base(case.base.parent / "tuned", seed=5))
    with pytest.raises(WrongBaseError, match=r"layers\.0\.self_attn\.q_proj\.weight"):
        first.check(case.cache())
    assert len(hashed) == 2
    hashed.clear()
    repo = rblstore.Repository(case.store)
    repo.switch("tuned", orphan=True)
    repo.commit("tuned", identity=case.base.parent / "tuned")
    case.base = case.base.parent / "tuned"
    with pytest.raises(WrongBaseError, match=r"layers\.0\.self_attn\.q_proj\.weight"):
        first.check(case.remembered())
    assert hashed == []


def test_a_known_base_of_another_element_type_is_still_compared_by_value(case: Case, hashed: list[int]) -> None:
    narrow = {
        name: Tensor("F16", tensor.shape, np.frombuffer(tensor.data, "<f4").astype("<f2").tobytes())
        for name, tensor in base_tensors().items()
    }
    folder = case.base.parent / "narrow"
    write_safetensors(folder / WEIGHTS, narrow)
    (folder / "config.json").write_bytes((case.base / "config.json").read_bytes())
    cache = case.remembered()
    assert cache.lookup(case.base / WEIGHTS, stamp_of(case.base / WEIGHTS)) is not None
    repo = rblstore.Repository(case.store)
    repo.switch("narrow", orphan=True)
    repo.commit("narrow", identity=folder)
    named = _named(case, case.base)
    named.check(cache)
    assert len(hashed) == 2
