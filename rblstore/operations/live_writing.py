"""Writing values into a live model, and writing what was there before again where that fails half way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rblstore.checkpoints.composition_ground import shown
from rblstore.errors import ConflictError, RblError
from rblstore.objects.content_records import StoredTensor
from rblstore.operations.live_comparison import holds
from rblstore.operations.live_places import LivePlaces, Place
from rblstore.operations.tensor_values import TensorValues, bytes_of, is_plain_memory, torch_dtype
from rblstore.operations.value_cache import ValueKey, form_of

if TYPE_CHECKING:
    import torch

    from rblstore.live.binding import Fused, Read


class LiveBrokenError(ConflictError):
    """A change of a live model failed half way, and so did putting back what was before."""

    code: ClassVar[str] = "live_broken"


class Change:
    """One change of a live model's values.

    Args:
        places: Where stored tensors are.
        values: Gives values.
        before: What the model holds.
        after: What it is to hold.
    """

    def __init__(
        self,
        places: LivePlaces,
        values: TensorValues,
        before: Mapping[str, ValueKey],
        after: Mapping[str, ValueKey],
    ) -> None:
        self._places = places
        self._values = values
        self._before = before
        self._after = after
        self._kept: dict[int, torch.Tensor] = {}

    def staged(
        self,
        direct: Sequence[tuple[Place, torch.Tensor]],
        groups: Sequence[Fused],
        parts: Mapping[ValueKey, torch.Tensor],
    ) -> None:
        """Writes values that are all in memory already.

        Args:
            direct: Tensors that have a stored name each, and their values.
            groups: Tensors that are converted from several.
            parts: The values of which the groups are made, by key.
        """
        import torch

        def part(name: str) -> torch.Tensor | None:
            key = self._after.get(name)
            return None if key is None else parts[key]

        planned = [*direct, *(made for group in groups for made in self._places.convert(group, part))]
        for place, value in planned:
            self._keep(place, value.shape)
        assign = self._places.assign
        with torch.no_grad():
            try:
                for place, value in planned:
                    assign(place, value)
            except BaseException as error:
                self._undo([place for place, _ in direct], groups, error)
                raise

    def straight(self, places: Sequence[Place], groups: Sequence[Fused]) -> None:
        """Writes values as they are read: into the tensors' own memory, where that has the stored form.

        Args:
            places: Tensors that have a stored name each.
            groups: Tensors that are converted from several.
        """
        import torch

        for place in places:
            self._keep(place, form_of(self._after[place.name]).shape)
        into = [place for place in places if self._takes_bytes(place)]
        read = {id(place.tensor) for place in into}
        with torch.no_grad():
            try:
                self._read_into(into)
                for place in places:
                    if id(place.tensor) not in read:
                        self._places.assign(place, self._value(self._after[place.name]))
                for group in groups:
                    for place, value in self._places.convert(group, self._reader(self._after)):
                        self._keep(place, value.shape)
                        self._places.assign(place, value)
            except BaseException as error:
                self._undo(places, groups, error)
                raise

    def _value(self, key: ValueKey) -> torch.Tensor:
        return self._values.get([key])[0]

    def _reader(self, wanted: Mapping[str, ValueKey]) -> Read:
        return lambda name: self._value(wanted[name]) if name in wanted else None

    def _keep(self, place: Place, shape: Sequence[int]) -> None:
        """Keeps what cannot be had again: memory of another shape, and values that have no key."""
        if place.tensor.shape != shape:
            self._kept[id(place.tensor)] = place.tensor.data
        elif place.name not in self._before:
            self._kept[id(place.tensor)] = place.tensor.detach().clone()

    def _takes_bytes(self, place: Place) -> bool:
        key, tensor = self._after[place.name], place.tensor
        return (
            isinstance(key, StoredTensor)
            and not self._values.is_cached(key)
            and is_plain_memory(tensor)
            and tensor.dtype == torch_dtype(key)
            and tuple(tensor.shape) == key.shape
        )

    def _read_into(self, places: Sequence[Place]) -> None:
        from torch.autograd.graph import increment_version

        wanted = []
        for place in places:
            key = self._after[place.name]
            assert isinstance(key, StoredTensor), "sums are computed, not read"
            wanted.append((key, bytes_of(place.tensor)))
        try:
            self._values.read_into(wanted)
        finally:
            # autograd, and whoever watches the model, has to know that it was written to.
            for place in places:
                increment_version(place.tensor)

    def _undo(self, places: Sequence[Place], groups: Sequence[Fused], error: BaseException) -> None:
        """Puts everything back that was written, or may have been.

        Raises:
            LiveBrokenError: Something cannot be.
        """
        from rblstore.checkpoints.attaching import LIBRARY_ERRORS

        left: list[tuple[str, Callable[[], None]]] = [
            *((place.live_name, partial(self._put_back, place)) for place in places),
            *((group.target, partial(self._put_group_back, group)) for group in groups),
        ]
        broken: list[str] = []
        failures: tuple[type[Exception], ...] = (RblError, MemoryError, *LIBRARY_ERRORS)
        try:
            while left:
                try:
                    left[-1][1]()
                except failures:
                    broken.append(left[-1][0])  # the others come first
                left.pop()
        finally:
            broken += [name for name, _ in left]
            if broken:
                raise LiveBrokenError(
                    f"the change failed ({str(error) or type(error).__name__}), "
                    f"and {len(broken)} tensors could not be put back: {shown(broken)}",
                    object=broken[0],
                    hint="Do not use the model: switch it to a commit that can be read, or load it anew.",
                ) from error

    def _put_group_back(self, group: Fused) -> None:
        for place, value in self._places.convert(group, self._reader(self._before)):
            self._places.assign(place, value)

    def _put_back(self, place: Place) -> None:
        kept = self._kept.get(id(place.tensor))
        if kept is not None:
            if kept.shape == place.tensor.shape:
                self._places.assign(place, kept)
            else:
                self._places.replace(place, kept)
            return
        key = self._before[place.name]
        # What was not reached holds it still, and may not be readable any more.
        if not holds(place.tensor, key, self._values):
            self._places.assign(place, self._value(key))
