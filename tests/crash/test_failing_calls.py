"""R4: a system call that fails, whichever: a typed error, the state before, and a retry that succeeds.

Every call of every command that changes something in the repository (or the directory that it writes) or opens a file
there fails in turn, SQLite's too: with EIO and with ENOSPC, once, or from then on for good; or takes fewer bytes than
it was given, or is interrupted. The quick tier fails a call of each sort of a commit, a revert and a checkout; the full
one all calls of all commands:

    python -m pytest tests/crash/test_failing_calls.py tests/crash/test_full_disk.py
    RBL_TEST_TIER=full python -m pytest tests/crash/test_failing_calls.py tests/crash/test_full_disk.py
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_stories import COMMANDS, Story, sampled, sort
from forked import Done, Server
from memory_folders import leave_free, small_disk, trial_folder
from tracing import DATA, Fault
from trials import FULL, Trials

QUICK = {"commit": 44, "revert": 20, "checkout": 12}
MADE_ALL_THE_SAME = ("log_behind", "commit_outcome_unknown", "init_unfinished", "gc_unfinished")
DISK, PAGE, PAGES = 16 << 20, 4 << 10, 100
INTERRUPTIBLE = frozenset({"write", "pwrite64", "openat"})


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with Server() as server, trial_folder() as folder:
        if server.traces is not None:
            pytest.skip(server.traces)
        yield Story(server, folder)


def said(done: Done, call: str) -> bool | None:
    """Whether a command said that the change was made; None where it said that it does not know."""
    assert "Traceback" not in done.err, done.err
    document = done.document
    assert isinstance(document, dict), (done.code, done.out, done.err)
    if done.code == 0:
        assert "error" not in document
        return True
    if done.code == 6 and "whole" in document:  # a repair that says what is damaged still
        assert document["whole"] is False
        assert document["remaining"] or document["lost"]
        return None
    assert set(document) >= {"error", "code", "object", "hint", "exit_code"}
    assert document["exit_code"] == done.code
    assert document["error"]
    assert done.code in (1, 6, 7), (call, document)
    if document["code"] in MADE_ALL_THE_SAME:
        return None
    return False


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("command", COMMANDS if FULL else QUICK)
def test_a_call_that_fails(command: str, lasting: bool, story: Story) -> None:
    calls = story.learn(command, opens=True)
    how = "for good" if lasting else "once"
    with Trials("R4", f"calls of {command} that fail {how}", quick=QUICK.get(command, 0), full=2 * len(calls)) as run:
        numbers = sampled([sort(call) for call in calls], run.moment)
        for number in run:
            at = numbers[number % len(numbers)]
            code = (errno.EIO, errno.ENOSPC)[(number + number // len(numbers)) % 2]
            trial = story.trial(command)
            done = story.run(trial, Fault(at, "error", code, lasting), opens=True)
            # Ids follow from times, and how many pages of the catalog change from ids: there may be a call less.
            call = done.calls[at - 1] if done.fired else "none"
            assert done.fired or done.code == 0
            made = said(done, call)
            run.count(f"exit {done.code}")
            try:
                story.check(command, trial, done=made)
            except AssertionError as error:
                raise AssertionError(f"call {at} ({call}), {errno.errorcode[code]}: {done}") from error
        run.count("calls", len(calls))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS if FULL else ["commit"])
def test_calls_that_fall_short(command: str, story: Story) -> None:
    """The system may take fewer bytes than it was offered: whoever writes goes on with the rest."""
    calls = story.learn(command, names=DATA)
    with Trials("R4", f"short writes of {command}", quick=6, full=len(calls) + 1) as run:
        numbers = sampled([sort(call) for call in calls], run.moment)
        for number in run:
            trial = story.trial(command)
            # All of them at last.
            fault = Fault((numbers[number:] or [1])[0], "short", lasting=number % 2 == 0 or number == len(calls))
            done = story.run(trial, fault, names=DATA)
            assert done.code == 0, done.err
            assert said(done, "") is True
            story.check(command, trial, done=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS if FULL else ["commit"])
def test_calls_that_are_interrupted(command: str, story: Story) -> None:
    """A signal may interrupt what waits: a write is asked for again, and so is a file; a folder need not be."""
    calls = story.learn(command, names=INTERRUPTIBLE)
    with Trials("R4", f"interrupted calls of {command}", quick=6, full=len(calls)) as run:
        numbers = sampled([sort(call) for call in calls], run.moment)
        for number in run:
            trial = story.trial(command)
            at = numbers[number % len(numbers)]
            done = story.run(trial, Fault(at, "error", errno.EINTR), names=INTERRUPTIBLE)
            call = done.calls[at - 1] if done.fired else "none"
            made = said(done, call)
            run.count(f"exit {done.code}")
            # The system has no promise for opening a folder, which the interpreter asks for once.
            assert made or call.startswith("openat"), (call, done.err)
            story.check(command, trial, done=made)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS if FULL else ["repack"])
def test_a_disk_that_is_full(command: str, tmp_path: Path) -> None:
    """Room for some of what a command writes: where it runs out, what follows fails, too."""
    (tmp_path / "trials").mkdir()
    with Server() as server, small_disk(tmp_path / "trials", DISK) as disk:
        story = Story(server, tmp_path)
        story.learn(command)
        with Trials("R4", f"{command} on a disk that is full", quick=8, full=150) as run:
            for _ in run:
                trial = story.trial(command)
                leave_free(disk, PAGE * run.moment.randrange(PAGES), tmp_path / "trials" / "filler")
                done = story.run(trial)
                (tmp_path / "trials" / "filler").unlink()
                run.count(f"exit {done.code}")
                story.check(command, trial, done=said(done, ""))
