"""Elimination by global magnitude: which elements of a behavior go first, and putting them to nothing.

Nothing is zero for an adapter's tensors, whose update is a product of them; for an overlay's it is what lies beneath,
by reference, and only elements that differ from it count. The magnitude is |element|, or |element - beneath|, in
float32. Elements go in the order of magnitude; of equal ones those of the tensor whose name sorts first, then those of
the lower index. Exactly ``round(epsilon * elements)`` go.

Thresholds come from two histograms over the bits of the magnitudes, which sort as the numbers do; so a fine-tune of
billions of elements is ranked in 512 KiB, exactly, in two passes over its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import torch

from rblstore.divergence.perturbations import check_epsilon, flat_blocks

_HALF: Final = 16
_BINS: Final = 1 << _HALF


class _Cut(NamedTuple):
    """Where the line is: everything below ``key`` goes, and so many of those that are equal to it."""

    key: int
    equal: int


class Elimination:
    """A plan for several fractions of the same tensors, which hold their full values while it is made.

    Args:
        tensors: Floating-point, contiguous, by name; the live tensors themselves.
        ground: What lies beneath each, of its shape and type, read when it is asked for; None for zero.
        fractions: Which epsilons will be asked for.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        ground: Mapping[str, torch.Tensor] | None,
        fractions: Sequence[float],
    ) -> None:
        self._tensors = dict(sorted(tensors.items()))
        self._ground = ground
        self.elements, self._cuts = self._plan([check_epsilon(epsilon) for epsilon in fractions])

    def apply(self, epsilon: float) -> int:
        """Puts a fraction of the elements to nothing, in place; the tensors hold their full values before.

        Args:
            epsilon: One of the planned fractions.

        Returns:
            How many elements went.
        """
        cut = self._cuts[epsilon]
        left, gone = cut.equal, 0
        with torch.no_grad():
            for block, beneath in self._blocks():
                keys, counted = _keys(block, beneath)
                goes = keys < cut.key
                ties = (keys == cut.key) & counted
                if left:
                    ties &= ties.cumsum(0) <= left
                    left -= int(ties.sum())
                    goes |= ties
                goes &= counted
                gone += int(goes.sum())
                nothing = torch.zeros_like(block) if beneath is None else beneath
                block.copy_(torch.where(goes, nothing, block))
        return gone

    def _plan(self, fractions: Sequence[float]) -> tuple[int, dict[float, _Cut]]:
        high = torch.zeros(_BINS, dtype=torch.int64)
        for block, beneath in self._blocks():
            keys, counted = _keys(block, beneath)
            high += torch.bincount(keys[counted] >> _HALF, minlength=_BINS)
        elements = int(high.sum())
        wanted = {epsilon: round(epsilon * elements) for epsilon in fractions}
        running = high.cumsum(0)
        places = {epsilon: int(torch.searchsorted(running, count)) for epsilon, count in wanted.items() if count}
        low = {place: torch.zeros(_BINS, dtype=torch.int64) for place in places.values()}
        for block, beneath in self._blocks() if low else ():
            keys, counted = _keys(block, beneath)
            keys = keys[counted]
            tops = keys >> _HALF
            for place, found in low.items():
                found += torch.bincount(keys[tops == place] & (_BINS - 1), minlength=_BINS)
        cuts = dict.fromkeys(fractions, _Cut(0, 0))
        for epsilon, place in places.items():
            rest = wanted[epsilon] - int(running[place] - high[place])
            within = low[place].cumsum(0)
            at = int(torch.searchsorted(within, rest))
            cuts[epsilon] = _Cut((place << _HALF) | at, rest - int(within[at] - low[place][at]))
        return elements, cuts

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Every element once, in order, beside what lies beneath it."""
        for name, tensor in self._tensors.items():
            if self._ground is None:
                for block in flat_blocks(tensor):
                    yield block, None
                continue
            beneath = self._ground[name].to(tensor.device).contiguous()
            yield from zip(flat_blocks(tensor), flat_blocks(beneath), strict=True)


def _keys(block: torch.Tensor, beneath: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitudes as integers that sort alike, and which elements count."""
    wide = torch.float64 if block.dtype == torch.float64 else torch.float32
    if beneath is None:
        magnitude, counted = block.to(wide).abs(), torch.ones(len(block), dtype=torch.bool, device=block.device)
    else:
        magnitude = (block.to(wide) - beneath.to(wide)).abs()
        counted = _bits(block) != _bits(beneath)
    return magnitude.to(torch.float32).view(torch.int32).to(torch.int64), counted


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()])
