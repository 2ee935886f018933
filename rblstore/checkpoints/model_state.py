"""What a plain model is besides its weights' values, by reference: enough to see what adapters left, and to undo it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import xxhash
from torch import nn

from rblstore.checkpoints.plain_view import plain_model, plain_tensors, unwrapped

# Attributes that PEFT, or PEFT's generate, leaves on a transformers model.
LEFT_BEHIND = ("peft_config", "_hf_peft_config_loaded", "prepare_inputs_for_generation", "active_adapter")
# Every table of hooks that a module has.
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
GRADIENT_HOOKS = ("_require_grads_hooks", "_require_grads_hook")
# Buffers that no checkpoint holds are digested up to this size; larger ones are told by address and version.
DIGESTED_BYTES = 1 << 20

# What every module has in its __dict__, and what torch and transformers note there as a model is used.
_INTERNAL = frozenset(vars(nn.Module())) | {
    "_compiled_call_impl",
    "_hf_hook",
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",
    "_previous_max_cache_length",
}
_SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class TensorState(NamedTuple):
    """A parameter or buffer without its values; a tuple, since a model has thousands."""

    tensor: torch.Tensor
    kind: type[torch.Tensor]
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device
    requires_grad: bool
    gradient: bool
    hooks: tuple[frozenset[int], ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorState:
        """The state of a tensor now."""
        return cls(
            tensor,
            type(tensor),
            tensor.dtype,
            tensor.shape,
            tensor.device,
            tensor.requires_grad,
            tensor.is_leaf and tensor.grad is not None,
            tuple(frozenset(getattr(tensor, name, None) or ()) for name in TENSOR_HOOKS),
        )


@dataclass(frozen=True)
class ModuleState:
    """One module: what hangs below it, under which names, and what hangs on it.

    Attributes:
        name: Its first dotted name in the model.
        module: The module.
        kind: Its class.
        children: Its children, without wrappers.
        parameters: Its own parameters, by reference.
        buffers: Its own buffers, by reference.
        tensors: The states of both.
        hidden: Names of the buffers that no checkpoint holds.
        values: Marks of their values; see :func:`mark_of`.
        hooks: Ids of hooks by table.
        training: Its mode.
        simple: Its attributes that compare by value, copied.
        objects: Its other attributes, by reference.
        extra: Its extra state, where its class has any.
    """

    name: str
    module: nn.Module
    kind: type[nn.Module]
    children: dict[str, nn.Module | None]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, torch.Tensor | None]
    tensors: dict[str, TensorState]
    hidden: frozenset[str]
    values: dict[str, Hashable]
    hooks: dict[str, frozenset[int]]
    training: bool
    simple: dict[str, Any]
    objects: dict[str, Any]
    extra: Any

    @classmethod
    def of(cls, name: str, module: nn.Module, children: dict[str, nn.Module | None]) -> ModuleState:
        """The state of a module now, with the children that it has beneath wrappers."""
        hidden = module._non_persistent_buffers_set  # noqa: SLF001 - there is no public list
        buffers = module._buffers  # noqa: SLF001
        own = (*module._parameters.items(), *buffers.items())  # noqa: SLF001
        simple, objects = attributes_of(module)
        return cls(
            name=name,
            module=module,
            kind=type(module),
            children=children,
            parameters=dict(module._parameters),  # noqa: SLF001
            buffers=dict(buffers),
            tensors={own_name: TensorState.of(tensor) for own_name, tensor in own if tensor is not None},
            hidden=frozenset(hidden),
            values={key: mark_of(tensor) for key in hidden if (tensor := buffers.get(key)) is not None},
            hooks=hook_ids(module),
            training=module.training,
            simple=simple,
            objects=objects,
            extra=extra_state_of(module),
        )


@dataclass(frozen=True)
class ConfigState:
    """A config, or one inside another, with the values of its members.

    Attributes:
        path: Attributes that lead to it from the model.
        config: The object.
        members: Copies of its members.
        others: Names of members that do not compare by value.
    """

    path: str
    config: Any
    members: dict[str, Any]
    others: frozenset[str]


@dataclass(frozen=True)
class ModelState:
    """A plain model: its structure, flags, hooks, ties, dtypes and configs, by reference and without weights' values.

    Attributes:
        model: The model.
        modules: Every module, each once.
        trainable: Which tensors need gradients, by plain name.
        attributes: Names in the model's ``__dict__``.
        pretraining_tp: The config's member of that name, which PEFT changes.
        gradient_hooks: The model's own handles of hooks that ask for gradients at its embeddings.
        ties: Names of tensors that lie at one address, in groups of two and more.
        configs: Its config and generation config, and those inside them.
        wrapped: Whether adapters that nobody kept a state for were on it: what they froze or put on the model itself is
            then unknown, and not compared.
    """

    model: nn.Module
    modules: tuple[ModuleState, ...]
    trainable: Mapping[str, bool]
    attributes: frozenset[str]
    pretraining_tp: Any
    gradient_hooks: Mapping[str, Any]
    ties: tuple[tuple[str, ...], ...]
    configs: tuple[ConfigState, ...]
    wrapped: bool

    @classmethod
    def of(cls, model: nn.Module) -> ModelState:
        """The state of a model; of the one beneath, where adapters are on it.

        Args:
            model: A plain model, or a PEFT model.
        """
        plain = unwrapped(plain_model(model))
        modules, wrapped = [], plain is not model
        for name, module in plain_modules_once(plain):
            present = module._modules  # noqa: SLF001 - modules under all of their names
            children = {key: None if child is None else unwrapped(child) for key, child in present.items()}
            wrapped = wrapped or any(children[key] is not child for key, child in present.items())
            modules.append(ModuleState.of(name, module, children))
        if wrapped:
            for name in LEFT_BEHIND:
                modules[0].simple.pop(name, None)
                modules[0].objects.pop(name, None)
        left = frozenset(LEFT_BEHIND) if wrapped else frozenset()
        return cls(
            model=plain,
            modules=tuple(modules),
            trainable={name: tensor.requires_grad for name, tensor in plain_tensors(plain).items()},
            attributes=frozenset(vars(plain)) - left,
            pretraining_tp=getattr(getattr(plain, "config", None), "pretraining_tp", None),
            gradient_hooks={name: vars(plain)[name] for name in GRADIENT_HOOKS if name in vars(plain)},
            ties=tuple(ties_of(modules)),
            configs=tuple(configs_of(plain)),
            wrapped=wrapped,
        )

    def put_back(self) -> nn.Module:
        """Gives every module its own children, parameters, buffers and class again, and removes what PEFT left."""
        model = self.model
        self._put_gradient_hooks_back()
        for state in self.modules:
            module = state.module
            if type(module) is not state.kind:
                module.__class__ = state.kind
            _restore_entries(module._modules, state.children)  # noqa: SLF001 - by reference, wrappers replaced
            _restore_names(module._parameters, state.parameters)  # noqa: SLF001
            _restore_names(module._buffers, state.buffers)  # noqa: SLF001
            _drop_hooks(module, state.hooks)
            _restore_methods(module, state)
            module.training = state.training
        self.drop_left_behind()
        if self.pretraining_tp is not None:
            model.config.pretraining_tp = self.pretraining_tp
        for name, tensor in plain_tensors(model).items():
            if name in self.trainable and tensor.is_leaf and tensor.is_floating_point():
                tensor.requires_grad_(self.trainable[name])
        return model

    def drop_left_behind(self) -> None:
        """Removes the attributes that PEFT and its generate put on the model; cheap enough for every switch."""
        for name in LEFT_BEHIND:
            if name in vars(self.model) and name not in self.attributes:
                delattr(self.model, name)
        for state in self.modules:
            # PEFT's generate hands its generation config to whatever it takes for the model.
            own = vars(state.module)
            if "generation_config" in own and "generation_config" not in state.objects:
                del own["generation_config"]

    def _put_gradient_hooks_back(self) -> None:
        # PEFT asks a model with activation checkpointing for gradients at its embeddings, whether it has them or not.
        now = vars(self.model).get(GRADIENT_HOOKS[0])
        if now is None or now is self.gradient_hooks.get(GRADIENT_HOOKS[0]):
            return
        for handle in now:
            handle.remove()
        for name in GRADIENT_HOOKS:
            vars(self.model).pop(name, None)
        vars(self.model).update(self.gradient_hooks)


def plain_modules_once(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(first name, module) of a plain model beneath whatever wraps its parts, each module once."""
    seen: set[int] = set()
    waiting = [("", unwrapped(model))]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        prefix = f"{name}." if name else ""
        children = [(f"{prefix}{key}", unwrapped(child)) for key, child in module._modules.items() if child is not None]  # noqa: SLF001
        waiting.extend(reversed(children))


