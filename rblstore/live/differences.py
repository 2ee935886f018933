"""What a model is besides its weights' values, compared with what it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from rblstore.checkpoints.model_state import (
    GRADIENT_HOOKS,
    HOOKS,
    LEFT_BEHIND,
    TENSOR_HOOKS,
    ModelState,
    ModuleState,
    TensorState,
    address_of,
    attributes_of,
    drop_hook,
    extra_state_of,
    is_pefts,
    mark_of,
    origin_of,
)
from rblstore.checkpoints.plain_view import unwrapped
from rblstore.live.findings import Difference, Kind

_ABSENT = object()
# What PEFT's generate puts on whatever it takes for the model.
_MAY_BE_UNKNOWN = frozenset({*LEFT_BEHIND, *GRADIENT_HOOKS, "generation_config"})
# Methods that transformers and PEFT put on instances.
_OF_LIBRARIES = frozenset({*LEFT_BEHIND, "_gradient_checkpointing_func"})
# torch and transformers note these as a model is used, whatever is attached.
_OF_USE = ("transformers.utils.output_capturing", "torch.")
_MUCH = 60


def differences(before: ModelState, *, adapted: bool = False) -> Iterator[Difference]:
    """Everything in which a model is no longer what it was, with what undoes it by reference.

    Args:
        before: What it was.
        adapted: Whether adapters rightly are on it: their wrappers and what they freeze is then no difference.
    """
    unknown = adapted or before.wrapped
    moved = _moved(before)
    for state in before.modules:
        yield from _structure(state)
        yield from _tensors(state, moved=moved, flags=not unknown)
        yield from _hooks(state, adapted=adapted)
        yield from _attributes(state, passed_over=_MAY_BE_UNKNOWN if unknown else frozenset())
        if not unknown and state.module.training != state.training:
            mode = "in training mode" if state.module.training else "in evaluation mode"
            yield Difference.of(
                state.name, "training", f"is {mode}", partial(_set, state.module, "training", state.training)
            )
        if state.extra is not None and not _alike(now := extra_state_of(state.module), state.extra):
            undo = partial(state.module.set_extra_state, state.extra)
            yield Difference.of(state.name, "extra_state", f"has the extra state {_short(now)}", undo)
    yield from _ties(before)
    yield from _configs(before, adapted=unknown)


def _moved(before: ModelState) -> bool:
    """Whether the whole model went to another device: whoever has it may do that."""
    found = Counter(
        (one.device, now.device)
        for state in before.modules
        for name, one in state.tensors.items()
        if (now := _own(state.module, name)) is not None
    )
    return len(found) == 1


def _own(module: nn.Module, name: str) -> torch.Tensor | None:
    found = module._parameters.get(name)  # noqa: SLF001 - attributes may look elsewhere
    return module._buffers.get(name) if found is None else found  # noqa: SLF001


def _structure(state: ModuleState) -> Iterator[Difference]:
    module, prefix = state.module, f"{state.name}." if state.name else ""
    if type(module) is not state.kind:
        undo = partial(_set, module, "__class__", state.kind)
        yield Difference.of(state.name, "class", f"is a {type(module).__name__}, was a {state.kind.__name__}", undo)
    present = module._modules  # noqa: SLF001 - modules under all of their names
    if present.keys() != state.children.keys() or any(
        present[name] is not child for name, child in state.children.items()
    ):
        put = partial(_put, present, state.children)
        for name in dict.fromkeys([*state.children, *present]):
            was, now = state.children.get(name), present.get(name)
            inner = None if now is None else unwrapped(now)
            if name not in present or (now is None and was is not None):
                yield Difference.of(f"{prefix}{name}", "module", f"is missing, was a {type(was).__name__}", put)
            elif name not in state.children:
                yield Difference.of(f"{prefix}{name}", "module", f"is a {type(now).__name__} that was not there", put)
            elif inner is not was:
                what = (
                    f"a {type(inner).__name__} of its own" if type(inner) is type(was) else f"a {type(inner).__name__}"
                )
                detail = f"is {what} in the place of the model's {type(was).__name__}"
                yield Difference.of(f"{prefix}{name}", "module", detail, put)
    for table, was_there, kind in (
        (module._parameters, state.parameters, "parameter"),  # noqa: SLF001
        (module._buffers, state.buffers, "buffer"),  # noqa: SLF001
    ):
        yield from _names(state, table, was_there, kind, prefix)  # type: ignore[arg-type]


def _names(
    state: ModuleState, table: dict[str, Any], was_there: Mapping[str, Any], kind: Kind, prefix: str
) -> Iterator[Difference]:
    if table.keys() == was_there.keys():
        return
    hidden = state.module._non_persistent_buffers_set  # noqa: SLF001
    for name in table.keys() - was_there.keys():
        shape = None if table[name] is None else list(table[name].shape)

        def drop(name: str = name) -> None:
            table.pop(name, None)
            hidden.discard(name)

        yield Difference.of(f"{prefix}{name}", kind, f"is a {kind} of shape {shape} that was not there", drop)
    for name in was_there.keys() - table.keys():
        yield Difference.of(
            f"{prefix}{name}", kind, f"is missing, was a {kind}", partial(_put_name, table, was_there, name)
        )


def _tensors(state: ModuleState, *, moved: bool, flags: bool) -> Iterator[Difference]:
    prefix = f"{state.name}." if state.name else ""
    for name, was in state.tensors.items():
        now = _own(state.module, name)
        if now is None:
            continue
        where = f"{prefix}{name}"
        if flags and now.requires_grad != was.requires_grad:
            detail = "needs gradients, did not" if now.requires_grad else "needs no gradients, did"
            undo = partial(now.requires_grad_, was.requires_grad) if now.is_leaf and now.is_floating_point() else None
            yield Difference.of(where, "requires_grad", detail, undo)
        if now.is_leaf and now.grad is not None and not was.gradient:
            yield Difference.of(where, "gradient", "has a gradient", partial(_set, now, "grad", None))
        if now.shape != was.shape:
            yield Difference.of(where, "shape", f"has the shape {list(now.shape)}, had {list(was.shape)}")
        if type(now) is not was.kind:
            yield Difference.of(where, "class", f"is a {type(now).__name__}, was a {was.kind.__name__}")
        if now.device != was.device and not moved:
            undo = partial(_move, now, was.device) if "meta" not in (now.device.type, was.device.type) else None
            yield Difference.of(where, "device", f"is on {now.device}, was on {was.device}", undo)
        yield from _value(state, name, where, now, was)
        for table, ids in zip(TENSOR_HOOKS, was.hooks, strict=True):
            for key, hook in dict(getattr(now, table, None) or {}).items():
                if key not in ids:
                    undo = partial(getattr(now, table).pop, key, None) if is_pefts(hook) else None
                    yield Difference.of(where, "hook", f"has the hook {_named(hook)} that was not there", undo)


def _value(state: ModuleState, name: str, where: str, now: torch.Tensor, was: TensorState) -> Iterator[Difference]:
    """The element type; and the values, of buffers that no checkpoint holds."""
    mark = state.values.get(name) if name in state.hidden else None
    if mark is not None:
        # A large buffer is told by its address and version, which say nothing about another object.
        looked_at = isinstance(mark, str) or (now is was.tensor and now.device == was.device)
        changed = now.dtype != was.dtype or (looked_at and mark_of(now) != mark)
        if changed:
            kept = was.tensor
            whole = kept is not now and kept.dtype == was.dtype and kept.device == now.device and mark_of(kept) == mark
            undo = partial(_put_name, state.module._buffers, {name: kept}, name) if whole else None  # noqa: SLF001
            detail = f"is {_dtype(now)}, was {_dtype(was)}" if now.dtype != was.dtype else "has other values"
            yield Difference.of(where, "buffer", detail, undo)
        return
    if now.dtype != was.dtype:
        undo = partial(_cast, now, was.dtype) if _survives(now, was.dtype) else None
        suffix = "" if undo else ", and its values are not those it had"
        yield Difference.of(where, "dtype", f"is {_dtype(now)}, was {_dtype(was)}{suffix}", undo)


def _dtype(one: torch.Tensor | TensorState) -> str:
    return str(one.dtype).removeprefix("torch.")


def _survives(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor was only widened: every value comes back from the narrower type with the same bits."""
    if tensor.device.type == "meta" or not (tensor.is_floating_point() and dtype.is_floating_point):
        return False
    if tensor.dtype.itemsize <= dtype.itemsize:
        return False
    held = tensor.detach()
    back = held.to(dtype).to(held.dtype)
    # By bytes: -0.0 and every NaN are values, too.
    return bool(torch.equal(back.contiguous().view(torch.uint8), held.contiguous().view(torch.uint8)))


