"""What a study says, as a pure function of its record: one row a condition, and the few figures that it is known by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rblstore.divergence.locality import svar
from rblstore.objects.canonical import Json
from rblstore.objects.study_records import Scalar, Study, StudyPoint
from rblstore.operations.study_journal import point_key
from rblstore.operations.together_figures import FIGURES

if TYPE_CHECKING:
    from rblstore.divergence.intervals import Interval

_ORDER: Final = ("kl", "kl_reverse", "js", "tv", "top1_agreement", "top5_agreement", "entropy", "relative_l2", "cosine")

EXACT: Final = 1e-6
"""KL and JS (nats) below which arXiv 2603.02934 calls a recovery exact."""


@dataclass(frozen=True)
class SummaryRow:
    """One condition of a study, over all of its seeds.

    Attributes:
        condition: What the state was.
        seeds: In which random numbers it was made; empty where none were.
        bit_equal: Whether all outputs of all seeds equal the reference's, bit for bit; None where nothing was compared.
        measures: By name, measures of prompts first (their mean over prompts and seeds, with a bootstrap interval over
            both), then values of points (over seeds alone; ``rf`` over both, where the adapted model was measured on
            every prompt). None where one of the numbers is unknown or infinite.
        reason: Why a number is None, of the first point that says so; else None.
    """

    condition: Mapping[str, Scalar]
    seeds: tuple[int, ...]
    bit_equal: bool | None
    measures: Mapping[str, Interval | None]
    reason: str | None

    def mean(self, name: str) -> float | None:
        """The mean of a measure; None where it has none."""
        found = self.measures.get(name)
        return None if found is None else found.mean

    def as_json(self) -> dict[str, Json]:
        """JSON members."""
        return {
            "bit_equal": self.bit_equal,
            "condition": dict(self.condition),
            "measures": {name: None if found is None else found.as_json() for name, found in self.measures.items()},
            "reason": self.reason,
            "seeds": list(self.seeds),
        }


def summarise(record: Study) -> tuple[SummaryRow, ...]:
    """One row a condition, in the order of the points.

    Args:
        record: The study.
    """
    groups: dict[bytes, list[StudyPoint]] = {}
    for point in record.points:
        groups.setdefault(point_key(point.condition, None), []).append(point)
    known = {point_key(point.condition, point.seed): point for point in record.points}
    return tuple(_row(points, known) for points in groups.values())


def _row(points: Sequence[StudyPoint], known: Mapping[bytes, StudyPoint]) -> SummaryRow:
    compared = [point.bit_equal for point in points if point.bit_equal is not None]
    of_prompts = {name for point in points for prompt in point.prompts for name in prompt.values}
    of_points = {name for point in points for name in point.values} - of_prompts
    measures: dict[str, Interval | None] = {}
    for name in (*(one for one in _ORDER if one in of_prompts), *sorted(of_prompts.difference(_ORDER))):
        measures[name] = _interval([[prompt.values.get(name) for prompt in point.prompts] for point in points])
    for name in sorted(of_points):
        measures[name] = _interval([[point.values.get(name)] for point in points])
    if measures.get("rf") is not None:
        measures["rf"] = _recovery(points, known) or measures["rf"]
    return SummaryRow(
        points[0].condition,
        tuple(point.seed for point in points if point.seed is not None),
        all(compared) if compared else None,
        measures,
        next((point.reason for point in points if point.reason is not None), None),
    )


def _recovery(points: Sequence[StudyPoint], known: Mapping[bytes, StudyPoint]) -> Interval | None:
    """RF over prompts and seeds; None where a point's adapted model is not among the points, or RF is undefined."""
    from rblstore.divergence.intervals import recovery_interval

    recovered, adapted = [], []
    for point in points:
        before = known.get(point_key(_adapted(point.condition), point.seed))
        after, whole = _kl(point), [] if before is None else _kl(before)
        divided_by = point.values.get("kl_adapted")
        if not after or len(after) != len(whole) or divided_by is None:
            return None
        if not math.isclose(math.fsum(whole) / len(whole), divided_by, rel_tol=1e-9):
            return None  # RF was taken against another measurement
        recovered.append(after)
        adapted.append(whole)
    return recovery_interval(recovered, adapted) if len({len(row) for row in recovered}) == 1 else None


