"""A disk that is full or fails, at every step of a commit: a typed error, the state before, a retry that succeeds.

By failing system calls, one after another; and on a small file system of its own where we may mount one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import write_checkpoint
from memory_folders import leave_free, small_disk
from trials import FULL, Trials

import rblstore
from rblstore.errors import RblError
from rblstore.operations.stat_cache import StatCache

CASES = [
    (call, code, for_good)
    for call in ("write", "fsync", "ftruncate", "fchmod", "rename", "mkdir")
    for code in (errno.ENOSPC, errno.EIO)
    for for_good in (True, False)
]
MOST_STEPS = 40
SIZE = 6 << 20
GAP = (4 if FULL else 32) << 10


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a commit, and two checkpoints that are not in it."""
    folder = tmp_path_factory.mktemp("full-disk")
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=write_checkpoint(folder / "base", 8 << 10, 1))
    write_checkpoint(folder / "next", 200 << 10, 2)
    write_checkpoint(folder / "later", 8 << 10, 3)
    return folder


def state(store: Path) -> Any:
    with rblstore.open(store) as repo:
        return repo.log(all=True), repo.operations(), repo.branches()


def check_failed_commit(made: Path, store: Path, before: Any, error: RblError) -> bool:
    """Checks what a failed commit left; returns whether the change was made all the same, as the error must say."""
    assert error.exit_code == 1
    assert error.hint
    assert list((store / ".rbl" / "tmp").iterdir()) == []
    made_it = state(store) != before
    assert made_it == (error.code == "log_behind"), (error.code, error.message)
    with rblstore.open(store) as repo:
        assert repo.fsck(full=True).damages == ()
        assert len(repo.log()) == 1 + made_it
        repo.commit("next", identity=made / "later" if made_it else made / "next")
        assert repo.fsck().damages == ()
        assert len(repo.log()) == 2 + made_it
    return made_it


class Failing:
    """Lets so many calls pass, and fails the next one, or it and all that follow."""

    def __init__(self, number: int, code: int, *, for_good: bool) -> None:
        self._left = number
        self._code = code
        self._for_good = for_good
        self.failed = False

    def patch(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if self.failed and not self._for_good:
                return real(*arguments, **options)
            if self._left > 0:
                self._left -= 1
                return real(*arguments, **options)
            self.failed = True
            raise OSError(self._code, os.strerror(self._code))

        monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(("call", "code", "for_good"), CASES if FULL else CASES[::3])
def test_a_call_that_fails(
    call: str, code: int, for_good: bool, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of the calls of a kind that a commit makes fails in turn, until there is none left to fail."""
    failures = 0
    for number in range(MOST_STEPS):
        store = tmp_path / str(number)
        shutil.copytree(made / "store", store)
        before = state(store)
        failing = Failing(number, code, for_good=for_good)
        with rblstore.open(store) as repo, monkeypatch.context() as patches:
            # A cache that cannot be written is no failure: tests/unit/test_stat_cache.py.
            patches.setattr(StatCache, "save", lambda self: None)
            failing.patch(patches, call)
            try:
                repo.commit("next", identity=made / "next")
            except RblError as error:
                failed = error
            else:
                break
        assert failing.failed
        failures += 1
        check_failed_commit(made, store, before, failed)
        shutil.rmtree(store)
    else:
        pytest.fail(f"a commit of {call} calls without end")
    assert not failing.failed
    assert failures or call in ("ftruncate", "mkdir")


def test_an_fsync_that_fails_once_is_not_tried_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel dropped when fsync failed, a second fsync would call safe."""
    store = tmp_path / "store"
    shutil.copytree(made / "store", store)
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with rblstore.open(store) as repo, monkeypatch.context() as patches:
        patches.setattr(os, "fsync", fsync)
        with pytest.raises(RblError) as caught:
            repo.commit("next", identity=made / "next")
    assert caught.value.code == "write_failed"
    assert len(synced) == 1
    assert not [path for path in store.rglob("*") if path.stat().st_ino in synced]


def test_a_file_system_that_is_full(made: Path, tmp_path: Path) -> None:
    """A little more room each time, from none at all to enough: wherever it runs out, nothing is lost."""
    codes = set()
    with (
        small_disk(tmp_path, SIZE) as disk,
        Trials("R4", "a commit on a disk that is full", quick=MOST_STEPS, full=8 * MOST_STEPS) as run,
    ):
        store, filler = disk / "store", disk / "filler"
        for number in run:
            shutil.copytree(made / "store", store)
            before = state(store)
            leave_free(disk, number * GAP, filler)
            try:
                with rblstore.open(store) as repo:
                    repo.commit("next", identity=made / "next")
            except RblError as error:
                codes.add(error.code)
                filler.unlink()
                check_failed_commit(made, store, before, error)
            else:
                filler.unlink()
                break
            shutil.rmtree(store)
        else:
            pytest.fail("no room was room enough")
        assert number > 0
        assert codes <= {"write_failed", "catalog_failed", "commit_outcome_unknown", "log_behind"}
        with rblstore.open(store) as repo:
            assert len(repo.log()) == 2
            assert repo.fsck(full=True).damages == ()
