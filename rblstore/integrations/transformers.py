"""Training with ``transformers.Trainer``, and with whatever is one (TRL's trainers, for example).

::

    from rblstore.integrations.transformers import RblCallback

    callback = RblCallback(repo, "polite", every=100, save_state=True)
    trainer = Trainer(model=peft_model, args=args, train_dataset=data, callbacks=[callback])
    trainer.train()
    callback.commits[-1].commit

and, in another process, to go on exactly where a commit was made::

    with callback.resume_checkpoint("main") as folder:
        trainer.train(resume_from_checkpoint=folder)
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from transformers import TrainerCallback

from rblstore import __version__
from rblstore.operations.trainer_checkpoint import TRAINER_KEY, trainer_checkpoint
from rblstore.operations.training import TrainingRun
from rblstore.operations.training_facts import OnBusy, TrainingOptions

if TYPE_CHECKING:
    from rblstore.api import Repository
    from rblstore.configuration import Compression
    from rblstore.live.mutations import Mutation
    from rblstore.operations.commit import CommitResult
    from rblstore.operations.progress import Progress
    from rblstore.operations.verify import VerificationResult
    from rblstore.repository import Store

__all__ = ["RblCallback", "resume_checkpoint"]


def _store(repo: Repository) -> Store:
    return repo._store  # noqa: SLF001 - the kernel is nobody's business but the library's own


@contextmanager
def resume_checkpoint(repo: Repository, revision: str = "HEAD", *, progress: Progress | None = None) -> Iterator[str]:
    """A folder for ``trainer.train(resume_from_checkpoint=...)``, made from a commit; it goes away with the block.

    Args:
        repo: The repository.
        revision: A commit that a :class:`RblCallback` with ``save_state=True`` made.
        progress: Is told bytes read.

    Raises:
        NotFoundError: The commit has no training state.
        ConflictError: It has one of another kind of loop.
    """
    with trainer_checkpoint(_store(repo), revision, progress) as checkpoint:
        yield str(checkpoint.folder)


class RblCallback(TrainerCallback):  # type: ignore[misc]
    """Commits what a Trainer trains: every N optimizer steps and at the end, from memory, behind the training.

    The branch is pinned when training begins. Only the first process of several commits. A step that is logged or
    evaluated is committed after that, with its loss, and with the random state in which training goes on.

    The Trainer does not tell callbacks that training has failed. What had been handed over by then is still finished;
    the run ends when the callback trains again, is closed, or is no longer referred to, and with the process at the
    latest. As a context manager the callback is closed at the end of its block.

    Args:
        repo: The repository; its branch has the model that is trained on.
        behavior: The behavior's name. Of a ``PeftModel`` the adapter is committed, of any other model an overlay.
        every: Commit at every N-th optimizer step.
        probe: The probe to verify under at the end.
        branch: Where to commit; None for HEAD's branch as it is when training begins.
        guard: Whether to watch the tensors that are not trained: True raises ``IdentityMutated``, ``record`` keeps what
            it finds.
        guard_every: Watch at every N-th step.
        save_state: Whether each commit carries what resuming needs: the state of optimizer, scheduler, random
            generators and the Trainer itself.
        on_busy: Where a commit is being written and another waits: ``block``, or ``skip`` this one.
        verify_at_end: Whether to measure the last commit and verify it; None for whether there is a ``probe``.
        dataset: What it is trained on.
        dataset_license: The dataset's licence.
        license: The behavior's own licence.
        meta: Said about each behavior that is committed, by key.
        message: What messages begin with; None for the behavior's name.
        author: Who trains.
        compression: How commits are stored; None for adapters as they are, for anything else as the settings say.

    Raises:
        UsageError: A setting is out of range.
    """

    def __init__(
        self,
        repo: Repository,
        behavior: str,
        *,
        every: int = 100,
        probe: str | None = None,
        branch: str | None = None,
        guard: bool | Literal["record"] = True,
        guard_every: int = 10,
        save_state: bool = False,
        on_busy: OnBusy = "block",
        verify_at_end: bool | None = None,
        dataset: str | None = None,
        dataset_license: str | None = None,
        license: str | None = None,
        meta: Mapping[str, str] | None = None,
        message: str | None = None,
        author: str | None = None,
        compression: Compression | None = None,
    ) -> None:
        self.repo = repo
        self.run: TrainingRun | None = None
        self._options = TrainingOptions(
            behavior,
            repo.author(author),
            every=every,
            branch=branch,
            probe=probe,
            verify_at_end=probe is not None if verify_at_end is None else verify_at_end,
            guard=guard,
            guard_every=guard_every,
            on_busy=on_busy,
            message=message,
            compression=compression,
            version=__version__,
            meta=dict(meta or {}),
            dataset=dataset,
            dataset_license=dataset_license,
            license=license,
            save_state=save_state,
        )
        self._moment = _Moment(behavior)
        self._origin: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._due = False
        self._tokens = 0
        self._resumed: Mapping[str, Any] | None = None
        self._ending: weakref.finalize[[], Any] | None = None

    # -- what became of it --------------------------------------------------------------------------------------

    @property
    def commits(self) -> list[CommitResult]:
        """What was committed so far, in order."""
        return [] if self.run is None else self.run.commits

    @property
    def skipped(self) -> list[int]:
        """Steps that were not committed, because one was being written and one waited (``on_busy="skip"``)."""
        return [] if self.run is None else self.run.skipped

    @property
    def findings(self) -> tuple[Mutation, ...]:
        """What the guard found, with ``guard="record"``."""
        return () if self.run is None else self.run.findings

    @property
    def verification(self) -> VerificationResult | None:
        """What verifying the last commit found, where that was asked for and is done."""
        return None if self.run is None else self.run.verification

    @contextmanager
    def resume_checkpoint(self, revision: str = "HEAD", *, progress: Progress | None = None) -> Iterator[str]:
        """As :func:`resume_checkpoint`; besides, the optimizer gets its state in the very element types that it had.

        The Trainer alone casts what an optimizer keeps to the element type of the weights: fp32 moments of bf16 weights
        would come back rounded.

        Args:
            revision: A commit that a callback with ``save_state=True`` made.
            progress: Is told bytes read.
        """
        with trainer_checkpoint(_store(self.repo), revision, progress) as checkpoint:
            self._resumed = checkpoint.tree
            self._origin["resumed_from"] = str(checkpoint.commit)
            try:
                yield str(checkpoint.folder)
            finally:
                self._resumed = None
                self._origin.clear()

    def close(self) -> None:
        """Ends a run that a failed training left behind; what had been handed over is finished."""
        self._due = False
        if self._ending is not None:
            self._ending()
            self._ending = None
        self._moment.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what the Trainer calls ---------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Pins the branch, checks the model against the repository, and sets the guard."""
        self.close()
        self.run = None
        if not state.is_world_process_zero:
            return
        if self._resumed is not None and given.get("optimizer") is not None:
            from rblstore.live.optimizer_state import restore_state

            restore_state(self._resumed, given["optimizer"], random=False)
        # Asked for at each commit, so that it can say more as training goes on.
        self._said = {**_facts_of(args, state), **self._origin, **self._options.meta}
        self._tokens = 0
        options = dataclasses.replace(
            self._options,
            meta=self._said,
            optimizer=given.get("optimizer"),
            scheduler=given.get("lr_scheduler"),
            seed=args.seed,
            capture=self._moment.capture,
            done=state.global_step,
        )
        self._moment.set(args, state, given)
        run = TrainingRun(_store(self.repo), given["model"], options)
        run.start()
        self.run = run
        # Neither the run nor what it captures knows this callback, so that the callback can go while they are there.
        self._ending = weakref.finalize(self, run.abandon)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A step of the optimizer is done. Where something else follows in it, that comes first."""
        if self._ending is None:
            return
        self._settle(state)
        self._due = True
        self._moment.set(args, state, given)
        if not (control.should_log or control.should_evaluate or _ends_epoch(state)):
            self._settle(state)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The step's loss is known."""
        if not (control.should_evaluate or _ends_epoch(state)):
            self._settle(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The step was evaluated, with whatever that did to the random generators."""
        plateau = hasattr(given.get("lr_scheduler"), "patience")  # it takes its step only after this
        if not (plateau or _ends_epoch(state)):
            self._settle(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The last step is over, whatever came in it."""
        self._settle(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The epoch is over, unless it is logged or evaluated."""
        if not (control.should_log or control.should_evaluate):
            self._settle(state)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The last epoch is over, whatever came at its end."""
        self._settle(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Commits the last state, waits until it is stored, and verifies it where that was asked for."""
        if self._ending is None or self.run is None:
            return
        self._settle(state)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            # The weights are no longer those of the last step, and the optimizer's state is.
            self._said["best_step"] = str(getattr(state, "best_global_step", None))
            self._moment.clear()
        self.run.finish()
        self._ending.detach()
        self._ending = None
        self._moment.clear()

    def _settle(self, state: Any) -> None:
        """Tells the run of the step that is done."""
        if not self._due or self.run is None:
            return
        self._due = False
        if state.epoch is not None:
            self._said["epoch"] = repr(float(state.epoch))
        seen = int(state.num_input_tokens_seen or 0)
        tokens, self._tokens = seen - self._tokens, seen
        self.run.step(loss=_loss(state), tokens=tokens if seen else None, step=state.global_step)


def _ends_epoch(state: Any) -> bool:
    """Whether the step was the last one of an epoch, after which more may come."""
    return bool(state.epoch) and float(state.epoch).is_integer()


def _loss(state: Any) -> float | None:
    """The loss that was logged last: the mean since the log before it."""
    return next((logs["loss"] for logs in reversed(state.log_history or ()) if "loss" in logs), None)


def _facts_of(args: Any, state: Any) -> dict[str, str]:
    """What is said about every behavior of a training."""
    from importlib.metadata import version

    found = {
        "accelerate": version("accelerate"),
        "max_steps": str(state.max_steps),
        "per_device_train_batch_size": str(args.per_device_train_batch_size),
        "gradient_accumulation_steps": str(args.gradient_accumulation_steps),
        "world_size": str(args.world_size),
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "scheduler": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
    }
    return {key: value for key, value in found.items() if value}


class _Moment:
    """What the Trainer last showed its callback: enough to take the state of training.

    Args:
        behavior: The slot's name.
    """

    def __init__(self, behavior: str) -> None:
        self._behavior = behavior
        self._shown: tuple[Any, Any, Mapping[str, Any]] | None = None

    def set(self, args: Any, state: Any, given: Mapping[str, Any]) -> None:
        self._shown = args, state, given

    def clear(self) -> None:
        self._shown = None

    def capture(self) -> Any:
        """The state of training as a tree; None where it would not be that of the weights."""
        if self._shown is None:
            return None
        from rblstore.live.optimizer_state import capture_state

        args, state, given = self._shown
        known = {
            "behavior": self._behavior,
            "state": json.loads(json.dumps(dataclasses.asdict(state), default=float)),
            "device": getattr(args.device, "index", None) or 0,
        }
        optimizer = given.get("optimizer")
        return capture_state(
            optimizer,
            given.get("lr_scheduler"),
            getattr(optimizer, "scaler", None),
            {TRAINER_KEY: known},
            model=given.get("model"),
        )
