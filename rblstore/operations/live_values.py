"""Which values the tensors of a live model have to hold, and writing them: by reference, all of them or none.

A value is never computed back: what was there before is the stored tensor, or the sum that a merged checkout writes,
and either is known by a key. Changing a model from one composition to another touches the tensors whose keys differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from rblstore.objects.history_records import Composition
from rblstore.operations.live_comparison import differing
from rblstore.operations.live_places import LivePlaces
from rblstore.operations.live_wanted import wanted_values
from rblstore.operations.live_writing import Change, LiveBrokenError
from rblstore.operations.tensor_values import TensorValues
from rblstore.operations.value_cache import MergedValue, ValueCache, ValueKey, form_of
from rblstore.repository import Store

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CACHE_BYTES", "LiveBrokenError", "LiveValues", "MergedValue", "ValueKey"]

CACHE_BYTES = 256 << 20
_KEPT_COMPOSITIONS = 64


class _Difference(NamedTuple):
    """What differs between two sets of values; holds on to both, so that nothing else has their ids."""

    before: Mapping[str, ValueKey]
    after: Mapping[str, ValueKey]
    names: tuple[str, ...]
    size: int


class LiveValues:
    """The values of a live model's own tensors; what adapters bring beside them is not looked at.

    For one thread at a time.

    Args:
        store: The repository.
        model: A transformers model, a PEFT model around one, or any module whose tensors are named as stored.
        cache_bytes: How much is kept of the tensors that behaviors touch; 0 to read them anew each time.
    """

    def __init__(self, store: Store, model: nn.Module, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._model = model
        self._cache = ValueCache(cache_bytes)
        self._values = TensorValues(store, self._cache)
        self._places = LivePlaces(model)
        self._of: dict[tuple[Composition, str], Mapping[str, ValueKey]] = {}
        self._changes: dict[tuple[int, int], _Difference] = {}

    @property
    def cached_bytes(self) -> int:
        """Bytes of tensors that are kept."""
        return self._cache.size

    def clear(self) -> None:
        """Drops what is kept."""
        self._cache.clear()

    def of(self, composition: Composition, form: Literal["adapters", "merged"]) -> Mapping[str, ValueKey]:
        """Which value each tensor has to hold, by stored name.

        Args:
            composition: What the model is to be.
            form: ``adapters`` for the checkpoint with overlays laid on, ``merged`` with the adapters summed in.

        Raises:
            UnmappedTensorError: A stored tensor has no place in the model.
            CannotMergeError: The adapters cannot be merged into this model.
            CorruptError: A record is missing or damaged.
        """
        found = self._of.get((composition, form))
        if found is None:
            wanted, absent = wanted_values(self._store, self._model, composition, form)
            self._places.learn(wanted.keys(), absent=absent)
            if len(self._of) >= _KEPT_COMPOSITIONS:
                self._of.pop(next(iter(self._of)))
            self._of[composition, form] = found = MappingProxyType(wanted)
        return found

    def differing(self, wanted: Mapping[str, ValueKey]) -> list[str]:
        """Names whose live tensor does not hold the value, as loading converts it, bit for bit; sorted.

        Args:
            wanted: What :meth:`of` gave.

        Raises:
            CorruptError: Stored bytes that are needed to tell are missing or damaged.
        """
        self._places.learn(wanted.keys(), absent=wanted.keys())
        return differing(self._places, self._values, wanted, workers=self._store.configuration.workers)

    def write(self, before: Mapping[str, ValueKey], after: Mapping[str, ValueKey]) -> None:
        """Gives the tensors whose keys differ their new values, in the memory that they have; all of them or none.

        What fits in the cache's bound is read and verified before anything is overwritten. More goes straight into the
        tensors' memory, and where it fails half way what was before is written back, by reference.

        Args:
            before: What the model holds now.
            after: What it is to hold.

        Raises:
            TiedTensorsError: One live tensor is to hold two values.
            CorruptError: Stored bytes are missing or damaged; the model is as before.
            LiveBrokenError: It failed half way, and the value before could not be put back either.
        """
        difference = self._difference(before, after)
        if difference.names:
            self._write(difference)

    def rewrite(self, wanted: Mapping[str, ValueKey], names: Sequence[str]) -> None:
        """Gives tensors the values that they should have already, whatever they hold; no copy of that is kept.

        Args:
            wanted: What the model is to hold.
            names: Which of it to write.

        Raises:
            LiveBrokenError: Stored bytes are missing or damaged; every tensor but those that need them holds its value.
        """
        if names:
            size = sum(form_of(wanted[name]).size for name in names)
            self._write(_Difference(wanted, wanted, tuple(names), size))

    def _write(self, difference: _Difference) -> None:
        after = difference.after
        self._places.learn(after.keys(), absent=after.keys())
        places = self._places.direct(difference.names, after)
        groups = self._places.fused(difference.names)
        change = Change(self._places, self._values, difference.before, after)
        sources = [after[name] for group in groups for name, _ in group.sources if name in after]
        if difference.size + sum(form_of(key).size for key in sources) <= self._cache.limit:
            values, parts = self._values.get([after[place.name] for place in places]), self._values.get(sources)
            change.staged(list(zip(places, values, strict=True)), groups, dict(zip(sources, parts, strict=True)))
        else:
            change.straight(places, groups)

    def _difference(self, before: Mapping[str, ValueKey], after: Mapping[str, ValueKey]) -> _Difference:
        """Names whose values differ, remembered of what :meth:`of` gave, which nobody can change."""
        known = self._changes.get((id(before), id(after)))
        if known is not None:
            return known
        names = [name for name, key in after.items() if (old := before.get(name)) is not key and old != key]
        found = _Difference(before, after, tuple(names), sum(form_of(after[name]).size for name in names))
        if isinstance(before, MappingProxyType) and isinstance(after, MappingProxyType):
            if len(self._changes) >= _KEPT_COMPOSITIONS:
                self._changes.pop(next(iter(self._changes)))
            self._changes[id(before), id(after)] = found
        return found
