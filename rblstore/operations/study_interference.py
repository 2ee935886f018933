"""``study interference``: how much of one behavior's effect is left beside another one.

For every ordered pair (B, A) of behaviors over what both stand on (the *ground*, without either): what B does alone,
what it does where A is there already, how much of the first is left in the second, and what remains once A is taken
out again; for every unordered pair, whether their order matters and in which directions both change one tensor.
docs/studies.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from rblstore.objects.evidence_records import Baseline
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.study_records import PromptMeasures, Scalar, StudyPoint
from rblstore.operations.behavior_deltas import BehaviorDeltas, behavior_deltas
from rblstore.operations.composition_parts import Parts, chosen_behaviors
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.study_model import StudyModel, unknown_of
from rblstore.operations.study_outputs import (
    Values,
    mean_of,
    not_comparable,
    recorded_outputs,
    recorded_point,
)
from rblstore.operations.study_run import StudyResult, StudyRun
from rblstore.operations.study_subspaces import count_subspace_points, subspace_points
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    from rblstore.divergence.shifts import ShiftAgreement


@dataclass(frozen=True)
class _Pair:
    """A behavior beside another one, and the four states that tell what it does there.

    Attributes:
        behavior: The one whose effect is looked at.
        given: The other one.
        ground: What both stand on, without either.
        alone: The ground with the behavior.
        other: The ground with the other one.
        both: The ground with both, in the composition's order.
        swapped: The same, the two in the other order.
    """

    behavior: str
    given: str
    ground: Composition
    alone: Composition
    other: Composition
    both: Composition
    swapped: Composition

    def condition(self, part: str) -> dict[str, Scalar]:
        return {"part": part, "behavior": self.behavior, "given": self.given}


class _Outputs(NamedTuple):
    """Recorded outputs of a pair's four states."""

    ground: Baseline
    alone: Baseline
    other: Baseline
    both: Baseline


