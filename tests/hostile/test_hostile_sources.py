"""Directories to commit that hold what no model has: special files, loops, names that are no text, holes, crowds."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_checkpoints
from confined import confined
from fuzz_targets import scratch

import rblstore
from rblstore.checkpoints import source_directory
from rblstore.checkpoints.source_directory import scan_directory


@pytest.fixture
def source() -> Iterator[Path]:
    folder = scratch()
    yield tiny_checkpoints.write_base(folder / "base")
    shutil.rmtree(folder)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _folder_loop(path: Path) -> None:
    path.mkdir()
    (path / "up").symlink_to("..")


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 43)


SPECIAL = {
    "fifo": os.mkfifo,
    "socket": _socket,
    "device": _device,
    "loop": _loop,
    "folder loop": _folder_loop,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link out": lambda path: path.symlink_to("/etc/hostname"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to a folder": lambda path: path.symlink_to("/etc"),
    "folder": Path.mkdir,
    "unreadable": lambda path: path.write_bytes(b"{}") and path.chmod(0),
}


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "extra.bin", "sub/x.json", "README.md", "adapter_config.json"]
)
@pytest.mark.parametrize("what", SPECIAL)
def test_special_files(source: Path, what: str, name: str) -> None:
    path = source / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    SPECIAL[what](path)
    with rblstore.init(source.parent / "store") as repo, confined():
        try:
            repo.commit("x", identity=source, author="Ada")
        except rblstore.RblError:
            assert repo.head is None
        else:
            assert what in ("folder", "unreadable")  # an empty folder holds nothing, and root reads everything
            assert name != "model.safetensors" or what == "unreadable"


@pytest.mark.parametrize("name", [b"\xff", b"a\xc3", b"\xed\xa0\x80.json", b"\xc0\xafetc", b"caf\xe9.safetensors"])
def test_names_that_are_no_text(source: Path, name: bytes) -> None:
    (source / os.fsdecode(name)).write_bytes(b"{}")
    with pytest.raises(rblstore.InputError, match="is not valid Unicode"):
        scan_directory(source)


def test_holes_are_not_read(source: Path) -> None:
    """A file of eight terabytes of nothing, in the place of one whose size is capped or whose header says otherwise."""
    _sparse(source / "model.safetensors")
    with rblstore.init(source.parent / "store") as repo, confined(), pytest.raises(rblstore.InputError):
        repo.commit("x", identity=source, author="Ada")


def test_a_crowd_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_directory._MAX_FILES == 100_000
    monkeypatch.setattr(source_directory, "_MAX_FILES", 1000)
    (source / "crowd").mkdir()
    for number in range(1001):
        (source / "crowd" / f"{number}.txt").touch()
    with pytest.raises(rblstore.InputError, match="more than 1000 files"):
        scan_directory(source)


def test_depth_is_bounded_by_the_path(source: Path) -> None:
    deep = source
    for _ in range(600):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with confined(), pytest.raises(rblstore.InputError, match="is longer than 1024 bytes"):
        scan_directory(source)


@pytest.mark.slow
def test_as_many_as_may_be(source: Path) -> None:
    """Many files take time by their number, little memory, and one descriptor at a time."""
    (source / "crowd").mkdir()
    for number in range(20_000):
        (source / "crowd" / f"{number}.txt").touch()
    with confined(seconds=60):
        assert len(scan_directory(source).files) == 20_002
