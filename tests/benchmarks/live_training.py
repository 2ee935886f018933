"""What watching and committing cost a training loop: the same without, with the guard, a run, a callback."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

from live_models import RANK, TARGETS, Subject, load
from live_switching import seconds

PLAIN, AGAIN, GUARD, GUARD_NOW, GUARD_TURN, TRAINING = (
    "no rblstore", "no rblstore, again", "guard, behind", "guard, at once", "guard, 64 MiB in turn, at once",
    "repo.training",
)  # fmt: skip
TRAINER, CALLBACK = "Trainer", "Trainer with RblCallback"
TURN_BYTES = 64 << 20
BRANCH = "training"

Step = Callable[[], None]


class Loop:
    """A model with a fresh LoRA adapter, and one step of training it.

    Args:
        subject: On what.
        least: Seconds that a step has to take; the batch grows until it does.
    """

    def __init__(self, subject: Subject, least: float) -> None:
        import peft
        import torch

        torch.manual_seed(0)
        config = peft.LoraConfig(r=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        self.model = peft.get_peft_model(load(subject.base), config).train()
        parameters = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        self.tokens = 8
        self.step()
        while min(seconds(self.step) for _ in range(3)) < least and self.tokens < 1 << 14:
            self.tokens *= 2

    def batch(self) -> Any:
        """Token ids, int64 of shape (1, tokens)."""
        import torch

        vocabulary = self.model.get_input_embeddings().num_embeddings
        return torch.randint(1, vocabulary, (1, self.tokens), generator=torch.Generator().manual_seed(1))

    def step(self) -> float:
        """Forward, backward and the optimizer; the loss."""
        ids = self.batch()
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)


def timed_loop(loop: Loop, around: AbstractContextManager[Callable[[float], object]], steps: int) -> dict[str, Any]:
    """Seconds of entering, of each step with what is called behind it, and of leaving."""
    start = time.perf_counter()
    cpu = time.process_time()
    taken: list[float] = []
    inside: list[float] = []
    with around as tell:
        entered = time.perf_counter()
        for _ in range(steps):
            begun = time.perf_counter()
            loss = loop.step()
            done = time.perf_counter()
            tell(loss)
            inside.append(time.perf_counter() - done)
            taken.append(time.perf_counter() - begun)
        left = time.perf_counter()
    end = time.perf_counter()
    return {
        "enter_s": entered - start, "loop_s": left - entered, "leave_s": end - left, "inside_s": sum(inside),
        "cpu_s": time.process_time() - cpu, "steps_s": taken,
    }  # fmt: skip


@contextmanager
def _guarded(repo: Any, loop: Loop, commit: str, **settings: Any) -> Iterator[Callable[[float], object]]:
    with repo.guard(loop.model, commit, **settings) as guard:
        yield lambda _: guard.step()


@contextmanager
def _training(repo: Any, loop: Loop, every: int) -> Iterator[Callable[[float], object]]:
    with repo.training(loop.model, behavior="trained", every=every, branch=BRANCH, guard_every=every) as run:
        yield lambda loss: run.step(loss=loss)


def _trainer_loop(loop: Loop, callbacks: list[Any], steps: int, folder: Path) -> dict[str, Any]:
    """The same steps by transformers' Trainer; what callbacks do after a step is in the step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        ended = 0.0

        def __init__(self) -> None:
            self.begun: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

    clock = Clock()
    ids = loop.batch()[0]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=1, learning_rate=1e-4,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    rows = [{"input_ids": ids, "labels": ids}] * steps
    start, cpu = time.perf_counter(), time.process_time()
    # The clock is the last callback: what the others do between two steps belongs to the first.
    Trainer(loop.model, arguments, train_dataset=rows, callbacks=[*callbacks, clock]).train()
    end = time.perf_counter()
    taken = [after - before for before, after in pairwise([*clock.begun, clock.ended])]
    return {
        "enter_s": clock.begun[0] - start, "loop_s": sum(taken), "leave_s": end - clock.ended,
        "cpu_s": time.process_time() - cpu, "steps_s": taken,
    }  # fmt: skip


def measure(subject: Subject, folder: Path, *, rounds: int, every: int, checks: int, least: float) -> dict[str, Any]:
    """Seconds of each kind of loop in every round but a first one, and of single checks.

    Args:
        subject: On what.
        folder: For what the Trainer writes.
        rounds: How many count.
        every: The guard checks, and runs commit, at every N-th step.
        checks: How many of those a loop has; it has steps enough to do what they leave behind.
        least: Seconds that a step takes at least.
    """
    import rblstore
    from rblstore.live.guard import IdentityGuard

    steps = (checks + 1) * every - 1
    with rblstore.open(subject.repository) as repo, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        repo.create_branch(BRANCH, subject.commits["base"])
        base = subject.commits["base"]
        loop = Loop(subject, least)
        kinds: dict[str, Callable[[], dict[str, Any]]] = {
            PLAIN: lambda: timed_loop(loop, nullcontext(lambda _: None), steps),
            AGAIN: lambda: timed_loop(loop, nullcontext(lambda _: None), steps),
            GUARD: lambda: timed_loop(loop, _guarded(repo, loop, base, every=every), steps),
            GUARD_NOW: lambda: timed_loop(loop, _guarded(repo, loop, base, every=every, background=False), steps),
            GUARD_TURN: lambda: timed_loop(
                loop, _guarded(repo, loop, base, every=every, background=False, sample=TURN_BYTES), steps
            ),
            TRAINING: lambda: timed_loop(loop, _training(repo, loop, every), steps),
        }
        kinds |= trainer_kinds(repo, loop, steps, every, folder)
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
        for number in range(rounds + 1):
            names = list(kinds)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                loop.model.train()
                found = kinds[name]()
                if number:
                    taken[name].append(found)
        single: dict[str, list[float]] = {}
        for threads in (1, 2):
            guard = IdentityGuard(loop.model, threads=threads)
            single[f"full, {threads} threads"] = [seconds(guard.check) for _ in range(3 * rounds)]
            guard.stop()
        guard = IdentityGuard(loop.model, sample=TURN_BYTES, background=False)
        single["64 MiB in turn"] = [seconds(guard.step) for _ in range(3 * rounds)]
    return {
        "steps": steps, "every": every, "checks": checks, "tokens": loop.tokens, "loops": taken, "check_s": single,
    }  # fmt: skip


def trainer_kinds(
    repo: Any, loop: Loop, steps: int, every: int, folder: Path
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The Trainer's loops, without and with the callback; none where the callback is not there."""
    try:
        from rblstore.integrations.transformers import RblCallback
    except ImportError:
        return {}

    def with_callback() -> dict[str, Any]:
        callback = RblCallback(repo, behavior="trained", every=every, branch=BRANCH, guard_every=every)
        return _trainer_loop(loop, [callback], steps, folder)

    return {TRAINER: lambda: _trainer_loop(loop, [], steps, folder), CALLBACK: with_callback}
