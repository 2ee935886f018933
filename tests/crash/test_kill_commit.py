"""Processes killed at random moments: what was acknowledged is there and whole, and nothing is half there.

The quick tier kills 20 times, with a seed that it prints; ``RBL_TEST_TIER=full`` kills 500 times. ``RBL_TEST_SEED``
repeats a run.
"""

from __future__ import annotations

import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from checkpoint_files import BYTES, digests, write_checkpoint

import rblstore

FULL = os.environ.get("RBL_TEST_TIER") == "full"
KILLS = {"small": 250, "large": 150, "checkout": 100} if FULL else {"small": 8, "large": 8, "checkout": 4}
SEED = int(os.environ.get("RBL_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit of a few kilobytes."""
    folder = tmp_path_factory.mktemp("small")
    with rblstore.init(folder / "store") as repo:
        repo.commit("small", identity=write_checkpoint(folder / "model", BYTES["small"], 1))
    return folder


@pytest.fixture(scope="session")
def large(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and a commit of 30 MB."""
    folder = tmp_path_factory.mktemp("large")
    shutil.copytree(small / "store", folder / "store")
    with rblstore.open(folder / "store") as repo:
        repo.commit("large", identity=write_checkpoint(folder / "model", BYTES["large"], 2))
    return folder


@pytest.fixture(scope="session")
def paces(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """How many seconds one round of a worker takes here and now: kills are spread over a little more than that."""
    folder = tmp_path_factory.mktemp("paces")
    shutil.copytree(small / "store", folder / "store")
    taken = {}
    with rblstore.open(folder / "store") as repo:
        for mode, size in BYTES.items():
            source = write_checkpoint(folder / mode, size, 5)
            start = time.monotonic()
            repo.commit(mode, identity=source)
            taken[mode] = time.monotonic() - start
        start = time.monotonic()
        repo.checkout("HEAD", folder / "out")
        taken["checkout"] = time.monotonic() - start
    return taken


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def worker(mode: str, store: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), mode, str(store), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        try:
            yield process
        finally:
            process.kill()


class Pipe:
    """The worker's end of the talk: whole lines, waited for no longer than asked."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._descriptor = stream.fileno()
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(stream, selectors.EVENT_READ)

    def lines(self, seconds: float, most: int | None = None) -> list[str]:
        """Lines that come within a time, at most so many."""
        until = time.monotonic() + seconds
        while most is None or self._buffer.count(b"\n") < most:
            remaining = until - time.monotonic()
            if remaining <= 0 or not self._selector.select(remaining):
                break
            data = os.read(self._descriptor, 1 << 16)
            if not data:
                break
            self._buffer += data
        *found, self._buffer = self._buffer.split(b"\n", -1 if most is None else most)
        return [line.decode() for line in found]

    def rest(self) -> list[str]:
        """What is in the pipe of a process that has ended; a line cut short is none."""
        while data := os.read(self._descriptor, 1 << 16):
            self._buffer += data
        self._selector.close()
        *found, _ = self._buffer.split(b"\n")
        return [line.decode() for line in found]


def killed(mode: str, store: Path, folder: Path, moment: random.Random, pace: float) -> list[str]:
    """Runs a worker, kills it at some moment after it began to work, and returns what it was acknowledged."""
    with worker(mode, store, folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pipe = Pipe(process.stdout)
        heard = pipe.lines(PATIENCE_SECONDS, 1)
        assert heard == ["ready"], process.stderr.read().decode()
        # Before a commit the worker writes what it will commit, and says so.
        lead = {"small": moment.choice((1, 3, 5)), "large": 1, "checkout": moment.choice((0, 1))}[mode]
        heard += pipe.lines(PATIENCE_SECONDS, lead)
        # The first round of a process takes longer than those of one that has everything imported.
        heard += pipe.lines(moment.uniform(0.0, (3.0 if mode == "large" else 1.5) * pace))
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
        heard += pipe.rest()
        assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()
    return [line for line in heard if line not in ("ready", "written")]


def check_commits(store: Path, folder: Path, before: list[str], acknowledged: list[str]) -> int:
    """Checks a repository whose worker was killed; returns how many commits it has that were not acknowledged."""
    with rblstore.open(store) as repo:
        commits = [str(entry.commit) for entry in repo.log()][::-1]
        assert commits[: len(before) + len(acknowledged)] == before + acknowledged
        unacknowledged = len(commits) - len(before) - len(acknowledged)
        assert unacknowledged in (0, 1)
        assert repo.fsck(full=True).damages == ()
        if len(commits) > len(before):
            repo.checkout("HEAD", folder / "head")
            message = repo.log(limit=1)[0].message
            assert digests(folder / "head") == digests(folder / message.removeprefix("commit "))
        after = repo.commit("after", identity=write_checkpoint(folder / "after", BYTES["small"], 3)).commit
        assert [str(entry.commit) for entry in repo.log()][::-1] == [*commits, str(after)]
        assert repo.fsck().damages == ()
    return unacknowledged


@pytest.mark.parametrize("mode", ["small", "large"])
def test_acknowledged_commits_outlive_a_kill(mode: str, small: Path, paces: dict[str, float], tmp_path: Path) -> None:
    print(f"RBL_TEST_SEED={SEED}")
    moment = random.Random(f"{SEED} {mode}")
    with rblstore.open(small / "store") as repo:
        before = [str(entry.commit) for entry in repo.log()][::-1]
    acknowledged = unacknowledged = leftovers = 0
    for number in range(KILLS[mode]):
        folder = tmp_path / str(number)
        store = folder / "store"
        shutil.copytree(small / "store", store)
        heard = killed(mode, store, folder, moment, paces[mode])
        leftovers += bool(list((store / ".rbl" / "tmp").iterdir()))
        acknowledged += len(heard)
        unacknowledged += check_commits(store, folder, before, heard)
        shutil.rmtree(folder)
    print(f"{KILLS[mode]} kills: {acknowledged} acknowledged, {unacknowledged} not, {leftovers} left files in tmp/")


def test_a_killed_checkout_is_there_whole_or_not_at_all(large: Path, paces: dict[str, float], tmp_path: Path) -> None:
    print(f"RBL_TEST_SEED={SEED}")
    moment = random.Random(f"{SEED} checkout")
    expected = digests(large / "model")
    for number in range(KILLS["checkout"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        heard = killed("checkout", large / "store", folder, moment, paces["checkout"])
        there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert set(heard) <= there
        assert len(there) - len(heard) in (0, 1)
        for name in there:
            assert digests(folder / name) == expected
            assert (folder / name / "rbl-composition.json").is_file()
        shutil.rmtree(folder)
    with rblstore.open(large / "store") as repo:
        assert repo.fsck(full=True).damages == ()


@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
def test_control_c_during_a_commit(signals: int, small: Path, tmp_path: Path) -> None:
    """Through the command line; whoever is too fast for us has committed, and we try again."""
    store = tmp_path / "store"
    shutil.copytree(small / "store", store)
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
