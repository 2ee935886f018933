"""Getting an adapted model back without a snapshot: the "practical post-hoc procedures" of arXiv 2603.02934, defined.

The paper names them and leaves them open. Here each is what somebody could do who has the adapted weights, knows how
they were adapted, and kept no copy of the weights before:

- pull-back: the weights that are likeliest where each tensor is one of independent normal numbers and the change was
  normal too, of a size that is known (a ridge estimate: an L2 penalty on the change and one on the distance from the
  tensor's own mean). Knows the size of the change.
- 8-bit copy: the limit of an L2 penalty on the distance from a copy in 8 bits a weight, kept from before. Knows the
  base to one part in 127 of each row's largest weight, which is nearly a snapshot and yet none.
- estimated delta: the adaptation is done again, on the adapted model with another seed, and what that changed is
  subtracted. Knows how the model was adapted.
- distillation (:func:`rblstore.divergence.adaptations.distil`): knows the base's outputs on some prompts.

All work in float32 and round once to the model's type. Nothing here reads what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import BinaryIO, Final

import torch

from rblstore.divergence.perturbations import flat_blocks
from rblstore.errors import UsageError

_LEVELS: Final = 127
# Elements that are worked on at a time, so that beside large tensors no copies of them in float32 are needed.
_BLOCK: Final = 1 << 20


def pull_back(tensors: Mapping[str, torch.Tensor], size: float) -> None:
    """Shrinks each tensor towards its own mean by what a change of that size has added to its spread, in place.

    With the change's variance ``a`` and the adapted tensor's variance ``v``, that of what was before is ``v - a``, and
    the likeliest value of a weight is ``mean + (v - a) / v * (weight - mean)``; the mean alone where ``a`` exceeds it.

    Args:
        tensors: What was adapted, floating point.
        size: Standard deviation of the change of a weight.

    Raises:
        UsageError: The size is below 0.
    """
    if not size >= 0:
        raise UsageError(f"the size of a change is a number from 0, not {size!r:.40}", object="size")
    with torch.no_grad():
        for tensor in tensors.values():
            if not tensor.numel():
                continue
            total, squares = 0.0, 0.0
            for block in flat_blocks(tensor):
                total += float(block.sum(dtype=torch.float64))
            mean = total / tensor.numel()
            for block in flat_blocks(tensor):
                squares += float((block.to(torch.float64) - mean).square_().sum())
            variance = squares / tensor.numel()
            kept = max(0.0, 1.0 - size * size / variance) if variance > 0 else 0.0
            for block in flat_blocks(tensor):
                block.copy_((block.to(torch.float32) - mean).mul_(kept).add_(mean))


class EightBitCopy:
    """Tensors in 8 bits a weight: whole numbers from -127 to 127 and, for each row, what they are multiplied by.

    Args:
        file: Where they are kept, so that no memory is taken: readable, writable and seekable; nothing else uses it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, int] = {}

    def keep(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Adds tensors, floating point, by name."""
        for name, tensor in tensors.items():
            if not tensor.numel():
                continue
            rows = _rows(tensor.detach())
            self._file.seek(0, 2)
            self._places[name] = self._file.tell()
            for some in rows.split(_some_rows(rows)):
                values = some.to("cpu", torch.float32)
                scale = values.abs().amax(dim=1, keepdim=True) / _LEVELS
                steps = (values / scale.masked_fill(scale == 0, 1.0)).round_().to(torch.int8)
                self._file.write(scale.contiguous().view(torch.uint8).numpy().tobytes())
                self._file.write(steps.contiguous().view(torch.uint8).numpy().tobytes())

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes the copies into tensors of the names and shapes that were kept, in place."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                if not tensor.numel():
                    continue
                rows = _rows(tensor)
                self._file.seek(self._places[name])
                for some in rows.split(_some_rows(rows)):
                    scale = torch.frombuffer(bytearray(self._file.read(4 * len(some))), dtype=torch.float32)[:, None]
                    steps = torch.frombuffer(bytearray(self._file.read(some.numel())), dtype=torch.int8)
                    some.copy_(steps.view(some.shape).to(torch.float32) * scale)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """A view of the tensor as rows, which can be written to."""
    return tensor.view(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.view(1, -1)


def _some_rows(rows: torch.Tensor) -> int:
    return max(1, _BLOCK // int(rows.shape[1]))


def subtract_estimate(tensors: Mapping[str, torch.Tensor], again: Callable[[], object]) -> None:
    """Adapts once more and takes twice that step back, in place: ``w - (again(w) - w)``.

    Memory is taken for one copy of the tensors given: what is adapted tensor by tensor is undone so.

    Args:
        tensors: What was adapted, floating point.
        again: Does the same adaptation once more, in place, with another seed.
    """
    kept = [tensor.detach().clone() for tensor in tensors.values()]
    again()
    with torch.no_grad():
        for tensor, before in zip(tensors.values(), kept, strict=True):
            for old, new in zip(flat_blocks(before), flat_blocks(tensor), strict=True):
                new.copy_(old.to(torch.float32) * 2.0 - new.to(torch.float32))
