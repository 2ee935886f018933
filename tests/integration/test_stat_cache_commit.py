"""Committing what nobody touched reads none of it; what anybody touched is read, whatever its times say."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_checkpoints import Tensor, values, write_adapter, write_base

import rblstore
from rblstore.checkpoints.pickles import HEAD_BYTES
from rblstore.cli.program import rbl
from rblstore.operations import adapter_base
from rblstore.operations.stat_cache import StatCache

HOUR_NS = 3600 * 10**9
WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass
class Reads:
    """Bytes that were read of each file, what the scan looks at in its beginning left out."""

    tails: dict[str, int] = field(default_factory=dict)

    def count(self, descriptor: int, offset: int, length: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        read = max(0, offset + length - max(offset, HEAD_BYTES))
        self.tails[path] = self.tails.get(path, 0) + read

    def of(self, path: Path) -> int:
        """How many of one file since this was asked last."""
        return self.tails.pop(str(path.resolve()), 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counted = Reads()
    pread, preadv = os.pread, os.preadv

    def count_pread(descriptor: int, length: int, offset: int) -> bytes:
        data = pread(descriptor, length, offset)
        counted.count(descriptor, offset, len(data))
        return data

    def count_preadv(descriptor: int, buffers: Any, offset: int, *flags: int) -> int:
        length = preadv(descriptor, buffers, offset, *flags)
        counted.count(descriptor, offset, length)
        return length

    monkeypatch.setattr(os, "pread", count_pread)
    monkeypatch.setattr(os, "preadv", count_preadv)
    return counted


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test has written was written an hour ago."""
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + HOUR_NS)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    with_nan = np.full(64 << 10, np.nan, "<f4").tobytes()
    large = {"extra__0": values(256, 256, seed=9), "extra__1": Tensor("F32", (64 << 10,), with_nan)}
    return write_base(tmp_path / "base", **large)


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Any]:
    with rblstore.init(tmp_path / "store") as opened:
        yield opened


def tail(path: Path) -> int:
    return path.stat().st_size - HEAD_BYTES


