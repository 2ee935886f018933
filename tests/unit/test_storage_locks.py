"""The repository's lock: who excludes whom, and that death releases it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rblstore.errors import LockedError
from rblstore.storage.locks import LockUnavailableError, _opened, acquire, exclusive, shared


def test_writers_share_and_maintenance_is_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with shared(path), shared(path):
        with pytest.raises(LockedError, match="holds") as caught, exclusive(path):
            pass
        assert caught.value.object == str(path)
        assert caught.value.hint
    with exclusive(path):
        with pytest.raises(LockedError), shared(path):
            pass
        with pytest.raises(LockedError), exclusive(path, wait_seconds=0.03):
            pass
    with exclusive(path), pytest.raises(LockedError), shared(path, wait_seconds=0.03):
        pass


def test_an_exception_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(KeyError), exclusive(path):
        raise KeyError
    with exclusive(path):
        pass


def hold(path: Path, connection: Connection) -> None:
    with exclusive(path):
        connection.send("held")
        connection.recv()


@pytest.mark.parametrize("end", ["killed", "done"])
def test_who_waits_gets_it_when_the_holder_ends_however_it_ends(tmp_path: Path, end: str) -> None:
    path = tmp_path / "lock"
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    holder = context.Process(target=hold, args=(path, theirs))
    holder.start()
    assert ours.recv() == "held"
    with pytest.raises(LockedError), shared(path):
        pass
    if end == "killed":
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
    else:
        ours.send("end")
    with exclusive(path, wait_seconds=30):
        pass
    holder.join()
    ours.close()
    theirs.close()


def test_what_cannot_be_locked_is_typed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "nowhere" / "lock", tmp_path, tmp_path / "link"):
        with pytest.raises(LockUnavailableError), shared(path):
            pass
    assert not (tmp_path / "elsewhere").exists()


def hold_together(path: Path, connection: Connection) -> None:
    """A writer that begins anew before it ends, as several writers at work look from outside."""
    first = shared(path, 30)
    first.__enter__()
    connection.send("held")
    connection.recv()
    second = shared(path, 30)  # the gate: it waits here while somebody waits to be alone
    first.__exit__(None, None, None)
    second.__enter__()
    connection.send("held again")
    second.__exit__(None, None, None)


def test_writers_who_come_and_go_do_not_keep_maintenance_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    writer = context.Process(target=hold_together, args=(path, theirs))
    writer.start()
    assert ours.recv() == "held"
    with _opened(path.with_name("lock.gate")) as gate:
        acquire(gate, path, exclusive=True, wait_seconds=0)  # as one does who waits to be alone
        ours.send("go on")
        with _opened(path) as lock:
            acquire(lock, path, exclusive=True, wait_seconds=30)  # the first has ended, the second not begun
            assert not ours.poll()
    assert ours.recv() == "held again"
    writer.join()
    ours.close()
    theirs.close()


def test_who_waits_to_be_alone_closes_the_gate_and_opens_it_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with shared(path):
        with pytest.raises(LockedError), exclusive(path, wait_seconds=0.03):
            pass
        with shared(path):
            pass
    with exclusive(path), pytest.raises(LockedError), exclusive(path):
        pass
    with shared(path):
        pass