def study_interference(
    store: Store,
    revision: str = "HEAD",
    behaviors: Sequence[str] | None = None,
    probe: str | None = None,
    *,
    subspaces: bool = True,
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures what the behaviors of a commit do to one another's effects.

    Args:
        store: The repository.
        revision: Which commit; its composition has to be one that peft can attach.
        behaviors: Which of its behaviors, at least two; None for all.
        probe: The probe's name; None for the default one.
        subspaces: Whether to compare the directions in which they change each tensor, too.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.

    Raises:
        TooFewBehaviorsError: There are fewer than two.
        NoSuchBehaviorError: There is none of a name.
        ConflictError: The composition cannot be loaded, or the probe was not made for it.
        NanOutputError: A state's outputs are not numbers.
    """
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    names = chosen_behaviors(composition, behaviors, 2)
    parts = Parts(store, composition)
    named = require_probe(store, probe)
    deltas = [one for one in behavior_deltas(store, composition) if one.name in names] if subspaces else []
    pairs = list(_pairs(parts, names))
    with StudyModel(store, commit, named, dtype=dtype, author=author, progress=progress) as model:
        run = StudyRun(
            model,
            "interference",
            {"behaviors": list(names), "subspaces": subspaces},
            total=len(names) + 5 * len(pairs) // 2 + count_subspace_points(deltas),
        )
        _measure(model, run, parts, names, pairs, deltas)
        return run.finish()


def _pairs(parts: Parts, names: Sequence[str]) -> Iterator[_Pair]:
    """Every ordered pair, those of one pair of behaviors after each other."""
    for first, second in combinations(names, 2):
        ground = parts.needed((first, second))
        both = parts.of({*ground, first, second})
        swapped = parts.of({*ground, first, second}, (second, first))
        for behavior, given in ((second, first), (first, second)):
            yield _Pair(
                behavior,
                given,
                parts.of(ground),
                parts.of({*ground, behavior}),
                parts.of({*ground, given}),
                both,
                swapped,
            )


def _measure(
    model: StudyModel,
    run: StudyRun,
    parts: Parts,
    names: Sequence[str],
    pairs: Sequence[_Pair],
    deltas: Sequence[BehaviorDeltas],
) -> None:
    for name in names:
        ground = parts.needed((name,))
        condition: dict[str, Scalar] = {"part": "alone", "behavior": name, "given": None}
        run.point(
            condition,
            None,
            lambda name=name, ground=ground, condition=condition: recorded_point(  # type: ignore[misc]
                model.store,
                model.reference(parts.of(ground)),
                model.reference(parts.of({*ground, name})),
                condition,
            ),
        )
    for pair in pairs:
        run.point(pair.condition("given"), None, lambda pair=pair: _given(model, parts, pair))  # type: ignore[misc]
        run.point(pair.condition("removed"), None, lambda pair=pair: _removed(model, parts, pair))  # type: ignore[misc]
    for pair in pairs[::2]:
        run.point(pair.condition("order"), None, lambda pair=pair: _order(model, parts, pair))  # type: ignore[misc]
    if deltas:
        subspace_points(run, deltas)


def _given(model: StudyModel, parts: Parts, pair: _Pair) -> StudyPoint:
    """What the behavior does beside the other one, and how much of what it does alone is in that."""
    condition = pair.condition("given")
    reason = parts.refused(pair.alone) or parts.refused(pair.other)
    if reason is not None:
        return StudyPoint(condition, None, None, {}, reason, ())
    found = _Outputs(*(model.reference(one) for one in (pair.ground, pair.alone, pair.other, pair.both)))
    reason = not_comparable(*found)
    if reason is not None:
        return StudyPoint(condition, None, False, {}, reason, ())
    beside = recorded_point(model.store, found.other, found.both, condition)
    alone = recorded_point(model.store, found.ground, found.alone, condition)
    shifts = [shift.mean() for shift in _shifts(model.store, found)]
    prompts = [
        PromptMeasures(ours.id, {**ours.values, **_alone_values(ours, theirs), **_shift_values(shift)})
        for ours, theirs, shift in zip(beside.prompts, alone.prompts, shifts, strict=True)
    ]
    total = shifts[0]
    for shift in shifts[1:]:
        total += shift
    values: Values = {
        "kept_pooled": total.kept,
        "shift_cosine_pooled": total.cosine,
        "shift_ratio_pooled": total.ratio,
        "kl_ratio_pooled": _ratio(mean_of(beside, "kl"), mean_of(alone, "kl")),
    }
    why = None if total.defined else "the behavior moves no output alone, so nothing of it can be kept"
    return replace(beside, values=values, prompts=tuple(prompts), reason=why or unknown_of(list(beside.prompts)))


def _alone_values(beside: PromptMeasures, alone: PromptMeasures) -> Values:
    """What the behavior does alone, beside what it does given the other one: of distributions KL, else distances."""
    found: Values = {}
    for name in ("kl", "js", "relative_l2"):
        if name in alone.values:
            found[f"{name}_alone"] = alone.values[name]
    if "kl" in alone.values:
        found["kl_ratio"] = _ratio(beside.values["kl"], alone.values["kl"])
    return found


def _shift_values(shift: ShiftAgreement) -> Values:
    return {
        "kept": shift.kept,
        "shift_cosine": shift.cosine,
        "shift_ratio": shift.ratio,
        "shift_alone": shift.alone if math.isfinite(shift.alone) else None,
        "shift_beside": shift.beside if math.isfinite(shift.beside) else None,
        "shift_product": shift.product if math.isfinite(shift.product) else None,
    }


def _shifts(store: Store, found: _Outputs) -> Iterator[ShiftAgreement]:
    from rblstore.divergence.shifts import embedding_shifts, logit_shifts

    shifts = embedding_shifts if found.ground.output == "embedding" else logit_shifts
    for prompts in zip(*(recorded_outputs(store, one) for one in found), strict=True):
        yield shifts(*(prompt.values for prompt in prompts))


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _removed(model: StudyModel, parts: Parts, pair: _Pair) -> StudyPoint:
    """What the behavior does once the other one was there and was taken out of the live model again."""
    condition = pair.condition("removed")
    reason = parts.refused(pair.alone)
    if reason is not None:
        return StudyPoint(condition, None, None, {}, reason, ())
    reference = model.reference(pair.alone)
    model.become(pair.both)
    model.become(pair.alone)
    return model.measured(reference, condition, None)


def _order(model: StudyModel, parts: Parts, pair: _Pair) -> StudyPoint:
    """What putting the two on in the other order does."""
    condition = pair.condition("order")
    reason = parts.refused(pair.swapped)
    if reason is not None:
        return StudyPoint(condition, None, None, {}, reason, ())
    reference = model.reference(pair.both)
    model.become(pair.swapped)
    return model.measured(reference, condition, None)
