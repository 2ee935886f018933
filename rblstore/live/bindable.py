"""Which models a live binding can hold: plain parameters in memory that are the values themselves."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from rblstore.errors import ConflictError, UsageError

_VALUES = (torch.Tensor, nn.Parameter, nn.Buffer)
_AROUND = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


class UnbindableError(ConflictError):
    """A model whose tensors are not the values that a checkpoint stores, or not here."""

    code: ClassVar[str] = "unbindable"


class NoModelError(UsageError):
    """Something that is no model in memory."""

    code: ClassVar[str] = "no_model"


def uncompiled(model: Any) -> nn.Module:
    """The module that ``torch.compile`` wrapped, or the module itself.

    Raises:
        NoModelError: It is no module.
    """
    if not isinstance(model, nn.Module):
        raise NoModelError(
            f"a {type(model).__name__} is no torch.nn.Module",
            object=type(model).__name__,
            hint="Give the model itself: a transformers model, a PeftModel, or any module.",
        )
    inner = model._modules.get("_orig_mod")  # noqa: SLF001 - torch.compile's own attribute, as state_dict shows it
    return model if inner is None else inner


def check_bindable(model: nn.Module) -> None:
    """Refuses models that cannot be compared with stored tensors, or written to.

    Raises:
        UnbindableError: Sharded, offloaded, quantized, without values, or computed from other tensors.
    """
    if type(model).__name__ in _AROUND:
        raise UnbindableError(
            f"the model is inside a {type(model).__name__}",
            object=type(model).__name__,
            hint="Give the module inside it (model.module), where it is whole on this process.",
        )
    _refuse_quantized(model)
    spread = getattr(model, "hf_device_map", None)
    if (
        isinstance(spread, dict)
        and {str(place) for place in spread.values()} & {"cpu", "disk", "meta"}
        and len({str(place) for place in spread.values()}) > 1
    ):
        raise UnbindableError(
            "parts of the model are offloaded by accelerate (hf_device_map)", hint="Load it whole onto one device."
        )
    for name, module in model.named_modules():
        if getattr(module, "_hf_hook", None) is not None:
            raise UnbindableError(
                f"accelerate moves the tensors of {name or 'the model'} about (_hf_hook)",
                object=name,
                hint="Load the model whole onto one device, without device_map.",
            )
        if type(module).__name__ in _AROUND:
            raise UnbindableError(f"{name} is a {type(module).__name__}", object=name)
        if parametrize.is_parametrized(module):
            raise UnbindableError(
                f"the tensors of {name or 'the model'} are computed by parametrizations",
                object=name,
                hint="Remove them: torch.nn.utils.parametrize.remove_parametrizations",
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _check_tensor(name, tensor)


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if tensor.device.type == "meta":
        raise UnbindableError(
            f"{name} is on the meta device, without a value", object=name, hint="Load the model's weights first."
        )
    if isinstance(tensor, nn.Parameter) and tensor.is_inference():
        raise UnbindableError(
            f"{name} was made in torch.inference_mode: nobody can write to it outside",
            object=name,
            hint="Load the model outside torch.inference_mode; using it inside is fine.",
        )
    if type(tensor) not in _VALUES or tensor.layout != torch.strided or hasattr(tensor, "ds_id"):
        kind = type(tensor).__name__
        how = "sharded" if kind in ("DTensor", "ShardedTensor", "Parameter") else "quantized or laid out in another way"
        raise UnbindableError(
            f"{name} is {how} ({kind}): it is not the tensor that is stored",
            object=name,
            hint="Bind a model whose parameters are whole and plain.",
        )


def _refuse_quantized(model: nn.Module) -> None:
    for holder in {id(one): one for one in (model, getattr(model, "base_model", None)) if one is not None}.values():
        config = getattr(holder, "config", None)
        flags = ("hf_quantizer", "is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit")
        if any(getattr(holder, flag, None) for flag in flags) or getattr(config, "quantization_config", None):
            raise UnbindableError(
                "the model is quantized: its tensors are not those that are stored",
                object=type(holder).__name__,
                hint="Load it unquantized, or hold behaviors apart with rblstore's own load.",
            )
