"""What a comparison proves, in rules and numbers alone: no tensors, no files.

The rules:

1. ``exact``: every recorded value is the same bit for bit. Nothing else is exact, however small its divergences.
2. ``within_tolerance``: not bit-equal, but KL and JS are both known, and the upper ends of both 95 % intervals over the
   prompts are below the tolerance (1e-6 nats unless the caller says otherwise, the bound of arXiv 2603.02934). A mean
   alone could be below it by the luck of the prompts. With one prompt there is no interval, and the means decide. With
   a tolerance of 0 only ``exact`` passes.
3. ``diverged``: everything else, also where a divergence is infinite or cannot be had (an embedding, another
   vocabulary, another head): what cannot be compared is not shown to be equal. The relative L2 distance of embeddings
   decides nothing: the tolerance is one of nats.
4. RF = 1 - KL(reference || recovered) / KL(reference || adapted). It is never clamped: it is negative where taking the
   behavior out made things worse. It is None, with a reason, where the adapted model does not differ from the
   reference (nothing was there to recover from) or where either divergence is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, Protocol

from rblstore.divergence.uncertainty import MeasuredPrompt, upper_end
from rblstore.errors import UsageError
from rblstore.objects import limits
from rblstore.objects.evidence_records import Verdict

DEFAULT_TOLERANCE: Final = 1e-6


class BadToleranceError(UsageError):
    """The tolerance asked for is not a number from 0 to 2^53 - 1, the largest that a record holds."""

    code = "bad_tolerance"


DecidedBy = Literal["bits", "upper_95", "mean"]
"""What decided a verdict: equality of bits; the upper ends of the intervals of KL and JS; their means."""


class Compared(Protocol):
    """What a verdict is decided from; ``compare.Comparison`` is one, and so is a stored verification."""

    @property
    def bit_equal(self) -> bool:
        """Whether every recorded value is the same, bit for bit."""

    @property
    def kl(self) -> float | None:
        """Mean KL in nats, or None where it cannot be had."""

    @property
    def js(self) -> float | None:
        """Mean JS in nats, or None where it cannot be had."""

    @property
    def prompts(self) -> Sequence[MeasuredPrompt]:
        """What both are means over."""


class Decided(Compared, Protocol):
    """A comparison with its verdict; a stored verification is one."""

    @property
    def verdict(self) -> Verdict:
        """The verdict."""

    @property
    def tolerance(self) -> float:
        """Against what it was decided."""


def check_tolerance(tolerance: float) -> None:
    """Refuses a tolerance that decides nothing, before minutes are spent on measuring.

    Raises:
        BadToleranceError: It is not a number from 0 to 2^53 - 1, the largest that a record holds.
    """
    if not 0 <= tolerance <= limits.JSON_INTEGER:
        raise BadToleranceError(
            f"the tolerance {tolerance} is not a number from 0 to 2^53 - 1",
            object=str(tolerance),
            hint=f"The default is {DEFAULT_TOLERANCE:g}.",
        )


def decide(comparison: Compared, tolerance: float = DEFAULT_TOLERANCE) -> Verdict:
    """The verdict on a comparison with a baseline, by the rules above.

    Args:
        comparison: Bit equality, KL and JS (nats), as means and prompt by prompt.
        tolerance: The upper ends of KL and JS must both be below it to be within tolerance; finite, at least 0.

    Raises:
        BadToleranceError: The tolerance is not such a number.
    """
    check_tolerance(tolerance)
    if comparison.bit_equal:
        return "exact"
    bound = _bound(comparison)
    return "within_tolerance" if bound is not None and bound < tolerance else "diverged"


def decided_by(decided: Decided) -> DecidedBy:
    """What decided a verdict. Records of before intervals were asked for may be within tolerance by their means alone.

    Returns:
        ``bits`` where equal bits decided, or nothing but they could have; ``mean`` where the means did: one prompt, or
        such a record; ``upper_95`` everywhere else.
    """
    bound = None if decided.bit_equal else _bound(decided)
    if bound is None:
        return "bits"
    if len(decided.prompts) == 1 or (decided.verdict == "within_tolerance" and not bound < decided.tolerance):
        return "mean"
    return "upper_95"


def _bound(comparison: Compared) -> float | None:
    """What has to be below the tolerance: no less than either mean; None where one of them is not finite."""
    if comparison.kl is None or comparison.js is None:
        return None
    mean, upper = max(comparison.kl, comparison.js), upper_end(comparison.prompts)
    if upper is None or not (math.isfinite(comparison.kl) and math.isfinite(comparison.js)):
        return None
    return max(mean, upper)


def recovery_fidelity(kl_recovered: float, kl_adapted: float) -> float | None:
    """RF = 1 - KL(f0, recovered) / KL(f0, adapted) of arXiv 2603.02934; 1 is exact recovery, 0 none.

    Args:
        kl_recovered: KL(reference || recovered), nats.
        kl_adapted: KL(reference || adapted), nats; may be infinite, which leaves RF at its limit, 1.

    Returns:
        RF, never clamped; None where it is undefined (the adapted model equals the reference, both are infinite, a
        NaN) or too large for a float.
    """
    if not kl_adapted > 0 or math.isnan(kl_recovered):
        return None
    if math.isinf(kl_adapted):
        return None if math.isinf(kl_recovered) else 1.0
    fidelity = 1.0 - kl_recovered / kl_adapted
    return fidelity if math.isfinite(fidelity) else None


def recovery(
    kl_recovered: float | None,
    kl_adapted: float | None,
    *,
    recovered_reason: str | None = None,
    adapted_reason: str | None = None,
) -> tuple[float | None, str | None]:
    """RF, or the reason why there is none; exactly one of the two is None.

    Args:
        kl_recovered: KL(reference || recovered), nats; None where it cannot be had.
        kl_adapted: KL(reference || adapted), nats; None where it cannot be had.
        recovered_reason: Why ``kl_recovered`` is None, as its comparison says.
        adapted_reason: Why ``kl_adapted`` is None, as its comparison says.
    """
    if kl_adapted is None:
        return None, _unknown("adapted", adapted_reason)
    if kl_adapted == 0:
        return None, "the adapted model does not differ from the reference"
    if kl_recovered is None:
        return None, _unknown("recovered", recovered_reason)
    fidelity = recovery_fidelity(kl_recovered, kl_adapted)
    if fidelity is None:
        return None, f"KL {kl_recovered:g} after and {kl_adapted:g} before leave no finite ratio"
    return fidelity, None


def _unknown(model: str, reason: str | None) -> str:
    why = "" if reason is None else f": {reason}"
    return f"the {model} model cannot be compared with the reference{why}"
