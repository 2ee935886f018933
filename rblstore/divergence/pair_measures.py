"""Every measure of one output against another, in one pass over the values (arXiv 2603.02934, Measures).

Beside KL and JS as :mod:`rblstore.divergence.metrics` has them, with ``d = log q - log p`` and ``t = expm1(d)``, p
being the reference's distribution:

- KL(q || p) = sum of ``p ((1 + t) d - t)``, whose terms are non-negative like those of KL(p || q).
- TV = 1/2 sum of ``|p - q|`` = 1/2 sum of ``p |t|``.
- entropy = - sum of ``q log q``: of the measured output, not of the reference.
- top-k agreement: the share of the k likeliest tokens that both have. Of equally likely ones the lowest ids count, and
  tokens of probability 0 never do.

Equal inputs give exact zeros, and agreements of exactly 1. docs/measures.md has the edge cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch

from rblstore.divergence.blocks import (
    EXTREME,
    ORDINARY,
    Blocks,
    NanOutputError,
    PositionsMismatchError,
    VocabularyMismatchError,
    block_elements,
    check_matrix,
    check_pair,
    exp_,
    float64_device,
    in_pieces,
    normalizer,
    over_blocks,
)
from rblstore.divergence.embeddings import embedding_measures
from rblstore.divergence.measure import PromptMeasurement, values_bytes
from rblstore.divergence.metrics import entropy, means
from rblstore.errors import ConflictError

__all__ = ["MEASURES", "measure_prompt", "pair_measures", "top_agreement"]

MEASURES: Final = ("kl", "kl_reverse", "js", "tv", "top1_agreement", "top5_agreement", "entropy")
"""Names of what is measured on distributions, in the order in which tables show them."""

_SUMMED: Final = ("kl", "kl_reverse", "js", "tv", "entropy")
_EQUAL: Final = {"kl": 0.0, "kl_reverse": 0.0, "js": 0.0, "tv": 0.0, "top1_agreement": 1.0, "top5_agreement": 1.0}
_MOST: Final = {"js": math.log(2.0), "tv": 1.0}


def pair_measures(
    reference: torch.Tensor, other: torch.Tensor, *, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Every measure of each position, of one output against a reference.

    Args:
        reference: Logits (positions, vocabulary), any float dtype.
        other: Logits of the same shape, any float dtype, on any device.
        mask: (positions,) bool, True where a position is measured; the others' logits are not looked at. None: all.

    Returns:
        By the names of :data:`MEASURES`, (positions,) float64 each, without the positions that the mask leaves out.
        Divergences and entropy in nats. ``kl`` is infinite where the other forbids a token that the reference allows,
        ``kl_reverse`` the other way round; nothing else ever is.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ; names both sizes.
        NanOutputError: A row holds NaN, +inf or nothing but -inf; names side and position.
    """
    check_pair(reference, other)
    kept = _kept(mask, int(reference.shape[0]))
    if kept is not None:
        reference, other = reference[kept.to(reference.device)], other[kept.to(other.device)]
    try:
        return _measures(reference, other)
    except NanOutputError as error:
        if kept is None or error.object is None:
            raise
        # Positions are counted in what was given, not in what the mask has left of it.
        place = int(error.object.removeprefix("position "))
        actual = int(kept.nonzero()[place, 0])
        message = error.message.replace(f"position {place}", f"position {actual}")
        raise NanOutputError(message, object=f"position {actual}", hint=error.hint) from error


def top_agreement(reference: torch.Tensor, other: torch.Tensor, count: int) -> torch.Tensor:
    """The share of each position's likeliest tokens that two outputs have in common.

    Args:
        reference: Logits (positions, vocabulary), any float dtype.
        other: Logits of the same shape.
        count: How many tokens, from 1. Where fewer are possible at all, as many as there are.

    Returns:
        (positions,) float64, from 0 to 1.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ.
    """
    check_pair(reference, other)
    return _agreement(_likeliest(reference, count), _likeliest(other, count).to(reference.device))


