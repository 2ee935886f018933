"""Values of tensors kept in memory, within a bound: those used last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from rblstore.objects.content_records import StoredTensor
from rblstore.objects.history_records import Composition
from rblstore.operations.merged_tensors import Terms

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PeftTerm:
    """A tensor of a composition that peft merges.

    Attributes:
        composition: Which.
        name: The tensor's logical name.
    """

    composition: Composition
    name: str


@dataclass(frozen=True)
class MergedValue:
    """What a tensor holds once adapters are merged into it, by what it is computed from.

    Attributes:
        beneath: What lies beneath the adapters; the value has its element type and shape.
        terms: The products that are added in order, or what peft merges.
    """

    beneath: StoredTensor
    terms: Terms | PeftTerm


ValueKey: TypeAlias = "StoredTensor | MergedValue"
"""Which value a tensor has: equal keys mean equal bits, of one element type and shape."""


def form_of(key: ValueKey) -> StoredTensor:
    """What has the element type and shape of the value; of a merged value, what lies beneath."""
    return key if isinstance(key, StoredTensor) else key.beneath


class ValueCache:
    """Verified values by their keys, on the CPU and in their stored element types; for several threads.

    Args:
        limit: Bytes that may be kept; 0 for none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[ValueKey, torch.Tensor] = OrderedDict()

    def get(self, key: ValueKey) -> torch.Tensor | None:
        """A kept value, which nobody may write to; None where there is none."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
        return found

    def put(self, key: ValueKey, value: torch.Tensor) -> None:
        """Keeps a value, and drops those that were used longest ago where the bound demands it."""
        size = form_of(key).size
        if size > self.limit:
            return
        with self._lock:
            if key in self._values:
                return
            self._values[key] = value
            self.size += size
            while self.size > self.limit:
                dropped, _ = self._values.popitem(last=False)
                self.size -= form_of(dropped).size

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            self._values.clear()
            self.size = 0
