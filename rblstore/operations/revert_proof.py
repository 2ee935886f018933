"""The proof of a revert: the behavior is taken out of the live model, and what is left is compared with a baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rblstore.checkpoints.composition_ground import LogicalState
from rblstore.divergence.verdict import decide, recovery
from rblstore.objects import limits
from rblstore.objects.content_records import StoredTensor
from rblstore.objects.evidence_records import Baseline, Probe, PromptDivergence, Verification
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import BaselineId, CommitId, CompositionId, ProbeId
from rblstore.operations.baseline import baseline_of, check_fit, references
from rblstore.operations.load import laid_out_behaviors, load_composition
from rblstore.operations.progress import Progress
from rblstore.operations.scratch import scratch
from rblstore.operations.stored_models import CONFIG, composed_state
from rblstore.repository import Store, utc_now


class Adapted(NamedTuple):
    """KL and JS of the adapted model's outputs from the reference, why one of them is None, and each prompt's."""

    kl: float | None
    js: float | None
    reason: str | None
    prompts: tuple[PromptDivergence, ...] = ()


class Begun(NamedTuple):
    """A proof half way: the adapted model was measured, and nothing was taken out yet.

    Attributes:
        target: What the model is to be.
        baseline_id: The reference.
        baseline: The same.
        adapted: How far from it the model is.
    """

    target: CompositionId
    baseline_id: BaselineId
    baseline: Baseline
    adapted: Adapted


@dataclass(frozen=True)
class _Change:
    """What turns one composition into another.

    Attributes:
        head: What the model is.
        target: What it is to be.
        tensors: The target's logical tensors beneath its adapters.
        rewritten: Names of those that the head has otherwise.
        live: Whether it can be made in the live model: one identity, and checkpoints of the same names, element types,
            shapes and configuration.
    """

    head: Composition
    target: Composition
    tensors: Mapping[str, StoredTensor]
    rewritten: frozenset[str]
    live: bool


def _change(store: Store, head: Composition, target: Composition) -> _Change:
    before, after = composed_state(store, head), composed_state(store, target)
    old, new = before.tensors, after.tensors
    same = old.keys() == new.keys() and all(
        (old[name].dtype, old[name].shape) == (new[name].dtype, new[name].shape) for name in new
    )
    return _Change(
        head,
        target,
        new,
        frozenset(name for name in new if new[name] != old.get(name)),
        head.identity == target.identity and same and _same_config(store, before, after),
    )


def _same_config(store: Store, before: LogicalState, after: LogicalState) -> bool:
    """Whether two checkpoints describe one model, whatever wrote their config."""
    old, new = before.files.get(CONFIG), after.files.get(CONFIG)
    if old is None or new is None or old == new:
        return old == new
    from rblstore.checkpoints.saving_overlay import same_config

    with scratch(store, "config") as folder:
        for name, content in (("old", old), ("new", new)):
            (folder / name).mkdir()
            (folder / name / CONFIG).write_bytes(store.content_bytes(content, limits.RECORD_BYTES))
        return same_config(folder / "old", folder / "new")


class RevertProof:
    """Measures the adapted model, takes the behavior out of the live model, and measures again.

    Args:
        store: The repository.
        probe: Name and id of what is measured.
        author: Who reverts.
        tolerance: KL and JS (nats) below which the verdict is within tolerance.
        progress: Is told bytes read.
    """

    def __init__(
        self, store: Store, probe: tuple[str, ProbeId], author: str, tolerance: float, progress: Progress | None
    ) -> None:
        self._store = store
        self._author = author
        self._tolerance = tolerance
        self._probe_name, self._probe_id = probe
        self._probe = store.record(self._probe_id, Probe)
        self._progress = progress

    def prove(
        self,
        commit_id: CommitId,
        head: Composition,
        head_id: CompositionId,
        target: Composition,
        target_id: CompositionId,
        removed: tuple[str, ...],
    ) -> Verification:
        """The evidence, which is not stored yet; a missing baseline of the target is.

        Args:
            commit_id: The commit that is vouched for.
            head: What the model is.
            head_id: Its id.
            target: What it is to be.
            target_id: Its id.
            removed: Slots that are taken out.

        Raises:
            ProbeMismatchError: The probe was not made for the target.
            NanOutputError: The target's outputs are not numbers.
            CorruptError: Stored bytes are damaged.
        """
        from rblstore.divergence.environment import current_environment

        store = self._store
        change = _change(store, head, target)
        model = load_composition(store, head, self._progress)
        fresh = None if change.live else load_composition(store, target, self._progress)
        environment = current_environment(model if fresh is None else fresh, self._probe)

        def loaded() -> Any:
            return load_composition(store, target, self._progress) if fresh is None else fresh

        begun = self.begin(model, head, target, target_id, environment, loaded)
        model = self._live_revert(model, change)
        # Names only what left a live model: another checkpoint comes from a fresh load (docs/decisions/0007).
        return self.finish(begun, model, commit_id, head_id, removed if change.live else ())

    def begin(
        self,
        model: Any,
        head: Composition,
        target: Composition,
        target_id: CompositionId,
        environment: dict[str, str],
        fresh: Callable[[], Any],
    ) -> Begun:
        """Finds or records the reference, and measures the adapted model.

        Args:
            model: What is to be reverted, as it is.
            head: What that is.
            target: What it is to be.
            target_id: The target's id.
            environment: In which the target is measured.
            fresh: Gives a fresh load of the target, where it has no baseline.

        Raises:
            ProbeMismatchError: The probe was not made for the target.
            NanOutputError: The target's outputs are not numbers.
        """
        found = baseline_of(
            self._store, target, target_id, (self._probe_name, self._probe_id), environment, fresh, self._author
        )
        return Begun(target_id, *found, self._adapted(model, head, found[1]))

    def finish(
        self, begun: Begun, model: Any, commit_id: CommitId, head_id: CompositionId, removed: tuple[str, ...]
    ) -> Verification:
        """Measures what the live model is now; the evidence is not stored yet.

        Args:
            begun: What :meth:`begin` gave.
            model: What should be the target.
            commit_id: The commit that is vouched for.
            head_id: What the model was.
            removed: Slots that were taken out of it.
        """
        from rblstore.divergence.compare import compare
        from rblstore.divergence.measure import measure

        baseline, adapted = begun.baseline, begun.adapted
        recovered = compare(references(self._store, baseline), measure(model, self._probe), output=baseline.output)
        rf, reason = recovery(
            recovered.kl, adapted.kl, recovered_reason=recovered.reason, adapted_reason=adapted.reason
        )
        return Verification(
            commit_id,
            begun.target,
            head_id,
            removed,
            self._probe_id,
            begun.baseline_id,
            baseline.environment,
            decide(recovered, self._tolerance),
            self._tolerance,
            recovered.bit_equal,
            recovered.kl,
            recovered.js,
            rf,
            adapted.kl,
            adapted.js,
            reason,
            _with_adapted(recovered.prompts, adapted.prompts),
            self._author,
            utc_now(),
        )

    def _adapted(self, model: Any, head: Composition, baseline: Baseline) -> Adapted:
        """How far the model was from the reference before; what cannot be measured must not keep it from going."""
        from rblstore.divergence.compare import compare
        from rblstore.divergence.measure import measure
        from rblstore.divergence.metrics import NanOutputError
        from rblstore.divergence.probes import ProbeMismatchError

        try:
            check_fit(self._store, head, self._probe, self._probe_name, model)
            found = compare(references(self._store, baseline), measure(model, self._probe), output=baseline.output)
        except (NanOutputError, ProbeMismatchError) as error:
            return Adapted(None, None, error.message)
        return Adapted(found.kl, found.js, found.reason, found.prompts)

    def _live_revert(self, model: Any, change: _Change) -> Any:
        """The target composition made out of the head's live model: by reference, never by subtraction."""
        from rblstore.checkpoints.loading import model_form
        from rblstore.checkpoints.plain_view import plain_model
        from rblstore.divergence.alignment import aligned
        from rblstore.live.overlaying import put_stored_values
        from rblstore.live.recompose import AttachSpec, recompose, stored_values
        from rblstore.live.shells import share_modules
        from rblstore.operations.tensor_reading import tensor_reader

        head, target, tensors = change.head, change.target, change.tensors
        if not change.live:
            return load_composition(self._store, target, self._progress)
        read = tensor_reader(self._store, tensors)
        restore = stored_values(model, tensors, read)

        def rewrite(live: Any) -> None:
            # A model with another task's head has no place for the checkpoint's own.
            put_stored_values(live, tensors, change.rewritten, read, absent=frozenset(tensors))

        with laid_out_behaviors(self._store, target) as (directory, slots):
            specs = [AttachSpec(*slot) for slot in slots]
            if model_form(directory, specs).fits(plain_model(model)):
                kept = _kept(head, target)
                return aligned(recompose(model, specs, keep=kept, restore=restore, rewrite=rewrite))
            # The target has another head, which was not live: the live body is measured under a stored one.
            live = recompose(model, [], keep=(), restore=restore, rewrite=rewrite)
            fresh = load_composition(self._store, target, self._progress)
            stored = stored_values(fresh, tensors, read)
            plain = share_modules(live, recompose(fresh, [], keep=(), restore=stored))
            return aligned(recompose(plain, specs, keep=(), restore=stored))


def _with_adapted(
    recovered: tuple[PromptDivergence, ...], adapted: tuple[PromptDivergence, ...]
) -> tuple[PromptDivergence, ...]:
    """Each prompt's measures with those of the adapted model beside them, without which RF would have no interval."""
    before = {prompt.id: prompt for prompt in adapted}
    found = []
    for prompt in recovered:
        values = dict(prompt.values)
        if (old := before.get(prompt.id)) is not None:
            divergences = {} if old.kl is None and old.js is None else {"kl": old.kl, "js": old.js}
            values |= {f"{name}_adapted": value for name, value in {**divergences, **old.values}.items()}
        found.append(replace(prompt, values=values))
    return tuple(found)


def _kept(head: Composition, target: Composition) -> frozenset[str]:
    """Slots that stay as they are in the live model."""
    return frozenset(slot.name for slot in target.slots if head.slot(slot.name) == slot)
