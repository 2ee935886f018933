"""Whether an adapter on a live model is the stored one: its configuration, and every tensor after conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from rblstore.checkpoints.attaching import LIBRARY_ERRORS, SHARED_TENSORS, UnattachableError
from rblstore.checkpoints.plain_view import plain_tensors
from rblstore.checkpoints.quiet import quiet
from rblstore.checkpoints.saving import config_meaning
from rblstore.live.binding import same_bits

# Where it came from, and what is of no account in evaluation.
_INCIDENTAL = frozenset({"base_model_name_or_path", "task_type"})
_PREFIX = "base_model.model."


def differing_settings(config: Any, directory: Path) -> list[str]:
    """Members of a live adapter's configuration that are not as stored, sorted.

    Args:
        config: Peft's configuration object.
        directory: The stored adapter.
    """
    now = config.to_dict()
    for key, value in now.items():
        if isinstance(value, (set, frozenset)):
            now[key] = sorted(value)
        elif hasattr(value, "value"):
            now[key] = value.value
    stored = config_meaning(json.loads((directory / "adapter_config.json").read_text()))
    live = config_meaning(now)
    return sorted(key for key in {*stored, *live} - _INCIDENTAL if _plain(stored.get(key)) != _plain(live.get(key)))


def _plain(value: Any) -> Any:
    return json.loads(
        json.dumps(value, sort_keys=True, default=lambda one: sorted(one) if isinstance(one, set) else str(one))
    )


def differing_tensors(model: nn.Module, live: str, directory: Path) -> list[str]:
    """Names of an adapter's tensors that are not live, bit for bit, as they are stored and converted; sorted.

    Args:
        model: A ``PeftModel``.
        live: The adapter's name in it.
        directory: The stored adapter.

    Raises:
        UnattachableError: Peft cannot say which tensors the adapter has.
    """
    from peft import get_peft_model_state_dict

    try:
        with quiet():
            present = get_peft_model_state_dict(model, adapter_name=live, save_embedding_layers=False)
    except LIBRARY_ERRORS as error:
        raise UnattachableError(f"the adapter {live!r} cannot be read from the model: {error}", object=live) from error
    beneath = plain_tensors(model)
    differing = []
    seen = set()
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            tensor = present.get(name)
            if tensor is None:
                tensor = beneath.get(name.removeprefix(_PREFIX).replace(".base_layer.", "."))
            if tensor is None and (".modules_to_save." in name or any(part in name for part in SHARED_TENSORS)):
                continue
            seen.add(name)
            if tensor is None or not _holds(tensor, file.get_tensor(name)):
                differing.append(name)
    differing += [name for name in present if name not in seen and not any(part in name for part in SHARED_TENSORS)]
    return sorted(differing)


def _holds(live: torch.Tensor, stored: torch.Tensor) -> bool:
    return live.shape == stored.shape and same_bits(stored.to(live.dtype), live.detach())
