"""Ctrl-C during a commit: exit 130, the state before, and nothing half there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import BYTES, write_checkpoint
from forked import PATIENCE_SECONDS, environment

import rblstore


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A repository with one commit of a few kilobytes."""
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("small", identity=write_checkpoint(tmp_path / "model", BYTES["small"], 1))
    return tmp_path / "store"


@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
def test_control_c_during_a_commit(signals: int, store: Path, tmp_path: Path) -> None:
    """Through the command line; whoever is too fast for us has committed, and we try again."""
    source = write_checkpoint(tmp_path / "source", 60_000_000, 4)
    staged = store / ".rbl" / "tmp"
    command = [sys.executable, "-m", "rblstore", "commit", "-m", "x", "--allow-empty", "--identity", str(source)]
    for attempt in range(5):
        before = state(store)
        packs = sorted(store.rglob("*.pack"))
        with subprocess.Popen(
            command, cwd=store, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as process:
            while process.poll() is None and not any(path.stat().st_size for path in staged.iterdir()):
                pass  # It has not begun to write.
            for _ in range(signals):
                process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode == 0) == (state(store) != before)
        if process.returncode != 0:
            assert process.returncode == 130, said.decode()
            assert said.decode() == "interrupted; nothing is half done\n"
            assert out == b""
            assert sorted(store.rglob("*.pack")) == packs
            break
        source = write_checkpoint(tmp_path / f"source{attempt}", 60_000_000, 5 + attempt)
        command[-1] = str(source)
    else:
        pytest.fail("five commits of 60 MB were faster than a signal")
    with rblstore.open(store) as repo:
        assert repo.fsck(full=True).damages == ()
        repo.commit("after", identity=source)


def state(store: Path) -> object:
    with rblstore.open(store) as repo:
        return repo.log(all=True), repo.operations(), repo.branches()
