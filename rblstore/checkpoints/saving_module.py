"""The checkpoint of an arbitrary module in memory: the tensors of its ``state_dict``, under their names there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from rblstore.errors import UsageError


class UnsavableModuleError(UsageError):
    """A module holds something that is no tensor with values of its own."""

    code: ClassVar[str] = "unsavable"


def uncompiled(source: Any) -> Any:
    """The module that ``torch.compile`` wrapped, or what was given where it wrapped nothing."""
    inner = getattr(source, "_orig_mod", None) if isinstance(source, nn.Module) else None
    return source if inner is None else inner


def is_plain_module(source: Any) -> bool:
    """Whether something is a module that neither transformers nor peft knows how to save."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    source = uncompiled(source)
    return isinstance(source, nn.Module) and not isinstance(source, (PreTrainedModel, PeftModel))


def tensors_given(source: Any) -> Mapping[str, torch.Tensor] | None:
    """The tensors of a whole model that is given as a mapping or as a plain module; None for anything else.

    Raises:
        UnsavableModuleError: The module's state is not tensors alone.
    """
    if isinstance(source, Mapping):
        return source
    return module_tensors(uncompiled(source)) if is_plain_module(source) else None


def module_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a module's ``state_dict``, second names of tied ones included; they are not copied.

    Raises:
        UnsavableModuleError: It has adapters inside, state that is no tensor, none at all, or tensors without values.
    """
    kind = type(module).__name__
    for name, child in module.named_modules():
        if type(child).__module__.startswith("peft."):
            raise UnsavableModuleError(
                f"{name or kind!r} is a {type(child).__name__}: adapters cannot be told from the {kind} around them",
                object=name,
                hint="Commit an adapter as a PeftModel, or as rblstore.AdapterTensors.",
            )
    found = dict(module.state_dict())
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise UnsavableModuleError(f"{name!r} of the {kind} is no tensor", object=name)
        if value.is_meta:
            raise UnsavableModuleError(
                f"{name!r} of the {kind} is on the meta device and has no values",
                object=name,
                hint="Load the weights first.",
            )
    if not found:
        raise UnsavableModuleError(f"the {kind} has no tensors", object=kind)
    return found
