"""How two tensors' values lie to each other: bits apart, correlation, and whether one is the other and something thin.

A merged adapter adds a product of two thin factors to a matrix, and what comes out is rounded to the matrix's own type.
So the difference of the two has few large singular values over a floor of rounding noise, and that floor is known: an
element x of a type with p bits of mantissa is rounded by at most half of 2^(floor(log2 |x|) - p), which has a variance
of a twelfth of that step squared; and a matrix of independent errors has no singular value much above the largest norm
of a row's deviations plus that of a column's (Bandeira and van Handel, Sharp nonasymptotic bounds on the norm of random
matrices with independent entries, Annals of Probability 44, 2016, theorem 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

MANTISSA_BITS: Final = {"BF16": 7, "F16": 10, "F32": 23, "F64": 52}
"""Bits behind the point, by element type."""
_LEAST_EXPONENT: Final = {"BF16": -126, "F16": -14, "F32": -126, "F64": -1022}
# A tenth above the bound: it is one of expectation, and of errors that are independent.
_FLOOR: Final = 1.1
# What the directions leave may be rounding, by this factor of its expected energy, or this part of everything.
_NOISE_MARGIN: Final = 2.0
_REST: Final = 0.05
_SIGNIFICANT: Final = 1e-3


@dataclass(frozen=True)
class Thinness:
    """The singular values of a difference, counted.

    Attributes:
        rank: Those above the rounding noise.
        energy: The part of the squared norm that they hold, from 0 to 1; 0 for a difference of zeros.
        thin: Whether they are few (at most a quarter of the matrix's smaller side), most rows have a part in
            them, and rounding explains the rest.
    """

    rank: int
    energy: float
    thin: bool


@dataclass(frozen=True)
class Share:
    """One of several known differences in another one.

    Attributes:
        index: Which of the known ones.
        weight: What it is multiplied by, by least squares with the others.
        cosine: Of it alone with the whole difference, signed.
    """

    index: int
    weight: float
    cosine: float


def bits_apart(one: bytes, other: bytes, elements: int) -> float:
    """How many bits of an element differ, on average: 0 for equal ones, about 5.5 of 16 for unrelated BF16 weights.

    Args:
        one: Bytes of some elements.
        other: As many, of the same element type.
        elements: How many elements they are.
    """
    import numpy as np

    if not elements:
        return 0.0
    apart = np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)
    return float(np.unpackbits(apart).sum(dtype=np.int64)) / elements


def correlation(one: Floats, other: Floats) -> float | None:
    """Pearson's correlation, from -1 to 1, over the elements that are finite in both.

    None where these are less than half of all, or the same throughout in one of them.

    Args:
        one: Any shape, float32 or float64.
        other: The same shape.
    """
    import numpy as np

    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if 2 * np.count_nonzero(finite) < max(1, a.size):
        return None
    a, b = a[finite], b[finite]
    # By their largest, so that no square overflows.
    a, b = (side / (float(np.abs(side).max()) or 1.0) for side in (a, b))
    a, b = a - a.mean(), b - b.mean()
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return None if norms == 0.0 else max(-1.0, min(1.0, float(a @ b) / norms))


def rounding_variances(values: Floats, dtype: str) -> Floats:
    """The expected squared error of rounding each of some values to an element type; float64, of their shape.

    Args:
        values: Any shape; rounded already, which changes no exponent to speak of.
        dtype: One of :data:`MANTISSA_BITS`.
    """
    import numpy as np

    least = _LEAST_EXPONENT[dtype]
    _, exponents = np.frexp(values.astype(np.float64))
    places = np.where(values == 0, least, np.maximum(exponents - 1, least))  # frexp gives zero an exponent of zero
    steps = np.ldexp(1.0, places - MANTISSA_BITS[dtype])
    with np.errstate(over="ignore"):
        variances: Floats = steps * steps / 12
    return variances


def thinness_of(difference: Floats, variances: Floats) -> Thinness:
    """Whether a difference is a product of thin factors and rounding.

    Args:
        difference: (rows, columns), finite, float64. Rows drawn from a larger matrix have at most its rank.
        variances: Of the elements' rounding errors: see :func:`rounding_variances`.
    """
    import numpy as np

    rows, columns = difference.shape
    with np.errstate(over="ignore", invalid="ignore"):
        gram = difference @ difference.T if rows <= columns else difference.T @ difference
    if not np.isfinite(gram).all():
        return Thinness(0, 0.0, thin=False)  # values of more than 1e150, in float64 alone
    squares = np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None)
    total = float(squares.sum())
    if total == 0.0:
        return Thinness(0, 0.0, thin=False)
    floor = _FLOOR * sum(math.sqrt(float(variances.sum(axis).max())) for axis in (0, 1))
    above = squares > max(floor, _SIGNIFICANT * math.sqrt(float(squares[0]))) ** 2
    rank = int(above.sum())
    energy = float(squares[above].sum()) / total
    rest = total - float(squares[above].sum())
    # A product reaches every row; where few are touched, tokens were added or trained.
    spread = 2 * np.count_nonzero(difference.any(axis=1)) > rows
    explained = rest <= max(_NOISE_MARGIN * float(variances.sum()), _REST * total)
    return Thinness(rank, energy, thin=1 <= rank <= min(rows, columns) // 4 and spread and explained)


class SharedDifferences:
    """Which known differences another one is a sum of, found over several tensors at once.

    Only products of them are kept, not the differences themselves.

    Args:
        known: How many there are.
    """

    def __init__(self, known: int) -> None:
        import numpy as np

        self._products = np.zeros((known, known))
        self._with_whole = np.zeros(known)
        self._whole = 0.0

    def add(self, whole: Floats, known: Floats) -> None:
        """Takes in one tensor.

        Args:
            whole: (elements,) float64.
            known: (how many there are, elements) float64; zeros for those that leave the tensor as it is.
        """
        self._products += known @ known.T
        self._with_whole += known @ whole
        self._whole += float(whole @ whole)

    def shares(self, *, least: float = 0.02, most: int = 8) -> tuple[tuple[Share, ...], float]:
        """The known ones that explain most, one after the other (orthogonal matching pursuit), and how much they do.

        Args:
            least: What each must add to the explained part of the squared norm.
            most: How many at most.

        Returns:
            The shares, the strongest first, and the part of the squared norm that they explain, from 0 to 1.
        """
        import numpy as np

        chosen: list[int] = []
        weights: Sequence[float] = ()
        explained = 0.0
        norms = np.sqrt(np.diag(self._products))
        while self._whole > 0.0 and len(chosen) < min(most, len(norms)):
            left = self._with_whole - self._products[:, chosen] @ np.asarray(weights) if chosen else self._with_whole
            scores = np.divide(np.abs(left), norms, out=np.zeros_like(norms), where=norms > 0)
            scores[chosen] = 0.0
            tried = [*chosen, int(scores.argmax())]
            solved = np.linalg.lstsq(self._products[np.ix_(tried, tried)], self._with_whole[tried], rcond=None)[0]
            now = float(solved @ self._with_whole[tried]) / self._whole
            if now - explained < least:
                break
            chosen, weights, explained = tried, [float(weight) for weight in solved], now
        size = math.sqrt(self._whole)
        return tuple(
            Share(index, weight, float(self._with_whole[index] / (norms[index] * size)))
            for index, weight in zip(chosen, weights, strict=True)
        ), min(1.0, explained)
