"""R1: processes killed at random: what was acknowledged is there and whole, and nothing is half there.

A worker does one thing again and again, and says over a pipe what it has been acknowledged, until it is killed: half
of the time at a random moment of its first rounds, half of the time at, in or just after a random system call that
changes something. Then the repository is checked, and the next worker goes on in it, ten of them, before there is a
fresh one.

    python -m pytest tests/crash/test_kill_random.py
    RBL_TEST_TIER=full python -m pytest tests/crash/test_kill_random.py        # 10,000 kills
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import BYTES, digests, write_checkpoint, write_tuned
from crash_stories import left_in
from forked import Killed, Server, environment
from memory_folders import trial_folder
from tracing import Fault
from trials import Trials

import rblstore

# How many kills in the quick tier.
KILLS = {
    "small": 45,
    "large": 10,
    "revert": 35,
    "undo": 25,
    "tag": 15,
    "branch": 15,
    "checkout": 20,
    "repack": 25,
    "reindex": 10,
    "gc": 15,
    "repair": 8,
}
TIMES = 45  # more in the full one
SAID = ("commit", "tag", "branch", "operation", "delete")
IN_ONE_REPOSITORY = 10
FULL_CHECKS = 5
MOST_CALLS = 300
LATE_SECONDS = 0.002


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with trial_folder() as found:
        yield found


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """A repository with a base and a fine-tune of it, and what they were made from."""
    folder = folder / "made"
    base = write_checkpoint(folder / "base", BYTES["small"], 1)
    write_checkpoint(folder / "after", BYTES["small"], 3)
    write_tuned(folder / "more", base, 2)
    write_tuned(folder / "ft", base, 4)
    with rblstore.init(folder / "store") as repo:
        repo.commit("ft", identity=folder / "ft", compression="none")
        repo.create_branch("ft")
        repo.commit("base", identity=base, compression="none")
    return folder


class Repository:
    """The repository that workers are killed in, one after the other, and what is known of it."""

    def __init__(self, made: Path, folder: Path) -> None:
        shutil.copytree(made / "store", folder / "store")
        settings = folder / "store" / ".rbl" / "config.toml"
        settings.write_text(settings.read_text().replace("operations = 90 ", "operations = 0 "))
        self.made = made
        self.folder = folder
        self.store = folder / "store"
        with rblstore.open(self.store) as repo:
            self._operations = repo.operations()[::-1]

    def check(self, mode: str, killed: Killed, *, full: bool) -> int:
        """Checks what a killed worker left; returns how many operations there are that were not acknowledged."""
        if mode == "repair":
            # What it damaged is so until it is repaired.
            sources = [path for path in self.made.iterdir() if path.name != "store"]
            assert rblstore.repair(self.store, sources=sources, apply=True).whole
        with rblstore.open(self.store) as repo:
            operations = repo.operations()[::-1]
            assert _without_undone(operations[: len(self._operations)]) == _without_undone(self._operations)
            new = operations[len(self._operations) :]
            said = [one for one in killed.acknowledged if one[0] in SAID]
            assert len(new) - len(said) in (0, 1), (said, new)
            for (kind, name), operation in zip(said, new, strict=False):
                if kind == "operation":
                    assert operation.id == name
                elif kind == "commit":
                    assert operation.changes[0].after == name
                    if mode != "gc":
                        repo.show(name)
                elif kind == "delete" or mode == "gc":
                    assert operation.description == {"delete": "branch: delete", "branch": "branch:"}[kind] + f" {name}"
                else:
                    assert operation.description == f"{kind}: {name}"
                    assert repo.resolve(name) in {entry.commit for entry in repo.log()}
            assert repo.fsck(full=full).damages == ()
            self._check_checkout(repo, "HEAD")
            if full:
                self._check_checkout(repo, "ft")
            repo.commit("after", identity=self.made / "after", remove=[slot.name for slot in repo.log()[0].slots])
            repo.undo()
            self._operations = repo.operations()[::-1]
            assert len(self._operations) == len(operations) + 2
            assert repo.fsck().damages == ()
            repo.gc(apply=True)
        assert left_in(self.folder) == []
        return len(new) - len(said)

    def _check_checkout(self, repo: Any, revision: str) -> None:
        word, _, name = repo.log(revision, limit=1)[0].message.partition(" ")
        source = {"commit": self.folder / name, "add": self.made / "more", "ft": self.made / "ft"}.get(word)
        target = self.folder / "check"
        repo.checkout(revision, target)
        assert digests(target) == digests(source or self.made / "base")
        shutil.rmtree(target)

    def check_checkouts(self, killed: Killed) -> int:
        """Checks the directories that a worker checked out; returns how many of them it had not said."""
        expected = digests(self.made / "base")
        said = {name for kind, name in killed.acknowledged if kind == "checkout"}
        there = {path.name for path in self.folder.glob("out*")}
        assert said <= there
        assert len(there) - len(said) in (0, 1)
        for name in there:
            assert digests(self.folder / name) == expected
            assert (self.folder / name / "rbl-composition.json").is_file()
            shutil.rmtree(self.folder / name)
        return len(there) - len(said)


def _without_undone(operations: Sequence[Any]) -> list[Any]:
    return [(one.id, one.sequence, one.description, one.changes) for one in operations]


@cache
def _pace(server: Server, mode: str, made: Path) -> float:
    """How many seconds one round of a worker takes here and now: kills are spread over a little more than that."""
    folder = made.parent / f"pace-{mode}"
    repository = Repository(made, folder)
    server.employ(mode, repository.store, folder, made / "more")
    server.hear(6)
    killed = server.dismiss()
    shutil.rmtree(folder)
    return killed.seconds / 6


def _kill(server: Server, mode: str, repository: Repository, moment: random.Random, pace: float) -> Killed:
    work = (mode, repository.store, repository.folder, repository.made / "more")
    if server.traces is None and moment.random() < 0.5:
        late = moment.uniform(0.0, LATE_SECONDS) if moment.random() < 0.5 else None
        fault = Fault(moment.randint(1, MOST_CALLS), delay=late)
        server.employ(*work, fault)
        return server.dismiss()
    lead = moment.choice((0, 1, 2))
    # The first round of a process takes longer than those of one that has a repository open.
    seconds = moment.uniform(0.0, (3.0 if lead == 0 else 1.5) * pace)
    server.employ(*work)
    server.hear(lead, seconds)
    return server.dismiss()


@pytest.mark.slow
@pytest.mark.parametrize("mode", KILLS)
def test_what_was_acknowledged_outlives_a_kill(mode: str, server: Server, made: Path, folder: Path) -> None:
    pace = _pace(server, mode, made)
    repository = None
    with Trials("R1", f"kills at random: {mode}", quick=KILLS[mode], full=TIMES * KILLS[mode]) as run:
        for number in run:
            if repository is None or number % IN_ONE_REPOSITORY == 0:
                if repository is not None:
                    shutil.rmtree(repository.folder)
                repository = Repository(made, folder / f"{mode}-{number}")
            killed = _kill(server, mode, repository, run.moment, pace)
            run.count("acknowledged", len(killed.acknowledged))
            run.count("left files in tmp", bool(list((repository.store / ".rbl" / "tmp").iterdir())))
            if mode == "checkout":
                run.count("not acknowledged", repository.check_checkouts(killed))
            full = run.moment.randrange(FULL_CHECKS) == 0
            run.count("not acknowledged", repository.check(mode, killed, full=full))
    if repository is not None:
        shutil.rmtree(repository.folder)


@pytest.mark.slow
def test_a_process_of_its_own(made: Path, tmp_path: Path) -> None:
    """The same through the command line, with an interpreter of its own: whoever hears nothing may have committed."""
    store = tmp_path / "store"
    shutil.copytree(made / "store", store)
    command = [sys.executable, "-m", "rblstore", "commit", "-m", "killed", "--allow-empty", "--json", "--identity"]
    start = time.monotonic()
    subprocess.run([*command, str(made / "after")], cwd=store, env=environment(), check=True, capture_output=True)
    taken = time.monotonic() - start
    with Trials("R1", "kills at random: python -m rblstore commit", quick=5, full=200) as run:
        for number in run:
            source = write_checkpoint(tmp_path / f"source{number}", BYTES["small"], 100 + number)
            with rblstore.open(store) as repo:
                before = len(repo.log())
            with subprocess.Popen(
                [*command, str(source)],
                cwd=store,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(),
            ) as process:
                try:
                    # Most of it is the interpreter's start and its imports.
                    process.wait(run.moment.uniform(0.3, 1.1) * taken)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                assert process.stdout is not None
                heard = process.stdout.read()
            run.count("acknowledged", bool(heard))
            with rblstore.open(store) as repo:
                assert len(repo.log()) - before in ((1,) if heard else (0, 1))
                assert repo.fsck(full=True).damages == ()
                if len(repo.log()) > before:
                    repo.checkout("HEAD", tmp_path / "out")
                    assert digests(tmp_path / "out") == digests(source)
                    shutil.rmtree(tmp_path / "out")
            shutil.rmtree(source)
