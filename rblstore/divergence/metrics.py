"""KL, JS and entropy over full next-token distributions: pure functions of tensors (arXiv 2603.02934, Measures).

Everything is computed in float64, block by block, so that the memory needed beside the inputs stays near ten megabytes
(sixty on an accelerator), or five rows of float64 where that is more, whatever the number of positions.

Both divergences are summed in forms whose terms are all non-negative, so that small values keep their digits. With
``d = log q - log p`` and ``t = expm1(d)``, so that ``q = p (1 + t)``:

- KL(p || q) = sum of ``p (t - d)``, since the terms ``p t = q - p`` add up to nothing.
- JS(p, q) = 1/2 sum of ``p ((1 + t) d - (2 + t) log1p(t / 2))``.

Rows that are further apart than rounding could matter go a shorter way (:mod:`rblstore.divergence.fast_terms`).

Where a probability is so small that t could overflow, the larger of both takes the place of p. With ``u = |d|``,
``e = expm1(-u)`` and ``r = max(p, q)`` a term of KL is ``r (e + u)`` where q < p and ``-r (e + (1 + e) u)`` elsewhere,
and one of JS is ``-1/2 r ((2 + e) log1p(e / 2) + (1 + e) u)``.

A sum that rounding leaves below 0 (or JS above ln 2) is set to that bound, and nothing else is clamped. Equal inputs
give exact zeros. A logit of -inf is a probability of 0: ``0 log 0`` counts as 0; a token that the reference allows and
the other forbids makes KL infinite, while JS stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rblstore.divergence.blocks import (
    EXTREME,
    ORDINARY,
    Blocks,
    NanOutputError,
    PositionsMismatchError,
    VocabularyMismatchError,
    block_elements,
    blocks,
    check_matrix,
    check_pair,
    exp_,
    float64_device,
    in_pieces,
    normalizer,
    over_blocks,
)
from rblstore.divergence.fast_terms import FastTerms
from rblstore.divergence.verdict import recovery_fidelity

__all__ = [
    "DivergenceSum",
    "NanOutputError",
    "PositionDivergences",
    "PositionsMismatchError",
    "VocabularyMismatchError",
    "divergences",
    "entropy",
    "js_divergence",
    "kl_divergence",
    "means",
    "recovery_fidelity",
]


@dataclass(frozen=True)
class DivergenceSum:
    """Sums of KL and JS over some items, which add up over blocks of positions, prompts or machines.

    Attributes:
        kl: Sum of KL, nats.
        js: Sum of JS, nats.
        count: How many items were summed.
    """

    kl: float
    js: float
    count: int

    def __add__(self, other: DivergenceSum) -> DivergenceSum:
        """The sums over both sets of items."""
        return DivergenceSum(self.kl + other.kl, self.js + other.js, self.count + other.count)

    def mean(self) -> tuple[float, float]:
        """Mean KL and mean JS, nats; NaN over no items."""
        if self.count == 0:
            return math.nan, math.nan
        return self.kl / self.count, self.js / self.count


@dataclass(frozen=True, eq=False)
class PositionDivergences:
    """The divergences of one pair of outputs, position by position.

    Attributes:
        kl: (positions,) float64, KL(reference || other) in nats.
        js: (positions,) float64, nats.
    """

    kl: torch.Tensor
    js: torch.Tensor

    def sum(self) -> DivergenceSum:
        """The sums over the positions."""
        return DivergenceSum(math.fsum(self.kl.tolist()), math.fsum(self.js.tolist()), len(self.kl))


def kl_divergence(reference_logits: torch.Tensor, other_logits: torch.Tensor) -> torch.Tensor:
    """KL(reference || other) of each position's distribution over the vocabulary, in nats.

    Args:
        reference_logits: (positions, vocabulary), any float dtype.
        other_logits: The same shape, any float dtype.

    Returns:
        (positions,) float64; infinite where the other forbids a token that the reference allows.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ.
        NanOutputError: A row holds NaN, +inf or nothing but -inf.
    """
    return divergences(reference_logits, other_logits).kl


def js_divergence(reference_logits: torch.Tensor, other_logits: torch.Tensor) -> torch.Tensor:
    """The Jensen-Shannon divergence of each position, in nats: symmetric, at most ln 2.

    Args:
        reference_logits: (positions, vocabulary), any float dtype.
        other_logits: The same shape, any float dtype.

    Returns:
        (positions,) float64.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ.
        NanOutputError: A row holds NaN, +inf or nothing but -inf.
    """
    return divergences(reference_logits, other_logits).js


def divergences(reference: torch.Tensor, other: torch.Tensor) -> PositionDivergences:
    """KL and JS of each position in one pass over the values.

    Args:
        reference: Logits (positions, vocabulary), any float dtype.
        other: Logits of the same shape, any float dtype, on any device.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ.
        NanOutputError: A row holds NaN, +inf or nothing but -inf; the message names side and position.
    """
    check_pair(reference, other)
    positions, vocabulary = reference.shape
    device = float64_device(reference)
    kl = torch.zeros(positions, dtype=torch.float64, device=device)
    js = torch.zeros_like(kl)
    done = torch.zeros_like(kl, dtype=torch.bool)
    with torch.no_grad():
        fast = FastTerms(positions, vocabulary, device)
        for rows in fast.rows():
            kl[rows], js[rows], done[rows] = fast.divergences(reference[rows], other[rows])
        del fast

    def work(part: Blocks) -> None:
        workspace = _Workspace(min(positions * vocabulary, block_elements(device)), device)
        for rows, columns in part:
            kl[rows] = js[rows] = 0.0
            ours, theirs = reference[rows], other[rows]
            low_ours, norm_ours = normalizer(ours, columns, device, "reference", rows.start)
            low_theirs, norm_theirs = normalizer(theirs, columns, device, "other", rows.start)
            lowest = min(low_ours - float(norm_ours.max()), low_theirs - float(norm_theirs.max()))
            for column in columns:
                terms = workspace.terms(ours[:, column], theirs[:, column], norm_ours, norm_theirs, lowest=lowest)
                kl[rows] += terms.kl
                js[rows] += terms.js

    over_blocks(positions, vocabulary, device, work, done)
    return PositionDivergences(kl.clamp_(min=0.0), js.clamp_(min=0.0, max=math.log(2.0)))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Shannon entropy of each position's distribution, in nats.

    Args:
        logits: (positions, vocabulary), any float dtype.

    Returns:
        (positions,) float64, from 0 to ln(vocabulary).

    Raises:
        PositionsMismatchError: Not two-dimensional.
        NanOutputError: A row holds NaN, +inf or nothing but -inf.
    """
    check_matrix(logits)
    positions, vocabulary = logits.shape
    device = float64_device(logits)
    total = torch.zeros(positions, dtype=torch.float64, device=device)
    with torch.no_grad():
        for rows, columns in blocks(positions, vocabulary, device):
            low, norm = normalizer(logits[rows], columns, device, "output", rows.start)
            for column in columns:
                logs = torch.sub(logits[rows, column].to(device=device, dtype=torch.float64), norm)
                if not low > -EXTREME:
                    logs.clamp_(min=-EXTREME)
                total[rows] -= exp_(logs.clone()).mul_(logs).sum(dim=1)
    return total.clamp_(min=0.0)