def _adapted(condition: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The condition of the adapted model that a point's RF is taken against."""
    for name, before in (("epsilon", 0.0), ("reset", "none"), ("part", "adapted")):
        if name in condition:
            return {**condition, name: before}
    return dict(condition)


def _kl(point: StudyPoint) -> list[float]:
    """KL of every prompt; empty where one is unknown."""
    found = [value for prompt in point.prompts if (value := prompt.values.get("kl")) is not None]
    return found if len(found) == len(point.prompts) else []


def _interval(rows: Sequence[Sequence[float | None]]) -> Interval | None:
    from rblstore.divergence.intervals import interval

    known = [[value for value in row if value is not None] for row in rows]
    whole = all(row and len(row) == len(other) for row, other in zip(known, rows, strict=True))
    return interval(known) if whole and len({len(row) for row in known}) == 1 else None


def figures(record: Study) -> dict[str, Any]:
    """The few figures that a study is known by: what the paper states in a sentence.

    Args:
        record: The study.

    Returns:
        For ``elimination`` ``epsilon_star``, the smallest epsilon from which on recovery is exact (KL and JS below
        1e-6), and ``epsilon_star_bit_equal``, from which on it is so to the bit; for ``svar`` ``svar`` with its
        interval over prompts; for ``entropy`` ``identical``, whether all runs gave the same bits; else nothing. None
        where there is no such figure.
    """
    if record.study == "elimination":
        rows = summarise(record)
        return {
            "epsilon_star": _smallest(rows, _is_exact),
            "epsilon_star_bit_equal": _smallest(rows, lambda row: bool(row.bit_equal)),
        }
    if record.study == "svar":
        return _svar(record)
    if record.study == "entropy":
        return {"identical": all(point.bit_equal for point in record.points)}
    together = FIGURES.get(record.study)
    return {} if together is None else together(record)


def derived_of(record: Study) -> dict[str, Any]:
    """What follows from a study's record, as documents have it: ``figures`` and ``summary``."""
    return {"figures": figures(record), "summary": [row.as_json() for row in summarise(record)]}


def _is_exact(row: SummaryRow) -> bool:
    kl, js = row.mean("kl"), row.mean("js")
    return bool(row.bit_equal) or (kl is not None and js is not None and kl < EXACT and js < EXACT)


def _smallest(rows: Sequence[SummaryRow], holds: Any) -> float | None:
    """The smallest epsilon for which something holds, and for every larger one as well."""
    found: float | None = None
    known = [(row.condition.get("epsilon"), row) for row in rows]
    numbers = [(float(epsilon), row) for epsilon, row in known if isinstance(epsilon, (int, float))]
    for epsilon, row in sorted(numbers, key=lambda pair: pair[0], reverse=True):
        if not holds(row):
            break
        found = epsilon
    return found


def _svar(record: Study) -> dict[str, Any]:
    """Per prompt the mean over perturbations, each of them over its seeds; then over prompts."""
    names = {name for point in record.points for prompt in point.prompts for name in prompt.values}
    measure = "kl" if "kl" in names else "relative_l2"
    groups: dict[bytes, list[list[float | None]]] = {}
    for point in record.points:
        values = [prompt.values.get(measure) for prompt in point.prompts]
        groups.setdefault(point_key(point.condition, None), []).append(values)
    perturbed = [_by_prompt(rows) for rows in groups.values()]
    found = _interval([_by_prompt(perturbed)]) if perturbed else None
    return {"measure": measure, "svar": None if found is None else found.as_json()}


def _by_prompt(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """What several perturbations, or one of them under several seeds, do to each prompt."""
    return [svar(column) for column in zip(*rows, strict=True)]
