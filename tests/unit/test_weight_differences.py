"""How two tensors' values lie to each other, against matrices of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest

from rblstore.checkpoints.merging import read_floats, write_floats
from rblstore.divergence.weight_differences import (
    SharedDifferences,
    Thinness,
    bits_apart,
    correlation,
    rounding_variances,
    thinness_of,
)

_DRAWN = np.random.default_rng(5)
_WEIGHTS = _DRAWN.normal(0, 0.03, (96, 160))


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    stored = write_floats(values.astype(np.float64 if dtype == "F64" else np.float32), dtype)
    return read_floats(stored, dtype, values.shape).astype(np.float64)


def _thin(rank: int, size: float) -> np.ndarray:
    product = _DRAWN.normal(size=(96, rank)) @ _DRAWN.normal(size=(rank, 160))
    return product * size / product.std()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_the_rank_of_what_was_merged_is_found_over_the_rounding(dtype: str, rank: int) -> None:
    base = _rounded(_WEIGHTS, dtype)
    merged = _rounded(base + _thin(rank, 0.002), dtype)
    found = thinness_of(merged - base, rounding_variances(merged, dtype))
    assert found.rank == rank
    assert found.thin
    assert found.energy > 0.99


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("size", [1e-4, 3e-3])
def test_a_change_of_full_rank_is_not_thin(dtype: str, size: float) -> None:
    base = _rounded(_WEIGHTS, dtype)
    tuned = _rounded(base + _DRAWN.normal(0, size, base.shape), dtype)
    assert not thinness_of(tuned - base, rounding_variances(tuned, dtype)).thin


def test_rows_of_very_different_sizes_do_not_pass_for_rank() -> None:
    base = _rounded(_WEIGHTS * np.geomspace(0.01, 100, 96)[:, None], "F16")
    merged = _rounded(base + _thin(4, 0.05), "F16")
    assert thinness_of(merged - base, rounding_variances(merged, "F16")).rank <= 4


def test_nothing_but_rounding_is_not_thin() -> None:
    base = _rounded(_WEIGHTS, "F32")
    rounded = _rounded(base, "BF16")
    assert not thinness_of(rounded - base, rounding_variances(rounded, "BF16")).thin
    assert thinness_of(base - base, rounding_variances(base, "F32")) == Thinness(0, 0.0, thin=False)


@pytest.mark.parametrize(("dtype", "step"), [("BF16", 2.0**-7), ("F16", 2.0**-10), ("F32", 2.0**-23)])
def test_the_variance_is_a_twelfth_of_the_step_squared(dtype: str, step: float) -> None:
    found = rounding_variances(np.array([1.0, 1.5, 4.0, 0.0]), dtype)
    assert found[0] == found[1] == step**2 / 12
    assert found[2] == (4 * step) ** 2 / 12
    assert found[3] < 1e-9  # the step of the least numbers


def test_the_variance_is_that_of_rounding() -> None:
    exact = _DRAWN.normal(0, 0.03, 200_000)
    rounded = _rounded(exact, "BF16")
    assert np.mean((rounded - exact) ** 2) == pytest.approx(rounding_variances(rounded, "BF16").mean(), rel=0.02)


def test_correlation_of_equal_opposite_unrelated_and_constant_values() -> None:
    other = _DRAWN.normal(size=_WEIGHTS.shape)
    assert correlation(_WEIGHTS, _WEIGHTS) == pytest.approx(1.0)
    assert correlation(_WEIGHTS, 3 - _WEIGHTS) == pytest.approx(-1.0)
    assert abs(correlation(_WEIGHTS, other) or 0.0) < 0.05
    assert correlation(_WEIGHTS, np.ones_like(_WEIGHTS)) is None
    with np.errstate(over="raise"):
        assert correlation(_WEIGHTS * 1e306, _WEIGHTS * 1e306) == pytest.approx(1.0)
    few, most = _WEIGHTS.copy(), _WEIGHTS.copy()
    few[:2], most[2:] = np.inf, np.nan
    assert correlation(_WEIGHTS, few) == pytest.approx(1)
    assert correlation(_WEIGHTS, most) is None
    assert correlation(np.empty((0,)), np.empty((0,))) is None


def test_bits_apart_counts_bits() -> None:
    assert bits_apart(b"\x00\x01", b"\x00\x01", 1) == 0
    assert bits_apart(b"\x00\x01\xff\x00", b"\x00\x00\x00\x00", 2) == 4.5
    assert bits_apart(b"", b"", 0) == 0


def test_what_a_difference_consists_of_comes_with_its_weights() -> None:
    known = _DRAWN.normal(size=(5, 4000))
    whole = 1.5 * known[3] - 0.5 * known[0] + _DRAWN.normal(0, 0.1, 4000)
    shared = SharedDifferences(5)
    for part in range(0, 4000, 500):
        shared.add(whole[part : part + 500], known[:, part : part + 500])
    shares, explained = shared.shares()
    assert [share.index for share in shares] == [3, 0]
    assert [share.weight for share in shares] == pytest.approx([1.5, -0.5], abs=0.02)
    assert shares[0].cosine == pytest.approx(1.5 / np.sqrt(1.5**2 + 0.5**2), abs=0.03)
    assert shares[1].cosine < 0
    assert explained == pytest.approx(1, abs=0.01)


def test_what_is_in_nothing_known_is_explained_by_nothing() -> None:
    shared = SharedDifferences(3)
    known = _DRAWN.normal(size=(3, 4000))
    known[2] = 0  # of a tensor that it does not change
    shared.add(_DRAWN.normal(size=4000), known)
    assert shared.shares() == ((), 0.0)
    assert SharedDifferences(0).shares() == ((), 0.0)
