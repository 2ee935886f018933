"""Intervals, flags and summaries: against numpy written plainly, and where they degenerate."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from rblstore.divergence.intervals import BadIntervalError, BadMeasurementsError, Interval, interval, recovery_interval
from rblstore.divergence.locality import BadThresholdError, entropy_summary, locality, svar
from rblstore.divergence.uncertainty import intervals_of, upper_end
from rblstore.objects.evidence_records import PromptDivergence


def numbers(count: int, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [generator.expovariate(3.0) for _ in range(count)]


def test_the_interval_is_that_of_a_bootstrap_over_prompts() -> None:
    values = numbers(40, 1)
    found = interval([values], resamples=20_000)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    drawn = np.random.default_rng(5).choice(values, (20_000, 40)).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, rel=0.02)
    assert found.high == pytest.approx(high, rel=0.02)
    assert (found.level, found.resamples, found.prompts, found.seeds) == (0.95, 20_000, 40, 1)


def test_seeds_and_prompts_are_drawn_apart() -> None:
    # Seeds differ, prompts do not: the width is that of seeds. Taken as 120 numbers, it would be far less.
    rows = [[value] * 40 for value in (0.1, 0.2, 0.9)]
    found = interval(rows)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.9))
    assert (found.prompts, found.seeds) == (40, 3)
    # And the other way round: equal seeds add nothing.
    values = numbers(40, 2)
    alone, thrice = interval([values], resamples=20_000), interval([values] * 3, resamples=20_000)
    assert thrice.high - thrice.low == pytest.approx(alone.high - alone.low, rel=0.05)
    crossed = interval([numbers(10, 3), numbers(10, 4)], resamples=20_000)
    generator, matrix = np.random.default_rng(6), np.array([numbers(10, 3), numbers(10, 4)])
    drawn = [matrix[np.ix_(generator.integers(2, size=2), generator.integers(10, size=10))].mean() for _ in range(9000)]
    assert crossed.low == pytest.approx(np.quantile(drawn, 0.025), rel=0.05)
    assert crossed.high == pytest.approx(np.quantile(drawn, 0.975), rel=0.05)


def test_the_same_numbers_have_the_same_interval_for_ever() -> None:
    # Stored nowhere, so whoever computes it again has to get these, with any version of numpy.
    found = interval([[0.5, 1.0, 4.0, 0.25, 2.0]])
    assert (found.low, found.mean, found.high) == (0.55, 1.55, 2.8499999999999996)
    assert interval([[0.5, 1.0, 4.0, 0.25, 2.0]], seed=1) != found
    assert found.as_json()["mean"] == 1.55


def test_a_small_level_is_narrower_and_many_prompts_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = numbers(300, 7)
    wide, narrow = interval([values]), interval([values], level=0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    monkeypatch.setattr("rblstore.divergence.intervals._DRAWS", 1000)
    parts = interval([values])
    assert (parts.low, parts.high) == (pytest.approx(wide.low, rel=1e-12), pytest.approx(wide.high, rel=1e-12))


def test_degenerate_cases_have_no_width() -> None:
    for rows in ([[0.1]], [[0.1] * 7], [[0.1] * 7] * 3):
        found = interval(rows)
        assert (found.low, found.mean, found.high) == (0.1, 0.1, 0.1)
        assert found.known == (len(rows) * len(rows[0]) > 1)
    assert interval([[0.1], [0.3]]).known
    assert interval([[0.0, 0.0]]) == Interval(0.0, 0.0, 0.0, 0.95, 2000, 2, 1)


@pytest.mark.parametrize("rows", [[], [[]], [[1.0], []], [[1.0, 2.0], [1.0]], [[math.nan]], [[1.0, math.inf]]])
def test_numbers_without_a_mean_are_refused(rows: list[list[float]]) -> None:
    with pytest.raises(BadMeasurementsError):
        interval(rows)


@pytest.mark.parametrize(
    "options",
    [{"level": 0.0}, {"level": 1.0}, {"level": math.nan}, {"resamples": 0}, {"resamples": 10**7}, {"seed": -1}],
)
def test_intervals_that_are_none_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(BadIntervalError) as caught:
        interval([[1.0, 2.0]], **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_recovery_is_drawn_as_a_whole() -> None:
    # Every prompt recovers by the same share, however far they were: no doubt about the ratio.
    adapted = numbers(12, 8)
    found = recovery_interval([[value / 4 for value in adapted]], [adapted])
    assert found is not None
    assert (found.low, found.mean, found.high) == (pytest.approx(0.75),) * 3
    uneven = recovery_interval([[value / 4 for value in reversed(adapted)]], [adapted])
    assert uneven is not None
    assert uneven.low < uneven.mean < uneven.high
    assert uneven.mean == pytest.approx(0.75)
    assert recovery_interval([[0.0, 0.0]], [[0.0, 0.0]]) is None
    assert recovery_interval([[0.0, 0.1]], [[0.0, 1.0]]) is None  # of a resample without the second it has none
    with pytest.raises(BadMeasurementsError, match="same prompts"):
        recovery_interval([[0.0]], [[0.0, 1.0]])


def test_every_measure_that_all_prompts_have_gets_an_interval() -> None:
    prompts = [
        PromptDivergence("a", 0.0, 0.0, True, {"kl_adapted": 0.5, "js_adapted": 0.1}),
        PromptDivergence("b", 0.2, 0.1, False, {"kl_adapted": 0.4, "js_adapted": None}),
    ]
    found = intervals_of(prompts)
    assert list(found) == ["kl", "js", "kl_adapted", "rf"]
    assert found["kl"].mean == 0.1
    assert found["rf"].mean == pytest.approx(1 - 0.2 / 0.9)
    assert upper_end(prompts) == found["kl"].high == 0.2
    assert intervals_of([PromptDivergence("a", None, 0.1, False)]).keys() == {"js"}
    assert upper_end([PromptDivergence("a", None, 0.1, False)]) is None
    vectors = [PromptDivergence(name, None, None, False, {"relative_l2": 0.1, "cosine": 0.9}) for name in "ab"]
    assert list(intervals_of(vectors)) == ["relative_l2", "cosine"]


def test_flags_name_what_a_mean_hides() -> None:
    found = locality([("a", 0.0, True), ("b", 3e-6, False), ("c", 1e-6, False), ("d", None, False)], 1e-6)
    assert found.flagged == ("b", "d")
    assert (found.mean, found.largest, found.threshold) == (None, 3e-6, 1e-6)
    assert locality([("a", None, True)], 0.0).flagged == ()  # an embedding of equal bits
    assert locality([("a", 1.0, False), ("b", 2.0, False)], 5.0).mean == 1.5
    for threshold in (-1.0, 1e20, math.nan, math.inf):
        with pytest.raises(BadThresholdError):
            locality([("a", 0.0, True)], threshold)
    with pytest.raises(BadMeasurementsError):
        locality([], 0.1)


def test_svar_and_entropy_are_means() -> None:
    assert svar([0.1, 0.3]) == pytest.approx(0.2)
    assert svar([0.1, None]) is None
    with pytest.raises(BadMeasurementsError):
        svar([])
    values = numbers(9, 3)
    found = entropy_summary(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values))
    assert found.max == max(values)
    assert entropy_summary([0.1] * 3).std == 0.0
    for none in ([], [math.nan]):
        with pytest.raises(BadMeasurementsError):
            entropy_summary(none)
