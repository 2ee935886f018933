"""KL and JS of rows that differ by more than rounding could matter: one exponential a value, and one logarithm a pair.

With a and b the logits less the largest of their row, ``P = exp(a)``, ``Q = exp(b)``, sums ``A`` and ``B`` of those,
and ``s = log B - log A``, so that ``log q - log p = b - a - s``:

- KL(p || q) = s - sum of ``P (b - a)`` / A.
- JS(p, q) = 1/2 sum of ``q (b - a - s) - (p + q) log1p((q / p - 1) / 2)``.

What cancels here leaves an error near 1e-15, whatever the size of the divergence. So what comes out small is not used:
:mod:`rblstore.divergence.metrics` computes it again in forms that keep its digits, as it does where a probability is 0.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch

from rblstore.divergence.blocks import ORDINARY, in_pieces

__all__ = ["FastTerms", "RowDivergences"]

# An error of 1e-15 is less than 1e-9 of this by four digits, which leaves room for logits that are hundreds apart.
_LEAST: Final = 1e-5
# Powers of 2: where torch has MKL, those of e are spread over its threads whatever the size, and so are logarithms.
_LOG2_E: Final = 1.0 / math.log(2.0)


class RowDivergences(NamedTuple):
    """KL and JS of some rows, (rows,) float64, in nats."""

    kl: torch.Tensor
    js: torch.Tensor


class FastTerms:
    """The float64 buffers of rows and of one block of their columns, used again for all that are no larger.

    Args:
        elements: Most values of the rows of one block.
        block: Most values of one block.
        device: Where to compute.
    """

    def __init__(self, elements: int, block: int, device: torch.device) -> None:
        self._p, self._q = (torch.empty(elements, dtype=torch.float64, device=device) for _ in range(2))
        self._a, self._b, self._c = (torch.empty(block, dtype=torch.float64, device=device) for _ in range(3))

    def divergences(self, ours: torch.Tensor, theirs: torch.Tensor, columns: list[slice]) -> RowDivergences | None:
        """KL and JS of rows (rows, vocabulary); None where they have to be computed with more care."""
        peaks = [_peak(side, columns, self._a.device) for side in (ours, theirs)]
        if not all(bool(torch.isfinite(peak).all()) for peak in peaks):
            return None
        sums = torch.zeros(4, len(ours), dtype=torch.float64, device=self._a.device)
        farthest = -math.inf
        for column in columns:
            a, b, c = (buffer[: ours[:, column].numel()].view(-1, _width(column)) for buffer in self._three())
            p, q = self._part(self._p, len(ours), column), self._part(self._q, len(ours), column)
            a.copy_(ours[:, column]).sub_(peaks[0])
            b.copy_(theirs[:, column]).sub_(peaks[1])
            torch.mul(a, _LOG2_E, out=p).exp2_()
            torch.mul(b, _LOG2_E, out=q).exp2_()
            distance = b.sub_(a)
            farthest = max(farthest, float(distance.amax()))
            sums[0] += p.sum(dim=1)
            sums[1] += q.sum(dim=1)
            sums[2] += torch.mul(p, distance, out=c).sum(dim=1)
            sums[3] += torch.mul(q, distance, out=c).sum(dim=1)
        shift = torch.log(sums[1]) - torch.log(sums[0])
        if not farthest - float(shift.amin()) < -ORDINARY:
            return None
        kl = shift - sums[2] / sums[0]
        js = sums[3] / sums[1] - shift
        of_p, of_q, ratio = (1 / sums[0])[:, None], (1 / sums[1])[:, None], (0.5 * sums[0] / sums[1])[:, None]
        for column in columns:
            a, _, c = (buffer[: ours[:, column].numel()].view(-1, _width(column)) for buffer in self._three())
            p, q = self._part(self._p, len(ours), column), self._part(self._q, len(ours), column)
            logs = in_pieces(torch.Tensor.log1p_, torch.div(q, p, out=a).mul_(ratio).sub_(0.5))
            js -= torch.mul(p, of_p, out=c).addcmul_(q, of_q).mul_(logs).sum(dim=1)
        js *= 0.5
        enough = (kl > _LEAST) & (js > _LEAST) & torch.isfinite(kl) & torch.isfinite(js)
        return RowDivergences(kl, js) if bool(enough.all()) else None

    def _three(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._a, self._b, self._c

    def _part(self, buffer: torch.Tensor, rows: int, column: slice) -> torch.Tensor:
        # Columns after columns, so that every block is contiguous.
        width = _width(column)
        return buffer[rows * column.start : rows * (column.start + width)].view(rows, width)


def _width(column: slice) -> int:
    return int(column.stop - column.start)


def _peak(side: torch.Tensor, columns: list[slice], device: torch.device) -> torch.Tensor:
    found = torch.cat([side[:, column].amax(dim=1, keepdim=True) for column in columns], dim=1).amax(1, keepdim=True)
    return found.to(device=device, dtype=torch.float64)