def _hooks(state: ModuleState, *, adapted: bool) -> Iterator[Difference]:
    own = vars(state.module)
    for table in HOOKS:
        hooks, ids = own.get(table) or {}, state.hooks[table]
        if not hooks and not ids:
            continue
        for key, hook in hooks.items():
            if key in ids or _of_use(hook) or (adapted and _of_adapters(hook)):
                continue
            undo = partial(drop_hook, state.module, table, key) if _of_adapters(hook) else None
            yield Difference.of(state.name, "hook", f"has the hook {_named(hook)} that was not there", undo)
        if ids - hooks.keys():
            count = len(ids - hooks.keys())
            yield Difference.of(state.name, "hook", f"lacks {count} of the {table.strip('_').replace('_', ' ')} it had")


def _of_adapters(hook: Any) -> bool:
    # PEFT, and transformers for it, ask for gradients at a frozen model's embeddings by a hook.
    return is_pefts(hook) or "make_inputs_require_grad" in str(getattr(hook, "__name__", ""))


def _of_use(hook: Any) -> bool:
    return origin_of(hook).startswith(_OF_USE)


def _named(hook: Any) -> str:
    function = getattr(hook, "func", hook)
    return f"{getattr(function, '__name__', type(function).__name__)} of {origin_of(hook)}"