def measure_prompt(reference: torch.Tensor, measured: PromptMeasurement) -> tuple[bool, dict[str, float | None]]:
    """What was measured on one prompt, against the values recorded for it.

    Args:
        reference: (positions, width), of the same kind as what was measured: logits, or embeddings.
        measured: The model's output.

    Returns:
        Whether dtype, shape and every value are the same, bit for bit; and the means over the prompt's positions, by
        the names of :func:`pair_measures`, or of :func:`rblstore.divergence.embeddings.embedding_measures` where the
        output is an embedding. None where a mean is infinite or undefined.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: Not of one shape; names the prompt and both sizes.
        NanOutputError: Values that are no distribution, or no numbers; names the prompt.
    """
    values = measured.values
    like = reference.dtype == values.dtype and reference.shape == values.shape
    equal = like and values_bytes(reference) == values_bytes(values)
    try:
        if measured.output == "embedding":
            return equal, means(embedding_measures(reference, values))
        if equal:
            return True, {**_EQUAL, **means({"entropy": entropy(values)})}
        return False, means(pair_measures(reference, values))
    except (NanOutputError, VocabularyMismatchError, PositionsMismatchError) as error:
        kind: type[NanOutputError] | type[ConflictError] = type(error)
        raise kind(f"prompt {measured.id!r}: {error.message}", object=measured.id, hint=error.hint) from error


def _kept(mask: torch.Tensor | None, positions: int) -> torch.Tensor | None:
    if mask is None:
        return None
    if mask.dtype != torch.bool or tuple(mask.shape) != (positions,):
        raise PositionsMismatchError(
            f"a mask of {mask.dtype} and shape {tuple(mask.shape)} does not say which of {positions} positions count"
        )
    return mask.to("cpu")


