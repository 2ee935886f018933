"""What a mean over prompts hides: which of them kept a residue, how stable a behavior is, whether the base drifted.

Pure functions of numbers, as arXiv 2603.02934 defines them:

- ILS(p): the divergence on one prompt after a reset; averaged, and flagged where it is above a threshold.
- SVAR: the mean over perturbations D of KL(f(x; theta, phi) || f(x; theta, phi + D)). Low: the behavior is stable.
- Entropy of the next-token distributions: mean, standard deviation and largest over the prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rblstore.divergence.intervals import BadMeasurementsError
from rblstore.errors import UsageError
from rblstore.objects import limits
from rblstore.objects.canonical import Json

__all__ = [
    "BadThresholdError",
    "EntropySummary",
    "Locality",
    "PromptLocality",
    "check_threshold",
    "entropy_summary",
    "locality",
    "svar",
]


class BadThresholdError(UsageError):
    """The threshold of ILS is not a number from 0 to 2^53 - 1, the largest that a record holds."""

    code = "bad_threshold"


@dataclass(frozen=True)
class PromptLocality:
    """ILS of one prompt.

    Attributes:
        id: The prompt's.
        ils: Its divergence, nats; None where that is infinite or cannot be had.
        flagged: Whether it is above the threshold, or unknown: what cannot be compared is not shown to be clean.
    """

    id: str
    ils: float | None
    flagged: bool


@dataclass(frozen=True)
class Locality:
    """ILS over a probe.

    Attributes:
        mean: Over the prompts, nats; None where one of them is None.
        largest: The largest that is known; None where none is.
        threshold: Above which a prompt is flagged, nats.
        prompts: One each, in order.
    """

    mean: float | None
    largest: float | None
    threshold: float
    prompts: tuple[PromptLocality, ...]

    @property
    def flagged(self) -> tuple[str, ...]:
        """Ids of the flagged prompts, in order."""
        return tuple(prompt.id for prompt in self.prompts if prompt.flagged)

    def as_json(self) -> dict[str, Json]:
        """JSON members."""
        return {
            "flagged": list(self.flagged),
            "largest": self.largest,
            "mean": self.mean,
            "threshold": self.threshold,
        }


@dataclass(frozen=True)
class EntropySummary:
    """Entropy over prompts, nats.

    Attributes:
        mean: Over the prompts.
        std: Standard deviation over these prompts (divided by their number, not by one less).
        max: The largest.
    """

    mean: float
    std: float
    max: float


def check_threshold(threshold: float) -> None:
    """Refuses a threshold that flags nothing or everything, before minutes are spent on measuring.

    Raises:
        BadThresholdError: It is not a number from 0 to 2^53 - 1, the largest that a record holds.
    """
    if not 0 <= threshold <= limits.JSON_INTEGER:
        raise BadThresholdError(
            f"the threshold {threshold} is not a number from 0 to 2^53 - 1",
            object=str(threshold),
            hint="Without one it is the tolerance.",
        )


def locality(divergences: Iterable[tuple[str, float | None, bool]], threshold: float) -> Locality:
    """ILS of each prompt, with flags.

    Args:
        divergences: Id, divergence (nats, or None) and bit equality of each prompt. Equal bits are never flagged.
        threshold: Above which a prompt is flagged.

    Raises:
        BadThresholdError: The threshold is not one.
        BadMeasurementsError: There are no prompts.
    """
    check_threshold(threshold)
    prompts = tuple(
        PromptLocality(id, value, not equal and (value is None or value > threshold))
        for id, value, equal in divergences
    )
    if not prompts:
        raise BadMeasurementsError("there are no prompts, and so no local divergence")
    known = [prompt.ils for prompt in prompts if prompt.ils is not None]
    mean = math.fsum(known) / len(known) if len(known) == len(prompts) else None
    return Locality(mean, max(known, default=None), threshold, prompts)


def svar(divergences: Sequence[float | None]) -> float | None:
    """SVAR: the mean of what perturbations of a behavior do to the outputs.

    Args:
        divergences: KL(behavior || perturbed behavior) of each perturbation, nats; None where infinite.

    Returns:
        None where one of them is None.

    Raises:
        BadMeasurementsError: There are no perturbations.
    """
    if not divergences:
        raise BadMeasurementsError("without perturbations there is no SVAR")
    known = [value for value in divergences if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(divergences) else None


def entropy_summary(entropies: Sequence[float]) -> EntropySummary:
    """Mean, standard deviation and largest entropy over prompts.

    Args:
        entropies: One a prompt (the mean over its positions), nats.

    Raises:
        BadMeasurementsError: There are none, or one is not finite.
    """
    if not entropies or not all(math.isfinite(value) for value in entropies):
        raise BadMeasurementsError("entropies have to be finite numbers, at least one")
    # Equal numbers have no spread, whatever rounding makes of their mean.
    mean = entropies[0] if len(set(entropies)) == 1 else math.fsum(entropies) / len(entropies)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in entropies) / len(entropies))
    return EntropySummary(mean, std, max(entropies))
