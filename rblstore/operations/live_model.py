"""A model in memory that is bound to a commit, and what can be done to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rblstore.errors import ConflictError, LockedError, UsageError
from rblstore.objects.history_records import Composition, Slot
from rblstore.objects.ids import CommitId
from rblstore.operations.live_compositions import (
    check_weight,
    slot_of,
    with_slot,
    without_slot,
)
from rblstore.operations.live_form import LiveForm, check_form
from rblstore.operations.live_repair import repair_state
from rblstore.operations.progress import Progress
from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.live.residue import Finding
    from rblstore.operations.live_proof import LiveVerification
    from rblstore.operations.live_switch import LiveState
    from rblstore.operations.live_values import LiveValues
    from rblstore.operations.revert import RevertResult


class LiveBusyError(LockedError):
    """Another thread is changing the live model."""

    code: ClassVar[str] = "live_busy"


class LiveClosedError(UsageError):
    """The live model was closed."""

    code: ClassVar[str] = "live_closed"


class LiveTrainingError(ConflictError):
    """The model is in training mode, or in a training run."""

    code: ClassVar[str] = "model_trains"


def training_error(model: Any) -> LiveTrainingError:
    """What is raised where a model that trains would be changed."""
    return LiveTrainingError(
        "the model is in training mode",
        object=type(model).__name__,
        hint="Call eval() on it first, between steps.",
    )


class LiveModel:
    """A model in memory that is the composition of a commit; made by :meth:`rblstore.Repository.attach`.

    The model's own parameters stay the objects that they are and where they are: what changes is written into them.
    Every change is made as a whole or not at all, and by one thread at a time. A context manager: leaving it forgets
    caches and leaves the model as it then is.

    Attributes:
        store: The repository's kernel.
        author: Who is named in what is recorded.
        probe: Name or id of the probe that attaching and verifying measure; None for the repository's default.
        progress: Is told bytes read.
    """

    def __init__(
        self,
        store: Store,
        state: LiveState,
        commit: CommitId,
        *,
        author: str,
        probe: str | None,
        progress: Progress | None,
    ) -> None:
        self.store = store
        self.author = author
        self.probe = probe
        self.progress = progress
        self._state = state
        self._commit = commit
        self._named = state.composition
        self._lock = threading.RLock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(self.behaviors) or "no behaviors"
        return f"LiveModel({type(self._state.plain).__name__}, {names}, {self.form})"

    @property
    def model(self) -> Any:
        """What to call: the model, or peft's model around it where behaviors are held apart; changes with them."""
        return self._state.model

    @property
    def plain(self) -> Any:
        """The model itself, beneath whatever adapters; another object only where a commit has another head."""
        return self._state.plain

    @property
    def commit(self) -> CommitId | None:
        """The commit whose composition the model is; None where behaviors were attached or detached since."""
        return self._commit if self._state.composition == self._named else None

    @property
    def bound_to(self) -> CommitId:
        """The commit that the model was attached or switched to last, whatever was changed since."""
        return self._commit

    @property
    def composition(self) -> Composition:
        """What the model is made of now."""
        return self._state.composition

    @property
    def form(self) -> LiveForm:
        """``adapters`` where behaviors are held apart, ``merged`` where they are summed into the weights."""
        return self._state.form

    @property
    def behaviors(self) -> tuple[str, ...]:
        """Names of the behaviors on the model, in order."""
        return tuple(slot.name for slot in self._state.composition.slots)

    @property
    def values(self) -> LiveValues:
        """Which value each of the model's own tensors has to hold."""
        return self._state.values

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def attach(
        self,
        name: str,
        revision: str | None = None,
        weight: float | None = None,
        *,
        allow_no_effect: bool = False,
        discard: bool = False,
    ) -> None:
        """Puts a behavior on, or one in the place of that of its name.

        Args:
            name: Its name in the commit.
            revision: The commit that has it; None for the one that the model is bound to, else HEAD.
            weight: What its update is multiplied by; None for the commit's weight.
            allow_no_effect: Whether it may change no output on the probe.
            discard: Whether adapters' tensors that were changed in memory may be lost.

        Raises:
            NoSuchBehaviorError: The commit has none of that name.
            AlreadyAttachedError: It is there, with that weight.
            ConflictError: It does not stand on what the model is, or peft cannot attach it beside the others.
            NoEffectError: It changes no output.
        """
        weight = check_weight(weight)
        with self.changing() as state:
            source, found = self._find(name, revision)
            slot = Slot(found.name, found.behavior, found.weight if weight is None else weight)
            target = with_slot(state.composition, source, slot)
            state.compositions.checked(target, state.composition)
            self._become_proved(state, target, state.form, discard=discard, allow_no_effect=allow_no_effect)

    def detach(self, name: str, *, discard: bool = False) -> None:
        """Takes a behavior off.

        Args:
            name: Its name.
            discard: Whether adapters' tensors that were changed in memory may be lost.

        Raises:
            NotAttachedError: It is not on the model.
            StandsOnError: Another one stands on what it wrote.
        """
        with self.changing() as state:
            target = without_slot(state.composition, name)
            state.compositions.checked(target, state.composition)
            state.become(target, state.form, discard=discard)

    def switch(
        self,
        revision: str,
        *,
        form: LiveForm | None = None,
        discard: bool = False,
        allow_no_effect: bool = False,
    ) -> None:
        """Makes the model the composition of another commit; only tensors that differ are written.

        Args:
            revision: The commit.
            form: Of the behaviors afterwards; None keeps it.
            discard: Whether whatever was changed in memory may be lost: every tensor, the identity's too, is compared
                with the stored one afterwards and written where it differs, also where the model was that commit.
            allow_no_effect: Whether behaviors that come may change no output on the probe.

        Raises:
            UnknownRevisionError: No commit of that name.
            ConflictError: The commit's model is another one, or cannot be composed.
            CorruptError: Stored bytes are damaged; the model is as before.
            NoEffectError: A behavior that comes changes no output.
            UncommittedError: Adapters' tensors were changed in memory, and no branch's tip has them.
        """
        with self.changing(mending=True) as state:
            commit, target = self._state.compositions.at(revision)
            form = state.form if form is None else check_form(form)
            state.compositions.checked(target, state.composition)
            # Adapters that stay where they are have to be the commit's, too.
            stay = not state.broken and state.adapters(target, form) == state.adapters(state.composition, state.form)
            changed = stay and not discard and state.adapters_changed()
            if (target, form) != (state.composition, state.form) or state.broken:
                self._become_proved(state, target, form, discard=discard, allow_no_effect=allow_no_effect)
            self._commit, self._named = commit, target
            if discard or changed:
                repair_state(state)

    def merge(self, *, discard: bool = False) -> None:
        """Sums the behaviors into the weights, to the very bits of a merged checkout; nothing lies around the model.

        Raises:
            CannotMergeError: A behavior changes no weights.
        """
        with self.changing() as state:
            if state.form != "merged":
                state.become(state.composition, "merged", discard=discard)

    def unmerge(self) -> None:
        """Puts the stored weights back and holds the behaviors apart again.

        Raises:
            CorruptError: Stored bytes are damaged; the model is as before.
        """
        with self.changing() as state:
            if state.form != "adapters":
                state.become(state.composition, "adapters")

    def verify(
        self,
        probe: str | None = None,
        tolerance: float = 1e-6,
        author: str | None = None,
        *,
        threshold: float | None = None,
    ) -> LiveVerification:
        """Compares every tensor with the stored one, and the outputs under a probe with the composition's baseline.

        Args:
            probe: The probe's name; None for the live model's, the default or the only one.
            tolerance: KL and JS (nats) below which the verdict is within tolerance.
            author: Who is named in the evidence.
            threshold: KL (nats) above which a single prompt is flagged; None for the tolerance.

        Raises:
            DivergedError: Tensors or outputs differ; says which.
        """
        from rblstore.operations.live_proof import verify_live

        with self.using():
            return verify_live(self, probe, tolerance, author, threshold)

    def revert(self, target: str, **options: Any) -> RevertResult:
        """Takes a behavior, or what a commit changed, out of this very model, proves it, and commits that.

        Args:
            target: A behavior's name, else a revision.
            options: ``probe``, ``tolerance``, ``threshold``, ``verify``, ``require_verified``, ``mainline``,
                ``message``, ``author``, as for ``repo.revert``.

        Raises:
            NotHeadError: HEAD is another composition than the model.
            DivergedError: The outputs are not the reference's; the model is as before.
        """
        from rblstore.operations.live_proof import revert_live

        with self.changing():
            return revert_live(self, target, **options)

    def repair(self) -> tuple[str, ...]:
        """Writes back every tensor that does not hold its stored value, by reference, and compares them again.

        For a model that somebody wrote into; training that was not committed is lost.

        Returns:
            Names of what was written: stored names, and for an adapter's ``SLOT: NAME``; none where nothing differed.
        """
        with self.changing() as state:
            return repair_state(state)

    def bind_to(self, commit: CommitId) -> None:
        """Names the commit whose composition the model is now, once it was made."""
        with self.using() as state:
            self._commit, self._named = commit, state.composition

    def residue(self) -> list[Finding]:
        """What is on the model that neither it nor its composition brought; one finding a thing, none where clean."""
        with self.using() as state:
            return state.residue()

    def close(self) -> None:
        """Forgets caches and the binding; the model stays as it is and may be bound again."""
        with self._held():
            if not self._closed:
                self._closed = True
                self._state.close()

    @contextmanager
    def using(self) -> Iterator[LiveState]:
        """Holds the live model for this thread, to read it.

        Raises:
            LiveBusyError: Another thread holds it.
            LiveClosedError: It was closed.
            LiveBrokenError: A change failed half way.
        """
        with self._held():
            self._check(mending=False)
            yield self._state

    @contextmanager
    def changing(self, *, mending: bool = False) -> Iterator[LiveState]:
        """Holds the live model for this thread, to change it.

        Args:
            mending: Whether the change makes a broken one whole.

        Raises:
            LiveBusyError: Another thread holds it.
            LiveClosedError: It was closed.
            LiveBrokenError: A change failed half way, and this one does not mend it.
            LiveTrainingError: The model is in training mode, or in a training run.
        """
        with self._held():
            self._check(mending=mending)
            if self._state.plain.training or self._state.model.training:
                raise training_error(self._state.plain)
            self._check_no_run()
            yield self._state

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise LiveBusyError(
                "another thread is using the live model", hint="Wait for it, or use a lock of your own."
            )
        try:
            with out_of_inference_mode():
                yield
        finally:
            self._lock.release()

    def _check(self, *, mending: bool) -> None:
        if self._closed:
            raise LiveClosedError(
                "the live model was closed", hint="Bind the model again: repo.attach(model, revision)"
            )
        if self._state.broken and not mending:
            from rblstore.operations.live_values import LiveBrokenError

            raise LiveBrokenError(
                "a change failed half way, and what was before could not be put back",
                hint="Switch to a commit that can be read, or load the model anew.",
            )

    def _check_no_run(self) -> None:
        from rblstore.operations.training_setup import in_training

        if in_training(self._state.plain):
            raise LiveTrainingError(
                "a training run commits what is on the model",
                object=type(self._state.plain).__name__,
                hint="End the run first: between two of its steps what it trains would be taken off.",
            )

    def _find(self, name: str, revision: str | None) -> tuple[Composition, Slot]:
        if revision is not None:
            source = self._state.compositions.at(revision)[1]
            return source, slot_of(source, name, revision)
        if (slot := self._named.slot(name)) is not None:
            return self._named, slot
        source = self._state.compositions.at("HEAD")[1]
        return source, slot_of(source, name, "HEAD")

    def _become_proved(
        self, state: LiveState, target: Composition, form: LiveForm, *, discard: bool, allow_no_effect: bool
    ) -> None:
        from rblstore.operations.live_effect import become_proved

        become_proved(state, target, form, probe=self.probe, discard=discard, allow_no_effect=allow_no_effect)


def out_of_inference_mode() -> AbstractContextManager[None]:
    """Leaves the caller's ``torch.inference_mode``: nobody could write to a tensor made in it once it is over."""
    import torch

    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