def _measures(reference: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    positions, vocabulary = reference.shape
    device = float64_device(reference)
    found = {name: torch.zeros(positions, dtype=torch.float64, device=device) for name in MEASURES}

    def work(part: Blocks) -> None:
        workspace = _Workspace(min(positions * vocabulary, block_elements(device)), device)
        for rows, columns in part:
            ours, theirs = reference[rows], other[rows]
            low_ours, norm_ours = normalizer(ours, columns, device, "reference", rows.start)
            low_theirs, norm_theirs = normalizer(theirs, columns, device, "other", rows.start)
            lowest = min(low_ours - float(norm_ours.max()), low_theirs - float(norm_theirs.max()))
            for column in columns:
                terms = workspace.terms(ours[:, column], theirs[:, column], norm_ours, norm_theirs, lowest=lowest)
                for name, term in terms:
                    found[name][rows] += term
            first, second = _likeliest(ours, 5), _likeliest(theirs, 5).to(ours.device)
            found["top1_agreement"][rows] = _agreement(first[:, :1], second[:, :1]).to(device)
            found["top5_agreement"][rows] = _agreement(first, second).to(device)

    over_blocks(positions, vocabulary, device, work)
    for name in _SUMMED:
        found[name].clamp_(min=0.0, max=_MOST.get(name, math.inf))
    return found


def _likeliest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Ids (rows, count) of the likeliest tokens, the lowest of equals first; -1 where fewer have any probability."""
    check_matrix(logits)
    rows, vocabulary = logits.shape
    count = min(count, vocabulary)
    # Which of equal values topk picks is left open, so only its threshold is used.
    least = logits.topk(count, dim=1).values[:, -1:]
    row, token = ((logits >= least) & (logits > -math.inf)).nonzero(as_tuple=True)
    order = logits[row, token].to(device=row.device).argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    row, token = row[order], token[order]
    starts = torch.searchsorted(row, torch.arange(rows, device=row.device))
    rank = torch.arange(len(row), device=row.device) - starts[row]
    found = torch.full((rows, count), -1, dtype=torch.long, device=row.device)
    within = rank < count
    found[row[within], rank[within]] = token[within]
    return found


def _agreement(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    same = (first[:, :, None] == second[:, None, :]) & (first >= 0)[:, :, None]
    most = torch.maximum((first >= 0).sum(dim=1), (second >= 0).sum(dim=1))
    return same.any(dim=2).sum(dim=1).double() / most.clamp(min=1)


class _Workspace:
    """The float64 buffers of one block, used again for every block that is no larger."""

    def __init__(self, elements: int, device: torch.device) -> None:
        self._buffers = [torch.empty(elements, dtype=torch.float64, device=device) for _ in range(7)]

    def terms(
        self,
        ours: torch.Tensor,
        theirs: torch.Tensor,
        norm_ours: torch.Tensor,
        norm_theirs: torch.Tensor,
        *,
        lowest: float,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What these columns add to each sum of their rows; no log-probability is below ``lowest``."""
        buffers = [buffer[: ours.numel()].view(ours.shape) for buffer in self._buffers]
        log_p, log_q, d, t, mixed, h, q = buffers
        log_p.copy_(ours).sub_(norm_ours)
        log_q.copy_(theirs).sub_(norm_theirs)
        torch.sub(log_q, log_p, out=d)
        if not lowest > ORDINARY:
            yield from self._far(buffers, extreme=not lowest > -EXTREME)
            return
        exp_(q.copy_(log_q))
        yield "entropy", q.mul_(log_q).sum(dim=1).neg_()
        p = exp_(log_p)
        in_pieces(torch.Tensor.expm1_, t.copy_(d))
        log_mixed = in_pieces(torch.Tensor.log1p_, torch.mul(t, 0.5, out=log_q))
        yield "tv", torch.abs(t, out=h).mul_(p).sum(dim=1).mul_(0.5)
        yield "kl", torch.sub(t, d, out=h).mul_(p).sum(dim=1)
        of_q = torch.addcmul(d, t, d, out=mixed)
        yield "kl_reverse", torch.sub(of_q, t, out=h).mul_(p).sum(dim=1)
        of_q.sub_(log_mixed, alpha=2.0).addcmul_(t, log_mixed, value=-1.0)
        yield "js", of_q.mul_(p).sum(dim=1).mul_(0.5)

    def _far(self, buffers: list[torch.Tensor], *, extreme: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """The same where probabilities may be 0 or nearly; ``extreme`` where a logit may be -inf."""
        log_p, log_q, u, e, mixed, h, q = buffers
        forward = backward = None
        if extreme:
            # Both -inf gives NaN, which counts as 0; one of them gives an infinity, which must not meet a factor of 0.
            u.nan_to_num_(nan=0.0, posinf=EXTREME, neginf=-EXTREME)
            forward = ((log_p > -math.inf) & (log_q == -math.inf)).any(dim=1)
            backward = ((log_q > -math.inf) & (log_p == -math.inf)).any(dim=1)
        exp_(q.copy_(log_q))
        falls = u < 0
        u.abs_()
        r = exp_(torch.maximum(log_p, log_q, out=log_p))
        yield "entropy", q.mul_(log_q.clamp_(min=-EXTREME)).sum(dim=1).neg_()
        in_pieces(torch.Tensor.expm1_, torch.neg(u, out=e))
        yield "tv", torch.mul(e, r, out=q).sum(dim=1).mul_(-0.5)
        torch.addcmul(u, e, u, out=h)
        log_mixed = in_pieces(torch.Tensor.log1p_, torch.mul(e, 0.5, out=log_q))
        torch.mul(e, log_mixed, out=mixed).add_(log_mixed, alpha=2.0).add_(h)
        yield "js", mixed.mul_(r).sum(dim=1).mul_(-0.5)
        rising, falling = h.add_(e).neg_().mul_(r), u.add_(e).mul_(r)
        kl = torch.where(falls, falling, rising, out=q).sum(dim=1)
        yield "kl", kl if forward is None else kl.masked_fill_(forward, math.inf)
        reverse = torch.where(falls, rising, falling, out=q).sum(dim=1)
        yield "kl_reverse", reverse if backward is None else reverse.masked_fill_(backward, math.inf)