def hook_ids(module: nn.Module) -> dict[str, frozenset[int]]:
    """Ids of a module's hooks, by table."""
    own = vars(module)
    return {name: frozenset(own.get(name) or ()) for name in HOOKS}


def origin_of(function: Any) -> str:
    """The module that a hook or method was written in."""
    return next(_origins(function))


def is_pefts(function: Any) -> bool:
    """Whether a hook or method, or one that it hands its calls to, is PEFT's."""
    return any(origin.startswith("peft.") for origin in _origins(function))


def _origins(function: Any) -> Iterator[str]:
    for _ in range(8):
        inner = getattr(function, "func", None) or getattr(function, "__func__", None)
        if inner is None:
            # functools.wraps gives a wrapper the wrapped one's __module__; its globals are its own.
            known = getattr(function, "__globals__", {}).get("__name__") or getattr(function, "__module__", None)
            yield str(known or type(function).__module__)
            inner = getattr(function, "__wrapped__", None)
            if inner is None:
                return
        function = inner
    yield ""


def attributes_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """A module's own attributes: those that compare by value, copied, and the others."""
    simple: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name in _INTERNAL:
            continue
        kept = _kept(value)
        if kept is _OPAQUE:
            objects[name] = value
        else:
            simple[name] = kept
    return simple, objects


