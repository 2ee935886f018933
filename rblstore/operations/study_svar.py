"""``study svar``: how far small perturbations of a behavior move the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rblstore.objects.content_records import Behavior
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.study_records import StudyPoint
from rblstore.operations.live_compositions import slot_of
from rblstore.operations.live_form import check_form
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.study_points import (
    SEEDS,
    BadStudyError,
    check_bounds,
    check_seeds,
    studied_behavior,
)
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    from rblstore.divergence.perturbations import Perturbation
    from rblstore.operations.study_model import StudyModel
    from rblstore.operations.study_run import StudyResult


def study_svar(
    store: Store,
    revision: str = "HEAD",
    behavior: str | None = None,
    perturbations: Sequence[str] | None = None,
    probe: str | None = None,
    *,
    form: str = "adapters",
    seeds: int = SEEDS,
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
) -> StudyResult:
    """Perturbs a behavior's tensors, and measures how far the model is from the unperturbed adapted one.

    Args:
        store: The repository.
        revision: Which commit.
        behavior: Which of its behaviors; None for the only one.
        perturbations: Each ``KIND:AMOUNT`` or ``KIND:AMOUNT@REGION``; None for the paper's four.
        probe: The probe's name; None for the default one.
        form: ``adapters`` to perturb the behavior held apart, ``merged`` to perturb the weights that it was written
            into, as weight-based adaptation has it.
        seeds: How often what is random is repeated.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.

    Raises:
        NoBehaviorError: The commit has none, or several and none is named.
        NoSuchBehaviorError: It has none of that name.
        BadPerturbationError: A perturbation is not one, or no tensor lies in its region.
        CannotMergeError: The behavior cannot be merged into weights.
        NanOutputError: A perturbed model's outputs are not numbers; names the prompt. Nothing is recorded.
    """
    from rblstore.divergence.perturbations import PAPER, parse_perturbation
    from rblstore.operations.study_model import StudyModel
    from rblstore.operations.study_run import StudyRun
    from rblstore.operations.study_tensors import peft_merged_bytes

    chosen = PAPER if perturbations is None else tuple(dict.fromkeys(map(parse_perturbation, perturbations)))
    if not chosen:
        raise BadStudyError("no perturbation is named", object="perturbations", hint="For example drop:0.25.")
    drawn = check_seeds(seeds)
    held = check_form(form)
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    slot = studied_behavior(composition, behavior, revision)
    named = require_probe(store, probe)
    # What peft merges takes a model of its own each time: better kept.
    cache = peft_merged_bytes(store, composition) if held == "merged" else 0
    with StudyModel(store, commit, named, dtype=dtype, cache_bytes=cache, author=author, progress=progress) as model:
        model.become(composition, held)
        regions = _Regions(model, slot)
        for one in chosen:
            regions.check(one)
        reference = model.reference(composition, held)
        run = StudyRun(
            model,
            "svar",
            {
                "behavior": slot.name,
                "form": held,
                "perturbations": [str(one) for one in chosen],
                "seeds": [float(seed) for seed in drawn],
            },
            total=sum(len(drawn) if one.random else 1 for one in chosen),
        )

        def measured(one: Perturbation, seed: int | None) -> StudyPoint:
            model.restore()
            regions.perturb(one, seed or 0)
            return check_bounds(model.measured(reference, {"perturbation": str(one)}, seed))

        for one in chosen:
            for seed in drawn if one.random else (None,):
                run.point(
                    {"perturbation": str(one)},
                    seed,
                    lambda one=one, seed=seed: measured(one, seed),  # type: ignore[misc]
                )
        return run.finish()


class _Regions:
    """A behavior's live tensors, by where in the model they lie.

    Args:
        model: Has the behavior on it, in the form that is perturbed.
        slot: The behavior.
    """

    def __init__(self, model: StudyModel, slot: Slot) -> None:
        from rblstore.divergence.perturbations import layer_count

        slot_of(model.live.composition, slot.name, "the model")
        self._model = model
        self._slot = slot
        self._layers = layer_count(list(model.identity_tensors()))
        overlay = model.store.record(slot.behavior, Behavior).form == "overlay"
        self._apart = overlay and model.live.form == "adapters"

    def check(self, perturbation: Perturbation) -> None:
        """Refuses a perturbation of nothing, before minutes are spent.

        Raises:
            BadPerturbationError: No tensor of the behavior lies in its region.
        """
        from rblstore.divergence.perturbations import BadPerturbationError

        if not self._names(perturbation):
            raise BadPerturbationError(
                f"{str(perturbation)!r}: no tensor of {self._slot.name!r} lies in the {perturbation.region} layers",
                object=str(perturbation),
                hint="Without a region all tensors are perturbed.",
            )

    def _names(self, perturbation: Perturbation) -> tuple[str, ...]:
        from rblstore.divergence.perturbations import in_region

        return in_region(list(self._model.behavior_tensors(self._slot)), perturbation.region, self._layers)

    def perturb(self, perturbation: Perturbation, seed: int) -> None:
        """Perturbs the tensors in place; they hold their stored values before."""
        from rblstore.divergence.perturbations import perturb

        names = self._names(perturbation)
        tensors = self._model.behavior_tensors(self._slot)
        ground = self._model.ground_tensors(self._slot) if self._apart else None
        perturb({name: tensors[name] for name in names}, perturbation, seed, ground)
