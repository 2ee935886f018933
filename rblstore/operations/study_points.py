"""What studies share: which seeds, which behavior, and what a point says of a recovery."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from rblstore.divergence.verdict import recovery
from rblstore.errors import RblError, UsageError
from rblstore.objects.history_records import Composition, Slot
from rblstore.objects.study_records import StudyPoint
from rblstore.operations.live_compositions import slot_of

SEEDS: Final = 3
"""How often what is random is repeated, as in the paper."""

_MOST_SEEDS: Final = 1000


class BadStudyError(UsageError):
    """A parameter of a study is out of range."""

    code: ClassVar[str] = "bad_study"


class NoBehaviorError(UsageError):
    """A study of a behavior, of a commit that has none, or several of which none is named."""

    code: ClassVar[str] = "no_behavior"


class ImpossibleFigureError(RblError):
    """A measured divergence breaks a law that holds for all distributions: the measuring is at fault."""

    code: ClassVar[str] = "impossible_figure"


def check_seeds(seeds: int) -> tuple[int, ...]:
    """The seeds 0, 1, ... that many.

    Raises:
        BadStudyError: Not an integer from 1 to 1,000.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= _MOST_SEEDS:
        raise BadStudyError(
            f"the number of seeds is an integer from 1 to {_MOST_SEEDS}, not {seeds!r:.40}", object="seeds"
        )
    return tuple(range(seeds))


def check_list(what: str, values: Iterable[float], most: int = 1000) -> tuple[float, ...]:
    """Numbers without repetition, in ascending order.

    Args:
        what: What they are, for messages.
        values: The numbers, each checked already.
        most: How many there may be.

    Raises:
        BadStudyError: There are none, or too many.
    """
    found = tuple(sorted(set(values)))
    if not 1 <= len(found) <= most:
        raise BadStudyError(f"{len(found)} values of {what}, where 1 to {most} can be measured", object=what)
    return found


def studied_behavior(composition: Composition, name: str | None, revision: str) -> Slot:
    """The behavior that is studied: the named one, else the only one.

    Args:
        composition: Of the commit.
        name: Its name, or None.
        revision: How messages call the commit.

    Raises:
        NoBehaviorError: There is none at all, or several and none is named.
        NoSuchBehaviorError: There is none of that name.
    """
    if name is not None:
        return slot_of(composition, name, revision)
    if not composition.slots:
        raise NoBehaviorError(
            f"{revision} has no behavior to study", object=revision, hint="Name a commit that has one: rbl log"
        )
    if len(composition.slots) > 1:
        names = ", ".join(slot.name for slot in composition.slots)
        raise NoBehaviorError(
            f"{revision} has several behaviors, and none is named", object=revision, hint=f"--behavior: {names}."
        )
    return composition.slots[0]


def mean_of(point: StudyPoint, name: str) -> float | None:
    """The mean of a measure over a point's prompts; None where one of them has none."""
    found = [prompt.values.get(name) for prompt in point.prompts]
    known = [value for value in found if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(found) else None


def with_recovery(point: StudyPoint, adapted: StudyPoint) -> StudyPoint:
    """A point with its RF against the adapted model's, and that one's divergences.

    Args:
        point: After what recovers.
        adapted: Before it.
    """
    fidelity, reason = recovery(
        mean_of(point, "kl"),
        mean_of(adapted, "kl"),
        recovered_reason=point.reason or "the output is no distribution",
        adapted_reason=adapted.reason or "the output is no distribution",
    )
    values = {"rf": fidelity, "kl_adapted": mean_of(adapted, "kl"), "js_adapted": mean_of(adapted, "js")}
    return replace(point, values={**point.values, **values}, reason=point.reason or reason)


_LN2: Final = math.log(2.0)
_ROUNDING: Final = 1e-12


def check_bounds(point: StudyPoint) -> StudyPoint:
    """The point itself, where no divergence of it breaks a law.

    JS <= ln 2, and JS <= (ln 2 / 2) KL in both directions: JS and KL are f-divergences, and the ratio of what they sum
    for p/q = t is largest at t = 0, where it is ln 2 / 2. (arXiv 2603.02934 prints figures that break both.)

    Raises:
        ImpossibleFigureError: One does.
    """
    for prompt in point.prompts:
        js = prompt.values.get("js")
        if js is None:
            continue
        bounds: Sequence[tuple[str, float | None]] = (
            ("ln 2", _LN2),
            ("half of ln 2 times KL", _half_ln2_of(prompt.values.get("kl"))),
            ("half of ln 2 times the reverse KL", _half_ln2_of(prompt.values.get("kl_reverse"))),
        )
        for name, bound in bounds:
            if bound is not None and js > bound * (1 + 1e-9) + _ROUNDING:
                raise ImpossibleFigureError(
                    f"prompt {prompt.id!r}: JS {js!r} is above {name}, {bound!r}, which cannot be",
                    object=prompt.id,
                    hint="This is a defect of rblstore or of the machine: please report it. Nothing was recorded.",
                )
    return point


def _half_ln2_of(kl: float | None) -> float | None:
    return None if kl is None else 0.5 * _LN2 * kl
