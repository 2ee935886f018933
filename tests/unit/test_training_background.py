"""What happens behind a training loop: in order, one waiting at most, and errors that come to light."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from training_stories import Bench, make_bench, nudge

import rblstore
from rblstore.operations.background import BackgroundWorker
from rblstore.operations.snapshot_commit import SnapshotCommitter
from rblstore.storage.durable import StagedFile, WriteError

WAIT = 30.0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = make_bench(tmp_path, tiny_models.llama())
    with bench.repo:
        yield bench


class Gate:
    """Keeps whoever writes at the door until it is opened."""

    def __init__(self) -> None:
        self.inside, self.open = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.inside.set()
        assert self.open.wait(WAIT)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Every commit of a run waits at it."""
    gate, commit = Gate(), SnapshotCommitter.commit

    def slow(self: Any, *arguments: Any) -> Any:
        gate.pass_through()
        return commit(self, *arguments)

    monkeypatch.setattr(SnapshotCommitter, "commit", slow)
    return gate


def steps(repo: Any) -> list[str]:
    return [entry.message.rpartition(" ")[2] for entry in reversed(repo.log("main"))][1:]


class TestOrder:
    def test_a_loop_goes_on_while_it_is_written(self, bench: Bench, gate: Gate) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "x", every=1) as run:
            for step in range(2):
                nudge(model, step)
                assert run.step()  # the second waits, the first is being written
            assert gate.inside.wait(WAIT)
            assert run.commits == []
            gate.open.set()
        assert steps(bench.repo) == ["1", "2"]

    def test_a_third_waits(self, bench: Bench, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        wait, waited = BackgroundWorker._wait, []

        def opening(self: Any) -> None:
            waited.append(len(run.commits))
            gate.open.set()
            wait(self)

        model = bench.adapted()
        with bench.repo.training(model, "x", every=1) as run:
            for step in range(2):
                nudge(model, step)
                run.step()
                assert gate.inside.wait(WAIT)
            nudge(model, 2)
            monkeypatch.setattr(BackgroundWorker, "_wait", opening)
            assert run.step()
            assert waited[0] == 0
            assert len(run.commits) >= 1
        assert (steps(bench.repo), run.skipped) == (["1", "2", "3"], [])

    def test_a_third_is_skipped_and_reported(self, bench: Bench, gate: Gate) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "x", every=1, on_busy="skip") as run:
            taken = []
            for step in range(4):
                nudge(model, step)
                taken.append(run.step())
                assert gate.inside.wait(WAIT)
            assert (taken, run.skipped) == ([True, True, False, False], [3, 4])
            gate.open.set()
        assert steps(bench.repo) == ["1", "2", "4"]  # the last state is never skipped
        said = {claim.key: claim.value for claim in bench.repo.audit().components[1].claims}
        assert said["meta.skipped_snapshots"] == "2"

    def test_a_snapshot_is_of_its_own_moment(self, bench: Bench, gate: Gate) -> None:
        model = bench.adapted()
        bench.repo.create_branch("reference")
        with bench.repo.training(model, "x", every=1) as run:
            for step in range(2):
                nudge(model, step)
                run.step()
                bench.repo.commit("reference", behaviors={"x": model}, branch="reference")
            nudge(model, 9)
            gate.open.set()
            run.wait()
            references = [entry.composition for entry in reversed(bench.repo.log("reference"))][1:]
            assert [one.composition for one in run.commits] == references


