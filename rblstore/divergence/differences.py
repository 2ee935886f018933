"""The difference of two means over different prompts, and how sure it is. Numpy alone.

The prompts of two probes are independent samples, so each resample draws from both, apart from each other and with
replacement, and takes the difference of their means: a percentile bootstrap, as :mod:`rblstore.divergence.intervals`
has it for one mean. An interval that holds 0 says that the difference may be chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rblstore.divergence.intervals import LEVEL, RESAMPLES, BadMeasurementsError, Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["difference_interval"]


def difference_interval(
    first: Sequence[float], second: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """mean(second) - mean(first), with its bootstrap interval.

    Args:
        first: One finite number a prompt.
        second: One finite number a prompt, of other prompts.
        level: Between 0 and 1.
        resamples: How many to draw.
        seed: Of the drawing; the same one gives the same interval.

    Raises:
        BadMeasurementsError: No numbers, or not finite.
    """
    import numpy as np

    for values in (first, second):
        if not values or not all(math.isfinite(value) for value in values):
            raise BadMeasurementsError("the difference of means needs finite numbers on both sides")
    mean = math.fsum(second) / len(second) - math.fsum(first) / len(first)
    generator = np.random.PCG64(seed)
    below, above = (_means(generator, values, resamples) for values in (first, second))
    low, high = np.quantile(above - below, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(mean, min(low, mean), max(high, mean), level, resamples, len(first) + len(second), 1)


def _means(generator: Any, values: Sequence[float], resamples: int) -> NDArray[np.float64]:
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    if bool((numbers == numbers[0]).all()):
        # Their mean is what they are, where summing and dividing may round.
        return np.full(resamples, numbers[0])
    found = np.empty(resamples)
    step = max(1, (1 << 20) // len(numbers))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        # The bits of the generator are promised to stay; what numpy makes of them in its distributions is not.
        bits = generator.random_raw(count * len(numbers)) >> np.uint64(11)
        drawn = np.minimum((bits.astype(np.float64) * (2.0**-53 * len(numbers))).astype(np.int64), len(numbers) - 1)
        found[start : start + count] = numbers[drawn].reshape(count, len(numbers)).mean(axis=1)
    return found
