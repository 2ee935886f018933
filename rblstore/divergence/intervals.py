"""How sure a mean is: percentile bootstrap over prompts and, where there are several, over seeds. Numpy alone.

What is drawn is prompts and seeds, never positions: those of one prompt depend on one another, so they are averaged
before anything comes here. Every seed is measured on the same prompts, so a resample draws seeds and prompts apart from
each other, with replacement, and takes the mean over every pair of both.

An interval says what other prompts *like these* would give. It knows nothing of prompts of another kind, and with few
prompts it is too narrow: ten leave out the truth about every tenth time instead of every twentieth.

Degenerate cases: equal numbers give an interval of no width at that very number. One prompt under one seed gives one
too, and there it means that nothing is known (:attr:`Interval.known`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rblstore.errors import InputError, UsageError
from rblstore.objects.canonical import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LEVEL", "RESAMPLES", "BadMeasurementsError", "Interval", "interval", "recovery_interval"]

LEVEL: Final = 0.95
RESAMPLES: Final = 2000

_MOST_RESAMPLES: Final = 1_000_000
# Draws at a time, so that ten thousand prompts take megabytes.
_DRAWS: Final = 1 << 20


class BadMeasurementsError(InputError):
    """Numbers that have no mean: none at all, not finite, or seeds that were not measured on the same prompts."""

    code = "bad_measurements"


class BadIntervalError(UsageError):
    """A level or a number of resamples that gives no interval."""

    code = "bad_interval"


@dataclass(frozen=True)
class Interval:
    """A mean, and how sure it is.

    Attributes:
        mean: Over prompts and seeds.
        low: Lower end, at most ``mean``.
        high: Upper end, at least ``mean``.
        level: How often such an interval is meant to hold the truth: 0.95.
        resamples: How many were drawn.
        prompts: How many prompts it is over.
        seeds: How many seeds.
    """

    mean: float
    low: float
    high: float
    level: float
    resamples: int
    prompts: int
    seeds: int

    @property
    def known(self) -> bool:
        """Whether there was more than one number: without that, an interval without width means nothing."""
        return self.prompts * self.seeds > 1

    def as_json(self) -> dict[str, Json]:
        """JSON members."""
        return {
            "high": self.high,
            "level": self.level,
            "low": self.low,
            "mean": self.mean,
            "prompts": self.prompts,
            "resamples": self.resamples,
            "seeds": self.seeds,
        }


def interval(
    rows: Sequence[Sequence[float]], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of a measure and its bootstrap interval.

    Args:
        rows: ``rows[seed][prompt]``, one finite number a prompt (the mean over its positions); as many in each row.
        level: Between 0 and 1.
        resamples: How many to draw, from 1.
        seed: Of the drawing; the same one gives the same interval, with any version of numpy.

    Raises:
        BadMeasurementsError: No numbers, not finite, or rows of different lengths.
        BadIntervalError: Level, number of resamples or seed out of range.
    """
    values = _matrix(rows)
    _check(level, resamples, seed)
    mean = math.fsum(values.flat) / values.size
    if bool((values == values.flat[0]).all()):
        # Summing and dividing equal numbers may round; they have no spread at all.
        return _interval(float(values.flat[0]), None, values, level, resamples)
    return _interval(mean, _resampled(values, resamples, seed), values, level, resamples)


