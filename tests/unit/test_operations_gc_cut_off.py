"""A gc that is cut off anywhere, and one beside others: nothing is lost, nobody notices, and the next one goes on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from gc_stories import (
    Stopped,
    base,
    check,
    composition_of,
    model,
    only_main,
    opened,
    orphan,
    packs,
    side_branch,
    whole,
)
from tiny_checkpoints import digests

import rblstore
from rblstore.catalog.database import Catalog
from rblstore.catalog.engine import CommitOutcomeUnknownError
from rblstore.catalog.writer import CatalogWriter
from rblstore.errors import LockedError, RblError
from rblstore.objects.content_records import Identity
from rblstore.objects.history_records import Composition
from rblstore.operations import gc_plan
from rblstore.operations.gc import GcUnfinishedError, _Collection
from rblstore.operations.gc_marking import look
from rblstore.storage.disk import DiskBackend
from rblstore.storage.durable import WriteError
from rblstore.storage.locks import exclusive
from rblstore.storage.pack_writer import PackWriter


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Any]:
    with whole(tmp_path / "store") as repository:
        yield repository


def story(folder: Path) -> Any:
    """Something of every kind to collect: a trash whose grace is over, dead and mostly dead packs."""
    repo = opened(folder / "store")
    orphan(repo, "old", model(folder / "old", 10, 11))
    orphan(repo, "four", model(folder / "four", 1, 2, 3, 4))
    repo.delete_branch("old")
    repo.gc(apply=True)
    repo.repack()
    orphan(repo, "new", model(folder / "new", 20))
    orphan(repo, "newer", model(folder / "newer", 21, 20))
    orphan(repo, "main", model(folder / "main", 1))
    only_main(repo)
    return repo


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gc")
    story(folder).close()
    return folder


STEPS: list[tuple[type, str]] = [
    (PackWriter, "copy"),
    (PackWriter, "finish"),
    (CatalogWriter, "add_pack"),
    (CatalogWriter, "forget_dead"),
    (DiskBackend, "move"),
    (DiskBackend, "delete"),
]


class CutOff:
    """Fails one of the calls of a method, before or after it did what it does."""

    def __init__(self, real: Callable[..., Any], number: int, error: Exception, *, after: bool) -> None:
        self.calls = 0
        self._real, self._number, self._error, self._after = real, number, error, after

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return lambda *given, **options: self._call(instance, *given, **options)

    def _call(self, *given: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls != self._number:
            return self._real(*given, **options)
        if self._after:
            self._real(*given, **options)
        raise self._error


@pytest.mark.parametrize("how", ["killed before", "killed after", "refused"])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
def test_cut_off_anywhere_nothing_is_lost_and_the_next_gc_goes_on(
    owner: type, name: str, how: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = digests(made / "main")["model.safetensors"]
    error = WriteError("no room") if how == "refused" else Stopped()
    for number in count(1):
        folder = tmp_path / f"{number}"
        shutil.copytree(made / "store", folder)
        cut = CutOff(getattr(owner, name), number, error, after=how == "killed after")
        with rblstore.open(folder) as repo, monkeypatch.context() as patches:
            patches.setattr(owner, name, cut)
            if how != "refused":  # nobody who was killed clears up
                patches.setattr(_Collection, "_take_back", lambda self: None)
            failed = attempt(repo)
        if failed is None:
            assert number > 1
            return
        assert isinstance(failed, (Stopped, WriteError, GcUnfinishedError))
        with rblstore.open(folder) as repo:
            assert repo.fsck(full=True).damages == ()
            rebuilt(repo)
            for _ in range(2):
                repo.gc(apply=True)
            check(repo)
            assert packs(repo, "trash") == set()
            assert [one.message for one in repo.log(all=True)] == ["main"]
            repo.checkout("main", tmp_path / f"out-{number}")
        assert digests(tmp_path / f"out-{number}")["model.safetensors"] == want


def attempt(repo: Any) -> Exception | None:
    try:
        repo.gc(apply=True)
    except (Stopped, RblError) as error:
        return error
    return None


def rebuilt(repo: Any) -> None:
    """A copy whose catalog is rebuilt at this very moment is whole, too."""
    copied = repo.path.with_name(f"{repo.path.name}-rebuilt")
    shutil.copytree(repo.path, copied)
    rblstore.reindex(copied)
    with rblstore.open(copied) as other:
        assert other.fsck(full=True).damages == ()


def test_a_commit_that_may_have_happened_costs_no_pack(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan(repo, "four", model(tmp_path / "four", 1, 2, 3, 4))
    orphan(repo, "main", model(tmp_path / "less", 1))
    only_main(repo)
    real = Catalog.write

    @contextmanager
    def unknown(self: Any) -> Iterator[Any]:
        with real(self) as index:
            yield index
        raise CommitOutcomeUnknownError("who knows")

    with monkeypatch.context() as patches:
        patches.setattr(Catalog, "write", unknown)
        with pytest.raises(CommitOutcomeUnknownError):
            repo.gc(apply=True)
    assert repo.fsck(full=True).damages == ()
    repo.gc(apply=True)
    check(repo)


def test_readers_do_not_notice(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout between any two steps, by somebody who looked everything up before."""
    orphan(repo, "four", model(tmp_path / "four", 1, 2, 3, 4))
    orphan(repo, "main", model(tmp_path / "less", 1))
    only_main(repo)
    want = digests(tmp_path / "less")["model.safetensors"]
    number = 0
    with rblstore.open(repo.path) as other:
        composition = repo._store.record(composition_of(repo, repo.head), Composition)
        wanted = repo._store.record(composition.identity, Identity).files[-1]
        early = other._store.contents.stored(other._store.contents_of(wanted))

        def look_in() -> None:
            nonlocal number
            number += 1
            other.checkout("main", tmp_path / f"out-{number}")
            assert digests(tmp_path / f"out-{number}")["model.safetensors"] == want

        for owner, name in ((DiskBackend, "move"), (CatalogWriter, "forget_dead"), (PackWriter, "finish")):
            real = getattr(owner, name)

            def step(*arguments: Any, _real: Callable[..., Any] = real, **options: Any) -> Any:
                look_in()
                found = _real(*arguments, **options)
                look_in()
                return found

            monkeypatch.setattr(owner, name, step)
        result = repo.gc(apply=True)
        assert result.packs_written == 1
        assert number >= 2 * (1 + 1 + len(result.packs))
        digest = hashlib.sha256()
        for chunk in other._store.contents.read(early):
            digest.update(chunk)
        assert digest.hexdigest() == wanted.sha256


