"""Principal angles between the subspaces of deltas: cases with known answers, and the laws."""

from __future__ import annotations

import math

import pytest
import torch

from rblstore.divergence.subspaces import (
    ENERGY,
    BadDeltaError,
    BlockedDelta,
    Delta,
    LowRankDelta,
    overlap_of,
    principal_angles,
    subspaces_of,
)

ROWS, COLUMNS, RANK = 40, 24, 3


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(seed: int, rank: int = RANK, scale: float = 1.0) -> LowRankDelta:
    return LowRankDelta(normal(seed, rank, COLUMNS), normal(seed + 100, ROWS, rank), scale)


def product(delta: LowRankDelta) -> torch.Tensor:
    return delta.scale * delta.second.double() @ delta.first.double()


def found(a: Delta, b: Delta) -> tuple[float, float, float]:
    overlap = overlap_of(a, b)
    assert overlap is not None
    return overlap.cosine, overlap.output.overlap, overlap.input.overlap


def test_the_subspaces_of_factors_are_those_of_the_product() -> None:
    delta = factors(1, scale=-0.5)
    left, strengths, right = torch.linalg.svd(product(delta), full_matrices=False)
    found = subspaces_of(delta)
    assert found.rank == RANK
    assert found.energy == 1.0
    assert found.norm == pytest.approx(float(product(delta).norm()), rel=1e-13)
    torch.testing.assert_close(found.strengths, strengths[:RANK], rtol=1e-12, atol=0)
    assert float(principal_angles(found.output, left[:, :RANK]).max()) < 1e-13
    assert float(principal_angles(found.input, right[:RANK].T).max()) < 1e-13


def test_directions_that_are_rounding_do_not_count() -> None:
    delta = factors(2)
    twice = LowRankDelta(torch.cat([delta.first, delta.first]), torch.cat([delta.second, delta.second], 1), 0.5)
    assert subspaces_of(twice).rank == RANK
    assert found(delta, twice) == pytest.approx((1.0, 1.0, 1.0), abs=1e-13)


def test_equal_deltas_have_angles_of_zero_to_the_last_digits() -> None:
    overlap = overlap_of(factors(3), factors(3, scale=4.0))
    assert overlap is not None
    assert overlap.cosine == pytest.approx(1.0, abs=1e-14)
    assert max(overlap.output.angles + overlap.input.angles) < 1e-11  # degrees; a cosine alone would give 1e-6
    assert (overlap.output.overlap, overlap.input.overlap) == (1.0, 1.0)
    opposite = overlap_of(factors(3), factors(3, scale=-1.0))
    assert opposite is not None
    assert opposite.cosine == pytest.approx(-1.0, abs=1e-14)
    assert opposite.input.overlap == 1.0


def test_orthogonal_factors_are_at_ninety_degrees_on_their_side_alone() -> None:
    basis = torch.linalg.qr(normal(4, ROWS, ROWS)).Q
    first = normal(5, RANK, COLUMNS)
    a, b = LowRankDelta(first, basis[:, :RANK]), LowRankDelta(first, basis[:, RANK : 2 * RANK])
    overlap = overlap_of(a, b)
    assert overlap is not None
    assert overlap.output.angles == pytest.approx([90.0] * RANK, abs=1e-11)
    assert overlap.output.overlap == pytest.approx(0.0, abs=1e-25)
    assert overlap.input.overlap == pytest.approx(1.0)
    assert overlap.cosine == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("degrees", [1e-9, 0.1, 30.0, 45.0, 60.0, 89.999999999])
def test_one_known_angle(degrees: float) -> None:
    turn = math.radians(degrees)
    a, b = torch.zeros(5, 1, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64)
    a[0], b[0], b[3] = 1.0, math.cos(turn), math.sin(turn)
    assert float(torch.rad2deg(principal_angles(a, b))[0]) == pytest.approx(degrees, rel=1e-7)


