"""A change of a live model that fails, at any line, leaves the model as it was: structure, every value, outputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from live_stories import Story, assert_fresh, whole
from trials import Trials

import rblstore
from rblstore.operations import live_switch, live_values
from rblstore.operations.live_model import LiveModel
from rblstore.operations.revert import record_revert

# The files whose lines are the steps of a change.
STEPS = (
    "live/parking.py",
    "operations/live_switch.py",
    "operations/live_writing.py",
    "operations/live_values.py",
    "operations/live_places.py",
    "checkpoints/attaching.py",
)
CHANGES: dict[str, tuple[str, Callable[[LiveModel, Story], None]]] = {
    "put on": ("base", lambda live, story: live.switch(story.commits["a"])),
    "put on beside": ("a", lambda live, story: live.switch(story.commits["ab"])),
    "take off": ("a", lambda live, story: live.switch(story.commits["base"])),
    "replace": ("bias", lambda live, story: live.switch(story.commits["f"])),
    "bring biases": ("f", lambda live, story: live.switch(story.commits["bias"])),
    "merge": ("ab", lambda live, story: live.merge()),
    "overlay": ("ab", lambda live, story: live.switch(story.commits["abf"])),
}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    made = Story(tmp_path_factory.mktemp("faults"))
    yield made
    made.repo.close()


class Interrupted:
    """Raises at the N-th line that is run in the steps' files, once; None to count them only."""

    def __init__(self, at: int | None, error: type[BaseException]) -> None:
        self.at = at
        self.error = error
        self.lines = 0
        self.where = ""

    def __enter__(self) -> Interrupted:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        # The line of a `with` comes again at its end, before what it entered is left: raised there, nothing leaves it.
        torch.set_grad_enabled(True)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.endswith(STEPS) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise self.error("injected")
        return self._line


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("parked", [False, True], ids=["anew", "parked"])
def test_interrupted_anywhere(story: Story, change: str, parked: bool) -> None:
    name, action = CHANGES[change]
    home = story.commits[name]
    with story.repo.attach(story.load(name), home) as live:

        def back() -> None:
            live.switch(home, form="adapters")
            if not parked:
                live._state._lot.clear()

        action(live, story)
        after = whole(live.model)[1:]
        back()
        with Interrupted(None, RuntimeError) as counted:
            action(live, story)
        back()
        with Trials(f"live {change}", "interrupts of a change", quick=4, full=400) as run:
            for _ in run:
                error = run.moment.choice([KeyboardInterrupt, MemoryError])
                before = whole(live.model)
                injected = Interrupted(run.moment.randrange(1, counted.lines + 1), error)
                try:
                    with injected:
                        action(live, story)
                except (KeyboardInterrupt, MemoryError, rblstore.RblError):
                    pass
                assert not live._state.broken, injected.where
                now = whole(live.model)
                # What is raised once all is done leaves the state after; a third there is not.
                assert now == before or now[1:] == after, injected.where
                back()
        assert_fresh(live, story.load(name))


def test_interrupted_again_while_a_revert_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # pressing Ctrl-C twice
    story = Story(tmp_path)
    repo = story.repo
    head = str(repo.head)
    with story.repo, repo.attach(repo.load(), "HEAD") as live:
        before = whole(live.model)[1:]

        def revert(second: Interrupted) -> None:
            """Takes the behavior out, interrupted once the commit was made, and again at a line of what follows."""

            def interrupted(*arguments: Any) -> None:
                record_revert(*arguments)
                sys.settrace(second._call)
                frame: FrameType | None = sys._getframe()
                while (frame := frame.f_back) is not None:
                    if frame.f_code.co_filename.endswith(STEPS):
                        frame.f_trace = second._line
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr("rblstore.operations.live_proof.record_revert", interrupted)
                try:
                    live.revert("bias")
                except KeyboardInterrupt:
                    pass
                finally:
                    second.__exit__()

        revert(counted := Interrupted(None, KeyboardInterrupt))
        assert (live.commit, live._state.broken) == (repo.head, False)
        after = whole(live.model)[1:]
        with Trials("live revert", "second interrupts of a revert", quick=8, full=400) as run:
            for _ in run:
                repo.undo()
                assert repo.head == head
                live.switch("HEAD")
                assert whole(live.model)[1:] == before
                injected = Interrupted(run.moment.randrange(1, counted.lines + 1), KeyboardInterrupt)
                revert(injected)
                assert repo.head != head
                if live._state.broken:
                    run.count("said to be broken")
                    with pytest.raises(rblstore.ConflictError) as caught:
                        live.verify()
                    assert caught.value.code == "live_broken"
                else:
                    run.count("whole")
                    now = whole(live.model)[1:]
                    assert now == (before if "bias" in live.behaviors else after), injected.where
                    assert live.commit in (None, head, repo.head), injected.where
                live.switch("HEAD")
                assert (live.commit, whole(live.model)[1:] == after) == (repo.head, True), injected.where