def _attributes(state: ModuleState, *, passed_over: frozenset[str]) -> Iterator[Difference]:
    own = vars(state.module)
    simple, objects = attributes_of(state.module)
    if simple != state.simple:
        for name in dict.fromkeys([*state.simple, *simple]):
            was, now = state.simple.get(name, _ABSENT), simple.get(name, _ABSENT)
            if name in passed_over or (was == now and type(was) is type(now)):
                continue
            if name in state.objects or (name in objects and was is _ABSENT):
                continue
            yield Difference.of(state.name, "attribute", _change(name, was, now), partial(_set_own, own, name, was))
    for name in dict.fromkeys([*state.objects, *objects]):
        was, now = state.objects.get(name, _ABSENT), own.get(name, _ABSENT)
        if was is now or name in passed_over or (was is _ABSENT and name in state.simple and name not in objects):
            continue
        before = state.simple.get(name, _ABSENT) if was is _ABSENT else was
        undo = partial(_set_own, own, name, before)
        shown = before if now is _ABSENT else now
        if callable(shown) and not isinstance(shown, nn.Module):
            how = "is gone" if now is _ABSENT else f"was replaced by {_named(now)}"
            # Like a hook: what is not PEFT's was put there by somebody who may need it.
            ours = now is _ABSENT or name in _OF_LIBRARIES or is_pefts(now)
            yield Difference.of(state.name, "method", f"the method {name} {how}", undo if ours else None)
        elif before is _ABSENT or now is _ABSENT or hasattr(before, "to_dict"):
            yield Difference.of(state.name, "attribute", _change(name, before, now), undo)


def _change(name: str, was: Any, now: Any) -> str:
    if was is _ABSENT:
        return f"has the attribute {name}"
    if now is _ABSENT:
        return f"lacks the attribute {name}"
    return f"{name} is {_short(now)}, was {_short(was)}"


def _ties(before: ModelState) -> Iterator[Difference]:
    places = {
        f"{state.name}.{name}" if state.name else name: (state, name)
        for state in before.modules
        for name in state.tensors
    }
    group_of = {name: names for names in before.ties for name in names}
    addresses: dict[Any, list[str]] = {}
    for full, (state, name) in places.items():
        tensor = _own(state.module, name)
        if tensor is not None:
            addresses.setdefault(address_of(tensor), []).append(full)
    for names in before.ties:
        now = {full: tensor for full in names if (tensor := _own(places[full][0].module, places[full][1])) is not None}
        if len({address_of(tensor) for tensor in now.values()}) < 2:
            yield from _untied_by_modules(before.model, now)
            continue
        first = _anchor(before, places, now)
        for full, tensor in now.items():
            if full == (first or names[0]) or (first is not None and address_of(tensor) == address_of(now[first])):
                continue
            undo = None if first is None else _retie(places, full, first)
            yield Difference.of(full, "tie", f"no longer shares memory with {first or names[0]}", undo)
    for names in addresses.values():  # type: ignore[assignment]
        if len(names) < 2:
            continue
        for full in names[1:]:
            if group_of.get(full) is None or names[0] not in group_of[full]:
                state, name = places[full]
                kept = state.parameters.get(name)
                own = state.module._parameters  # noqa: SLF001
                apart = kept is not None and kept is not own.get(name) and _as_it_was(kept, state.tensors[name])
                undo = partial(_put_name, own, {name: kept}, name) if apart else None
                yield Difference.of(full, "tie", f"shares memory with {names[0]}, did not", undo)


