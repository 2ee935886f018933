"""What a model was before anything was attached to it, by reference, and what each attached behavior changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rblstore.checkpoints.plain_view import plain_tensors

# Attributes that PEFT, or PEFT's generate, leaves on a transformers model.
LEFT_BEHIND = ("peft_config", "_hf_peft_config_loaded", "prepare_inputs_for_generation", "active_adapter")


@dataclass(frozen=True)
class _ModuleState:
    module: nn.Module
    kind: type[nn.Module]
    children: dict[str, nn.Module | None]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, torch.Tensor | None]
    hooks: dict[str, frozenset[int]]


_GRADIENT_HOOKS = ("_require_grads_hooks", "_require_grads_hook")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _hook_ids(module: nn.Module) -> dict[str, frozenset[int]]:
    hooks: dict[str, dict[int, Any]] = {name: getattr(module, name, None) or {} for name in _HOOKS}
    return {name: frozenset(found) for name, found in hooks.items()}


def _is_pefts(hook: Any) -> bool:
    function = getattr(hook, "func", hook)
    owner = getattr(function, "__module__", None) or type(function).__module__
    return str(owner).startswith("peft.")


@dataclass(frozen=True)
class PlainState:
    """The structure of a plain model: which module, parameter and buffer hung where, and which were trainable.

    It holds references and no copies of values, so that putting it back costs nothing and rounds nothing.
    """

    model: nn.Module
    modules: tuple[_ModuleState, ...]
    trainable: Mapping[str, bool]
    attributes: frozenset[str]
    pretraining_tp: Any
    gradient_hooks: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> PlainState:
        """The state of a model that nothing is attached to."""
        modules = tuple(
            _ModuleState(
                module,
                type(module),
                dict(module._modules),  # noqa: SLF001 - modules under all of their names
                dict(module._parameters),  # noqa: SLF001
                dict(module._buffers),  # noqa: SLF001
                _hook_ids(module),
            )
            for module in model.modules()
        )
        return cls(
            model=model,
            modules=modules,
            trainable={name: tensor.requires_grad for name, tensor in plain_tensors(model).items()},
            attributes=frozenset(vars(model)),
            pretraining_tp=getattr(getattr(model, "config", None), "pretraining_tp", None),
            gradient_hooks={name: vars(model)[name] for name in _GRADIENT_HOOKS if name in vars(model)},
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
        for name in LEFT_BEHIND:
            if name in vars(model) and name not in self.attributes:
                delattr(model, name)
        if self.pretraining_tp is not None:
            model.config.pretraining_tp = self.pretraining_tp
        for name, tensor in plain_tensors(model).items():
            if name in self.trainable and tensor.is_leaf and tensor.is_floating_point():
                tensor.requires_grad_(self.trainable[name])
        return model

    def _put_gradient_hooks_back(self) -> None:
        # PEFT asks a model with activation checkpointing for gradients at its embeddings, whether it has them or not.
        now = vars(self.model).get(_GRADIENT_HOOKS[0])
        if now is None or now is self.gradient_hooks.get(_GRADIENT_HOOKS[0]):
            return
        for handle in now:
            handle.remove()
        for name in _GRADIENT_HOOKS:
            vars(self.model).pop(name, None)
        vars(self.model).update(self.gradient_hooks)


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


def _drop_hooks(module: nn.Module, before: Mapping[str, frozenset[int]]) -> None:
    for name in _HOOKS:
        hooks: dict[int, Any] = getattr(module, name, None) or {}
        for key in [key for key in hooks if key not in before[name] and _is_pefts(hooks[key])]:
            del hooks[key]


@dataclass
class Attached:
    """One behavior on a live model.

    Attributes:
        slot: The slot's name.
        live: The adapter's name in PEFT.
        weight: What its update is multiplied by.
        replaced: Plain names of the model's own tensors that attaching it overwrote.
        scalings: Each layer's scaling dictionary with the value that PEFT gave, before the weight.
    """

    slot: str
    live: str
    weight: float
    replaced: frozenset[str] = frozenset()
    scalings: list[tuple[dict[str, Any], Any]] = field(default_factory=list)


@dataclass
class Ledger:
    """Everything attached to a model, in order, over the state that it had before."""

    plain: PlainState
    attached: list[Attached] = field(default_factory=list)


_LEDGERS: WeakKeyDictionary[nn.Module, Ledger] = WeakKeyDictionary()


def ledger_of(model: nn.Module) -> Ledger | None:
    """The ledger of a PEFT model that rblstore attached behaviors to; None for any other."""
    return _LEDGERS.get(model)


def keep_ledger(model: nn.Module, ledger: Ledger) -> None:
    """Remembers a PEFT model's ledger for as long as the model lives."""
    _LEDGERS[model] = ledger


def forget_ledger(model: nn.Module) -> None:
    """Forgets a model's ledger, where it has one."""
    _LEDGERS.pop(model, None)


def marks(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(address, version) of every tensor of the plain model: they differ after any write that goes through autograd."""
    return {name: (tensor.data_ptr(), tensor._version) for name, tensor in plain_tensors(model).items()}  # noqa: SLF001