class TestErrors:
    def test_a_branch_that_somebody_else_moved(self, bench: Bench, tmp_path: Path) -> None:
        model = bench.adapted()
        with pytest.raises(rblstore.ConflictError) as caught, bench.repo.training(model, "x", every=1) as run:  # noqa: PT012
            bench.repo.commit("mine", behaviors={"y": tiny_models.save_adapter(bench.base, tmp_path / "y")})
            nudge(model)
            run.step()
            with pytest.raises(rblstore.ConflictError) as first:
                run.wait()
            for _ in range(2):
                with pytest.raises(rblstore.ConflictError) as again:
                    run.step()
                assert again.value is first.value
        assert caught.value is first.value
        assert caught.value.code == "ref_moved"
        assert [entry.message for entry in bench.repo.log()] == ["mine", "base"]
        assert bench.repo.fsck(full=True).damages == ()

    def test_a_full_disk(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        model = bench.adapted()
        full = WriteError("cannot write: no space left on device", object="pack", hint="Free some space.")

        def refuse(self: Any, data: Any) -> None:
            raise full

        with pytest.raises(WriteError) as caught, bench.repo.training(model, "x", every=1) as run:  # noqa: PT012
            nudge(model)
            run.step()
            run.wait()
            nudge(model, 1)
            monkeypatch.setattr(StagedFile, "write", refuse)
            run.step()
            with pytest.raises(WriteError):
                run.wait()
            monkeypatch.undo()
        assert caught.value is full
        assert run.error is full
        assert steps(bench.repo) == ["1"]
        assert not list((bench.repo.path / ".rbl" / "tmp").iterdir())
        assert bench.repo.fsck(full=True).damages == ()
        with bench.repo.training(model, "x") as run:  # and once there is room
            nudge(model, 2)
        assert len(run.commits) == 1

    def test_the_loops_own_exception_is_not_hidden(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        model = bench.adapted()

        def refuse(self: Any, *arguments: Any) -> None:
            raise WriteError("no")

        monkeypatch.setattr(SnapshotCommitter, "commit", refuse)
        with pytest.raises(ZeroDivisionError), bench.repo.training(model, "x", every=1) as run:  # noqa: PT012
            nudge(model)
            run.step()
            raise ZeroDivisionError
        assert isinstance(run.error, WriteError)

    def test_an_error_at_the_very_end(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        model = bench.adapted()

        def refuse(self: Any, *arguments: Any) -> None:
            raise WriteError("no")

        monkeypatch.setattr(SnapshotCommitter, "commit", refuse)
        with pytest.raises(WriteError), bench.repo.training(model, "x"):
            nudge(model)
        assert steps(bench.repo) == []
        monkeypatch.undo()
        with bench.repo.training(model, "x"):
            pass
        assert steps(bench.repo) == ["0"]

    def test_an_interrupt_ends_the_wait(self, bench: Bench, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        model = bench.adapted()
        run = bench.repo.training(model, "x", every=1)
        join = threading.Thread.join

        def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
            if self.name == "rbl-training":
                raise KeyboardInterrupt
            join(self, timeout)

        run.start()
        for step in range(2):
            nudge(model, step)
            run.step()
            assert gate.inside.wait(WAIT)
        (writer,) = [thread for thread in threading.enumerate() if thread.name == "rbl-training"]
        with monkeypatch.context() as patches:
            patches.setattr(threading.Thread, "join", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run.abandon()
        gate.open.set()
        writer.join(WAIT)
        assert steps(bench.repo) == ["1"]  # what was being written is whole, what waited was dropped
        assert bench.repo.fsck(full=True).damages == ()


class TestForks:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_child_cannot_carry_on(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "x", every=1) as run:
            nudge(model)
            run.step()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    run.step()
                except rblstore.RblError as error:
                    code = 0 if error.code == "run_elsewhere" else 2
                    run.abandon()  # as leaving the block does; must neither wait nor write
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert steps(bench.repo) == ["1"]


class TestWorker:
    def test_nothing_is_done_after_an_error(self) -> None:
        done: list[int] = []
        closed: list[int] = []
        started, go = threading.Event(), threading.Event()

        def do(work: int) -> None:
            started.set()
            assert go.wait(WAIT)
            done.append(work)
            raise WriteError(str(work))

        worker = BackgroundWorker(do, lambda: closed.append(1))
        for work in (1, 2):
            assert worker.reserve(wait=True)
            worker.put(work)
            assert started.wait(WAIT)
        assert not worker.reserve(wait=False)
        go.set()
        worker.wait()
        with pytest.raises(WriteError, match="1"):
            worker.reserve(wait=True)
        worker.end()
        assert (done, closed) == ([1], [1])
        with pytest.raises(WriteError, match="1"):
            worker.check()
