"""Which live tensors a study may write into: those of the identity, those of a behavior, and what lies beneath them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from rblstore.errors import ConflictError
from rblstore.objects.content_records import Behavior
from rblstore.objects.history_records import Composition, Slot
from rblstore.operations.live_places import LivePlaces
from rblstore.operations.live_repair import adapter_tensors, mounted
from rblstore.operations.live_wanted import wanted_values
from rblstore.operations.merged_tensors import plan_merge
from rblstore.operations.stored_models import composed_state, members
from rblstore.operations.tensor_values import TensorValues
from rblstore.operations.value_cache import MergedValue, PeftTerm, ValueCache, ValueKey, form_of
from rblstore.repository import Store

if TYPE_CHECKING:
    import torch

    from rblstore.operations.live_model import LiveModel
    from rblstore.operations.live_switch import LiveState


class NotMountedError(ConflictError):
    """A behavior's tensors were asked for of a model that it is not on, or in which it has none of its own."""

    code: ClassVar[str] = "not_mounted"


class StoredBeneath(Mapping[str, "torch.Tensor"]):
    """What lies beneath some live tensors, each read from the store when it is asked for and kept by nobody.

    Args:
        places: Where stored tensors are in the live model.
        values: Reads them.
        beneath: What the tensors hold there, by stored name.
        names: The live tensors' names, as :func:`identity_tensors` gives them, that have something beneath.
    """

    def __init__(
        self, places: LivePlaces, values: TensorValues, beneath: Mapping[str, ValueKey], names: tuple[str, ...]
    ) -> None:
        self._places = places
        self._values = values
        self._beneath = beneath
        self._names = names
        self._groups = {group.target: group for group in places.fused(beneath)}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> torch.Tensor:
        """As loading would convert it: the live tensor's element type and shape, or the stored shape where it differs.

        Raises:
            KeyError: Nothing lies beneath.
            CorruptError: Stored bytes are damaged.
        """
        if name not in self._names:
            raise KeyError(name)
        group = self._groups.get(name)
        if group is not None:
            made = self._places.convert(group, lambda stored: self._values.one(self._beneath[stored]))
            return next(value for place, value in made if place.live_name == name)
        (place,) = self._places.direct((name,), {name: self._beneath[name]})
        return self._values.one(self._beneath[name]).to(place.tensor.dtype)


def own_tensors(live: LiveModel, names: Mapping[str, ValueKey]) -> dict[str, torch.Tensor]:
    """The floating-point live tensors that hold some stored ones, each once, detached but not copied.

    Args:
        live: The live model.
        names: Stored names, with what they hold.

    Returns:
        By stored name, in the order of names; stored tensors that are fused into one live tensor by its live name.
    """
    from rblstore.checkpoints.plain_view import plain_tensors
    from rblstore.live.binding import bind

    binding, tensors = bind(live.model, names, absent=frozenset(names)), plain_tensors(live.model)
    pairs = [(name, tensors[live_name]) for name, live_name in binding.direct.items()]
    pairs += [(group.target, tensors[group.target]) for group in binding.fused]
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in sorted(pairs, key=lambda pair: pair[0]):
        if tensor.is_floating_point():
            found.setdefault(id(tensor), (name, tensor.detach()))
    return dict(found.values())


def behavior_tensors(store: Store, live: LiveModel, state: LiveState, slot: Slot) -> dict[str, torch.Tensor]:
    """The floating-point live tensors that a behavior brought: phi.

    Args:
        store: The repository.
        live: The live model, which has the behavior on it.
        state: The same, held.
        slot: The behavior.

    Returns:
        By stored name, sorted; detached but not copied. Of an adapter its own tensors, of an overlay (and of an adapter
        that is merged in) the model's tensors that it writes.

    Raises:
        NotMountedError: It is not on the model, or holds no tensors there that can be written.
    """
    if live.composition.slot(slot.name) != slot:
        raise NotMountedError(f"{slot.name!r} is not on the live model", object=slot.name)
    behavior = store.record(slot.behavior, Behavior)
    if behavior.form == "adapter" and live.form == "adapters":
        on = dict(mounted(state))
        found = adapter_tensors(live.model, on[slot.name]) if slot.name in on else {}
        if not found and len(on) == 1 and state.mounting is not None:
            # What peft computes to save it (prompts) is kept in parameters of other names.
            own = {id(tensor) for tensor in state.mounting.tensors}
            found = {name: one.detach() for name, one in live.model.named_parameters() if id(one) in own}
        found = {name: tensor for name, tensor in sorted(found.items()) if tensor.is_floating_point()}
    else:
        wanted, _ = wanted_values(store, live.plain, live.composition, live.form)
        written = {one.target for one in behavior.effects if one.on == "tensor" and one.action != "removes"}
        # Merging some kinds changes the bias beside a weight, too, which no effect names.
        beside = {f"{name.removesuffix('weight')}bias" for name in written if name.endswith("weight")}
        written |= {name for name in beside if isinstance(wanted.get(name), MergedValue)}
        found = own_tensors(live, {name: key for name, key in wanted.items() if name in written})
    if not found:
        raise NotMountedError(
            f"{slot.name!r} holds no floating-point tensors of its own in the model",
            object=slot.name,
            hint="Only behaviors that act through tensors can be studied this way.",
        )
    return found


def ground_tensors(
    store: Store, live: LiveModel, names: Mapping[str, torch.Tensor], beneath: Composition
) -> StoredBeneath:
    """What lies beneath the tensors of an overlay, or of an adapter that is merged in.

    Args:
        store: The repository.
        live: The live model, in the form that the behavior is held in.
        names: The behavior's tensors, as :func:`behavior_tensors` gave them.
        beneath: The composition without the behavior.
    """
    lies, absent = wanted_values(store, live.plain, beneath, live.form)
    places = LivePlaces(live.plain)
    places.learn(lies.keys(), absent=[*absent, *lies])
    targets = {group.target for group in places.fused(lies)}
    found = tuple(name for name in names if name in targets or name in lies)
    sources = [name for group in places.fused(lies) if group.target in names for name, _ in group.sources]
    keys = [key for name in (*found, *sources) if (key := lies.get(name)) is not None]
    # What peft merges is merged in a model of its own: once for all of it, in place of once for each tensor.
    merged = [key for key in keys if isinstance(key, MergedValue) and isinstance(key.terms, PeftTerm)]
    values = TensorValues(store, ValueCache(sum(form_of(key).size for key in merged)))
    values.get(merged)
    return StoredBeneath(places, values, lies, found)


def peft_merged_bytes(store: Store, composition: Composition) -> int:
    """How much of a merged model's tensors peft has to merge, with and without one of the behaviors; 0 for plain LoRA.

    Args:
        store: The repository.
        composition: What is merged.

    Raises:
        CannotMergeError: It cannot be.
    """
    adapters = [one for one in members(store, composition) if one.config is not None]
    beneath = composed_state(store, composition).tensors
    plan = plan_merge(store, adapters, beneath)
    return 2 * sum(beneath[name].size for name in plan.by_peft if name in beneath)
