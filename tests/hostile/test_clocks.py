"""Clocks that jump: order comes from the graph and the log, and nothing goes because a clock was wrong for a while."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write_adapter, write_base

import rblstore
from rblstore import repository
from rblstore.operations import stat_cache
from rblstore.operations.stat_cache import FileStamp, StatCache
from rblstore.storage import disk, durable

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY = 86_400.0


class Clock:
    """The system's clock, as records are stamped by it. It stands until it is put elsewhere."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self, zone: Any) -> datetime:
        return self.time.astimezone(zone)

    def jump(self, **by: float) -> None:
        self.time += timedelta(**by)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(repository, "datetime", made)
    return made


@pytest.fixture
def repo(clock: Clock, tmp_path: Path) -> Iterator[rblstore.Repository]:
    with rblstore.init(tmp_path / "store") as made:
        made.commit("0", identity=write_base(tmp_path / "model"))
        yield made


def adapters(tmp_path: Path) -> Callable[[int], dict[str, Path]]:
    def behaviors(number: int) -> dict[str, Path]:
        return {"a": write_adapter(tmp_path / f"adapter-{number}", seed=number)}

    return behaviors


JUMPS = [
    {"days": -3650},
    {"days": 365_000},
    {"days": -365_000},
    {"milliseconds": -1},
    {"hours": -1},
    {"days": 400},
]


def test_history_is_in_the_order_of_the_graph_whatever_the_times_say(
    repo: rblstore.Repository, clock: Clock, tmp_path: Path
) -> None:
    behaviors = adapters(tmp_path)
    for number, jump in enumerate(JUMPS, start=1):
        clock.jump(**jump)
        repo.commit(str(number), behaviors=behaviors(number))
    newest_first = [str(number) for number in range(len(JUMPS), -1, -1)]
    times = [entry.time for entry in repo.log()]
    assert times != sorted(times)
    for _ in range(2):
        with rblstore.open(repo.path) as again:
            assert [entry.message for entry in again.log()] == newest_first
            assert [again.log(f"HEAD~{back}")[0].message for back in range(len(newest_first))] == newest_first
            sequences = [operation.sequence for operation in again.operations()]
            assert sequences == sorted(sequences, reverse=True)
            assert again.fsck(full=True).ok
        rblstore.reindex(repo.path)  # the second time round: the same from packs and refs.log alone


def test_undo_takes_back_what_was_done_last_and_not_what_is_dated_last(
    repo: rblstore.Repository, clock: Clock, tmp_path: Path
) -> None:
    behaviors = adapters(tmp_path)
    clock.jump(days=30)
    repo.commit("dated later", behaviors=behaviors(1))
    clock.jump(days=-60)
    repo.commit("done later", behaviors=behaviors(2))
    repo.undo()
    assert repo.log()[0].message == "dated later"
    clock.jump(days=-60)
    repo.undo()
    assert repo.log()[0].message == "0"
    rblstore.reindex(repo.path)
    with rblstore.open(repo.path) as again:
        assert [entry.message for entry in again.log()] == ["0"]


def test_refs_of_earlier_operations_are_found_by_the_log(
    repo: rblstore.Repository, clock: Clock, tmp_path: Path
) -> None:
    first = repo.operations()[0].id
    clock.jump(days=-60)
    repo.commit("1", behaviors=adapters(tmp_path)(1))
    assert repo.log(f"main@{{{first}}}")[0].message == "0"


def test_a_statement_made_later_counts_though_the_clock_was_set_back(
    repo: rblstore.Repository, clock: Clock, tmp_path: Path
) -> None:
    repo.commit("licensed", behaviors=adapters(tmp_path)(1), license="apache-2.0", author="Ada")
    clock.jump(days=-30)
    repo.commit("corrected", behaviors=adapters(tmp_path)(1), license="mit", author="Ada", allow_empty=True)
    for _ in range(2):
        with rblstore.open(repo.path) as again:
            (behavior,) = [part for part in again.audit().components if part.role == "behavior"]
            assert behavior.license == ("mit",)
        rblstore.reindex(repo.path)