def test_a_writer_at_work_keeps_gc_waiting(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base(repo, tmp_path)
    side_branch(repo, tmp_path)
    monkeypatch.setattr("rblstore.storage.locks.MAINTENANCE_WAIT_SECONDS", 0.0)
    with exclusive(repo.path / ".rbl" / "lock"), pytest.raises(LockedError):
        repo.gc(apply=True)
    assert repo.gc().changed


def test_what_is_committed_between_plan_and_lock_stays(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base(repo, tmp_path)
    side_branch(repo, tmp_path)
    plans = []
    real = gc_plan.plan_gc

    def planned(*arguments: Any) -> Any:
        plans.append(real(*arguments))
        if len(plans) == 1:
            with rblstore.open(repo.path) as other:
                other.commit("again", behaviors={"again": tmp_path / "side"})
        return plans[-1]

    monkeypatch.setattr("rblstore.operations.gc.plan_gc", planned)
    result = repo.gc(apply=True)
    assert len(plans) == 2
    assert plans[0].seen != look(repo._store)
    assert not [one for one in result.packs if one.kind == "C"]
    check(repo)
    repo.checkout("main", tmp_path / "out")


def test_a_plan_that_holds_is_not_made_twice(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base(repo, tmp_path)
    side_branch(repo, tmp_path)
    plans = []
    real = gc_plan.plan_gc
    monkeypatch.setattr("rblstore.operations.gc.plan_gc", lambda *given: plans.append(real(*given)) or plans[-1])
    assert repo.gc(apply=True).changed
    assert len(plans) == 1


def test_progress_is_told(repo: Any, tmp_path: Path) -> None:
    orphan(repo, "four", model(tmp_path / "four", 1, 2, 3, 4))
    orphan(repo, "main", model(tmp_path / "less", 1))
    only_main(repo)
    events: list[Any] = []
    repo.gc(apply=True, progress=events.append)
    assert {event.stage for event in events} == {"reading packs", "copying what is kept"}
    assert all(event.done <= event.total for event in events)
