"""Asking what a file of the repository is can fail like anything else: whichever time it does, the error is ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from gc_stories import check, model, opened, orphan

import rblstore
from rblstore.errors import RblError

COMMANDS: dict[str, Callable[[Any, Path], Any]] = {
    "commit": lambda repo, folder: repo.commit("next", identity=folder / "next", allow_empty=True),
    "tag": lambda repo, folder: repo.create_tag("v1"),
    "log": lambda repo, folder: repo.log(all=True),
    "operations": lambda repo, folder: repo.operations(),
    "checkout": lambda repo, folder: repo.checkout("main", Path(mkdtemp(dir=folder)) / "out"),
    "undo": lambda repo, folder: repo.undo(),
    "du": lambda repo, folder: repo.du(),
    "repack": lambda repo, folder: repo.repack(),
    "gc": lambda repo, folder: repo.gc(apply=True),
    "restore": lambda repo, folder: repo.restore_trash(),
    "fsck": lambda repo, folder: repo.fsck(full=True),
    "reindex": lambda repo, folder: rblstore.reindex(folder / "store"),
    "repair": lambda repo, folder: rblstore.repair(folder / "store", apply=True),
    "doctor": lambda repo, folder: rblstore.doctor(folder / "store"),
}


class FailingStatus:
    """One call of ``stat`` or ``lstat`` of a file below ``.rbl`` fails."""

    def __init__(self, patches: pytest.MonkeyPatch, number: int) -> None:
        self.calls = 0
        self._number = number
        for name in ("stat", "lstat"):
            patches.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def status(path: Any, **options: Any) -> Any:
            if not isinstance(path, int) and "/.rbl" in os.fsdecode(path):
                self.calls += 1
                if self.calls == self._number:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), os.fsdecode(path))
            return real(path, **options)

        return status


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("status")
    with opened(made / "store") as repo:
        orphan(repo, "old", model(made / "old", 1, 2))
        orphan(repo, "main", model(made / "main", 1))
        repo.delete_branch("old")
    model(made / "next", 3)
    return made


@pytest.mark.parametrize("name", COMMANDS)
def test_a_status_that_cannot_be_had_is_an_error_of_ours(name: str, folder: Path) -> None:
    for number in count(1):
        with pytest.MonkeyPatch.context() as patches, suppress(RblError):
            failing = FailingStatus(patches, number)
            with rblstore.open(folder / "store") as repo:
                COMMANDS[name](repo, folder)
        if failing.calls < number:
            break
    assert number > 2
    with rblstore.open(folder / "store") as repo:
        check(repo)
