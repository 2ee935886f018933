"""Whether a shift of log-probabilities is kept: by an independent computation, and where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from rblstore.divergence.metrics import NanOutputError, PositionsMismatchError, VocabularyMismatchError, divergences
from rblstore.divergence.shifts import ShiftAgreement, embedding_shifts, logit_shifts

POSITIONS, WIDTH = 3, 50


def logits(seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(POSITIONS, WIDTH, generator=generator, dtype=torch.float64)


def covariance(p: list[float], s: list[float], t: list[float]) -> float:
    mean_s, mean_t = (math.fsum(w * x for w, x in zip(p, one, strict=True)) for one in (s, t))
    return math.fsum(w * (x - mean_s) * (y - mean_t) for w, x, y in zip(p, s, t, strict=True))


def test_the_inner_products_are_covariances_under_what_lies_beneath() -> None:
    outputs = [logits(seed).float() for seed in range(4)]
    found = logit_shifts(*outputs)
    expected = [0.0, 0.0, 0.0]
    for row in range(POSITIONS):
        beneath, alone, other, both = (torch.log_softmax(one[row].double(), 0) for one in outputs)
        p, s, t = beneath.exp().tolist(), (alone - beneath).tolist(), (both - other).tolist()
        for at, (one, two) in enumerate(((s, s), (t, t), (s, t))):
            expected[at] += covariance(p, one, two)
    assert (found.alone, found.beside, found.product) == pytest.approx(tuple(expected), rel=1e-12)
    assert found.count == POSITIONS
    assert found.kept == pytest.approx(expected[2] / expected[0])
    assert found.kept == pytest.approx((found.cosine or 0) * (found.ratio or 0))


def test_a_shift_that_adds_up_is_kept_whole() -> None:
    beneath, a, b = logits(1), logits(2, 0.1), logits(3, 0.1)
    found = logit_shifts(beneath, beneath + b, beneath + a, beneath + a + b + 7.0)
    assert (found.kept, found.cosine, found.ratio) == pytest.approx((1.0, 1.0, 1.0), rel=1e-12)


@pytest.mark.parametrize("factor", [0.5, -1.0, 2.0])
def test_a_shift_that_is_scaled_is_kept_by_that_factor(factor: float) -> None:
    beneath, a, b = logits(1), logits(2, 0.1), logits(3, 0.1)
    found = logit_shifts(beneath, beneath + b, beneath + a, beneath + a + factor * b)
    assert found.kept == pytest.approx(factor)
    assert found.cosine == pytest.approx(math.copysign(1.0, factor))
    assert found.ratio == pytest.approx(abs(factor))


def test_what_was_lost_and_what_never_was() -> None:
    beneath, a, b = logits(1), logits(2), logits(3)
    lost = logit_shifts(beneath, beneath + b, beneath + a, beneath + a)
    assert (lost.kept, lost.ratio, lost.cosine) == (0.0, 0.0, None)
    never = logit_shifts(beneath, beneath, beneath + a, beneath + a + b)
    assert (never.kept, never.ratio, never.cosine) == (None, None, None)


def test_half_the_square_of_a_small_shift_is_its_divergence() -> None:
    beneath, b = logits(1), logits(3, 1e-4)
    found = logit_shifts(beneath, beneath + b, beneath, beneath + b)
    assert found.alone / 2 == pytest.approx(divergences(beneath, beneath + b).sum().kl, rel=1e-3)


def test_tokens_that_are_not_allowed() -> None:
    beneath, a, b = logits(1), logits(2, 0.1), logits(3, 0.1)
    mask = torch.zeros(POSITIONS, WIDTH, dtype=torch.float64)
    mask[:, 5] = -math.inf
    found = logit_shifts(beneath + mask, beneath + b + mask, beneath + a + mask, beneath + a + b + mask)
    assert found.kept == pytest.approx(1.0)
    forbidden = logit_shifts(beneath, beneath + b + mask, beneath + a, beneath + a + b)
    assert forbidden.alone == math.inf
    assert not forbidden.defined
    assert (forbidden.kept, forbidden.ratio, forbidden.cosine) == (None, None, None)


def test_embeddings_have_their_plain_inner_product() -> None:
    beneath, a, b = logits(1), logits(2), logits(3)
    found = embedding_shifts(beneath, beneath + b, beneath + a, beneath + a - 3.0 * b)
    assert (found.kept, found.cosine, found.ratio) == pytest.approx((-3.0, -1.0, 3.0))
    assert found.alone == pytest.approx(float((b * b).sum()))


def test_sums_add_up() -> None:
    outputs = [logits(seed) for seed in range(4)]
    parts = [logit_shifts(*(one[row : row + 1] for one in outputs)) for row in range(POSITIONS)]
    whole, total = logit_shifts(*outputs), sum(parts, ShiftAgreement(0.0, 0.0, 0.0, 0))
    assert (total.alone, total.beside, total.product, total.count) == pytest.approx(
        (whole.alone, whole.beside, whole.product, whole.count)
    )


def test_what_cannot_be_compared_is_refused() -> None:
    one = logits(1)
    with pytest.raises(PositionsMismatchError):
        logit_shifts(one, one, one[:2], one)
    with pytest.raises(VocabularyMismatchError):
        logit_shifts(one, one, one, one[:, :-1])
    bad = one.clone()
    bad[1, 3] = math.nan
    with pytest.raises(NanOutputError, match="position 1"):
        logit_shifts(one, bad, one, one)