def change_in_place(path: Path) -> None:
    """One bit of the last tensor, the modification time put back."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as stream:
        stream.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


@pytest.mark.usefixtures("later")
def test_an_untouched_directory_is_not_read(repo: Any, base: Path, reads: Reads) -> None:
    first = repo.commit("base", identity=base)
    assert reads.of(base / WEIGHTS) == tail(base / WEIGHTS)
    assert first.warnings
    with rblstore.open(repo.path) as again:
        second = again.commit("again", identity=base, allow_empty=True)
        assert reads.of(base / WEIGHTS) == 0
        assert (second.composition, second.warnings) == (first.composition, first.warnings)
        assert second.added_bytes == first.added_bytes
        assert (second.added_contents, second.stored_bytes) == (0, 0)
        with pytest.raises(rblstore.RblError) as caught:
            again.commit("nothing", identity=base)
        assert caught.value.code == "nothing_changed"
        assert reads.of(base / WEIGHTS) == 0


@pytest.mark.usefixtures("later")
def test_an_untouched_adapter_is_not_read_nor_is_the_base_that_it_names(
    repo: Any, base: Path, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(tmp_path / "polite", rank=256, base_model_name_or_path=str(base))
    hashed: list[int] = []
    monkeypatch.setattr(adapter_base, "_chunks", lambda _, at, end: hashed.append(end - at) or iter(()))
    repo.commit("base", identity=base)
    first = repo.commit("polite", behaviors={"polite": adapter})
    assert reads.of(adapter / ADAPTER_WEIGHTS) == tail(adapter / ADAPTER_WEIGHTS)
    again = repo.commit("again", behaviors={"polite": adapter}, allow_empty=True)
    assert again.composition == first.composition
    assert reads.of(adapter / ADAPTER_WEIGHTS) == 0
    assert hashed == []


@pytest.mark.usefixtures("later")
def test_progress_ends_where_it_said_that_it_would(repo: Any, base: Path) -> None:
    repo.commit("base", identity=base)
    events: list[Any] = []
    repo.commit("again", identity=base, allow_empty=True, progress=events.append)
    assert all(event.done <= event.total for event in events)
    assert [event.done for event in events] == sorted(event.done for event in events)


@pytest.mark.usefixtures("later")
def test_a_file_changed_in_place_with_its_time_put_back_is_noticed(repo: Any, base: Path, reads: Reads) -> None:
    first = repo.commit("base", identity=base)
    change_in_place(base / WEIGHTS)
    reads.tails.clear()
    second = repo.commit("changed", identity=base)
    assert reads.of(base / WEIGHTS) == tail(base / WEIGHTS)
    assert second.composition != first.composition
    repo.checkout("HEAD", base.parent / "out")
    assert (base.parent / "out" / WEIGHTS).read_bytes() == (base / WEIGHTS).read_bytes()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", ["touched", "replaced", "moved"])
def test_an_equal_file_with_another_stamp_is_read(repo: Any, base: Path, reads: Reads, change: str) -> None:
    first = repo.commit("base", identity=base)
    path = base / WEIGHTS
    if change == "touched":
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 1))
    elif change == "replaced":
        before = path.stat()
        (base / "new").write_bytes(path.read_bytes())
        os.utime(base / "new", ns=(0, before.st_mtime_ns))
        (base / "new").rename(path)
    else:
        base = base.rename(base.parent / "elsewhere")
        path = base / WEIGHTS
    reads.tails.clear()
    assert repo.commit("again", identity=base, allow_empty=True).composition == first.composition
    assert reads.of(path) == tail(path)
    # Read once more, it is known again.
    repo.commit("again", identity=base, allow_empty=True)
    assert reads.of(path) == 0


@pytest.mark.parametrize("by", ["api", "command line"])
@pytest.mark.usefixtures("later")
def test_rehash_reads_everything(repo: Any, base: Path, reads: Reads, by: str) -> None:
    first = repo.commit("base", identity=base)
    reads.tails.clear()
    if by == "api":
        repo.commit("again", identity=base, allow_empty=True, rehash=True)
    else:
        arguments = ["-C", str(repo.path), "commit", "-m", "again", "--identity", str(base), "--allow-empty"]
        result = CliRunner().invoke(rbl, [*arguments, "--rehash"])
        assert result.exit_code == 0, result.output
    assert reads.of(base / WEIGHTS) == tail(base / WEIGHTS)
    assert repo.show("HEAD~1").id == first.commit
    repo.commit("third", identity=base, allow_empty=True)
    assert reads.of(base / WEIGHTS) == 0


@pytest.mark.parametrize(("milliseconds", "known"), [(20, False), (3000, True)])
def test_a_file_written_just_before_it_was_read_is_read_again(
    repo: Any, base: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch, milliseconds: int, known: bool
) -> None:
    written = (base / WEIGHTS).stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: written + milliseconds * 10**6)
    repo.commit("base", identity=base)
    monkeypatch.setattr(time, "time_ns", lambda: written + HOUR_NS)
    reads.tails.clear()
    repo.commit("again", identity=base, allow_empty=True)
    assert reads.of(base / WEIGHTS) == (0 if known else tail(base / WEIGHTS))


@pytest.mark.usefixtures("later")
def test_a_commit_that_failed_leaves_nothing_to_believe(repo: Any, base: Path, tmp_path: Path, reads: Reads) -> None:
    wrong = write_adapter(tmp_path / "wrong", layers=9)
    with pytest.raises(rblstore.RblError):
        repo.commit("both", identity=base, behaviors={"wrong": wrong})
    reads.tails.clear()
    repo.commit("base", identity=base)
    assert reads.of(base / WEIGHTS) == tail(base / WEIGHTS)
    assert repo.fsck(full=True).damages == ()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"rblstore stat-cache 1\n"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["cut", "gone", "folder"],
)
def test_a_spoilt_cache_costs_a_reading_and_nothing_else(
    repo: Any, base: Path, reads: Reads, spoil: Callable[[Path], object]
) -> None:
    first = repo.commit("base", identity=base)
    spoil(repo.path / ".rbl" / "stat-cache")
    reads.tails.clear()
    assert repo.commit("again", identity=base, allow_empty=True).composition == first.composition
    assert reads.of(base / WEIGHTS) == tail(base / WEIGHTS)


@pytest.mark.usefixtures("later")
def test_two_names_of_different_kinds_for_one_file_are_two_kinds_of_file(repo: Any, base: Path, tmp_path: Path) -> None:
    """A hub's cache links every file of equal content to one blob."""
    data = (base / WEIGHTS).read_bytes()
    cache = tmp_path / "models--ada--base"
    snapshot = cache / "snapshots" / ("a" * 40)
    blob = cache / "blobs" / hashlib.sha256(data).hexdigest()
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(data)
    for name in ("copy", WEIGHTS, "zcopy"):
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob.name))
    (snapshot / "config.json").write_bytes((base / "config.json").read_bytes())
    first = repo.commit("base", identity=snapshot)
    assert first.left_out == ()
    cached = repo.commit("again", identity=snapshot, allow_empty=True)
    read = repo.commit("read", identity=snapshot, allow_empty=True, rehash=True)
    assert first.composition == cached.composition == read.composition
    assert repo.fsck(full=True).damages == ()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("command", ["checkout", "fsck", "audit", "revert", "status"])
def test_what_proves_something_never_asks_the_cache(
    repo: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    repo.commit("base", identity=base)
    repo.commit("polite", behaviors={"polite": write_adapter(tmp_path / "polite")})
    repo.checkout("HEAD", tmp_path / "out")

    def refuse(*_: object) -> None:
        raise AssertionError("the stat cache was asked")

    monkeypatch.setattr(StatCache, "lookup", refuse)
    {
        "checkout": lambda: repo.checkout("HEAD", tmp_path / "again"),
        "fsck": lambda: repo.fsck(full=True),
        "audit": lambda: repo.audit(),
        "revert": lambda: repo.revert("HEAD", verify=False),
        "status": lambda: repo.status(tmp_path / "out"),
    }[command]()
