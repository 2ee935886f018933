"""The overlap of behaviors' deltas, tensor by tensor, as points of a study; no model is needed for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from rblstore.objects.study_records import Scalar, StudyPoint
from rblstore.operations.behavior_deltas import BehaviorDeltas

if TYPE_CHECKING:
    from rblstore.divergence.subspaces import Overlap, SideOverlap, Subspaces
    from rblstore.operations.study_run import StudyRun

_NOTHING_SHARED = "they change no tensor in common"


@dataclass(frozen=True)
class TensorPair:
    """Two behaviors and one tensor that both change.

    Attributes:
        behavior: The later one in the composition.
        given: The earlier one.
        tensor: Its logical name.
        reason: Why there is no overlap of it, or None.
    """

    behavior: BehaviorDeltas
    given: BehaviorDeltas
    tensor: str
    reason: str | None

    @property
    def condition(self) -> dict[str, Scalar]:
        """What the point is called."""
        return _condition(self.behavior, self.given, self.tensor)


def tensor_pairs(deltas: Sequence[BehaviorDeltas]) -> tuple[TensorPair, ...]:
    """Every tensor that two behaviors change, sorted by tensor: each is read once for all pairs that change it."""
    found = []
    for given, behavior in combinations(deltas, 2):
        for tensor in behavior.changed & given.changed:
            reasons = [f"{one.name}: {one.without[tensor]}" for one in (behavior, given) if tensor in one.without]
            found.append(TensorPair(behavior, given, tensor, "; ".join(reasons) or None))
    order = {one.name: place for place, one in enumerate(deltas)}
    found.sort(key=lambda pair: (pair.tensor, order[pair.given.name], order[pair.behavior.name]))
    return tuple(found)


def subspace_points(run: StudyRun, deltas: Sequence[BehaviorDeltas]) -> None:
    """Measures every pair of behaviors on every tensor that both change, and then each pair over all of them.

    Args:
        run: Where points go; :func:`count_subspace_points` says how many there will be.
        deltas: Of the behaviors, in the composition's order.

    Raises:
        BadDeltaError: A delta holds NaN or infinity; names behavior and tensor.
        CorruptError: Stored bytes are damaged.
    """
    directions = _Directions()
    by_pair: dict[tuple[str, str], list[StudyPoint]] = {}
    for pair in tensor_pairs(deltas):
        point = run.point(pair.condition, None, lambda pair=pair: _tensor_point(pair, directions))  # type: ignore[misc]
        by_pair.setdefault((pair.behavior.name, pair.given.name), []).append(point)
    for given, behavior in combinations(deltas, 2):
        points = by_pair.get((behavior.name, given.name), [])
        run.point(
            _condition(behavior, given, None),
            None,
            lambda b=behavior, g=given, p=points: _whole_point(b, g, p),  # type: ignore[misc]
        )


def count_subspace_points(deltas: Sequence[BehaviorDeltas]) -> int:
    """How many points :func:`subspace_points` measures."""
    return len(tensor_pairs(deltas)) + math.comb(len(deltas), 2)


class _Directions:
    """The directions of the deltas to one tensor, found once for all pairs; those of the one before are let go."""

    def __init__(self) -> None:
        self._tensor: str | None = None
        self._found: dict[str, Subspaces] = {}

    def of(self, deltas: BehaviorDeltas, tensor: str) -> Subspaces:
        from rblstore.divergence.subspaces import BadDeltaError, subspaces_of

        if tensor != self._tensor:
            self._tensor, self._found = tensor, {}
        if deltas.name not in self._found:
            try:
                self._found[deltas.name] = subspaces_of(deltas.of[tensor])
            except BadDeltaError as error:
                raise BadDeltaError(
                    f"{deltas.name!r} on {tensor}: {error.message}", object=tensor, hint=error.hint
                ) from error
        return self._found[deltas.name]


def _condition(behavior: BehaviorDeltas, given: BehaviorDeltas, tensor: str | None) -> dict[str, Scalar]:
    return {"part": "subspaces", "behavior": behavior.name, "given": given.name, "tensor": tensor}


def _tensor_point(pair: TensorPair, directions: _Directions) -> StudyPoint:
    from rblstore.divergence.subspaces import cosine_of, overlap_of

    if pair.reason is not None:
        return StudyPoint(pair.condition, None, None, {}, pair.reason, ())
    one, other = pair.behavior.of[pair.tensor], pair.given.of[pair.tensor]
    of_one, of_other = directions.of(pair.behavior, pair.tensor), directions.of(pair.given, pair.tensor)
    values: dict[str, float | None] = dict(_sizes(of_one, of_other))
    if not of_one.rank or not of_other.rank:
        zero = pair.given.name if of_one.rank else pair.behavior.name
        return StudyPoint(pair.condition, None, None, values, f"{zero}: its delta is zero", ())
    if 1 in one.shape:
        # One direction on one side, the only one there is on the other: the cosine says all.
        values["delta_cosine"] = cosine_of(one, other, of_one.norm, of_other.norm)
        return StudyPoint(pair.condition, None, None, values, "a vector has no subspaces", ())
    overlap = overlap_of(one, other, of_one, of_other)
    assert overlap is not None
    values.update(_overlap_values(overlap))
    return StudyPoint(pair.condition, None, None, values, None, ())


def _sizes(of_one: Subspaces, of_other: Subspaces) -> Iterator[tuple[str, float]]:
    for side, of in (("behavior", of_one), ("given", of_other)):
        yield f"{side}_norm", of.norm
        yield f"{side}_rank", float(of.rank)
        yield f"{side}_energy", of.energy


def _overlap_values(overlap: Overlap) -> Mapping[str, float]:
    values = {"delta_cosine": overlap.cosine}
    for name, side in (("output", overlap.output), ("input", overlap.input)):
        values.update(_side_values(name, side))
    return values


def _side_values(name: str, side: SideOverlap) -> dict[str, float]:
    return {
        f"{name}_overlap": side.overlap,
        f"{name}_chance": side.chance,
        f"{name}_angle_min": side.angles[0],
        f"{name}_angle_median": (side.angles[(len(side.angles) - 1) // 2] + side.angles[len(side.angles) // 2]) / 2,
        f"{name}_angle_max": side.angles[-1],
    }


def _whole_point(behavior: BehaviorDeltas, given: BehaviorDeltas, points: Sequence[StudyPoint]) -> StudyPoint:
    """A pair over the tensors that both change: their deltas as one vector, and the means of the overlaps."""
    condition = _condition(behavior, given, None)
    reason = next((f"{one.name}: {one.reason}" for one in (behavior, given) if one.reason is not None), None)
    if reason is None and not points:
        reason = _NOTHING_SHARED
    measured = [point.values for point in points if point.values.get("output_overlap") is not None]
    values: dict[str, float | None] = {"tensors": float(len(points)), "tensors_measured": float(len(measured))}
    values["delta_cosine"] = _cosine([point.values for point in points])
    for name in ("output_overlap", "output_chance", "input_overlap", "input_chance"):
        values[name] = _mean([values_of[name] for values_of in measured])
    return StudyPoint(condition, None, None, values, reason, ())


def _cosine(found: Sequence[Mapping[str, float | None]]) -> float | None:
    """The cosine of the deltas laid end to end, from those of the tensors and their norms."""
    inner, square, other = 0.0, 0.0, 0.0
    for values in found:
        cosine, norm, given = values.get("delta_cosine"), values.get("behavior_norm"), values.get("given_norm")
        if cosine is not None and norm is not None and given is not None:
            inner, square, other = inner + cosine * norm * given, square + norm**2, other + given**2
    return inner / math.sqrt(square) / math.sqrt(other) if square and other else None


def _mean(found: Sequence[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return math.fsum(known) / len(known) if known else None
