"""Laws of the measures and of intervals, for any numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_tiers import law

from rblstore.divergence.embeddings import embedding_measures
from rblstore.divergence.intervals import interval, recovery_interval
from rblstore.divergence.pair_measures import pair_measures
from rblstore.divergence.verdict import recovery

LAWS = law(100)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two outputs of one shape: each row holds at least one finite logit."""
    positions, vocabulary = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    finite = st.floats(-60, 60)
    logit = st.one_of(finite, st.just(-math.inf))

    def output() -> torch.Tensor:
        rows = [[draw(finite), *(draw(logit) for _ in range(vocabulary - 1))] for _ in range(positions)]
        return torch.tensor(rows, dtype=torch.float64).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))

    return output(), output()


@LAWS
@given(pairs())
def test_the_laws_of_every_measure(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    there, back = pair_measures(*pair), pair_measures(*reversed(pair))
    for name, values in there.items():
        assert not values.isnan().any(), name
        assert bool((values >= 0).all()), name
    assert bool((there["js"] <= math.log(2)).all())
    for name in ("tv", "top1_agreement", "top5_agreement"):
        assert bool((there[name] <= 1).all()), name
        torch.testing.assert_close(there[name], back[name], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(there["js"], back["js"], rtol=1e-9, atol=1e-18)
    torch.testing.assert_close(there["kl_reverse"], back["kl"], rtol=1e-9, atol=1e-18)
    mean = (there["kl"] + there["kl_reverse"]) / 2
    assert bool((there["js"] <= mean * (1 + 1e-9) + 1e-18).all())
    # Pinsker's inequality, both ways; and JS is at least an eighth of L1 squared: TV^2 / 2.
    assert bool((there["tv"] <= torch.sqrt(there["kl"] / 2) * (1 + 1e-9) + 1e-12).all())
    assert bool((there["tv"] ** 2 / 2 <= there["js"] * (1 + 1e-9) + 1e-12).all())
    assert bool((there["js"] <= there["tv"] * math.log(2) * (1 + 1e-9) + 1e-12).all())
    assert bool((there["entropy"] <= math.log(pair[0].shape[1]) + 1e-12).all())


@LAWS
@given(pairs())
def test_positions_are_independent_whatever_a_mask_leaves_out(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    whole = pair_measures(*pair)
    for row in range(len(pair[0])):
        mask = torch.arange(len(pair[0])) == row
        alone = pair_measures(*pair, mask=mask)
        for name, values in alone.items():
            torch.testing.assert_close(values[0], whole[name][row], rtol=1e-9, atol=1e-18)


@LAWS
@given(pairs(), st.floats(0.1, 10))
def test_embeddings_keep_the_laws_of_vectors(pair: tuple[torch.Tensor, torch.Tensor], scale: float) -> None:
    a, b = (side.double().nan_to_num(neginf=0.0) for side in pair)
    found = embedding_measures(a, b)
    cosine = found["cosine"]
    assert bool(((cosine.abs() <= 1) | cosine.isnan()).all())
    same = embedding_measures(a, a.clone())
    assert same["relative_l2"].tolist() == [0.0] * len(a)
    assert same["cosine"].tolist() == [1.0] * len(a)
    moved = embedding_measures(a, a * scale)
    size = a.abs().sum(dim=1) > 0
    wanted = torch.full_like(cosine[size], abs(scale - 1))
    torch.testing.assert_close(moved["relative_l2"][size], wanted, rtol=1e-9, atol=1e-15)


NUMBERS = st.lists(st.floats(0, 1e6), min_size=1, max_size=12)


@LAWS
@given(NUMBERS, st.integers(1, 3))
def test_an_interval_holds_its_mean_and_stays_within_its_numbers(values: list[float], seeds: int) -> None:
    found = interval([values] * seeds, resamples=200)
    assert min(values) * (1 - 1e-12) - 1e-300 <= found.low <= found.mean <= found.high <= max(values) * (1 + 1e-12)
    assert found.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-12)
    assert interval([values] * seeds, resamples=200) == found


@LAWS
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=8))
def test_exact_recovery_is_one_and_none_is_zero(adapted: list[float]) -> None:
    mean = math.fsum(adapted) / len(adapted)
    assert recovery(0.0, mean) == (1.0, None)
    assert recovery(mean, mean) == (0.0, None)
    exact = recovery_interval([[0.0] * len(adapted)], [adapted], resamples=100)
    none = recovery_interval([adapted], [adapted], resamples=100)
    assert exact is not None
    assert none is not None
    assert (exact.mean, exact.low, exact.high) == (1.0, 1.0, 1.0)
    assert (none.mean, none.low, none.high) == (0.0, 0.0, 0.0)