def test_stored_bytes_that_cannot_be_read(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*given: Any, **_: Any) -> Any:
        if given[-1] != []:  # nothing is read where nothing is asked for
            raise rblstore.CorruptError("damaged")
        return []

    with story.repo.attach(story.load("a"), story.commits["a"], cache_bytes=0) as live:
        before = whole(live.model)
        for patched in ("contents", "laid out"):
            with monkeypatch.context() as patch:
                if patched == "contents":
                    patch.setattr("rblstore.operations.tensor_values.TensorValues.get", damaged)
                    patch.setattr("rblstore.operations.tensor_values.TensorValues.read_into", damaged)
                else:
                    patch.setattr(live_switch, "laid_out_behaviors", damaged)
                for name in ("abf", "bf"):
                    with pytest.raises(rblstore.CorruptError):
                        live.switch(story.commits[name])
                    assert whole(live.model) == before
        assert live.commit == story.commits["a"]
        live.switch(story.commits["abf"])
        assert_fresh(live, story.load("abf"))


def test_what_cannot_be_put_back_is_said_and_mended_by_a_switch(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    with story.repo.attach(story.load("ab"), story.commits["ab"]) as live:
        with monkeypatch.context() as patch:

            def fail(*_: Any) -> None:
                live.plain.model.norm.weight.data.zero_()
                raise RuntimeError("out of memory")

            patch.setattr(live_values.LiveValues, "write", fail)
            with pytest.raises(rblstore.ConflictError) as caught:
                live.switch(story.commits["abf"])
            assert caught.value.code == "live_broken"
        for action in (live.merge, live.verify, lambda: live.detach("a")):
            with pytest.raises(rblstore.ConflictError) as caught:
                action()
            assert caught.value.code == "live_broken"
        live.switch(story.commits["bf"])
        assert_fresh(live, story.load("bf"))
        live.detach("b")
        assert_fresh(live, story.fresh(live.composition))


def test_several_changes_that_cannot_be_taken_back_are_said_and_mended_by_a_switch(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    with story.repo.attach(story.load("a"), story.commits["a"]) as live:
        with monkeypatch.context() as patch, pytest.raises(rblstore.ConflictError) as caught, live._state.keeping():  # noqa: PT012
            live.switch(story.commits["abf"])

            def fail(*_: Any) -> None:
                raise RuntimeError("out of memory")

            patch.setattr(live_values.LiveValues, "write", fail)
            raise RuntimeError("the second change")
        assert caught.value.code == "live_broken"
        with pytest.raises(rblstore.ConflictError):
            live.verify()
        live.switch(story.commits["bf"])
        assert_fresh(live, story.load("bf"))


def test_a_proof_that_fails_takes_the_change_back(story: Story) -> None:
    with story.repo.attach(story.load("a"), story.commits["a"]) as live:
        before = whole(live.model)
        measured = []

        def proof() -> Callable[[], None]:
            measured.append(live.behaviors)

            def refuse() -> None:
                measured.append(live.behaviors)
                raise rblstore.DivergedError("no")

            return refuse

        with live.changing() as state, pytest.raises(rblstore.DivergedError):
            state.become(state.compositions.at(story.commits["ab"])[1], "merged", proof=proof)
        assert measured == [("a",), ("a", "b")]
        assert whole(live.model) == before
        assert torch.is_grad_enabled()
