"""What only a backend on a disk can get wrong: links, pipes, modes, strangers in its folders, durability."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from rblstore.storage.backend import MissingObjectError, ReadError, TruncatedObjectError
from rblstore.storage.disk import DiskBackend
from rblstore.storage.durable import StagedFile, WriteError, append, write_file

A = "packs/ab/ab" + "0" * 62 + ".pack"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


def put(root: Path, data: bytes = b"data") -> bool:
    stage = DiskBackend(root).stage()
    stage.write(data)
    return stage.publish(A)


def test_a_published_pack_is_read_only(root: Path) -> None:
    put(root)
    assert stat.S_IMODE((root / A).stat().st_mode) == 0o444


def test_a_staged_file_is_for_its_owner_alone(root: Path) -> None:
    staged = StagedFile(root / "tmp")
    assert stat.S_IMODE(staged.path.stat().st_mode) == 0o600
    staged.discard()


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_regular_file_is_no_object_and_is_not_written_over(root: Path, kind: str) -> None:
    path = root / A
    path.parent.mkdir(parents=True)
    (root / "target").write_bytes(b"secret")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(root / ("target" if kind == "link" else "nowhere"))
    backend = DiskBackend(root)
    with pytest.raises(MissingObjectError):
        backend.read(A, 0, 1)
    with pytest.raises(MissingObjectError):
        backend.size(A)
    assert not backend.exists(A)
    assert list(backend.list("")) == []
    with pytest.raises(WriteError, match="in the way"):
        put(root)
    assert (root / "target").read_bytes() == b"secret"
    assert not (root / "nowhere").exists()
    assert list((root / "tmp").iterdir()) == []


def test_strangers_in_the_folders_are_not_listed(root: Path) -> None:
    put(root)
    for name in ("packs/README", "packs/ab/notes.txt", "packs/ab/" + "0" * 64 + ".pack"):
        (root / name).write_bytes(b"x")
    (root / "packs" / "zz").mkdir()
    assert list(DiskBackend(root).list("")) == [A]


def test_an_error_of_the_system_is_typed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(ReadError, match="Input/output error"):
        DiskBackend(root).read(A, 0, 4)


def test_short_reads_are_put_together(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, b"0123456789")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: real(descriptor, min(length, 3), offset))
    assert DiskBackend(root).read(A, 1, 8) == b"12345678"


def test_a_file_that_ends_while_it_is_read_is_truncated(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, b"0123456789")
    real = os.pread
    monkeypatch.setattr(
        os, "pread", lambda descriptor, length, offset: real(descriptor, min(length, 6 - offset), offset)
    )
    with pytest.raises(TruncatedObjectError):
        DiskBackend(root).read(A, 1, 8)


def test_short_writes_are_put_together(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    put(root, b"0123456789")
    assert (root / A).read_bytes() == b"0123456789"


def synced_folders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is fsynced from now on."""
    found: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        found.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_publishing_makes_the_file_then_its_folders_durable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = synced_folders(monkeypatch)
    assert put(root)
    assert synced[1:] == ["ab", "packs", root.name, "packs"]
    # The second time the pack stays, but who put it there may have died before its folder was durable.
    synced.clear()
    assert not put(root)
    assert "ab" in synced
    assert "packs" in synced


@pytest.mark.parametrize("call", ["write", "fsync", "fchmod"])
def test_a_refusing_system_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    stage = DiskBackend(root).stage()

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)

    def write_and_publish() -> None:
        stage.write(b"x")
        stage.publish(A)

    with pytest.raises(WriteError, match="No space left"):
        write_and_publish()
    monkeypatch.undo()
    assert list((root / "tmp").iterdir()) == []
    assert not (root / A).exists()


def test_a_file_that_lost_bytes_before_it_was_published_is_not_published(root: Path) -> None:
    staged = StagedFile(root / "tmp")
    staged.write(b"12345")
    os.truncate(staged.path, 3)
    with pytest.raises(WriteError, match="not as long"):
        staged.publish(root / "out")
    assert not (root / "out").exists()


def test_a_small_file_is_replaced_whole(root: Path) -> None:
    write_file(root / "config.toml", b"old", root / "tmp")
    write_file(root / "config.toml", b"new", root / "tmp")
    assert (root / "config.toml").read_bytes() == b"new"
    assert list((root / "tmp").iterdir()) == []


def test_what_can_be_made_again_is_written_whole_without_waiting_for_the_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    write_file(root / "cache", b"old", root / "tmp", durable=False)
    write_file(root / "cache", b"new", root / "tmp", durable=False)
    assert (root / "cache").read_bytes() == b"new"
    assert waited == []
    write_file(root / "cache", b"kept", root / "tmp")
    assert len(waited) == 2


def test_a_failed_append_is_undone_and_a_torn_tail_is_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "log"
    path.write_bytes(b"whole\ntor")
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError):
        append(descriptor, b"next\n", path, keep=6)
    assert path.read_bytes() == b"whole\n"
    monkeypatch.undo()
    append(descriptor, b"next\n", path, keep=6)
    os.close(descriptor)
    assert path.read_bytes() == b"whole\nnext\n"


KEY = "packs/ab/ab" + "0" * 62 + ".pack"


def test_the_time_of_a_move_is_durable_before_the_move_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = DiskBackend(root)
    stage = backend.stage()
    stage.write(b"x")
    stage.publish(KEY)
    os.utime(root / KEY, (0, 0))
    synced: list[tuple[int, float]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_mtime))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    trash = KEY.replace("packs", "trash")
    assert backend.move(KEY, trash)
    file = (root / trash).stat()
    assert synced[0] == (file.st_ino, file.st_mtime)
    assert file.st_mtime > 0
    assert {(root / trash).parent.stat().st_ino, (root / KEY).parent.stat().st_ino} <= {inode for inode, _ in synced}
