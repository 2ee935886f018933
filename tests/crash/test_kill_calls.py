"""R2: a process killed at any system call that changes something leaves the state before or the state after.

Every command, killed before its first call on the repository (or on the directory that it writes), its second, and so
on to its last, and half-way through each call that writes bytes; and then, where it was killed, the next command killed
again. The quick tier kills a commit and a revert, at one call of each sort and others drawn at random:

    python -m pytest tests/crash/test_kill_calls.py
    RBL_TEST_TIER=full python -m pytest tests/crash/test_kill_calls.py
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator

import pytest
from crash_stories import COMMANDS, Story, sampled, sort
from forked import Done, Server
from memory_folders import trial_folder
from tracing import DATA, Fault
from trials import FULL, Trials

QUICK = {"commit": 40, "revert": 26}
PAIRS = 2  # for each call of a command in the full tier


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with Server() as server, trial_folder() as folder:
        if server.traces is not None:
            pytest.skip(server.traces)
        yield Story(server, folder)


def said(done: Done) -> bool | None:
    """Whether a command that was killed had said that it was done; None where nothing is known."""
    return True if done.document is not None else None


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS if FULL else QUICK)
def test_a_kill_at_every_call(command: str, story: Story) -> None:
    calls = story.learn(command)
    moments = [("kill", call) for call in calls]
    moments += [("tear", call) if call.partition(" ")[0] in DATA else ("", "") for call in calls]
    # The last one is not reached: this run comes to its end.
    full = len(calls) + sum(action == "tear" for action, _ in moments) + 1
    with Trials("R2", f"kills at every call of {command}", quick=QUICK.get(command, 0), full=full) as run:
        order = sampled([f"{action} {sort(call)}" for action, call in moments], run.moment)
        faults = [Fault((at - 1) % len(calls) + 1, moments[at - 1][0]) for at in order if moments[at - 1][0]]
        faults.append(Fault(len(calls) + 100))
        for number in run:
            trial = story.trial(command)
            done = story.run(trial, faults[number % len(faults)])
            assert done.code == (-signal.SIGKILL if done.fired else 0), done.err
            run.count("after", story.check(command, trial, done=said(done) if done.fired else True))
        run.count("calls", len(calls))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS if FULL else ["commit"])
def test_a_kill_of_what_comes_next(command: str, story: Story) -> None:
    """Whoever opens the repository next undoes or completes what was left, and is killed at that."""
    calls = story.learn(command)
    full = PAIRS * len(calls)
    with Trials("R2", f"kills at a call of {command}, and at one of what comes next", quick=12, full=full) as run:
        for _ in run:
            trial = story.trial(command)
            first = story.run(trial, Fault(run.moment.randint(1, len(calls))))
            copy = trial.folder / "copy"
            if command != "init":
                shutil.copytree(trial.store, copy)
                recovery = story.server.run("-C", copy, "log", "--all", "--json", roots=(copy,))
                assert recovery.code == 0, recovery.err
                shutil.rmtree(copy)
                if recovery.calls:
                    fault = Fault(run.moment.randint(1, len(recovery.calls)))
                    second = story.server.run(
                        "-C", trial.store, "log", "--all", "--json", roots=(trial.store,), fault=fault
                    )
                    run.count("recoveries killed", int(second.fired > 0))
            if said(first) is None and run.moment.random() < 0.5:
                third = story.run(trial, Fault(run.moment.randint(1, len(calls))))
                assert third.code in (-signal.SIGKILL, 0, 1, 4), third.err
                run.count("commands killed again", int(third.fired > 0))
            story.check(command, trial, done=said(first))
