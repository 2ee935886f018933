"""R2: what the harnesses see of a process's system calls is what strace sees; and kills by strace itself.

:mod:`tracing` stands in for ``strace -e inject=``, which would start an interpreter for each kill, and count each
thread's calls for itself, those on other files included. Here it is held against strace, on the real ``python -m
rblstore``.

    python -m pytest tests/crash/test_system_calls.py
    RBL_TEST_TIER=full python -m pytest tests/crash/test_system_calls.py
"""

from __future__ import annotations

import errno
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from crash_stories import Story, Trial
from forked import PATIENCE_SECONDS, Server, environment
from memory_folders import trial_folder
from tracing import CALLS, READS, Fault
from trials import Trials

_LINE = re.compile(r"(\d+) +(\w+)\((.*)", re.DOTALL)
# How many connections to the catalog threads open depends on their pace, and which packs share a folder on their ids.
_CHANCE = re.compile(r'open.*/catalog\.db(?:"|$)|(?:mkdir|fsync).*/packs(?:/[0-9a-f]{2})?(?:[">]|$)')


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with Server() as server, trial_folder() as folder:
        if server.traces is not None:
            pytest.skip(server.traces)
        yield Story(server, folder)


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    done = subprocess.run([found, "-f", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    return found


def straced(strace: str, trial: Trial, output: Path, *options: str) -> int:
    """Runs a trial's command as a user would, under strace; returns its exit code."""
    command = [strace, "-f", "-qq", "-y", "-s", "0", "-o", str(output), *options]
    return subprocess.run(
        [*command, sys.executable, "-m", "rblstore", *trial.arguments],
        env={**environment(), "PYTHONHASHSEED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=PATIENCE_SECONDS,
        check=False,
    ).returncode


def steady(calls: Sequence[str]) -> Counter[str]:
    """How many calls there are of each name, but for those that are there by chance."""
    return Counter(call.partition(" ")[0] for call in calls if not _CHANCE.match(call))


def calls_of(output: Path, names: Sequence[str], folder: Path, *, chance: bool = True) -> list[tuple[str, str, int]]:
    """(thread, name, the how-manieth of this name in this thread) of each call that changes something in a folder.

    Args:
        output: What strace wrote.
        names: Of the calls.
        folder: Only calls that name something in it.
        chance: Whether to give those, too, that are there by chance.
    """
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for line in output.read_text().splitlines():
        match = _LINE.match(line)
        if match is None or match[2] not in names:
            continue
        thread, name, arguments = match.groups()
        counts[thread, name] += 1
        reading = name.startswith("open") and not re.search("O_CREAT|O_WRONLY|O_RDWR|O_TRUNC", arguments)
        passed_over = not chance and _CHANCE.match(f"{name} {arguments}")
        if str(folder) in arguments and not reading and not passed_over:
            found.append((thread, name, counts[thread, name]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", ["commit", "checkout"])
def test_strace_sees_the_same_calls(command: str, story: Story, strace: str, tmp_path: Path) -> None:
    names = sorted(CALLS.keys() - READS)
    ours = story.run(story.trial(command), fresh=True)
    assert ours.code == 0, ours.err
    trial = story.trial(command)
    assert straced(strace, trial, tmp_path / "calls", "-e", f"trace={','.join(names)}") == 0
    theirs = calls_of(tmp_path / "calls", names, trial.folder, chance=False)
    assert steady(ours.calls) == Counter(name for _, name, _ in theirs)
    assert len(theirs) > 15
    forked = story.run(story.trial(command))
    assert steady(forked.calls) == Counter(name for _, name, _ in theirs)


@pytest.mark.slow
def test_strace_kills_a_commit(story: Story, strace: str, tmp_path: Path) -> None:
    names = sorted(CALLS.keys() - READS)
    story.learn("commit")
    trial = story.trial("commit")
    assert straced(strace, trial, tmp_path / "calls", "-e", f"trace={','.join(names)}") == 0
    calls = calls_of(tmp_path / "calls", names, trial.folder)
    with Trials("R2", "kills at a call of commit, by strace", quick=4, full=400) as run:
        for _ in run:
            trial = story.trial("commit")
            _, name, when = run.moment.choice(calls)
            inject = ("-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={when}")
            code = straced(strace, trial, tmp_path / "killed", *inject)
            assert code in (0, -signal.SIGKILL, 128 + signal.SIGKILL)
            run.count("killed", code != 0)
            run.count("after", story.check("commit", trial, done=True if code == 0 else None))


def test_a_fault_happens_where_it_should(story: Story) -> None:
    """What the harnesses stand on: a call that is failed is not made, and says the error that was asked for."""
    calls = story.learn("tag")
    at = next(number for number, call in enumerate(calls, 1) if call.startswith("write") and "/tmp/" in call)
    trial = story.trial("tag")
    failed = story.run(trial, Fault(at, "error", errno.EDQUOT))
    assert failed.fired == 1
    assert failed.document["code"] == "write_failed"
    assert "quota" in failed.document["error"].lower()
    story.check("tag", trial, done=False)
    trial = story.trial("tag")
    killed = story.run(trial, Fault(at))
    assert killed.code == -signal.SIGKILL
    assert len(killed.calls) == at
    assert killed.out == ""
    assert [path for path in (trial.store / ".rbl" / "tmp").iterdir() if path.stat().st_size == 0] != []
    story.check("tag", trial, done=False)
