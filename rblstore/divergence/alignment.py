"""Parameters at addresses that do not change the bits of what is computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar

import torch

ALIGNMENT: Final = 64

Model = TypeVar("Model", bound=torch.nn.Module)


def aligned(model: Model) -> Model:
    """Moves every parameter and buffer that does not begin at a multiple of 64 bytes to one that does, in place.

    Kernels for small matrix products choose their path by alignment, and the paths round differently: a tensor mapped
    from a file and the same tensor copied would give outputs that differ in their last bits. The Parameter objects
    stay, so optimizers and hooks hold on to them; tensors that are views of the same memory stay tied. Views that
    overlap without being equal are left where they are, since moving them would untie them.

    Args:
        model: Any module.

    Returns:
        The same model.
    """
    overlapping = _overlapping(model)
    moved: dict[tuple[object, ...], torch.Tensor] = {}
    with torch.no_grad():
        for tensor in _plain_tensors(model):
            if tensor.data_ptr() % ALIGNMENT == 0 or id(tensor) in overlapping:
                continue
            view = _view(tensor)
            if view not in moved:
                moved[view] = tensor.detach().clone()
            tensor.data = moved[view]
    return model


def _plain_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    # Quantized and other subclasses keep their values behind a layout of their own; meta tensors have no address.
    for tensor in (*model.parameters(), *model.buffers()):
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        if plain and tensor.layout == torch.strided and tensor.device.type != "meta":
            yield tensor


def _view(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device))


def _overlapping(model: torch.nn.Module) -> set[int]:
    """Ids of the tensors that share memory with another one that is not the same view of it."""
    spans = []
    for tensor in _plain_tensors(model):
        if tensor.numel():
            reach = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            spans.append((str(tensor.device), start, start + (reach + 1) * tensor.element_size(), tensor))
    spans.sort(key=lambda span: span[:3])
    found: set[int] = set()
    for place, (device, _, end, tensor) in enumerate(spans):
        for other_device, start, _, other in spans[place + 1 :]:
            if other_device != device or start >= end:
                break
            if _view(other) != _view(tensor):
                found.update((id(tensor), id(other)))
    return found
