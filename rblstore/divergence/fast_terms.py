"""KL and JS of rows that differ by more than rounding could matter: two exponentials and one logarithm a pair.

With a and b the logits less the largest of their row, ``P = exp(a)``, ``Q = exp(b)``, sums ``A`` and ``B`` of those,
and ``M = P + Q A / B``, twice the mixture times A:

- KL(p || q) = sum of ``P a`` / A - sum of ``P b`` / A + log B - log A.
- JS(p, q) = 1/2 (sum of ``P a`` / A - log A + sum of ``Q b`` / B - log B) - sum of ``M log M`` / 2A + log 2A.

What cancels here leaves an error near 1e-15, whatever the size of the divergence. So what comes out small is not used:
:mod:`rblstore.divergence.metrics` computes it again in forms that keep its digits, as it does where a probability is 0.

Whole rows are worked through at once, by torch's own threads; a row's sums are those of fixed stretches of it, so that
they do not depend on how many threads there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

__all__ = ["FastTerms"]

# An error of 1e-15 is less than 1e-9 of this by four digits, which leaves room for logits that are hundreds apart.
_LEAST: Final = 1e-5
# Values worked on at once, but for rows that are longer: five buffers of 2 MiB.
_ELEMENTS: Final = 1 << 18
# One thread sums what is no longer than this; a power of 2.
_STRETCH: Final = 1 << 13
# Powers of 2: those of e take torch three times as long.
_LOG2_E: Final = 1.0 / math.log(2.0)


class FastTerms:
    """The float64 buffers of some rows, used again for all rows of a pair of outputs.

    Args:
        positions: How many rows there are.
        vocabulary: How wide they are.
        device: Where to compute.
    """

    def __init__(self, positions: int, vocabulary: int, device: torch.device) -> None:
        self._positions = positions
        self._rows = max(1, min(positions, _ELEMENTS // vocabulary))
        self._buffers = torch.empty(5, self._rows, vocabulary, dtype=torch.float64, device=device)

    def rows(self) -> Iterator[slice]:
        """The rows that are worked on together."""
        for start in range(0, self._positions, self._rows):
            yield slice(start, min(start + self._rows, self._positions))

    def divergences(self, ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """KL(ours || theirs) and JS of rows (rows, vocabulary), in nats.

        Returns:
            KL and JS, (rows,) float64, and which of them hold, (rows,) bool: the others need more care.
        """
        a, b, p, q, c = self._buffers[:, : len(ours)]
        for logits, shifted, powers in ((ours, a, p), (theirs, b, q)):
            shifted.copy_(logits).sub_(logits.amax(dim=1, keepdim=True).to(shifted))
            torch.mul(shifted, _LOG2_E, out=powers).exp2_()
        sum_p, sum_q = _sums(p), _sums(q)
        of_p = _sums(torch.mul(p, a, out=c)) / sum_p
        across = _sums(torch.mul(p, b, out=c)) / sum_p
        of_q = _sums(torch.mul(q, b, out=c)) / sum_q
        log_p, log_q = torch.log(sum_p), torch.log(sum_q)
        mixture = torch.addcmul(p, q, (sum_p / sum_q)[:, None], out=a)
        mixed = _sums(_log(mixture, out=b).mul_(mixture))
        kl = of_p - across + log_q - log_p
        js = (of_p - log_p + of_q - log_q) * 0.5 - mixed / (2 * sum_p) + torch.log(2 * sum_p)
        return kl, js, (kl > _LEAST) & (js > _LEAST) & torch.isfinite(kl) & torch.isfinite(js)


def _log(values: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    if values.device.type != "cpu":
        return torch.log(values, out=out)
    # A third of the time that torch takes with one thread. Where both probabilities are 0 the row is left to others.
    with np.errstate(divide="ignore", invalid="ignore"):
        np.log(values.numpy(), out=out.numpy())
    return out


def _sums(block: torch.Tensor) -> torch.Tensor:
    """The sum of each row, (rows,)."""
    whole = block.shape[1] - block.shape[1] % _STRETCH
    total = block[:, whole:].sum(dim=1)
    return total.add_(block[:, :whole].unflatten(1, (-1, _STRETCH)).sum(dim=2).sum(dim=1)) if whole else total
