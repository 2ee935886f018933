"""In which directions two behaviors change one weight: principal angles between the subspaces of their deltas.

A delta D is what a behavior adds to a matrix of (rows, columns). Its *output side* is the space of its columns (what it
can write to), its *input side* that of its rows (what it listens to), for a weight stored (out, in) as ``nn.Linear``
keeps it; a weight stored (in, out), as Conv1D keeps it, has the two exchanged.

- The delta of a LoRA, ``scale * B A``, is never formed: with the QR decompositions ``B = Q R`` and ``A^T = P S`` its
  singular values and vectors are those of the small ``scale * R S^T`` between Q and P. All directions count, up to
  rounding (:data:`EXACT`).
- Any other delta is read in blocks of rows, several times over, and never held whole: its leading singular vectors are
  found by subspace iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4) with a fixed seed. As many count as hold
  :data:`ENERGY` of its squared norm, at most :data:`MOST_DIRECTIONS`.

The angles are those of Bjorck and Golub (1973), the small ones from sines, so that equal subspaces give angles of about
1e-16 and not of 1e-8 (Knyazev and Argentati 2002).

The *overlap* of two subspaces of dimensions k and l is the mean of cos^2 over their min(k, l) principal angles: 1 where
the smaller lies within the larger, 0 where they are orthogonal. Two subspaces drawn at random in n dimensions have an
expected overlap of max(k, l) / n, since the trace of the product of their projections is k l / n on average. That is
*chance*, to be held against it. Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch

from rblstore.errors import InputError

__all__ = [
    "ENERGY",
    "MOST_DIRECTIONS",
    "BadDeltaError",
    "BlockedDelta",
    "Delta",
    "LowRankDelta",
    "Overlap",
    "SideOverlap",
    "Subspaces",
    "cosine_of",
    "overlap_of",
    "principal_angles",
    "subspaces_of",
]

ENERGY: Final = 0.99
"""The part of a delta's squared norm that the directions of one that is no product of factors hold."""
MOST_DIRECTIONS: Final = 64
"""The most directions that are taken of such a delta, whatever they hold."""
EXACT: Final = 1e-12
"""Directions weaker than the strongest by this factor are rounding."""

_OVERSAMPLING: Final = 8
_ITERATIONS: Final = 2


class BadDeltaError(InputError):
    """A delta holds NaN or infinity, or is not of the shape that it was said to be."""

    code = "bad_delta"


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """A delta ``scale * second @ first``, as LoRA keeps it.

    Attributes:
        first: (rank, columns), any float dtype.
        second: (rows, rank), any float dtype.
        scale: What the product is multiplied by.
    """

    first: torch.Tensor
    second: torch.Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (int(self.second.shape[0]), int(self.first.shape[1]))


@dataclass(frozen=True, eq=False)
class BlockedDelta:
    """A delta that is read in blocks of rows, as often as it is needed.

    Attributes:
        shape: (rows, columns).
        blocks: Begins reading anew: blocks of whole rows, in order, any float dtype.
    """

    shape: tuple[int, int]
    blocks: Callable[[], Iterable[torch.Tensor]]

    @classmethod
    def of(cls, matrix: torch.Tensor, rows_per_block: int = 1024) -> BlockedDelta:
        """A delta that lies in memory, (rows, columns)."""
        return cls((int(matrix.shape[0]), int(matrix.shape[1])), lambda: matrix.split(rows_per_block))


Delta = LowRankDelta | BlockedDelta


@dataclass(frozen=True, eq=False)
class Subspaces:
    """The directions of a delta, the strongest first.

    Attributes:
        output: (rows, rank) float64, orthonormal columns: where it writes to.
        input: (columns, rank) float64, orthonormal columns: what it listens to.
        strengths: (rank,) float64, singular values.
        norm: Frobenius norm of the whole delta.
        energy: The part of the squared norm that these directions hold; 1.0 for a delta of zeros.
    """

    output: torch.Tensor
    input: torch.Tensor
    strengths: torch.Tensor
    norm: float
    energy: float

    @property
    def rank(self) -> int:
        """How many directions; 0 for a delta of zeros."""
        return len(self.strengths)


@dataclass(frozen=True)
class SideOverlap:
    """How two subspaces of one space lie to each other.

    Attributes:
        angles: Principal angles in degrees, ascending; as many as the smaller subspace has dimensions.
        overlap: Mean of cos^2 over them, from 0 (orthogonal) to 1 (the smaller lies within the larger).
        chance: What subspaces of these dimensions drawn at random have on average.
    """

    angles: tuple[float, ...]
    overlap: float
    chance: float


