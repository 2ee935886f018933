"""``training``: commits from memory while a loop trains, on a branch that is pinned when the run starts."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rblstore.errors import UsageError
from rblstore.objects.evidence_records import Claim
from rblstore.operations.background import BackgroundWorker
from rblstore.operations.commit import CommitResult, check_message
from rblstore.operations.training_facts import ORIGIN, Progressed, TrainingOptions
from rblstore.operations.training_setup import Training, prepare
from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.live.guard import IdentityGuard
    from rblstore.live.mutations import Mutation
    from rblstore.live.snapshot import Buffers, Snapshot
    from rblstore.operations.snapshot_commit import Settled
    from rblstore.operations.verify import VerificationResult


class RunOverError(UsageError):
    """A training run was used before its start or after its end."""

    code: ClassVar[str] = "run_over"


@dataclass(frozen=True)
class _Queued:
    """One snapshot on its way into the repository."""

    snapshot: Snapshot
    settled: Settled
    message: str
    claims: tuple[Claim, ...]
    step: int
    state: Any


class TrainingRun:
    """One training run; made by :meth:`rblstore.Repository.training`, used as a context manager in one thread.

    Leaving the block commits the last state and waits until it is stored. An exception that leaves it passes through:
    what was handed over before is still finished, and nothing new is committed.

    Attributes:
        commits: What was committed so far, in order.
        skipped: Steps whose snapshot was dropped, because one was being written and one waited (``on_busy="skip"``).
        unchanged: Steps whose snapshot was what had been committed already; they have no commit.
        warnings: What a person should know: tensors that hold NaN, for one.
        verification: What verifying the last commit found, where that was asked for and is done.
    """

    def __init__(self, store: Store, model: Any, options: TrainingOptions) -> None:
        self._store = store
        self._given = model
        self._options = options
        self.commits: list[CommitResult] = []
        self.skipped: list[int] = []
        self.unchanged: list[int] = []
        self.warnings: list[str] = []
        self.verification: VerificationResult | None = None
        self._progressed = Progressed()
        self._training: Training | None = None
        self._worker: BackgroundWorker[_Queued] | None = None
        self._free: list[Buffers] = []
        self._new_skips = 0

    # -- what is known ------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps done, those before a resume included: how much of the data a resumed loop has to pass over."""
        return self._progressed.step

    @property
    def branch(self) -> str:
        """The branch that the run commits to."""
        return self._begun().branch

    @property
    def blocking(self) -> str | None:
        """Why each commit keeps the loop waiting while PEFT or transformers save; None where none has to."""
        return self._begun().copier.blocking

    @property
    def guard(self) -> IdentityGuard | None:
        """What watches the tensors that are not trained, or None."""
        return self._begun().guard

    @property
    def findings(self) -> tuple[Mutation, ...]:
        """What the guard found; with ``guard="record"`` that is all that becomes of it."""
        guard = self._begun().guard
        return () if guard is None else guard.findings

    # -- from the start to the end ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abandon()

    def start(self) -> None:
        """Pins the branch, checks that the model can be committed there, and resumes where that was asked for.

        Raises:
            RunOverError: It was started before.
            ConflictError: The model stands on another base than the branch, or trains in another run.
            UsageError: The model cannot be committed as this behavior: nothing is trainable, it is sharded ...
        """
        from rblstore.live.snapshot import Buffers

        if self._training is not None:
            raise RunOverError("a training run is started once", hint="Make another: repo.training(...)")
        self._training = training = prepare(self._store, self._given, self._options)
        self._progressed = training.resumed
        self._free = [Buffers(), Buffers()]
        self._worker = BackgroundWorker(self._write, training.committer.close)

    def step(
        self, *, loss: Any = None, learning_rate: Any = None, tokens: int | None = None, step: int | None = None
    ) -> bool:
        """Says that a step of the optimizer is done; every N-th is committed.

        Args:
            loss: The step's loss, a number or a tensor of one; a tensor is read only where a commit is made.
            learning_rate: The step's learning rate; None for the optimizer's, where the run was given one.
            tokens: How many tokens this step saw; they are added up.
            step: The step's number, where the loop counts steps itself; None for one more than the last.

        Returns:
            Whether a snapshot was taken.

        Raises:
            RblError: What went wrong behind an earlier step, the very error; or, by the guard, ``IdentityMutated``.
            RunElsewhereError: In another thread or process than the one that started the run.
            RunOverError: The run has ended.
        """
        worker, training = self._working(), self._begun()
        worker.check()
        before = self._progressed.step
        self._progressed.advance(step, loss, learning_rate, tokens)
        if training.guard is not None:
            training.guard.step()
        every = self._options.every
        if self._progressed.step // every == before // every:
            return False
        return self._take(None, wait=self._options.on_busy == "block")

    def commit(self, message: str | None = None) -> None:
        """Commits the behavior as it is now, whatever the step; like every commit, it is written behind the loop.

        Args:
            message: The commit's; None for the usual one.

        Raises:
            RblError: What went wrong behind an earlier step.
        """
        if message is not None:
            check_message(message)
        self._working().check()
        self._take(message, wait=True)

    def wait(self) -> None:
        """Waits until everything handed over is stored.

        Raises:
            RblError: What went wrong.
        """
        worker = self._working()
        worker.wait()
        worker.check()

    def finish(self) -> None:
        """Commits the last state, waits until it is stored, and verifies it where that was asked for.

        Raises:
            RblError: What went wrong while writing, or what a last full check by the guard finds.
            DivergedError: The last commit does not reproduce itself.
        """
        worker, training = self._working(), self._begun()
        try:
            worker.check()
            training.check_guard()
            training.check_base()
            self._take(None, wait=True)
        finally:
            self._end(worker, training)
        worker.check()
        if self._options.verify_at_end:
            self.verification = training.verify(self.commits)

    def abandon(self) -> None:
        """Ends the run without a commit of its last state; what was handed over before is finished. Raises nothing.

        An error of the writing stays in :attr:`error`.
        """
        if self._worker is not None and self._worker.here and self._training is not None:
            self._end(self._worker, self._training)

    @property
    def error(self) -> BaseException | None:
        """What went wrong while writing, or None."""
        return None if self._worker is None else self._worker.error

    # -- inside -------------------------------------------------------------------------------------------------

    def _end(self, worker: BackgroundWorker[_Queued], training: Training) -> None:
        try:
            worker.end()
        finally:
            training.close()
            self._free = []

    def _begun(self) -> Training:
        if self._training is None:
            raise RunOverError(
                "the training run has not been started",
                hint="Use it as a context manager: with repo.training(...) as run:",
            )
        return self._training

    def _working(self) -> BackgroundWorker[_Queued]:
        training = self._begun()
        assert self._worker is not None, "it starts together with the training"
        self._worker.require_here()
        if training.closed:
            raise RunOverError("the training run has ended", hint="Start another: repo.training(..., resume=...)")
        return self._worker

    def _take(self, message: str | None, *, wait: bool) -> bool:
        """Copies the behavior and hands the copy over."""
        worker, training = self._working(), self._begun()
        step = self._progressed.step
        if not worker.reserve(wait=wait):
            self.skipped.append(step)
            self._new_skips += 1
            return False
        # Whoever writes has at most one of the two, since nothing waits.
        buffers = self._free.pop()
        try:
            queued = self._copied(training, buffers, message)
        except BaseException:
            self._free.append(buffers)
            raise
        worker.put(queued)
        return True

    def _copied(self, training: Training, buffers: Buffers, message: str | None) -> _Queued:
        """The behavior as it is now, and what is known about it."""
        facts = self._progressed.facts(self._options.optimizer)
        snapshot = training.copier.take(buffers)
        state = training.capture() if self._options.save_state else None
        settled = training.settle(snapshot)
        if message is None:
            message = facts.message(self._options.message or self._options.behavior)
        said = [*facts.claims(), *training.said]
        if self._new_skips:
            said.append(("meta.skipped_snapshots", str(self._new_skips)))
            self._new_skips = 0
        claims = (*self._options.said(), *(Claim(key, value, ORIGIN) for key, value in said))
        return _Queued(snapshot, settled, message, claims, facts.step, state)

    def _write(self, queued: _Queued) -> None:
        """In the worker's thread: one snapshot becomes a commit."""
        result = self._begun().committer.commit(
            queued.snapshot, queued.settled, queued.message, queued.claims, queued.state, queued.step
        )
        if queued.snapshot.buffers is not None:
            self._free.append(queued.snapshot.buffers)
        if result is None:
            self.unchanged.append(queued.step)
            # That the identity is what it was is known only at the end, when the last state may be committed already.
            known = tuple(claim for claim in queued.claims if claim.key == "meta.identity_after")
            self._begun().committer.add_claims(known)
            return
        self.commits.append(result)
        self.warnings.extend(warning for warning in result.warnings if warning not in self.warnings)
