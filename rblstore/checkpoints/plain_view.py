"""A live model seen without its adapters: the tensors of the plain model, under the names that they would have there.

PEFT moves a layer to ``layer.base_layer``, a fully trained module to ``module.original_module`` and the whole model to
``base_model.model``. Everything that compares, restores or digests a live model's own tensors looks through this view.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, cast

import torch
from torch import nn


@lru_cache(maxsize=1024)
def _wrapper_kind(kind: type[nn.Module]) -> Literal["auxiliary", "tuner", "prompt", "none"]:
    """What modules of a class wrap; asked of each class once, for models have thousands of modules."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if issubclass(kind, AuxiliaryTrainingWrapper):
        return "auxiliary"
    if issubclass(kind, BaseTunerLayer):
        return "tuner"
    return "prompt" if kind.__module__.startswith("peft.tuners.adaption_prompt.") else "none"


def unwrapped(module: nn.Module) -> nn.Module:
    """What PEFT wrapped, or the module itself where nothing wraps it."""
    while (kind := _wrapper_kind(type(module))) != "none":  # type: ignore[arg-type]  # a class is hashable
        if kind == "auxiliary":
            module = cast("nn.Module", module.original_module)
        elif kind == "prompt":
            module = cast("nn.Module", module.model)
        elif isinstance(inner := getattr(module, "base_layer", None), nn.Module):
            module = inner
        else:
            break
    return module


def plain_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model, or the model itself."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    inner: nn.Module = model.base_model
    # Prompt learning holds the model itself there; every other kind holds a tuner that holds the model.
    return inner.model if type(inner).__module__.startswith("peft.") else inner


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the plain model, wrappers left out, each module once for every name that it has."""

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        module = unwrapped(module)
        yield prefix, module
        for name, child in module._modules.items():  # noqa: SLF001 - named_children leaves out second names of one module
            if child is not None:
                yield from walk(child, f"{prefix}.{name}" if prefix else name)

    yield from walk(plain_model(model), "")


def plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by their names in the plain model's ``state_dict``, tied ones under each."""
    found: dict[str, torch.Tensor] = {}
    for prefix, module in plain_modules(model):
        own = dict(module._parameters)  # noqa: SLF001 - the module's own, duplicates of tied parameters included
        hidden = module._non_persistent_buffers_set  # noqa: SLF001
        own.update((name, value) for name, value in module._buffers.items() if name not in hidden)  # noqa: SLF001
        for name, tensor in own.items():
            if tensor is not None:
                found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


def plain_owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module of the plain model that holds a tensor, and the tensor's own name in it."""
    path, _, leaf = name.rpartition(".")
    module = unwrapped(plain_model(model))
    for part in path.split(".") if path else ():
        module = unwrapped(module.get_submodule(part))
    return module, leaf
