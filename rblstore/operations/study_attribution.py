"""``study attribution``: which behavior of a composition moved which prompt, by leaving each out in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.study_records import PromptMeasures, Scalar, StudyPoint
from rblstore.operations.composition_parts import Parts, chosen_behaviors
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.study_model import StudyModel
from rblstore.operations.study_outputs import Values, recorded_point
from rblstore.operations.study_run import StudyResult, StudyRun
from rblstore.repository import Store
from rblstore.revisions import resolve

_LOGIT_MEASURES: Final = ("kl", "js")
_EMBEDDING_MEASURES: Final = ("relative_l2",)


def study_attribution(
    store: Store,
    revision: str = "HEAD",
    probe: str | None = None,
    *,
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures, for every behavior and every prompt, how far the whole composition is from the one without it.

    Args:
        store: The repository.
        revision: Which commit; its composition needs at least two behaviors, and has to be one that peft can attach.
        probe: The probe's name; None for the default one.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.

    Raises:
        TooFewBehaviorsError: There are fewer than two: one has moved everything that was moved.
        ConflictError: The composition cannot be loaded, or the probe was not made for it.
        NanOutputError: A state's outputs are not numbers.
    """
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    names = chosen_behaviors(composition, None, 2)
    parts = Parts(store, composition)
    named = require_probe(store, probe)
    with StudyModel(store, commit, named, dtype=dtype, author=author, progress=progress) as model:
        run = StudyRun(
            model,
            "attribution",
            {"behaviors": list(names)},
            total=2 * len(names) + 2,
        )
        _measure(model, run, parts)
        return run.finish()


def _measure(model: StudyModel, run: StudyRun, parts: Parts) -> None:
    without: dict[str, StudyPoint] = {}
    for name in parts.names:
        without[name] = run.point(
            _condition("without", name),
            None,
            lambda name=name: _without(model, parts, name),  # type: ignore[misc]
        )
    whole = run.point(_condition("whole", None), None, lambda: _whole(model, parts))
    for name in parts.names:
        run.point(
            _condition("share", name),
            None,
            lambda name=name: _share(name, without),  # type: ignore[misc]
        )
    run.point(_condition("sum", None), None, lambda: _sum(without, whole))


def _condition(part: str, behavior: str | None) -> dict[str, Scalar]:
    return {"part": part, "behavior": behavior}


def _without(model: StudyModel, parts: Parts, name: str) -> StudyPoint:
    """The whole against itself without one behavior."""
    rest = parts.of(set(parts.names) - {name})
    reason = parts.refused(rest)
    if reason is not None:
        return StudyPoint(_condition("without", name), None, None, {}, reason, ())
    return recorded_point(model.store, model.reference(parts.whole), model.reference(rest), _condition("without", name))


def _whole(model: StudyModel, parts: Parts) -> StudyPoint:
    """The whole against what lies beneath all behaviors."""
    return recorded_point(
        model.store, model.reference(parts.whole), model.reference(parts.of(())), _condition("whole", None)
    )


def _measures(points: Mapping[str, StudyPoint]) -> Sequence[str]:
    names = {name for point in points.values() for prompt in point.prompts for name in prompt.values}
    return [name for name in (*_LOGIT_MEASURES, *_EMBEDDING_MEASURES) if name in names]


def _unknown(points: Mapping[str, StudyPoint]) -> str | None:
    """Why there are no shares: a behavior that cannot be left out alone has a part that nobody knows."""
    missing = next(((name, point) for name, point in points.items() if not point.prompts), None)
    return None if missing is None else f"without {missing[0]!r} there is no composition: {missing[1].reason}"


def _parts_of(points: Mapping[str, StudyPoint], place: int, measure: str) -> dict[str, float] | None:
    """What leaving out each behavior does to one prompt; None where one of them is infinite."""
    found = {name: point.prompts[place].values.get(measure) for name, point in points.items()}
    known = {name: value for name, value in found.items() if value is not None}
    return known if len(known) == len(found) else None


def _share(name: str, points: Mapping[str, StudyPoint]) -> StudyPoint:
    """Each prompt's part of one behavior in the sum of all, and whether no other one has a larger."""
    condition, reason = _condition("share", name), _unknown(points)
    if reason is not None:
        return StudyPoint(condition, None, None, {}, reason, ())
    prompts = []
    for place, prompt in enumerate(points[name].prompts):
        values: Values = {}
        for measure in _measures(points):
            parts = _parts_of(points, place, measure)
            total = math.fsum(parts.values()) if parts is not None else 0.0
            values[f"{measure}_share"] = parts[name] / total if parts is not None and total > 0 else None
            if measure == _measures(points)[0]:
                most = parts is not None and total > 0 and parts[name] == max(parts.values())
                values["most"] = float(most) if parts is not None and total > 0 else None
        prompts.append(PromptMeasures(prompt.id, values))
    return StudyPoint(condition, None, None, {}, _undefined(prompts), tuple(prompts))


def _sum(points: Mapping[str, StudyPoint], whole: StudyPoint) -> StudyPoint:
    """What the parts add up to, beside what all behaviors do together."""
    condition, reason = _condition("sum", None), _unknown(points)
    if reason is not None or not whole.prompts:
        return StudyPoint(condition, None, None, {}, reason or whole.reason, ())
    prompts = []
    for place, prompt in enumerate(whole.prompts):
        values: Values = {}
        for measure in _measures(points):
            parts, all_of_it = _parts_of(points, place, measure), prompt.values.get(measure)
            total = None if parts is None else math.fsum(parts.values())
            both = total is not None and all_of_it is not None
            values[f"{measure}_parts"] = total
            values[f"{measure}_whole"] = all_of_it
            values[f"{measure}_gap"] = all_of_it - total if both else None  # type: ignore[operator]
            values[f"{measure}_additivity"] = total / all_of_it if both and all_of_it else None  # type: ignore[operator]
        prompts.append(PromptMeasures(prompt.id, values))
    return StudyPoint(condition, None, None, {}, _undefined(prompts), tuple(prompts))


def _undefined(prompts: Sequence[PromptMeasures]) -> str | None:
    for prompt in prompts:
        if any(value is None for value in prompt.values.values()):
            return f"prompt {prompt.id!r}: no behavior moves it, or one moves it without bound"
    return None
