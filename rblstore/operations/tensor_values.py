"""Values of a live model's tensors by their keys: from a cache, the store, or computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rblstore.objects.content_records import StoredTensor
from rblstore.objects.history_records import Composition
from rblstore.operations.merged_tensors import PeftMerge, merged_rows
from rblstore.operations.stored_models import composed_state
from rblstore.operations.value_cache import MergedValue, PeftTerm, ValueCache, ValueKey
from rblstore.operations.writing import wrong_size
from rblstore.repository import Store
from rblstore.storage.decoding import Wanted, fill_contents

if TYPE_CHECKING:
    import torch


def torch_dtype(stored: StoredTensor) -> torch.dtype:
    """The element type of a stored tensor once it is read."""
    import torch

    from rblstore.live.binding import DTYPES

    found: torch.dtype = getattr(torch, DTYPES[stored.dtype])
    return found


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    import torch

    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")


def is_plain_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are one run of bytes on the CPU, in the order of its elements."""
    import torch

    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return plain and tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_contiguous()


class TensorValues:
    """Gives values by their keys, every digest verified. Values are shared: nobody may write to them.

    Args:
        store: The repository.
        cache: What was used last.
    """

    def __init__(self, store: Store, cache: ValueCache) -> None:
        self._store = store
        self._cache = cache

    def read_into(self, wanted: Sequence[tuple[StoredTensor, memoryview]]) -> None:
        """Reads contents to where they belong, in several threads.

        Args:
            wanted: Which, and as many bytes of memory as each has.

        Raises:
            CorruptError: Stored bytes are missing or damaged; memory that was given holds anything.
        """
        contents = self._store.contents.stored(stored.content for stored, _ in wanted)
        asked = []
        for (stored, room), content in zip(wanted, contents, strict=True):
            if content.size != stored.size:
                raise wrong_size(stored.content.short, content.size, stored.size)
            asked.append(Wanted(content, out=room))
        fill_contents(asked, workers=self._store.configuration.workers)

    def is_cached(self, key: ValueKey) -> bool:
        """Whether a value is in the cache."""
        return self._cache.get(key) is not None

    def one(self, key: ValueKey) -> torch.Tensor:
        """A value; one that is read is not put into the cache, so that looking at a whole model does not empty it."""
        import torch

        kept = self._cache.get(key)
        if kept is not None:
            return kept
        if isinstance(key, MergedValue):
            return self.get([key])[0]
        value = torch.empty(key.shape, dtype=torch_dtype(key))
        self.read_into([(key, bytes_of(value))])
        return value

    def get(self, keys: Sequence[ValueKey]) -> list[torch.Tensor]:
        """The values of some keys; those that were not in the cache are in it afterwards, as far as its bound goes.

        Raises:
            CorruptError: Stored bytes are missing or damaged.
            CannotMergeError: A value cannot be computed.
        """
        kept = [self._cache.get(key) for key in keys]
        missing = dict.fromkeys(key for key, value in zip(keys, kept, strict=True) if value is None)
        found: dict[ValueKey, torch.Tensor] = {}
        if missing:
            self._read([key for key in missing if isinstance(key, StoredTensor)], found)
            self._compute([key for key in missing if isinstance(key, MergedValue)], found)
        return [found[key] if value is None else value for key, value in zip(keys, kept, strict=True)]

    def _read(self, keys: Sequence[StoredTensor], found: dict[ValueKey, torch.Tensor]) -> None:
        import torch

        if not keys:
            return
        made = {key: torch.empty(key.shape, dtype=torch_dtype(key)) for key in keys}
        self.read_into([(key, bytes_of(value)) for key, value in made.items()])
        for key, value in made.items():
            found[key] = value
            self._cache.put(key, value)

    def _compute(self, keys: Sequence[MergedValue], found: dict[ValueKey, torch.Tensor]) -> None:
        plain = [key for key in keys if not isinstance(key.terms, PeftTerm)]
        if plain:
            # What lies beneath is kept as well: that is what taking the behavior out again will ask for.
            beneath = dict(zip(plain, self.get([key.beneath for key in plain]), strict=True))
            workers = min(self._store.configuration.workers, len(plain))
            with ThreadPoolExecutor(workers, thread_name_prefix="rbl-merge") as threads:
                for key, value in zip(plain, threads.map(lambda key: self._sum(key, beneath[key]), plain), strict=True):
                    found[key] = value
                    self._cache.put(key, value)
        by_composition: dict[Composition, list[tuple[MergedValue, PeftTerm]]] = {}
        for key in keys:
            if isinstance(key.terms, PeftTerm):
                by_composition.setdefault(key.terms.composition, []).append((key, key.terms))
        for composition, group in by_composition.items():
            value_of = PeftMerge(self._store, composition).reader(composed_state(self._store, composition).tensors)
            for merged, term in group:
                # A clone: the tensor may be the merged model's own, of which nothing else shall stay in memory.
                found[merged] = value_of(term.name).clone()
                self._cache.put(merged, found[merged])

    def _sum(self, key: MergedValue, beneath: torch.Tensor) -> torch.Tensor:
        import torch

        assert not isinstance(key.terms, PeftTerm), "peft's are computed together"
        lies = bytes_of(beneath)
        row = key.beneath.size // max(1, key.beneath.shape[0])
        value = torch.empty(key.beneath.shape, dtype=torch_dtype(key.beneath))
        room, at = bytes_of(value), 0
        rows = merged_rows(
            self._store, key.beneath, key.terms, lambda start, count: lies[start * row : (start + count) * row]
        )
        for block in rows:
            room[at : at + len(block)] = block
            at += len(block)
        return value