def means(measures: Mapping[str, torch.Tensor]) -> dict[str, float | None]:
    """The mean of each measure over positions.

    Args:
        measures: (positions,) float64 by name.

    Returns:
        By name; None where it is infinite or undefined, over no positions for one.
    """
    found: dict[str, float | None] = {}
    for name, values in measures.items():
        numbers = values.tolist()
        whole = bool(numbers) and all(math.isfinite(number) for number in numbers)
        found[name] = math.fsum(numbers) / len(numbers) if whole else None
    return found


class _Workspace:
    """The float64 buffers of one block, used again for every block that is no larger."""

    def __init__(self, elements: int, device: torch.device) -> None:
        self._buffers = [torch.empty(elements, dtype=torch.float64, device=device) for _ in range(6)]

    def terms(
        self,
        ours: torch.Tensor,
        theirs: torch.Tensor,
        norm_ours: torch.Tensor,
        norm_theirs: torch.Tensor,
        *,
        lowest: float,
    ) -> PositionDivergences:
        """What these columns add to the divergences of their rows; no log-probability is below ``lowest``."""
        buffers = [buffer[: ours.numel()].view(ours.shape) for buffer in self._buffers]
        log_p, log_q, d, t, h, mixed = buffers
        log_p.copy_(ours).sub_(norm_ours)
        log_q.copy_(theirs).sub_(norm_theirs)
        torch.sub(log_q, log_p, out=d)
        if not lowest > ORDINARY:
            return self._far(buffers, extreme=not lowest > -EXTREME)
        p = exp_(log_p)
        in_pieces(torch.Tensor.expm1_, t.copy_(d))
        log_mixed = in_pieces(torch.Tensor.log1p_, torch.mul(t, 0.5, out=log_q))
        kl = torch.sub(t, d, out=h).mul_(p).sum(dim=1)
        torch.addcmul(d, t, d, out=mixed).sub_(log_mixed, alpha=2.0).addcmul_(t, log_mixed, value=-1.0)
        return PositionDivergences(kl, mixed.mul_(p).sum(dim=1).mul_(0.5))

    def _far(self, buffers: list[torch.Tensor], *, extreme: bool) -> PositionDivergences:
        """The same where probabilities may be 0 or nearly; ``extreme`` where a logit may be -inf."""
        log_p, log_q, u, e, h, mixed = buffers
        forbidden = None
        if extreme:
            # Both -inf gives NaN, which counts as 0; one of them gives an infinity, which must not meet a factor of 0.
            u.nan_to_num_(nan=0.0, posinf=EXTREME, neginf=-EXTREME)
            forbidden = ((log_p > -math.inf) & (log_q == -math.inf)).any(dim=1)
        falls = u < 0
        u.abs_()
        r = exp_(torch.maximum(log_p, log_q, out=log_p))
        in_pieces(torch.Tensor.expm1_, torch.neg(u, out=e))
        torch.addcmul(u, e, u, out=h)
        log_mixed = in_pieces(torch.Tensor.log1p_, torch.mul(e, 0.5, out=log_q))
        torch.mul(e, log_mixed, out=mixed).add_(log_mixed, alpha=2.0).add_(h)
        js = mixed.mul_(r).sum(dim=1).mul_(-0.5)
        rising = h.add_(e).neg_()
        torch.where(falls, u.add_(e), rising, out=e)
        kl = e.mul_(r).sum(dim=1)
        return PositionDivergences(kl if forbidden is None else kl.masked_fill_(forbidden, math.inf), js)
