"""How far embeddings are apart. They are no distributions, so that nothing here is a divergence.

- ``relative_l2 = |b - a| / |a|``, a being the reference.
- ``cosine = <a, b> / (|a| |b|)``.

Both in float64, after scaling each row so that no square overflows or vanishes. Equal rows give exactly 0 and 1, rows
of zeros included.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from rblstore.divergence.blocks import (
    NanOutputError,
    PositionsMismatchError,
    VocabularyMismatchError,
    float64_device,
)

__all__ = ["EMBEDDING_MEASURES", "embedding_measures"]

EMBEDDING_MEASURES: Final = ("relative_l2", "cosine")
"""Names of what is measured on embeddings, in the order in which tables show them."""

_ROWS: Final = 1024


def embedding_measures(
    reference: torch.Tensor, other: torch.Tensor, *, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Relative L2 distance and cosine of each position's embedding.

    Args:
        reference: (positions, width), any float dtype.
        other: The same shape, any float dtype, on any device.
        mask: (positions,) bool, True where a position is measured; the others are not looked at. None: all.

    Returns:
        By the names of :data:`EMBEDDING_MEASURES`, (positions,) float64 each, without the positions that the mask
        leaves out. ``relative_l2`` is infinite where the reference alone is zero; ``cosine`` is NaN where one of two
        different rows is. Both are NaN where one of them holds an infinity.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ; names both sizes.
        NanOutputError: NaN; names side and position.
    """
    if reference.ndim != 2 or other.ndim != 2:
        raise PositionsMismatchError(
            f"outputs of shapes {tuple(reference.shape)} and {tuple(other.shape)} are not (positions, width)"
        )
    if reference.shape[1] != other.shape[1]:
        raise VocabularyMismatchError(
            f"the reference's embeddings have {reference.shape[1]} entries, the other's {other.shape[1]}",
            hint="Compare models of the same width.",
        )
    if reference.shape[0] != other.shape[0]:
        raise PositionsMismatchError(
            f"the reference has {reference.shape[0]} positions, the other {other.shape[0]}",
            hint="Measure both under the same probe.",
        )
    positions = int(reference.shape[0])
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (positions,)):
        raise PositionsMismatchError(
            f"a mask of {mask.dtype} and shape {tuple(mask.shape)} does not say which of {positions} positions count"
        )
    places = torch.arange(positions) if mask is None else mask.to("cpu").nonzero()[:, 0]
    device = float64_device(reference)
    distances, cosines = [], []
    with torch.no_grad():
        for rows in places.split(_ROWS):
            ours = _rows(reference, rows, device, "reference")
            theirs = _rows(other, rows, device, "other")
            finite = torch.isfinite(ours).all(dim=1) & torch.isfinite(theirs).all(dim=1)
            equal = (ours == theirs).all(dim=1)
            distances.append(_relative_l2(ours, theirs).masked_fill_(~finite, math.nan).masked_fill_(equal, 0.0))
            cosines.append(_cosine(ours, theirs).masked_fill_(~finite, math.nan).masked_fill_(equal, 1.0))
    empty = torch.empty(0, dtype=torch.float64, device=device)
    return {"relative_l2": torch.cat([empty, *distances]), "cosine": torch.cat([empty, *cosines])}


def _rows(values: torch.Tensor, rows: torch.Tensor, device: torch.device, side: str) -> torch.Tensor:
    block = values[rows.to(values.device)].to(device=device, dtype=torch.float64)
    broken = torch.isnan(block).any(dim=1)
    if bool(broken.any()):
        place = int(rows[int(broken.nonzero()[0, 0])])
        raise NanOutputError(
            f"the {side}'s embedding at position {place} holds NaN",
            object=f"position {place}",
            hint="Look for NaN or overflowing weights; a wider dtype may help.",
        )
    return block


def _scaled(block: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The rows by a power of two, which rounds nothing that counts."""
    exponent = torch.frexp(scale).exponent
    return _times_two_to(_times_two_to(block, -(exponent // 2)), exponent // 2 - exponent)


def _times_two_to(block: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    # Of an integer exponent ldexp makes a power in float32, which ends at 2^127.
    return torch.ldexp(block, exponent.double())


def _largest(block: torch.Tensor) -> torch.Tensor:
    return block.abs().amax(dim=1, keepdim=True) if block.shape[1] else block.new_zeros(len(block), 1)


def _relative_l2(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    scale = torch.maximum(_largest(ours), _largest(theirs))
    a, b = _scaled(ours, scale), _scaled(theirs, scale)
    # Not (b - a) of what was given: that could overflow.
    distance, size = torch.linalg.vector_norm(b - a, dim=1), _norm(ours, scale)
    return distance / size


def _norm(block: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Row norms in units of another scale, of rows that may be far smaller than that."""
    own = _largest(block)
    exponent = (torch.frexp(own).exponent - torch.frexp(scale).exponent)[:, 0]
    return _times_two_to(torch.linalg.vector_norm(_scaled(block, own), dim=1), exponent)


def _cosine(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    a, b = _scaled(ours, _largest(ours)), _scaled(theirs, _largest(theirs))
    # The root of the product, not the product of the roots: of x * x it is x, to the last bit.
    size = ((a * a).sum(dim=1) * (b * b).sum(dim=1)).sqrt_()
    return ((a * b).sum(dim=1) / size).clamp_(min=-1.0, max=1.0)
