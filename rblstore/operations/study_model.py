"""The one model in memory that a study puts into many states, and what it gives in each of them under a probe."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rblstore.errors import UsageError
from rblstore.objects.evidence_records import Baseline, Probe
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import CommitId, CompositionId, ProbeId
from rblstore.objects.study_records import PromptMeasures, Scalar, StudyPoint
from rblstore.operations.baseline import check_fit, find_baseline, record_baseline, references
from rblstore.operations.live_attaching import attach_model
from rblstore.operations.live_measuring import live_environment
from rblstore.operations.live_model import LiveModel
from rblstore.operations.live_repair import repair_state
from rblstore.operations.live_wanted import wanted_values
from rblstore.operations.load import load_composition
from rblstore.operations.progress import Progress
from rblstore.operations.study_tensors import StoredBeneath, behavior_tensors, ground_tensors, own_tensors
from rblstore.repository import Store

if TYPE_CHECKING:
    import torch

    from rblstore.operations.live_form import LiveForm

Values = Mapping[str, "float | None"]

DTYPES: Final = ("float32", "float64", "bfloat16", "float16")
"""Element types that a study may load a model in, whatever is stored."""


class StudyModel:
    """One model in memory, and a probe. A context manager: the model is loaded on entering.

    Whoever takes tensors of it may write into them; :meth:`restore` puts back what is stored, and :meth:`become` does
    so before it changes anything.

    Args:
        store: The repository.
        commit: What is loaded.
        probe: Name and id of what is measured.
        dtype: Of the model's own weights, one of :data:`DTYPES`; None for the stored one. What is stored is converted
            as loading converts it, everywhere: where tensors are restored, compared, and taken from beneath an overlay.
        cache_bytes: How much of what behaviors write is kept in memory; a study is long, memory short: else it is read
            each time.
        author: Who records baselines.
        progress: Is told bytes read while the model is loaded.

    Raises:
        UsageError: Another dtype.

    Attributes:
        store: The repository.
        commit: What was loaded.
        composition: What that is made of.
        dtype: As given.
        author: As given.
        progress: As given.
        probe: The probe's record.
        probe_id: Its id.
        probe_name: Its name.
    """

    def __init__(
        self,
        store: Store,
        commit: CommitId,
        probe: tuple[str, ProbeId],
        *,
        dtype: str | None = None,
        cache_bytes: int = 0,
        author: str,
        progress: Progress | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(
                f"{dtype!r:.60} is no element type that a model is loaded in",
                object=str(dtype)[:60],
                hint=f"Known: {', '.join(DTYPES)}.",
            )
        self.store = store
        self.commit = commit
        self.composition = store.record(store.record(commit, Commit).composition, Composition)
        self.probe_name, self.probe_id = probe
        self.probe = store.record(self.probe_id, Probe)
        self.dtype = dtype
        self._cache_bytes = cache_bytes
        self.author = author
        self.progress = progress
        self._live: LiveModel | None = None
        self._touched = False

    def __enter__(self) -> Self:
        check_fit(self.store, self.composition, self.probe, self.probe_name)
        model = load_composition(self.store, self.composition, self.progress, **self._options())
        check_fit(self.store, self.composition, self.probe, self.probe_name, model)
        self._live = attach_model(
            self.store, model, self.commit, cache_bytes=self._cache_bytes, author=self.author, allow_no_effect=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None  # what holds on to this (a traceback) shall not hold on to the model

    def _options(self) -> dict[str, Any]:
        import torch

        return {} if self.dtype is None else {"dtype": getattr(torch, self.dtype)}

    @property
    def live(self) -> LiveModel:
        """The live model."""
        assert self._live is not None, "a study's model is used within its block"
        return self._live

    @property
    def model(self) -> Any:
        """What to call."""
        return self.live.model

    @property
    def environment(self) -> dict[str, str]:
        """Where and how the model is measured as it is now."""
        return live_environment(self.live, self.live.composition, self.probe, self.live.form)

    def become(self, composition: Composition, form: LiveForm = "adapters") -> None:
        """Makes the model another composition; whatever was written into its tensors is put back first.

        Args:
            composition: Of the same identity, or whatever a live model can switch to.
            form: How adapters are held: apart, or merged into the weights.

        Raises:
            ConflictError: It cannot be composed.
            CorruptError: Stored bytes are damaged.
        """
        if self._touched:
            self.restore()
        with self.live.changing() as state:
            if (composition, form) != (state.composition, state.form):
                state.compositions.checked(composition, state.composition)
                state.become(composition, form, discard=True)

    def restore(self) -> tuple[str, ...]:
        """Puts back every tensor that does not hold its stored value, by reference; all of them are compared.

        Returns:
            Names of those that were written.

        Raises:
            LiveBrokenError: A tensor differs still.
            CorruptError: Stored bytes are damaged.
        """
        with self.live.changing() as state:
            written = repair_state(state)
        self._touched = False
        return written

    def reload(self) -> None:
        """Reads the whole model from the store again, into the memory that it has: first it holds nothing but NaN.

        Raises:
            LiveBrokenError: A tensor does not hold its stored value.
            CorruptError: Stored bytes are damaged.
        """
        import torch

        with torch.no_grad():
            for tensor in self.identity_tensors().values():
                tensor.fill_(torch.nan)
        self.restore()

    def identity_tensors(self) -> dict[str, torch.Tensor]:
        """Theta: the model's own floating-point tensors, what lies beneath its adapters, or with them merged in.

        Returns:
            By stored name, sorted; the live tensors themselves, tied ones once.
        """
        live = self.live
        self._touched = True
        wanted, _ = wanted_values(self.store, live.plain, live.composition, live.form)
        return own_tensors(live, wanted)

    def behavior_tensors(self, slot: Slot) -> dict[str, torch.Tensor]:
        """Phi: the floating-point tensors that a behavior on the model brought.

        Args:
            slot: Of the composition that the model is now.

        Returns:
            By stored name, sorted; the live tensors themselves.

        Raises:
            NotMountedError: It is not on the model, or has no such tensors there.
        """
        self._touched = True
        with self.live.using() as state:
            return behavior_tensors(self.store, self.live, state, slot)

    def ground_tensors(self, slot: Slot) -> StoredBeneath:
        """What lies beneath an overlay's tensors, or those an adapter is merged into; read one by one, when asked for.

        Args:
            slot: Of the composition that the model is now.

        Returns:
            By the names of :meth:`behavior_tensors`; what the overlay adds has nothing beneath.

        Raises:
            NotMountedError: It is not on the model.
        """
        now = self.live.composition
        beneath = Composition(now.identity, tuple(one for one in now.slots if one != slot))
        return ground_tensors(self.store, self.live, self.behavior_tensors(slot), beneath)

    def reference(self, composition: Composition, form: LiveForm = "adapters") -> Baseline:
        """What a composition gives: its recorded baseline in this environment, else one recorded now.

        The model is what it was before afterwards, with everything that was written into it put back.

        Args:
            composition: Of what.
            form: How its adapters are held.

        Raises:
            ConflictError: It cannot be composed, or the probe was not made for it.
            NanOutputError: Its outputs are not numbers; names the prompt.
        """
        from rblstore.divergence.measure import measure

        composition_id = CompositionId(Composition.id_of(composition.encode()))
        was = self.live.composition, self.live.form
        environment = live_environment(self.live, composition, self.probe, form)
        found = find_baseline(self.store, composition_id, self.probe_id, environment)
        if found is not None:
            return found[1]
        self.become(composition, form)
        self.restore()
        check_fit(self.store, composition, self.probe, self.probe_name, self.model)
        environment = live_environment(self.live, composition, self.probe, form)
        measured = measure(self.model, self.probe)
        _, record = record_baseline(self.store, composition, self.probe_id, environment, measured, self.author)
        self.become(*was)
        return record

    def measured(
        self,
        reference: Baseline,
        condition: Mapping[str, Scalar],
        seed: int | None,
        values: Values | None = None,
    ) -> StudyPoint:
        """What the model gives now, against a reference: prompt by prompt, recorded values streaming from the store.

        Args:
            reference: Recorded outputs under this probe.
            condition: What the state is called.
            seed: Of the random numbers that made it, or None.
            values: What the point says besides.

        Raises:
            NanOutputError: The model's outputs are not numbers; names the prompt.
            ConflictError: Outputs of another vocabulary or width.
            CorruptError: Stored bytes are damaged.
        """
        from rblstore.divergence.measure import measure, tensor_from_bytes, values_digest
        from rblstore.divergence.pair_measures import measure_prompt

        prompts: list[PromptMeasures] = []
        equal = True
        recorded = references(self.store, reference)
        for (name, shape, dtype, digest, read), ours in zip(recorded, measure(self.model, self.probe), strict=True):
            alike = (tuple(shape), dtype) == (ours.shape, ours.dtype) and digest == values_digest(ours.values)
            # Equal digests prove equal bits: nothing is read.
            theirs = ours.values if alike else tensor_from_bytes(read(), dtype, shape)
            same, found = measure_prompt(theirs, ours)
            equal = equal and same
            prompts.append(PromptMeasures(name, found))
        return StudyPoint(dict(condition), seed, equal, dict(values or {}), unknown_of(prompts), tuple(prompts))


def unknown_of(prompts: list[PromptMeasures]) -> str | None:
    """Why a measure of prompts is None, of the first that is; None where none is."""
    for prompt in prompts:
        for name, value in prompt.values.items():
            if value is None:
                return f"prompt {prompt.id!r}: {name} is infinite or undefined"
    return None
