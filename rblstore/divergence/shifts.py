"""Whether a behavior moves a model the same way beside another one as it does alone.

A behavior B shifts the log-probabilities of a model. Alone, on what it stands on, by ``s = log p_B - log p``; beside A,
by ``t = log p_AB - log p_A``. Both are held against each other at every position of a prompt in one inner product, the
covariance under the distribution p that lies beneath both:

    <s, t> = sum_y p(y) s(y) t(y) - (sum_y p(y) s(y)) (sum_y p(y) t(y))

A constant added to logits adds nothing to it, a token that p hardly gives counts hardly, and it is the metric that KL
itself has for small shifts: KL(p || p_B) = <s, s> / 2 + O(s^3). From its sums over the positions of a prompt:

- ``kept = <s, t> / <s, s>``: by what B's shift alone has to be multiplied to come nearest to its shift beside A. 1: the
  whole effect is there; 0: nothing of it; below 0: turned round; above 1: made stronger.
- ``cosine = <s, t> / (|s| |t|)``: whether B still moves into the same direction, however far.
- ``ratio = |t| / |s|``: whether it still moves as far, in whatever direction. ``kept`` is their product.

For embeddings, which are no distributions, s and t are differences of embeddings; their inner product is the plain one.
Everything is computed in float64, one position at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rblstore.divergence.metrics import NanOutputError, PositionsMismatchError, VocabularyMismatchError

__all__ = ["ShiftAgreement", "embedding_shifts", "logit_shifts"]


@dataclass(frozen=True)
class ShiftAgreement:
    """Inner products of a behavior's shift alone (s) and beside another one (t), summed over positions.

    Attributes:
        alone: <s, s>; infinite where a token is forbidden that the distribution beneath allows.
        beside: <t, t>, likewise.
        product: <s, t>; NaN where one of the others is infinite.
        count: How many positions.
    """

    alone: float
    beside: float
    product: float
    count: int

    def __add__(self, other: ShiftAgreement) -> ShiftAgreement:
        """The sums over both sets of positions."""
        return ShiftAgreement(
            self.alone + other.alone,
            self.beside + other.beside,
            self.product + other.product,
            self.count + other.count,
        )

    def mean(self) -> ShiftAgreement:
        """The same for a single position: what is added up where every prompt counts alike, however long."""
        return ShiftAgreement(self.alone / self.count, self.beside / self.count, self.product / self.count, 1)

    @property
    def defined(self) -> bool:
        """Whether the shifts are finite and the behavior has an effect alone, without which nothing can be kept."""
        return all(math.isfinite(one) for one in (self.alone, self.beside, self.product)) and self.alone > 0

    @property
    def kept(self) -> float | None:
        """<s, t> / <s, s>, or None where not defined."""
        return self.product / self.alone if self.defined else None

    @property
    def ratio(self) -> float | None:
        """|t| / |s|, or None where not defined."""
        return math.sqrt(self.beside / self.alone) if self.defined else None

    @property
    def cosine(self) -> float | None:
        """<s, t> / (|s| |t|), or None where not defined or where nothing moves beside the other behavior."""
        if not self.defined or self.beside <= 0:
            return None
        # By Cauchy and Schwarz; only rounding goes beyond.
        return max(-1.0, min(1.0, self.product / math.sqrt(self.alone) / math.sqrt(self.beside)))


def logit_shifts(beneath: torch.Tensor, alone: torch.Tensor, other: torch.Tensor, both: torch.Tensor) -> ShiftAgreement:
    """How a behavior's shift of log-probabilities alone and beside another one lie to each other.

    Args:
        beneath: Logits (positions, vocabulary) without either, any float dtype.
        alone: The same with the behavior.
        other: The same with the other one.
        both: The same with both.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ.
        NanOutputError: A row holds NaN, +inf or nothing but -inf.
    """
    _check_shapes(beneath, alone, other, both)
    found = ShiftAgreement(0.0, 0.0, 0.0, 0)
    with torch.no_grad():
        for position in range(len(beneath)):
            rows = [_log_probabilities(one[position], position) for one in (beneath, alone, other, both)]
            found += _covariances(*rows)
    return found


def embedding_shifts(
    beneath: torch.Tensor, alone: torch.Tensor, other: torch.Tensor, both: torch.Tensor
) -> ShiftAgreement:
    """The same of embeddings (positions, width), in their plain inner product.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ.
    """
    _check_shapes(beneath, alone, other, both)
    with torch.no_grad():
        s = alone.to(torch.float64) - beneath.to(torch.float64)
        t = both.to(torch.float64) - other.to(torch.float64)
        return ShiftAgreement(float((s * s).sum()), float((t * t).sum()), float((s * t).sum()), len(beneath))


def _covariances(beneath: torch.Tensor, alone: torch.Tensor, other: torch.Tensor, both: torch.Tensor) -> ShiftAgreement:
    weights = beneath.exp()
    # What the distribution beneath does not allow has no weight; a difference of infinities must not meet it.
    counted = weights > 0
    s = torch.where(counted, alone - beneath, 0.0)
    t = torch.where(counted, both - other, 0.0)
    if not bool(torch.isfinite(s).all() and torch.isfinite(t).all()):
        return ShiftAgreement(_square(s, weights), _square(t, weights), math.nan, 1)
    # Centred first: the difference of large sums would lose a small covariance.
    s -= (weights * s).sum()
    t -= (weights * t).sum()
    weighted = weights * t
    return ShiftAgreement(_square(s, weights), float((weighted * t).sum()), float((weighted * s).sum()), 1)


def _square(shift: torch.Tensor, weights: torch.Tensor) -> float:
    return float((weights * shift * shift).sum()) if bool(torch.isfinite(shift).all()) else math.inf


def _log_probabilities(logits: torch.Tensor, position: int) -> torch.Tensor:
    row = logits.to(device="cpu", dtype=torch.float64)
    if not math.isfinite(float(row.max())):
        raise NanOutputError(
            f"the logits at position {position} are no distribution: NaN, +inf or nothing but -inf",
            object=f"position {position}",
            hint="Look for NaN or overflowing weights; a wider dtype may help.",
        )
    return row - torch.logsumexp(row, 0)


def _check_shapes(first: torch.Tensor, *others: torch.Tensor) -> None:
    for other in others:
        if first.ndim != 2 or other.ndim != 2 or first.shape[0] != other.shape[0]:
            raise PositionsMismatchError(
                f"outputs of {list(first.shape)} and {list(other.shape)} are not of the same positions",
                hint="Measure all under the same probe.",
            )
        if first.shape[1] != other.shape[1]:
            raise VocabularyMismatchError(
                f"the vocabularies have {first.shape[1]} and {other.shape[1]} entries",
                hint="Shifts are defined over one vocabulary; compare models with the same tokenizer and head.",
            )
