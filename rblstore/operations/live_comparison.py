"""Whether a live model's tensors hold the values that they should: bit for bit, at the speed of the memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from rblstore.objects.content_records import StoredTensor
from rblstore.operations.live_places import LivePlaces, Place
from rblstore.operations.tensor_values import TensorValues, bytes_of, torch_dtype
from rblstore.operations.value_cache import MergedValue, ValueKey, form_of

if TYPE_CHECKING:
    import torch

    from rblstore.live.binding import Fused

_BLOCK_ELEMENTS = 1 << 20


def differing(places: LivePlaces, values: TensorValues, wanted: Mapping[str, ValueKey], *, workers: int) -> list[str]:
    """Names whose live tensor does not hold the value, as loading converts it; sorted.

    Args:
        places: Where stored tensors are.
        values: Gives values.
        wanted: What the model is to hold.
        workers: Threads.

    Raises:
        CorruptError: Stored bytes that are needed to tell are missing or damaged.
    """
    found = places.every(wanted)
    groups = places.fused(wanted)
    # Sums of one composition are computed together, and the largest tensors are begun first.
    merged = [key for place in found if isinstance(key := wanted[place.name], MergedValue)]
    sums: dict[ValueKey, torch.Tensor] = dict(zip(merged, values.get(merged), strict=True))
    found.sort(key=lambda place: form_of(wanted[place.name]).size, reverse=True)

    def place_differs(place: Place) -> list[str]:
        key = wanted[place.name]
        value = sums.get(key)
        same = holds(place.tensor, key, values) if value is None else _equal(value, place.tensor)
        return [] if same else [place.name]

    def group_differs(group: Fused) -> list[str]:
        from rblstore.live.binding import same_bits

        made = places.convert(group, lambda name: values.one(wanted[name]) if name in wanted else None)
        same = all(same_bits(value.to(place.tensor.dtype), place.tensor) for place, value in made)
        return [] if same else [name for name, _ in group.sources]

    jobs = [partial(group_differs, group) for group in groups] + [partial(place_differs, place) for place in found]
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="rbl-compare") as threads:
        return sorted(name for names in threads.map(lambda job: job(), jobs) for name in names)


def holds(tensor: torch.Tensor, key: ValueKey, values: TensorValues) -> bool:
    """Whether a live tensor holds a value, as loading converts it; nothing is read where its digest tells.

    Args:
        tensor: The live tensor, of any element type and on any device.
        key: The value.
        values: Gives it where it takes that.

    Raises:
        CorruptError: Stored bytes that are needed to tell are missing or damaged.
    """
    if tuple(tensor.shape) != form_of(key).shape:
        return False
    if isinstance(key, StoredTensor) and not values.is_cached(key):
        stored = torch_dtype(key)
        # Where the live type holds every stored value, the way back is exact, or the value was never the stored one.
        if _widens(stored, tensor.dtype):
            return _digest(tensor, stored) == key.content
    return _equal(values.one(key), tensor)


def _widens(stored: torch.dtype, live: torch.dtype) -> bool:
    import torch

    try:
        return bool(stored == live or torch.promote_types(stored, live) == live)
    except RuntimeError:  # torch promotes no types of eight bits
        return False


def _blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.detach().reshape(-1)
    yield from flat.split(_BLOCK_ELEMENTS) if flat.numel() else ()


def _digest(tensor: torch.Tensor, stored: torch.dtype) -> str | None:
    """SHA-256 of a tensor's values in the stored type; None where that type does not hold them."""
    from rblstore.live.binding import same_bits

    digest = hashlib.sha256()
    for block in _blocks(tensor):
        here = block.cpu().contiguous()
        narrow = here.to(stored)
        if stored != here.dtype and not same_bits(narrow.to(here.dtype), here):
            return None
        digest.update(bytes_of(narrow))
    return digest.hexdigest()


def _equal(value: torch.Tensor, live: torch.Tensor) -> bool:
    from rblstore.live.binding import same_bits

    if value.shape != live.shape:
        return False
    pairs = zip(_blocks(value), _blocks(live), strict=True)
    return all(same_bits(wanted.to(live.dtype), here) for wanted, here in pairs)