def _untied_by_modules(model: nn.Module, now: Mapping[str, torch.Tensor]) -> Iterator[Difference]:
    """Names whose module was replaced by one with a tensor of its own; putting the module back ties them again."""
    seen = {full: tensor for full in now if (tensor := _at(model, full)) is not None}
    first = next((full for full, tensor in seen.items() if tensor is now[full]), next(iter(now)))
    for full, tensor in seen.items():
        if full != first and first in seen and address_of(tensor) != address_of(seen[first]):
            yield Difference.of(full, "tie", f"no longer shares memory with {first}", _nothing)


def _at(model: nn.Module, full: str) -> torch.Tensor | None:
    path, _, name = full.rpartition(".")
    module = unwrapped(model)
    for part in path.split(".") if path else ():
        child = module._modules.get(part)  # noqa: SLF001
        if child is None:
            return None
        module = unwrapped(child)
    return _own(module, name)


def _nothing() -> None:
    """What is left to undo where something else undoes it."""


def _as_it_was(tensor: torch.Tensor, was: TensorState) -> bool:
    return (tensor.dtype, tensor.shape, tensor.device) == (was.dtype, was.shape, was.device)


def _anchor(before: ModelState, places: Mapping[str, Any], now: Mapping[str, torch.Tensor]) -> str | None:
    """Which of the tied names still has the tensor that they shared; any of them where all hold the same values."""
    for full, tensor in now.items():
        state, name = places[full]
        if tensor is state.tensors[name].tensor and _as_it_was(tensor, state.tensors[name]):
            others = [
                other
                for other in now
                if other != full and now[other] is places[other][0].tensors[places[other][1]].tensor
            ]
            if not any(address_of(now[other]) != address_of(tensor) for other in others):
                return full
    one, *rest = now.values()
    alike = all(one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other) for other in rest)
    return next(iter(now)) if alike and one.device.type != "meta" else None


def _retie(places: Mapping[str, Any], full: str, first: str) -> Callable[[], None]:
    def undo() -> None:
        state, name = places[full]
        other, other_name = places[first]
        tensor = _own(other.module, other_name)
        table = state.module._parameters if name in state.parameters else state.module._buffers  # noqa: SLF001
        table[name] = tensor

    return undo


def _configs(before: ModelState, *, adapted: bool) -> Iterator[Difference]:
    for state in before.configs:
        own = vars(state.config)
        kind: Kind = "generation_config" if state.path.startswith("generation_config") else "config"
        path = state.path.partition(".")[2]
        for name, was in state.members.items():
            now = own.get(name, _ABSENT)
            if (now == was and type(now) is type(was)) or (adapted and name == "pretraining_tp"):
                continue
            yield Difference.of(
                "",
                kind,
                _change(f"{kind}.{f'{path}.' if path else ''}{name}", was, now),
                partial(_set_own, own, name, was),
            )
        for name in own.keys() - state.members.keys() - state.others:
            yield Difference.of("", kind, _change(f"{kind}.{name}", _ABSENT, own[name]), partial(own.pop, name, None))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        return both and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = f"a {type(value).__name__}" if hasattr(value, "__dict__") else str(value)
    return text if len(text) <= _MUCH else f"{text[:_MUCH]}..."


def _put(table: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    table.clear()
    table.update(wanted)


def _put_name(table: dict[str, Any], wanted: Mapping[str, Any], name: str) -> None:
    table[name] = wanted[name]


def _set(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


def _set_own(own: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        own.pop(name, None)
    else:
        own[name] = value


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    tensor.data = tensor.data.to(dtype)


def _move(tensor: torch.Tensor, device: torch.device) -> None:
    tensor.data = tensor.data.to(device)
