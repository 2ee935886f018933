"""The difference of two means and its interval."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from rblstore.divergence.differences import difference_interval
from rblstore.divergence.intervals import BadMeasurementsError


def normal(seed: int, count: int, mean: float) -> list[float]:
    drawn = random.Random(seed)
    return [drawn.gauss(mean, 1.0) for _ in range(count)]


def test_the_interval_is_as_wide_as_the_theory_says() -> None:
    first, second = normal(1, 60, 0.0), normal(2, 90, 3.0)
    found = difference_interval(first, second)
    error = math.sqrt(statistics.variance(first) / 60 + statistics.variance(second) / 90)
    assert found.mean == pytest.approx(statistics.mean(second) - statistics.mean(first))
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.15 * error)
    assert (found.prompts, found.seeds) == (150, 1)


def test_it_is_drawn_the_same_way_each_time_and_turned_round_it_is_negative() -> None:
    first, second = normal(1, 12, 0.0), normal(2, 7, 0.5)
    assert difference_interval(first, second) == difference_interval(first, second)
    assert difference_interval(second, first).mean == -difference_interval(first, second).mean


def test_equal_numbers_have_no_width() -> None:
    found = difference_interval([0.1] * 3, [0.1] * 7)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0) or found.mean == pytest.approx(0.0, abs=1e-16)
    exact = difference_interval([0.0] * 3, [0.0] * 7)
    assert (exact.mean, exact.low, exact.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf, 1.0]])
def test_what_has_no_mean_is_refused(bad: list[float]) -> None:
    with pytest.raises(BadMeasurementsError):
        difference_interval(bad, [1.0])
    with pytest.raises(BadMeasurementsError):
        difference_interval([1.0], bad)
