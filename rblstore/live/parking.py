"""Adapters taken off a live model and put on again by reference: a few dozen assignments, and no arithmetic.

A mounting is everything that attaching adapters made of a plain model: peft's model, its wrappers and where they hang.
Off the model it is parked: the plain model has its own children again, and the wrappers keep the adapters' tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import xxhash
from torch import nn

from rblstore.checkpoints.ledger import HOOKS, LEFT_BEHIND, Ledger, ledger_of
from rblstore.checkpoints.plain_view import plain_model, plain_tensors
from rblstore.live.binding import same_bits

Condition = Literal["intact", "changed", "unusable"]
_MOUNTINGS = 64


@dataclass(frozen=True)
class _Place:
    """Where a wrapper hangs, and what hangs there without it."""

    children: dict[str, nn.Module | None]
    name: str
    plain: nn.Module | None
    wrapper: nn.Module | None


@dataclass(frozen=True)
class _Shape:
    """What attaching made of one module besides its children: its class, its own tensors' names, its hooks."""

    module: nn.Module
    kind: type[nn.Module]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, torch.Tensor | None]
    hooks: dict[str, dict[int, Any]]


class _Print:
    """The bits of one tensor as they were; told from others at memory speed, and cheaply for small ones."""

    __slots__ = ("_address", "_bytes", "_digest", "_dtype", "_shape", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._dtype, self._shape, self._address = tensor.dtype, tensor.shape, tensor.data_ptr()
        on_cpu = tensor.device.type == "cpu" and tensor.is_contiguous()
        # Looking at the same memory each time spares the way through torch, which takes longer than the digest.
        self._bytes = _bytes_of(tensor) if on_cpu else None
        self._digest = self._now()

    def _now(self) -> int:
        tensor = self.tensor
        if self._bytes is not None and tensor.data_ptr() == self._address and tensor.dtype == self._dtype:
            return xxhash.xxh3_64_intdigest(self._bytes)
        return xxhash.xxh3_64_intdigest(_bytes_of(tensor))

    def condition(self, device: torch.device) -> Condition:
        """See :meth:`Mounting.condition`."""
        if self.tensor.dtype != self._dtype or self.tensor.shape != self._shape:
            return "unusable"
        if self._now() != self._digest:
            return "changed"
        return "intact" if self.tensor.device == device else "unusable"


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


@dataclass
class Mounting:
    """Adapters on a plain model, or parked beside it.

    Attributes:
        model: Peft's model, to call while it is on.
        plain: The model.
        ledger: What is attached, over which state.
        places: Where its wrappers hang.
        shapes: What else it makes of modules; empty for most kinds.
        attributes: What peft keeps on the model itself.
        tensors: The adapters' own.
        prints: Their bits as they were stored.
        own: Values that attaching gave to tensors of the model itself, by their plain name.
        scanned: Whether what it left on the model was looked for when it was taken off.
    """

    model: nn.Module
    plain: nn.Module
    ledger: Ledger
    places: tuple[_Place, ...]
    shapes: tuple[_Shape, ...]
    attributes: dict[str, Any]
    pretraining_tp: Any
    tensors: tuple[torch.Tensor, ...]
    prints: tuple[_Print, ...]
    own: dict[str, torch.Tensor]
    _slots: tuple[tuple[nn.Module, str], ...]
    _wrappers: tuple[nn.Module, ...]
    scanned: bool = False
    _activity: list[Any] = field(default_factory=list)
    _flags: list[tuple[torch.Tensor, bool]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> Mounting:
        """The mounting that a peft model with a ledger is, its wrappers on."""
        ledger = ledger_of(model)
        assert ledger is not None, "only what has a ledger is mounted"
        plain = plain_model(model)
        beneath = plain_tensors(model)
        places, shapes = [], []
        for state in ledger.plain.modules:
            now = state.module._modules  # noqa: SLF001 - by reference, also the second names of one module
            places += [
                _Place(now, name, state.children.get(name), now.get(name))
                for name in dict.fromkeys((*state.children, *now))
                if now.get(name) is not state.children.get(name)
            ]
            shape = _shape(state)
            if shape is not None:
                shapes.append(shape)
        ids = {id(tensor) for tensor in beneath.values()}
        tensors = tuple(one for one in (*model.parameters(), *model.buffers()) if id(one) not in ids)
        # Tables that the model computes (rotations) are its own buffers, though no checkpoint has them.
        known = {id(one) for state in ledger.plain.modules for one in state.buffers.values()}
        tensors = tuple(one for one in tensors if id(one) not in known)
        replaced = sorted({name for entry in ledger.attached for name in entry.replaced})
        mounting = cls(
            model=model,
            plain=plain,
            ledger=ledger,
            places=tuple(places),
            shapes=tuple(shapes),
            attributes={
                name: vars(plain)[name]
                for name in LEFT_BEHIND
                if name in vars(plain) and name not in ledger.plain.attributes
            },
            pretraining_tp=getattr(getattr(plain, "config", None), "pretraining_tp", None),
            tensors=tensors,
            prints=tuple(map(_Print, tensors)),
            own={name: beneath[name].detach().clone() for name in replaced},
            _wrappers=tuple(one for place in places for one in _wrappers(place.wrapper, place.plain)),
            _slots=tuple((state.module, name) for state in ledger.plain.modules for name in state.parameters),
        )
        mounting._activity = mounting._active()
        return mounting

    @property
    def size(self) -> int:
        """Bytes of the adapters' tensors and of what it replaces."""
        return sum(one.numel() * one.element_size() for one in (*self.tensors, *self.own.values()))

    @property
    def on(self) -> bool:
        """Whether its wrappers hang in the model now."""
        return all(place.children.get(place.name) is place.wrapper for place in self.places)

    def condition(self, device: torch.device) -> Condition:
        """What became of it since it was attached.

        Args:
            device: Where the model lies now.

        Returns:
            ``intact`` where putting it on again gives what was taken off, ``changed`` where an adapter's tensor holds
            other bits than the stored ones, ``unusable`` where it was moved, cast, merged or activated in another way.
        """
        found = {one.condition(device) for one in self.prints}
        if "changed" in found:
            return "changed"
        return "intact" if found <= {"intact"} and self.untouched else "unusable"

    @property
    def untouched(self) -> bool:
        """Whether the adapters are active, scaled and beside the weights as they were when they were attached."""
        return self._active() == self._activity

    @property
    def merged(self) -> bool:
        """Whether somebody merged an adapter into the model's own weights through peft."""
        return any(getattr(module, "merged_adapters", None) for module in self._wrappers)

    def _active(self) -> list[Any]:
        """Which adapters each wrapper has active, merged and scaled by what."""
        found: list[Any] = [getattr(self.model, "active_adapter", None)]
        for module in self._wrappers:
            own = vars(module)
            active, merged, scaling = own.get("_active_adapter"), own.get("merged_adapters"), own.get("scaling")
            found += (
                tuple(active) if isinstance(active, list) else active,
                tuple(merged) if isinstance(merged, list) else merged,
                own.get("_disable_adapters"),
                tuple(scaling.items()) if isinstance(scaling, dict) else None,
            )
        return found

    def take_off(self) -> None:
        """Gives the plain model its own children, tensors' names, classes and hooks again. May be done twice.

        Values that attaching replaced stay; whoever calls this writes the stored ones.
        """
        if self.shapes or not self.on:
            self.ledger.plain.put_back()
        for place in self.places:
            _hang(place, place.plain)
        for name in self.attributes:
            vars(self.plain).pop(name, None)
        if self.pretraining_tp is not None and self.ledger.plain.pretraining_tp is not None:
            self.plain.config.pretraining_tp = self.ledger.plain.pretraining_tp
        trainable = self.ledger.plain.trainable
        if self._flags:
            for tensor, flag in self._flags:
                tensor.requires_grad_(flag)
        else:
            for name, tensor in plain_tensors(self.plain).items():
                if name in trainable and tensor.is_leaf and tensor.is_floating_point():
                    tensor.requires_grad_(trainable[name])

    def put_on(self, *, frozen: bool = True) -> None:
        """Hangs the wrappers into the plain model again. May be done twice.

        Values that attaching replaced are not written; see :attr:`own`.

        Args:
            frozen: Whether nothing needs gradients afterwards, as after attaching; else the flags of the adapters' own
                tensors stay, and the model's are left alone.
        """
        if frozen:
            own = [tensor for module, name in self._slots if (tensor := module._parameters[name]) is not None]  # noqa: SLF001
            self._flags = [(tensor, tensor.requires_grad) for tensor in own]
            for tensor in (*own, *self.tensors):
                if tensor.requires_grad:
                    tensor.requires_grad_(False)
        for shape in self.shapes:
            _put_shape(shape)
        for place in self.places:
            _hang(place, place.wrapper)
        vars(self.plain).update(self.attributes)
        if self.pretraining_tp is not None:
            self.plain.config.pretraining_tp = self.pretraining_tp

    def values_now(self) -> dict[str, torch.Tensor]:
        """Copies of those tensors of the model itself that attaching replaces, as they are now."""
        tensors = plain_tensors(self.plain) if self.own else {}
        return {name: tensors[name].detach().clone() for name in self.own}

    def overwritten(self) -> frozenset[str]:
        """Those tensors of :attr:`own`, by their plain names, that hold other bits by now."""
        tensors = plain_tensors(self.plain) if self.own else {}
        pairs = ((name, value, tensors[name]) for name, value in self.own.items())
        return frozenset(name for name, value, live in pairs if not same_bits(value.to(live.dtype), live))

    def write(self, values: Mapping[str, torch.Tensor]) -> None:
        """Gives tensors of the model itself values, by their plain names: :attr:`own`, or those that lay beneath."""
        if values:
            tensors = plain_tensors(self.plain)
            with torch.no_grad():
                for name, value in values.items():
                    tensors[name].copy_(value)


def _hang(place: _Place, module: nn.Module | None) -> None:
    if module is None:
        place.children.pop(place.name, None)
    else:
        place.children[place.name] = module


def _wrappers(wrapper: nn.Module | None, plain: nn.Module | None) -> Iterator[nn.Module]:
    """The wrappers between what hangs in a place and the module that they wrap."""
    while wrapper is not None and wrapper is not plain:
        yield wrapper
        own = wrapper._modules  # noqa: SLF001 - a wrapper's attributes look through to what it wraps
        names = ("base_layer", "original_module", "token_adapter")
        wrapper = next((own[name] for name in names if name in own), None)


def _shape(state: Any) -> _Shape | None:
    module = state.module
    hooks = {name: dict(getattr(module, name, None) or {}) for name in HOOKS}
    same = (
        type(module) is state.kind
        and list(module._parameters) == list(state.parameters)  # noqa: SLF001
        and list(module._buffers) == list(state.buffers)  # noqa: SLF001
        and all(hooks[name].keys() == state.hooks[name] for name in HOOKS)
    )
    if same:
        return None
    return _Shape(module, type(module), dict(module._parameters), dict(module._buffers), hooks)  # noqa: SLF001


def _put_shape(shape: _Shape) -> None:
    module = shape.module
    if type(module) is not shape.kind:
        module.__class__ = shape.kind
    for now, wanted in ((module._parameters, shape.parameters), (module._buffers, shape.buffers)):  # noqa: SLF001
        if list(now) != list(wanted):
            kept: dict[str, Any] = {name: now.get(name, value) for name, value in wanted.items()}
            now.clear()
            now.update(kept)
    for name, hooks in shape.hooks.items():
        present: dict[int, Any] = getattr(module, name)
        for key, hook in hooks.items():
            present.setdefault(key, hook)


class ParkingLot:
    """Mountings that are off the model, the least recently used going first where there are too many.

    Args:
        room: Bytes that they may take now.
    """

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        self._parked: OrderedDict[Hashable, Mounting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def size(self) -> int:
        """Bytes that they take."""
        return sum(mounting.size for mounting in self._parked.values())

    def look(self, key: Hashable) -> Mounting | None:
        """The one parked under a key, left where it is; None where there is none."""
        return self._parked.get(key)

    def take(self, key: Hashable) -> None:
        """Forgets the one under a key, where there is one."""
        self._parked.pop(key, None)

    def park(self, key: Hashable, mounting: Mounting) -> None:
        """Keeps one, as far as there is room."""
        self._parked[key] = mounting
        self._parked.move_to_end(key)
        while self._parked and (len(self._parked) > _MOUNTINGS or self.size > self._room()):
            self._parked.popitem(last=False)

    def clear(self) -> None:
        """Forgets all."""
        self._parked.clear()