@dataclass(frozen=True)
class Overlap:
    """How the deltas of two behaviors to one matrix lie to each other.

    Attributes:
        cosine: <D_a, D_b> / (|D_a| |D_b|), over all directions and signed; 1 for equal deltas.
        output: Of where they write to.
        input: Of what they listen to.
    """

    cosine: float
    output: SideOverlap
    input: SideOverlap


def subspaces_of(delta: Delta, *, energy: float = ENERGY, most: int = MOST_DIRECTIONS) -> Subspaces:
    """The directions of a delta.

    Args:
        delta: Product of factors, or blocks of rows.
        energy: For blocks: the part of the squared norm that is to be held, from 0 to 1.
        most: For blocks: the most directions.

    Raises:
        BadDeltaError: It holds NaN or infinity, or blocks that are not of its shape.
    """
    with torch.no_grad():
        if isinstance(delta, LowRankDelta):
            return _of_factors(delta)
        return _of_blocks(delta, energy, most)


def principal_angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The principal angles between two subspaces, in radians, ascending.

    Args:
        a: (dimensions, k) float64, orthonormal columns.
        b: (dimensions, l) float64, orthonormal columns.

    Returns:
        (min(k, l),) float64, from 0 to pi / 2.
    """
    if a.shape[0] != b.shape[0]:
        raise BadDeltaError(f"subspaces of {a.shape[0]} and {b.shape[0]} dimensions have no angles")
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    if b.shape[1] == 0:
        return torch.zeros(0, dtype=torch.float64)
    product = a.T @ b
    cosines = torch.linalg.svdvals(product).clamp_(max=1.0)
    sines = torch.linalg.svdvals(b - a @ product).clamp_(max=1.0).flip(0)
    # Each function is flat at one end, where it loses half of the digits.
    return torch.where(cosines**2 < 0.5, torch.acos(cosines), torch.asin(sines))


def cosine_of(a: Delta, b: Delta, norm_a: float, norm_b: float) -> float:
    """The cosine of two deltas as vectors, from the factors where there are factors.

    Args:
        a: One delta.
        b: Another one of the same shape.
        norm_a: Frobenius norm of ``a``, above 0.
        norm_b: The same of ``b``.

    Raises:
        BadDeltaError: Their shapes differ, or they hold NaN or infinity.
    """
    _check_pair(a, b)
    with torch.no_grad():
        inner = _inner(a, b)
    if not math.isfinite(inner):
        raise BadDeltaError("the product of the deltas is not finite")
    # By Cauchy and Schwarz; only rounding goes beyond.
    return max(-1.0, min(1.0, inner / norm_a / norm_b))


def overlap_of(a: Delta, b: Delta, of_a: Subspaces | None = None, of_b: Subspaces | None = None) -> Overlap | None:
    """How two deltas lie to each other.

    Args:
        a: What one behavior adds.
        b: What another one adds to the same matrix.
        of_a: Directions of ``a`` where they are known.
        of_b: Directions of ``b`` where they are known.

    Returns:
        None where one of them is zero, and so has no direction.

    Raises:
        BadDeltaError: Their shapes differ, or they hold NaN or infinity.
    """
    _check_pair(a, b)
    of_a, of_b = of_a or subspaces_of(a), of_b or subspaces_of(b)
    if not of_a.rank or not of_b.rank:
        return None
    return Overlap(
        cosine_of(a, b, of_a.norm, of_b.norm),
        _side(of_a.output, of_b.output),
        _side(of_a.input, of_b.input),
    )


def _side(a: torch.Tensor, b: torch.Tensor) -> SideOverlap:
    angles = principal_angles(a, b)
    return SideOverlap(
        tuple(torch.rad2deg(angles).tolist()),
        float(torch.cos(angles).square_().mean()),
        max(int(a.shape[1]), int(b.shape[1])) / int(a.shape[0]),
    )


def _of_factors(delta: LowRankDelta) -> Subspaces:
    if delta.second.ndim != 2 or delta.first.ndim != 2 or delta.second.shape[1] != delta.first.shape[0]:
        raise BadDeltaError(f"factors {list(delta.second.shape)} and {list(delta.first.shape)} have no product")
    rows, row_core = torch.linalg.qr(_float64(delta.second))
    columns, column_core = torch.linalg.qr(_float64(delta.first).T)
    core = _finite(delta.scale * (row_core @ column_core.T))
    left, strengths, right = torch.linalg.svd(core, full_matrices=False)
    rank = _rank(strengths)
    norm = float(torch.linalg.vector_norm(strengths))
    return Subspaces(rows @ left[:, :rank], columns @ right[:rank].T, strengths[:rank], norm, 1.0)


def _of_blocks(delta: BlockedDelta, energy: float, most: int) -> Subspaces:
    rows, columns = delta.shape
    width = min(rows, columns, most + _OVERSAMPLING)
    basis = _start(columns, width)
    for _ in range(_ITERATIONS if width < columns else 0):
        # D^T D applied block by block, and made orthonormal between: else the weaker directions drown.
        image = torch.zeros_like(basis)
        for _, block in _rows(delta):
            image += block.T @ (block @ basis)
        basis = torch.linalg.qr(_finite(image)).Q
    projected = torch.empty(rows, width, dtype=torch.float64)
    square = 0.0
    for start, block in _rows(delta):
        projected[start : start + len(block)] = block @ basis
        square += float(block.square().sum())
    if not math.isfinite(square):
        raise BadDeltaError("the delta holds NaN or infinity")
    tall, core = torch.linalg.qr(_finite(projected))
    left, strengths, right = torch.linalg.svd(core, full_matrices=False)
    squares = strengths.square()
    held = squares.cumsum(0)
    enough = int((held < energy * square * (1 - EXACT)).sum()) + 1
    rank = min(_rank(strengths), enough, most)
    share = min(1.0, float(held[rank - 1]) / square) if rank else 1.0
    output, input = tall @ left[:, :rank], basis @ right[:rank].T
    return Subspaces(output, input, strengths[:rank], math.sqrt(square), share)


def _start(columns: int, width: int) -> torch.Tensor:
    if width == columns:
        return torch.eye(columns, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(columns, width, dtype=torch.float64, generator=generator)).Q


def _rank(strengths: torch.Tensor) -> int:
    return int((strengths > EXACT * strengths.amax()).sum()) if len(strengths) else 0


def _rows(delta: BlockedDelta) -> Iterator[tuple[int, torch.Tensor]]:
    """Blocks as float64, each with its first row."""
    at = 0
    for block in delta.blocks():
        if block.ndim != 2 or block.shape[1] != delta.shape[1] or at + len(block) > delta.shape[0]:
            raise BadDeltaError(f"a block {list(block.shape)} at row {at} does not fit a delta {list(delta.shape)}")
        if len(block):
            yield at, _float64(block)
        at += len(block)
    if at != delta.shape[0]:
        raise BadDeltaError(f"{at} rows were read of a delta {list(delta.shape)}")


def _inner(a: Delta, b: Delta) -> float:
    if isinstance(a, BlockedDelta) and isinstance(b, LowRankDelta):
        a, b = b, a
    if isinstance(a, LowRankDelta):
        first, second = _float64(a.first), _float64(a.second)
        if isinstance(b, LowRankDelta):
            # <B_a A_a, B_b A_b> = tr((B_a^T B_b)(A_b A_a^T))
            inner = ((second.T @ _float64(b.second)) * (first @ _float64(b.first).T)).sum()
            return a.scale * b.scale * float(inner)
        return a.scale * math.fsum(
            float((second[start : start + len(block)] * (block @ first.T)).sum()) for start, block in _rows(b)
        )
    assert isinstance(b, BlockedDelta)
    return math.fsum(float((ours * theirs).sum()) for ours, theirs in _together(a, b))


def _together(a: BlockedDelta, b: BlockedDelta) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Blocks of the same rows of both, however each is cut."""
    ours, theirs = _rows(a), _rows(b)
    one, other = torch.empty(0), torch.empty(0)
    while True:
        one = next(ours, (0, one))[1] if not len(one) else one
        other = next(theirs, (0, other))[1] if not len(other) else other
        count = min(len(one), len(other))
        if not count:
            return
        yield one[:count], other[:count]
        one, other = one[count:], other[count:]


def _check_pair(a: Delta, b: Delta) -> None:
    if a.shape != b.shape:
        raise BadDeltaError(f"deltas of {list(a.shape)} and {list(b.shape)} are not of one matrix")


def _float64(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float64)


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise BadDeltaError(
            "the delta holds NaN or infinity", hint="Look for NaN or overflowing weights in the behavior."
        )
    return tensor
