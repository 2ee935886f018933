"""Overlays on a live model: whatever one replaced is written anew from the store, never computed back."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from rblstore.checkpoints.plain_view import plain_tensors
from rblstore.live.binding import Read, bind
from rblstore.live.detach import UnrestorableError
from rblstore.objects.content_records import StoredTensor

__all__ = ["put_stored_values"]


def put_stored_values(
    model: nn.Module,
    tensors: Mapping[str, StoredTensor],
    changed: Collection[str],
    read: Read,
    *,
    absent: Collection[str] = (),
) -> None:
    """Gives tensors of a live model the values of another checkpoint of the same names, element types and shapes.

    The memory that they lie in stays, so what shares it (a tied layer) follows, and so does every reference to it.

    Args:
        model: The live model; adapters on it are left alone.
        tensors: Every logical tensor of the checkpoint.
        changed: Names of those that the live model has otherwise.
        read: Reads one of them by its stored name.
        absent: Names that may have no place in the model (the head of another task).

    Raises:
        UnrestorableError: A tensor cannot be read, or does not hold the stored bits afterwards.
        UnmappedTensorError: A tensor has no place in the model.
    """
    if not changed:
        return
    binding = bind(model, tensors, absent=absent)
    live = plain_tensors(model)
    with torch.no_grad():
        for name in sorted(changed):
            if name not in binding.direct:
                continue
            value = read(name)
            if value is None:
                raise UnrestorableError(f"nothing is stored to put back at {name!r}", object=name)
            live[binding.direct[name]].copy_(value)
        for group in binding.fused:
            if any(stored in changed for stored, _ in group.sources):
                made = group.convert(binding.model, read, live[group.target].dtype)
                for live_name, value in made.items():
                    live[live_name].copy_(value)
    differing = binding.check({name: str(tensors[name].content) for name in changed}, read)
    if differing:
        raise UnrestorableError(
            f"{len(differing)} tensors do not hold the stored bits once put back: {', '.join(differing[:5])}",
            object=differing[0],
            hint="Load the composition anew in place of changing the live model.",
        )