def recovery_interval(
    recovered: Sequence[Sequence[float]],
    adapted: Sequence[Sequence[float]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """RF = 1 - mean(recovered) / mean(adapted) with its interval: both means are over the same prompts of a resample.

    Each seed is an adaptation of its own with an RF of its own; over several it is the mean of these.

    Args:
        recovered: KL(reference || recovered), ``[seed][prompt]``.
        adapted: KL(reference || adapted), likewise.
        level: As for :func:`interval`.
        resamples: As for :func:`interval`.
        seed: As for :func:`interval`.

    Returns:
        None where RF, or RF of a resample, is undefined: prompts on which the adapted model does not differ.

    Raises:
        BadMeasurementsError: As for :func:`interval`, or not as many of one as of the other.
        BadIntervalError: As for :func:`interval`.
    """
    top, bottom = _matrix(recovered), _matrix(adapted)
    _check(level, resamples, seed)
    if top.shape != bottom.shape:
        raise BadMeasurementsError("the recovered and the adapted model were not measured on the same prompts")
    means = [1.0 - math.fsum(above) / below if (below := math.fsum(of)) > 0 else None
             for above, of in zip(top.tolist(), bottom.tolist(), strict=True)]  # fmt: skip
    known = [value for value in means if value is not None]
    found = _recoveries(top, bottom, resamples, seed) if len(known) == len(means) else None
    return None if found is None else _interval(math.fsum(known) / len(known), found, top, level, resamples)


def _interval(
    mean: float, means: NDArray[np.float64] | None, values: NDArray[np.float64], level: float, resamples: int
) -> Interval:
    import numpy as np

    seeds, prompts = values.shape
    if means is None or values.size == 1:
        return Interval(mean, mean, mean, level, resamples, prompts, seeds)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
    # Means of resamples are rounded otherwise than the mean itself.
    return Interval(mean, min(low, mean), max(high, mean), level, resamples, prompts, seeds)


def _matrix(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    import numpy as np

    if not rows or not rows[0]:
        raise BadMeasurementsError("there are no numbers to take the mean of")
    if any(len(row) != len(rows[0]) for row in rows):
        lengths = ", ".join(str(len(row)) for row in rows)
        raise BadMeasurementsError(f"seeds measured on {lengths} prompts were not measured on the same ones")
    values = np.asarray(rows, dtype=np.float64)
    if not bool(np.isfinite(values).all()):
        raise BadMeasurementsError(
            "the mean of numbers that are not finite is undefined", hint="Leave out the measures that are null."
        )
    return values


def _check(level: float, resamples: int, seed: int) -> None:
    if not 0 < level < 1:
        raise BadIntervalError(f"the level {level} does not lie between 0 and 1", object=str(level))
    if type(resamples) is not int or not 1 <= resamples <= _MOST_RESAMPLES:
        raise BadIntervalError(
            f"{resamples} resamples are not a number from 1 to {_MOST_RESAMPLES}", object=str(resamples)
        )
    if type(seed) is not int or not 0 <= seed < 2**53:
        raise BadIntervalError(f"the seed {seed} is not an integer from 0 to 2^53 - 1", object=str(seed))


def _resampled(matrix: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """The mean of every resample of a matrix (seeds, prompts)."""
    import numpy as np

    drawn = _draws(matrix.shape, resamples, seed)
    return np.concatenate([((of_seeds @ matrix) * of_prompts).sum(axis=1) for of_seeds, of_prompts in drawn])


def _recoveries(
    top: NDArray[np.float64], bottom: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64] | None:
    """RF of every resample; None where one of them has none."""
    import numpy as np

    found = []
    for of_seeds, of_prompts in _draws(top.shape, resamples, seed):
        below = of_prompts @ bottom.T
        if not bool((below > 0).all()):
            return None
        found.append(1.0 - (of_seeds * ((of_prompts @ top.T) / below)).sum(axis=1))
    return np.concatenate(found)


def _draws(
    shape: tuple[int, ...], resamples: int, seed: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The shares of seeds and of prompts in some resamples at a time: (resamples, seeds) and (resamples, prompts)."""
    import numpy as np

    seeds, prompts = shape
    # The bits of the generator are promised to stay; what numpy makes of them in its distributions is not.
    generator = np.random.PCG64(seed)
    step = max(1, _DRAWS // max(seeds, prompts))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        yield _weights(generator, count, seeds), _weights(generator, count, prompts)


def _weights(generator: Any, count: int, size: int) -> NDArray[np.float64]:
    """(count, size): how often each of them was drawn, by the number of draws; a single one is not drawn."""
    import numpy as np

    if size == 1:
        return np.ones((count, 1))
    bits = generator.random_raw(count * size) >> np.uint64(11)
    drawn = (bits.astype(np.float64) * (2.0**-53 * size)).astype(np.int64).reshape(count, size)
    # 2^-53 short of 1, times the size, may round up to the size itself.
    drawn = np.minimum(drawn, size - 1) + np.arange(count)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size) / size