def test_the_cosine_comes_from_factors_and_from_blocks_alike() -> None:
    a, b = factors(6, scale=0.25), factors(7, rank=5, scale=-3.0)
    expected = float((product(a) * product(b)).sum() / product(a).norm() / product(b).norm())
    blocked_a, blocked_b = BlockedDelta.of(product(a), 7), BlockedDelta.of(product(b), 16)
    for one, other in ((a, b), (a, blocked_b), (blocked_a, b), (blocked_a, blocked_b)):
        assert found(one, other)[0] == pytest.approx(expected, rel=1e-12)


def test_a_delta_of_blocks_has_the_subspaces_of_its_factors() -> None:
    delta = factors(8)
    blocked = subspaces_of(BlockedDelta.of(product(delta), 9), energy=1.0)
    assert blocked.rank == RANK
    assert blocked.energy == pytest.approx(1.0)
    assert found(delta, BlockedDelta.of(product(delta), 9)) == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)


def test_a_delta_of_blocks_takes_what_holds_its_energy() -> None:
    left, right = torch.linalg.qr(normal(9, 300, 90)).Q, torch.linalg.qr(normal(10, 200, 90)).Q
    strengths = torch.full((90,), 1e-4, dtype=torch.float64)
    strengths[:4] = torch.tensor([8.0, 4.0, 2.0, 0.5])
    matrix = left @ torch.diag(strengths) @ right.T
    found = subspaces_of(BlockedDelta.of(matrix, 64))
    share = strengths.square().cumsum(0) / strengths.square().sum()
    assert found.rank == int((share < ENERGY).sum()) + 1 == 3
    assert found.energy == pytest.approx(float(share[2]), rel=1e-9)
    assert found.norm == pytest.approx(float(strengths.norm()), rel=1e-12)
    assert float(principal_angles(found.output, left[:, :3]).max()) < 1e-9
    assert float(principal_angles(found.input, right[:, :3]).max()) < 1e-9
    capped = subspaces_of(BlockedDelta.of(matrix, 64), energy=1.0, most=2)
    assert capped.rank == 2
    assert capped.energy == pytest.approx(float(share[1]), rel=1e-9)


def test_chance_is_what_random_subspaces_have() -> None:
    drawn = [overlap_of(factors(seed, rank=5), factors(seed + 50)) for seed in range(40)]
    sides = [(one.output, one.input) for one in drawn if one is not None]
    assert {(output.chance, input.chance) for output, input in sides} == {(5 / ROWS, 5 / COLUMNS)}
    assert sum(output.overlap for output, _ in sides) / 40 == pytest.approx(5 / ROWS, rel=0.15)
    assert sum(input.overlap for _, input in sides) / 40 == pytest.approx(5 / COLUMNS, rel=0.15)


def test_a_delta_of_zeros_has_no_directions() -> None:
    zero = LowRankDelta(normal(1, RANK, COLUMNS), torch.zeros(ROWS, RANK))
    assert subspaces_of(zero).rank == 0
    assert subspaces_of(BlockedDelta.of(product(zero))).rank == 0
    assert overlap_of(zero, factors(1)) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    matrix = product(factors(1))
    matrix[3, 4] = bad
    with pytest.raises(BadDeltaError, match="NaN or infinity"):
        subspaces_of(BlockedDelta.of(matrix))
    first = normal(1, RANK, COLUMNS)
    first[0, 0] = bad
    with pytest.raises(BadDeltaError, match="NaN or infinity"):
        subspaces_of(LowRankDelta(first, normal(2, ROWS, RANK)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadDeltaError, match="not of one matrix"):
        overlap_of(factors(1), BlockedDelta.of(torch.ones(ROWS, COLUMNS + 1)))
    with pytest.raises(BadDeltaError, match="no product"):
        subspaces_of(LowRankDelta(torch.ones(2, COLUMNS), torch.ones(ROWS, 3)))
    with pytest.raises(BadDeltaError, match="rows were read"):
        subspaces_of(BlockedDelta((ROWS, COLUMNS), lambda: [torch.ones(ROWS - 1, COLUMNS)]))
    with pytest.raises(BadDeltaError, match="does not fit"):
        subspaces_of(BlockedDelta((ROWS, COLUMNS), lambda: [torch.ones(ROWS + 1, COLUMNS)]))
