"""Leftovers: what dead processes left is found and removed, and what anybody alive still uses is not."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write_base

import rblstore
from rblstore.checkpoints.checkout_writer import DirectoryWriter, is_temporary_name, temporary_name
from rblstore.operations.leftovers import Leftover, leftovers, remove_leftovers
from rblstore.operations.scratch import NOTE_SUFFIX, checkout_note, scratch
from rblstore.repository import Store
from rblstore.storage import durable
from rblstore.storage.durable import StagedFile, write_file


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with rblstore.init(tmp_path / "store") as repo:
        yield repo._store


def tmp_of(store: Store) -> Path:
    return store.folder / "tmp"


def names(found: tuple[Leftover, ...]) -> list[str]:
    return [leftover.path.name for leftover in found]


class Child:
    """A forked process that makes something and says so over a pipe. It is killed where the block ends."""

    def __init__(self, work: Callable[[ExitStack], None]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                with ExitStack() as stack:
                    work(stack)
                    os.write(writing, b"made")
                    while True:
                        signal.pause()
            finally:
                os._exit(1)
        os.close(writing)
        assert os.read(reading, 4) == b"made"
        os.close(reading)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def stage(store: Store) -> Callable[[ExitStack], None]:
    def work(stack: ExitStack) -> None:
        staged = StagedFile(tmp_of(store))
        stack.callback(staged.discard)
        staged.write(b"x" * 5000)

    return work


def fill_scratch(store: Store) -> Callable[[ExitStack], None]:
    def work(stack: ExitStack) -> None:
        folder = stack.enter_context(scratch(store, "load"))
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "weights").write_bytes(b"w" * 9000)
        (folder / "elsewhere").symlink_to(store.folder / "packs")

    return work


def check_out(store: Store, target: Path) -> Callable[[ExitStack], None]:
    def work(stack: ExitStack) -> None:
        announce = stack.enter_context(checkout_note(store))
        writer = stack.enter_context(DirectoryWriter(target, announce=announce))
        writer.new_file("sub/model", 3).write_at(memoryview(b"abc"), 0)

    return work


@pytest.mark.parametrize(("make", "size"), [(stage, 5000), (fill_scratch, 9000)])
def test_what_a_living_process_uses_stays_and_what_a_killed_one_left_goes(store: Store, make: Any, size: int) -> None:
    with Child(make(store)):
        (made,) = tmp_of(store).iterdir()
        assert leftovers(store) == remove_leftovers(store) == ()
        assert made.exists()
    (found,) = leftovers(store)
    assert found.path == made
    assert found.bytes >= size
    assert found.why
    assert made.exists(), "listing removed something"
    assert remove_leftovers(store) == (found,)
    assert list(tmp_of(store).iterdir()) == []
    assert (store.folder / "packs").is_dir(), "a link was followed"
    assert leftovers(store) == ()


def test_a_killed_checkouts_directory_is_found_through_its_note(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "out"
    target.parent.mkdir()
    with Child(check_out(store, target)):
        (folder,) = target.parent.iterdir()
        (note,) = tmp_of(store).iterdir()
        assert leftovers(store) == remove_leftovers(store) == ()
        assert folder.is_dir()
    assert [leftover.path for leftover in leftovers(store)] == [folder, note]
    assert folder.is_dir()
    assert [leftover.path for leftover in remove_leftovers(store)] == [folder, note]
    assert list(target.parent.iterdir()) == list(tmp_of(store).iterdir()) == []


def test_a_checkout_that_ends_leaves_no_note_and_one_of_a_directory_that_is_gone_goes(
    store: Store, tmp_path: Path
) -> None:
    with rblstore.open(store.root) as repo:
        repo.commit("base", identity=write_base(tmp_path / "model"))
        repo.checkout("HEAD", tmp_path / "out")
        with pytest.raises(rblstore.ConflictError):
            repo.checkout("HEAD", tmp_path / "out")
    assert list(tmp_of(store).iterdir()) == []
    note = note_of(store, tmp_path / "gone" / temporary_name("out"))
    assert [leftover.path for leftover in remove_leftovers(store)] == [note]


def note_of(store: Store, folder: Path | str | bytes) -> Path:
    note = tmp_of(store) / f"1-a{NOTE_SUFFIX}"
    note.write_bytes(folder if isinstance(folder, bytes) else os.fsencode(folder))
    return note


@pytest.mark.parametrize("name", ["precious", ".precious.rbl-tmp-xyz", ".a.rbl-tmp-0123456789abcdef.d", ".rbl-tmp-"])
def test_a_note_removes_no_directory_of_another_name(store: Store, tmp_path: Path, name: str) -> None:
    precious = tmp_path / name
    precious.mkdir()
    (precious / "work").write_text("years")
    note = note_of(store, precious)
    assert [leftover.path for leftover in remove_leftovers(store)] == [note]
    assert (precious / "work").read_text() == "years"


def test_a_note_removes_no_link_no_file_and_nothing_that_somebody_locks(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / temporary_name("out")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "work").write_text("years")
    folder.symlink_to(precious)
    note_of(store, folder)
    remove_leftovers(store)
    assert (precious / "work").exists()
    folder.unlink()
    folder.write_text("a file")
    note_of(store, folder)
    remove_leftovers(store)
    assert folder.exists()
    folder.unlink()
    # A copy of the repository has a copy of the note, which nobody locks; the directory itself is.
    folder.mkdir()
    note = note_of(store, folder)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    assert remove_leftovers(store) == ()
    assert folder.is_dir()
    assert note.exists(), "without its note it would never be found again"
    os.close(descriptor)
    assert [leftover.path for leftover in remove_leftovers(store)] == [folder, note]


@pytest.mark.parametrize("data", [b"", b"relative", b"/a\0b", b"/" + b"a" * 70_000, b"/", b"/..", b"\xff\xfe"])
def test_a_note_of_nonsense_is_a_file_like_any_other(store: Store, data: bytes) -> None:
    note = note_of(store, data)
    assert [leftover.path for leftover in remove_leftovers(store)] == [note]


def test_links_and_pipes_in_tmp_are_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("years")
    (tmp_of(store) / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_of(store) / "pipe")
    assert leftovers(store) == remove_leftovers(store) == ()
    assert len(list(tmp_of(store).iterdir())) == 2
    tmp_of(store).rename(tmp_path / "moved")
    tmp_of(store).symlink_to(tmp_path / "moved")
    (tmp_path / "moved" / "old").touch()
    assert leftovers(store) == ()


def test_a_folder_as_deep_as_a_checkout_may_be_goes_too_and_no_deeper_one(store: Store) -> None:
    folder = tmp_of(store) / "rbl-load-x"
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(700):  # deeper than any path in a checkout
        os.mkdir("a", dir_fd=here)
        deeper = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    assert leftovers(store) == (), "nothing that an operation made"
    for _ in range(200):
        above = (folder / "a").rename(tmp_of(store) / "above")
        (above / "a").rename(folder / "a")
        above.rmdir()
    (folder / "a" / "file").touch()
    assert names(remove_leftovers(store)) == ["rbl-load-x"]
    assert not folder.exists()


class Collector:
    """Collects at the very moment between the making of something and its claim, a given number of times."""

    def __init__(self, store: Store, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = times
        flock = fcntl.flock

        def patched(descriptor: int, kind: int) -> None:
            if kind == fcntl.LOCK_SH | fcntl.LOCK_NB and self.left > 0:
                self.left -= 1
                assert len(remove_leftovers(store)) == 1
            flock(descriptor, kind)

        monkeypatch.setattr(fcntl, "flock", patched)


def test_what_is_collected_before_it_is_claimed_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector(store, 3, monkeypatch)
    staged = StagedFile(tmp_of(store))
    assert collector.left == 0
    staged.write(b"kept")
    assert staged.path.read_bytes() == b"kept"
    staged.discard()
    collector.left = 3
    with scratch(store, "load") as folder:
        assert collector.left == 0
        assert folder.parent == tmp_of(store)
        (folder / "file").touch()
        assert remove_leftovers(store) == ()
    assert list(tmp_of(store).iterdir()) == []


def test_what_somebody_holds_for_ever_is_an_error_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(descriptor: int, kind: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(durable.WriteError, match="locking a temporary file"):
        StagedFile(tmp_of(store))
    with scratch(store, "load") as folder:
        assert folder.parent != tmp_of(store)
    assert list(tmp_of(store).iterdir()) == []


def test_where_nothing_can_be_locked_staged_files_are_refused_and_models_are_loaded_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, kind: int) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(durable.WriteError, match="not supported"):
        StagedFile(tmp_of(store))
    with scratch(store, "load") as folder:
        assert folder.is_dir()
        assert folder.parent != tmp_of(store)
    (tmp_of(store) / "old").touch()
    assert leftovers(store) == remove_leftovers(store) == ()
    assert [path.name for path in tmp_of(store).iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["fsync", "write", "fchmod", "fstat"])
def test_an_interrupt_while_a_small_file_is_written_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_file(store.folder / "stat-cache", b"data", tmp_of(store))
    assert list(tmp_of(store).iterdir()) == []
    assert not (store.folder / "stat-cache").exists()


def test_an_interrupt_right_after_opening_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def interrupted(path: Any, flags: int, mode: int = 0o777) -> int:
        os.close(opened(path, flags, mode))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            StagedFile(tmp_of(store))
    assert list(tmp_of(store).iterdir()) == []
    # ... and after the making, before whoever asked for it has it.
    StagedFile(tmp_of(store))
    assert list(tmp_of(store).iterdir()) == []


def test_a_forked_childs_copy_removes_nothing(store: Store) -> None:
    staged = StagedFile(tmp_of(store))
    child = os.fork()
    if child == 0:
        try:
            del staged
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert staged.path.exists()
    staged.discard()


def test_temporary_names_are_recognized_and_fit_any_file_system() -> None:
    for name in ("out", "a" * 255, "\U0001f600" * 60, "\udcff" * 60, "line\nbreak", ""):
        made = temporary_name(name)
        assert is_temporary_name(made), made
        assert len(os.fsencode(made)) <= 255
    assert not is_temporary_name(".a/b.rbl-tmp-0123456789abcdef")
    assert not is_temporary_name(".a.rbl-tmp-0123456789abcdef\n")