_OPAQUE = object()


def _kept(value: Any) -> Any:
    """A copy of a value that compares by value and never raises; a marker for any other."""
    if type(value) in _SIMPLE:
        return value
    if type(value) in (list, tuple, set, frozenset) and all(type(item) in _SIMPLE for item in value):
        return type(value)(value)
    if type(value) is dict and all(type(key) in _SIMPLE for key in value):
        copied = {key: _kept(item) for key, item in value.items()}
        return _OPAQUE if any(item is _OPAQUE for item in copied.values()) else copied
    return _OPAQUE


def mark_of(tensor: torch.Tensor) -> Hashable:
    """What tells whether a small tensor's values changed: a digest; address and version of a large one."""
    if tensor.device.type == "meta":
        return None
    if tensor.numel() * tensor.element_size() <= DIGESTED_BYTES:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return str(xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy()))
    return tensor.data_ptr(), tensor._version  # noqa: SLF001 - there is no public counter


def extra_state_of(module: nn.Module) -> Any:
    """A copy of a module's extra state where its class has any and it is made of plain values, else None."""
    if type(module).get_extra_state is nn.Module.get_extra_state:
        return None
    return _extra_copy(module.get_extra_state())


def _extra_copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _extra_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_extra_copy(item) for item in value]
    kept = _kept(value)
    return None if kept is _OPAQUE else kept


def address_of(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors that begin at one address; of a tensor without one, its own."""
    pointer = tensor.data_ptr() if tensor.device.type != "meta" and tensor.layout == torch.strided else 0
    return (tensor.device, pointer) if pointer else id(tensor)


def ties_of(modules: list[ModuleState]) -> Iterator[tuple[str, ...]]:
    """Groups of names of tensors that begin at one address now."""
    places: dict[Hashable, list[str]] = {}
    for state in modules:
        own = state.module._parameters, state.module._buffers  # noqa: SLF001
        for table in own:
            for name, tensor in table.items():
                if tensor is not None:
                    places.setdefault(address_of(tensor), []).append(f"{state.name}.{name}" if state.name else name)
    return (tuple(names) for names in places.values() if len(names) > 1)


def configs_of(model: nn.Module) -> Iterator[ConfigState]:
    """The states of a model's config and generation config, and of those inside them."""
    seen: set[int] = set()
    waiting = [(path, vars(model).get(path)) for path in ("generation_config", "config")]
    while waiting:
        path, config = waiting.pop()
        if config is None or id(config) in seen or not hasattr(config, "to_dict"):
            continue
        seen.add(id(config))
        members = {}
        for name, value in vars(config).items():
            if hasattr(value, "to_dict"):
                waiting.append((f"{path}.{name}", value))
                continue
            kept = _kept(value)
            if kept is not _OPAQUE:
                members[name] = kept
        yield ConfigState(path, config, members, frozenset(vars(config)) - members.keys())


def _restore_entries(now: dict[str, Any], before: dict[str, Any]) -> None:
    if list(now) == list(before) and all(now[name] is before[name] for name in before):
        return
    now.clear()
    now.update(before)


def _restore_names(now: dict[str, Any], before: dict[str, Any]) -> None:
    # Where a tensor hung before and hangs now it may rightly be another object (moved, aligned): only its name counts.
    if list(now) == list(before):
        return
    kept = {name: now.get(name, value) for name, value in before.items()}
    now.clear()
    now.update(kept)


def _restore_methods(module: nn.Module, state: ModuleState) -> None:
    own, before = vars(module), state.objects
    for name in [name for name, value in own.items() if callable(value) and name not in _INTERNAL]:
        if own[name] is not before.get(name) and is_pefts(own[name]):
            if name in before:
                own[name] = before[name]
            else:
                del own[name]


def _drop_hooks(module: nn.Module, before: Mapping[str, frozenset[int]]) -> None:
    own = vars(module)
    for name in HOOKS:
        hooks: dict[int, Any] = own.get(name) or {}
        for key in [key for key in hooks if key not in before[name] and is_pefts(hooks[key])]:
            drop_hook(module, name, key)


def drop_hook(module: nn.Module, table: str, key: int) -> None:
    """Takes one hook off a module, with what other tables note about it."""
    own = vars(module)
    own[table].pop(key, None)
    for beside in (f"{table}_with_kwargs", f"{table}_always_called"):
        (own.get(beside) or {}).pop(key, None)
