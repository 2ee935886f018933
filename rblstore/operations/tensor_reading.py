"""Single stored tensors as torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rblstore.objects.content_records import StoredTensor
from rblstore.repository import Store

if TYPE_CHECKING:
    import torch


def tensor_reader(store: Store, tensors: Mapping[str, StoredTensor]) -> Callable[[str], torch.Tensor | None]:
    """A function that reads one of these tensors by its name; None where there is none.

    The tensor has the stored element type and shape, and memory of its own. Reading raises CorruptError where stored
    bytes are damaged.
    """
    import torch

    from rblstore.live.binding import DTYPES

    def read(name: str) -> torch.Tensor | None:
        stored = tensors.get(name)
        if stored is None:
            return None
        raw = bytearray()
        for chunk in store.content(stored.content):
            raw += chunk
        flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        return flat.view(getattr(torch, DTYPES[stored.dtype])).reshape(stored.shape)

    return read
