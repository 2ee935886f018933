"""The few figures that studies of several behaviors are known by, as pure functions of their records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rblstore.objects.study_records import PromptMeasures, Study, StudyPoint

if TYPE_CHECKING:
    from rblstore.divergence.intervals import Interval

_PAIR: Final = ("kept_pooled", "shift_cosine_pooled", "shift_ratio_pooled", "kl_ratio_pooled")
_OVERLAP: Final = ("delta_cosine", "output_overlap", "output_chance", "input_overlap", "input_chance", "tensors")


def interference_figures(record: Study) -> dict[str, Any]:
    """Every ordered pair of behaviors in one row: what is kept, what removing and order do, and the overlap.

    Args:
        record: An ``interference`` study.

    Returns:
        ``pairs``: a row each, with ``kept_interval`` (bootstrap over prompts); None where something is not defined.
    """
    return {"pairs": [_pair(record, point) for point in _of(record, "given")]}


def _pair(record: Study, point: StudyPoint) -> dict[str, Any]:
    behavior, given = point.condition.get("behavior"), point.condition.get("given")
    removed = _one(record, "removed", behavior=behavior, given=given)
    order = _either(record, "order", behavior, given)
    overlap = _either(record, "subspaces", behavior, given)
    row: dict[str, Any] = {"behavior": behavior, "given": given}
    row.update({name.removesuffix("_pooled"): point.values.get(name) for name in _PAIR})
    row["kept_interval"] = _kept_interval(point)
    row["removed_bit_equal"] = None if removed is None else removed.bit_equal
    row["removed_kl"] = _mean(removed, "kl")
    row["order_bit_equal"] = None if order is None else order.bit_equal
    row["order_kl"] = _mean(order, "kl")
    row.update({name: None if overlap is None else overlap.values.get(name) for name in _OVERLAP})
    row["reason"] = point.reason
    return row


def _kept_interval(point: StudyPoint) -> dict[str, Any] | None:
    from rblstore.divergence.intervals import recovery_interval

    product, alone = _column(point.prompts, "shift_product"), _column(point.prompts, "shift_alone")
    if not product or not alone:
        return None
    # Both are 1 less a ratio of means over the same prompts.
    found = recovery_interval([product], [alone])
    if found is None:
        return None
    return {**found.as_json(), "mean": 1 - found.mean, "low": 1 - found.high, "high": 1 - found.low}


def attribution_figures(record: Study) -> dict[str, Any]:
    """Which behavior moved which prompt most, what each did on average, and how far the parts are from the whole.

    Args:
        record: An ``attribution`` study.

    Returns:
        ``behaviors``: a row each (``moved_most``: how many prompts; None where a part is not known), ``moved_most``: a
        behavior by prompt (None where nothing moved it), ``whole``: all of them together, ``additivity``: the mean of
        the parts' sum over the mean of the whole.
    """
    without = _of(record, "without")
    measure = "kl" if any("kl" in prompt.values for point in without for prompt in point.prompts) else "relative_l2"
    rows, moved = [], {}
    for point in without:
        name = point.condition.get("behavior")
        share = _one(record, "share", behavior=name)
        most = [] if share is None else [prompt for prompt in share.prompts if prompt.values.get("most") == 1.0]
        moved.update({prompt.id: name for prompt in most if prompt.id not in moved})
        rows.append({
            "behavior": name,
            measure: _mean(point, measure),
            f"{measure}_reverse": _mean(point, f"{measure}_reverse"),
            f"{measure}_share": _mean(share, f"{measure}_share"),
            "moved_most": len(most) if share is not None and share.prompts else None,
            "reason": point.reason,
        })  # fmt: skip
    total = _one(record, "sum")
    parts, whole = _mean(total, f"{measure}_parts"), _mean(_one(record, "whole"), measure)
    prompts = [] if total is None else [prompt.id for prompt in total.prompts]
    return {
        "additivity": parts / whole if parts is not None and whole else None,
        "behaviors": rows,
        "measure": measure,
        "moved_most": {id: moved.get(id) for id in prompts},
        "parts": parts,
        "whole": whole,
    }


def shift_figures(record: Study) -> dict[str, Any]:
    """What was measured on the probe and on the held-out one, and the difference.

    Args:
        record: A ``shift`` study.

    Returns:
        ``measures``: a row for each measure of the adapted and of the recovered model: its interval on either side, and
        the difference of the means, held out less probe, with its interval (None for RF, and where one is unknown).
    """
    rows = []
    for part in ("adapted", "recovered"):
        sides = [_one(record, part, role=role) for role in ("probe", "held_out")]
        names = [name for name in ("kl", "js", "relative_l2") if any(_column_of(side, name) for side in sides)]
        rows += [_side_by_side(part, name, [_column_of(side, name) for side in sides]) for name in names]
    fidelity = [_recovery(record, role) for role in ("probe", "held_out")]
    known = [one for one in fidelity if one is not None]
    rows.append({
        "part": "recovered",
        "measure": "rf",
        "probe": None if fidelity[0] is None else fidelity[0].as_json(),
        "held_out": None if fidelity[1] is None else fidelity[1].as_json(),
        "difference": {"mean": known[1].mean - known[0].mean} if len(known) == 2 else None,
    })  # fmt: skip
    equal = {role: _bit_equal(record, role) for role in ("probe", "held_out")}
    return {"bit_equal": equal, "measures": rows}


def _side_by_side(part: str, name: str, sides: Sequence[Sequence[float]]) -> dict[str, Any]:
    from rblstore.divergence.differences import difference_interval
    from rblstore.divergence.intervals import interval

    probe, held_out = (interval([side]).as_json() if side else None for side in sides)
    difference = difference_interval(*sides).as_json() if all(sides) else None
    return {"part": part, "measure": name, "probe": probe, "held_out": held_out, "difference": difference}


def _recovery(record: Study, role: str) -> Interval | None:
    from rblstore.divergence.intervals import recovery_interval

    after, before = (_column_of(_one(record, part, role=role), "kl") for part in ("recovered", "adapted"))
    return recovery_interval([after], [before]) if after and before else None


def _bit_equal(record: Study, role: str) -> bool | None:
    found = _one(record, "recovered", role=role)
    return None if found is None else found.bit_equal


def _of(record: Study, part: str) -> list[StudyPoint]:
    return [point for point in record.points if point.condition.get("part") == part]


def _one(record: Study, part: str, **condition: Any) -> StudyPoint | None:
    """The point of a part under these conditions; of subspaces that over all tensors."""
    for point in _of(record, part):
        if point.condition.get("tensor") is None and condition.items() <= point.condition.items():
            return point
    return None


def _either(record: Study, part: str, behavior: Any, given: Any) -> StudyPoint | None:
    """A point of an unordered pair, whichever of the two it names first."""
    return _one(record, part, behavior=behavior, given=given) or _one(record, part, behavior=given, given=behavior)


def _column_of(point: StudyPoint | None, name: str) -> list[float]:
    return [] if point is None else _column(point.prompts, name)


def _column(prompts: Sequence[PromptMeasures], name: str) -> list[float]:
    """A measure of every prompt; nothing where one has none."""
    found: list[Mapping[str, float | None]] = [prompt.values for prompt in prompts]
    known = [value for value in (values.get(name) for values in found) if value is not None]
    return known if len(known) == len(found) else []


def _mean(point: StudyPoint | None, name: str) -> float | None:
    found = _column_of(point, name)
    return math.fsum(found) / len(found) if found else None


FIGURES: Final[Mapping[str, Callable[[Study], dict[str, Any]]]] = {
    "attribution": attribution_figures,
    "interference": interference_figures,
    "shift": shift_figures,
}
"""By the study's name."""
