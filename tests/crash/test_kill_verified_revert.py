"""R2: a revert that proves itself on the live model, in a process of its own, killed at a system call.

python -m pytest tests/crash/test_kill_verified_revert.py
RBL_TEST_TIER=full python -m pytest tests/crash/test_kill_verified_revert.py
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
from crash_stories import left_in, sampled, sort
from forked import Server
from memory_folders import trial_folder
from tiny_checkpoints import checked_out, digests
from tracing import Fault
from trials import FULL, Trials

import rblstore

PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        if running.traces is not None:
            pytest.skip(running.traces)
        yield running


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A repository with a model, a behavior and a probe."""
    with trial_folder() as folder:
        model = tiny_models.llama()
        tiny_models.save(model, folder / "base")
        tiny_models.save_adapter(model, folder / "polite")
        with rblstore.init(folder / "store") as repo:
            repo.commit("base", identity=folder / "base")
            repo.add_probe("ids", PROMPTS, default=True)
            repo.commit("polite", behaviors={"polite": folder / "polite"})
        yield folder


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="takes minutes: RBL_TEST_TIER=full")
def test_a_killed_revert_with_its_proof(server: Server, made: Path) -> None:
    revert = ("revert", "--behavior", "polite", "--json")
    whole = shutil.copytree(made / "store", made / "whole")
    calls = server.run("-C", whole, *revert, roots=(whole,), fresh=True).calls
    assert len(calls) > 50
    with Trials("R2", "kills at calls of a verified revert", quick=1, full=10) as run:
        numbers = sampled([sort(call) for call in calls], run.moment)
        run.moment.shuffle(numbers)
        for number in run:
            folder = made / f"trial{number}"
            folder.mkdir()
            store = shutil.copytree(made / "store", folder / "store")
            done = server.run("-C", store, *revert, roots=(store,), fault=Fault(numbers[number]), fresh=True)
            assert done.code == (-signal.SIGKILL if done.fired else 0), done.err
            with rblstore.open(store) as repo:
                commits = repo.log()
                assert len(commits) in (2, 3)
                assert repo.fsck(full=True).damages == ()
                if len(commits) == 3:
                    (evidence,) = commits[0].verifications
                    assert evidence.verdict == "exact"
                run.count("after", len(commits) == 3)
            if len(commits) == 2:
                again = server.run("-C", store, *revert, roots=(store,), fresh=True)
                assert again.code == 0, again.err
                assert again.document["verdict"] == "exact"
            with rblstore.open(store) as repo:
                repo.checkout("HEAD", folder / "out")
                assert checked_out(folder / "out") == digests(made / "base")
                repo.gc(apply=True)
                assert repo.fsck(full=True).damages == ()
            assert left_in(folder) == []
            shutil.rmtree(folder)