def test_times_that_no_calendar_has_yet_are_written_and_read(repo: rblstore.Repository, clock: Clock) -> None:
    for moment in (datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC), datetime(1, 1, 1, tzinfo=UTC)):
        clock.time = moment
        repo.create_branch(f"in-{moment.year}")
    with rblstore.open(repo.path) as again:
        assert [branch.name for branch in again.branches()] == ["in-1", "in-9999", "main"]
        assert not again.gc().changed
        assert again.fsck(full=True).ok


def test_what_was_read_in_the_future_is_read_again(
    repo: rblstore.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_base(tmp_path / "another", seed=5) / "model.safetensors"
    os.utime(weights, (1_600_000_000, 1_600_000_000))
    real = stat_cache.time.time_ns
    hour = 3_600_000_000_000
    monkeypatch.setattr(stat_cache.time, "time_ns", lambda: real() + hour)
    repo.commit("read by a clock that is ahead", identity=tmp_path / "another")
    stamp = FileStamp.of(weights.stat())
    assert StatCache(repo._store).lookup(weights, stamp) is not None
    monkeypatch.setattr(stat_cache.time, "time_ns", real)
    assert StatCache(repo._store).lookup(weights, stamp) is None


@pytest.fixture
def disk_clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How many seconds the file system's clock is ahead: of what asks for the time, and of what is moved."""
    ahead = {"by": 0.0}
    real_time, real_utime = durable.file_system_time, os.utime

    def stamped(path: Any, **how: Any) -> None:
        moment = real_time(Path(path).parent) + ahead["by"]
        real_utime(path, (moment, moment), **how)

    monkeypatch.setattr(disk, "file_system_time", lambda folder: real_time(folder) + ahead["by"])
    monkeypatch.setattr(durable.os, "utime", stamped)
    return ahead


def test_gc_deletes_nothing_by_a_clock_that_was_ahead_for_a_while(
    repo: rblstore.Repository, clock: Clock, disk_clock: dict[str, float], tmp_path: Path
) -> None:
    made = repo.commit("lost", behaviors=adapters(tmp_path)(1))
    repo.undo()
    everything = contents_of(repo)
    assert not repo.gc(apply=True).changed
    # A year ahead, whatever nothing reaches looks old; but it is only set aside, and by that clock.
    clock.jump(days=400)
    disk_clock["by"] = 400 * DAY
    result = repo.gc(apply=True)
    assert result.packs
    assert result.deleted == ()
    assert repo.gc(apply=True).deleted == ()
    # The clock is right again: what lies in the trash comes from the future, and stays.
    clock.jump(days=-400)
    disk_clock["by"] = 0.0
    assert repo.gc(apply=True).deleted == ()
    disk_clock["by"] = 100 * DAY
    assert repo.gc(apply=True).deleted == ()
    disk_clock["by"] = 0.0
    repo.restore_trash()
    assert contents_of(repo) >= everything
    assert repo.show(made.commit).id == made.commit
    assert repo.fsck(full=True).ok


def contents_of(repo: rblstore.Repository) -> set[str]:
    store = repo._store
    return {str(location.content) for pack in store.packs() for location in store.pack(pack).summary().locations}


def test_gc_takes_nothing_by_a_clock_that_was_behind(
    repo: rblstore.Repository, clock: Clock, disk_clock: dict[str, float], tmp_path: Path
) -> None:
    repo.commit("lost", behaviors=adapters(tmp_path)(1))
    repo.undo()
    before = contents_of(repo)
    disk_clock["by"] = -4000 * DAY
    clock.jump(days=-4000)
    result = repo.gc(apply=True)
    assert (result.packs, result.deleted) == ((), ())
    assert result.future, "packs from the future were not named"
    assert contents_of(repo) == before
