"""Writes adapters and models that are in memory as the directories that PEFT and transformers write."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rblstore.checkpoints.attaching import LIBRARY_ERRORS
from rblstore.checkpoints.live_names import slot_name
from rblstore.checkpoints.quiet import quiet
from rblstore.checkpoints.saving_module import is_plain_module, tensors_given, uncompiled
from rblstore.errors import InputError, UsageError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


class AdapterTensors(NamedTuple):
    """An adapter that is given as its tensors.

    Attributes:
        tensors: By the names that they have in ``adapter_model.safetensors``.
        config: The members of ``adapter_config.json``; ``peft_type`` is the least.
    """

    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]


# A live model, an adapter as its tensors and its configuration, or a whole model as its tensors.
ModelSource: TypeAlias = nn.Module | AdapterTensors | Mapping[str, torch.Tensor]

# Members that say how the adapter was last used or by what it was written, not what it does.
_INCIDENTAL = frozenset({"auto_mapping", "inference_mode", "peft_version", "revision"})
# Modules that PEFT's model classes add to modules_to_save each time they load.
_IMPLIED_MODULES = frozenset({"classifier", "score", "qa_outputs"})


class UnsavableError(UsageError):
    """Something in memory cannot be written as an adapter or a model."""

    code: ClassVar[str] = "unsavable"


def live_tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 in hexadecimal of a tensor's raw little-endian bytes, row-major, whatever its dtype and strides."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest()


def _embeddings_saved(model: Any, name: str) -> bool | str:
    """PEFT's own rule for saving embeddings, without its look at a hub for the base model's vocabulary."""
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    config = model.peft_config[name]
    base = getattr(config, "base_model_name_or_path", None)
    if base and (Path(base) / "config.json").is_file():
        return "auto"
    if getattr(config, "trainable_token_indices", None) is not None or config.peft_type.value == "TRAINABLE_TOKENS":
        return False
    targets = getattr(config, "target_modules", None) or ()
    return not isinstance(targets, str) and any(target in EMBEDDING_LAYER_NAMES for target in targets)


def adapter_chosen(model: Any, adapter_name: str | None) -> str:
    """The name that an adapter has in a live PEFT model.

    Args:
        model: A ``PeftModel``.
        adapter_name: A slot's or an adapter's name; None where the model has only one.

    Raises:
        UnsavableError: There is no such adapter, or more than one.
    """
    names = list(model.peft_config)
    if adapter_name is None and len(names) == 1:
        return str(names[0])
    matching = [name for name in names if adapter_name in (name, slot_name(name))]
    if len(matching) != 1:
        raise UnsavableError(
            f"the model has the adapters {', '.join(map(repr, map(slot_name, names)))}; "
            + ("say which one" if adapter_name is None else f"none is {adapter_name!r}"),
            object=adapter_name,
        )
    return str(matching[0])


def adapter_tensors(model: Any, name: str) -> dict[str, torch.Tensor]:
    """The tensors that :func:`save_adapter` writes, by their names there; not copied as far as PEFT does not.

    Args:
        model: A ``PeftModel``.
        name: The adapter's name in the model.

    Raises:
        UnsavableError: PEFT cannot save it.
    """
    from peft import get_peft_model_state_dict

    try:
        with quiet():
            found: dict[str, torch.Tensor] = get_peft_model_state_dict(
                model, adapter_name=name, save_embedding_layers=_embeddings_saved(model, name)
            )
    except LIBRARY_ERRORS as error:
        raise UnsavableError(f"PEFT cannot save the adapter {name!r}: {error}", object=name) from error
    return found


def save_adapter(model: Any, directory: Path, adapter_name: str | None = None) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors`` of one adapter of a live PEFT model.

    The tensors and the config are PEFT's own; only the order of lists that are sets in PEFT is fixed, so that the same
    adapter always gives the same bytes. No model card is written.

    Args:
        model: A ``PeftModel``.
        directory: Where to write; made where it does not exist.
        adapter_name: A slot's or an adapter's name; None where the model has only one.

    Raises:
        UnsavableError: Not a PEFT model, no such adapter, or PEFT cannot save it.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise UnsavableError(
            f"a {type(model).__name__} has no adapter to save",
            object=type(model).__name__,
            hint="Pass the PeftModel that peft.get_peft_model or rblstore's load returned.",
        )
    name = adapter_chosen(model, adapter_name)
    directory.mkdir(parents=True, exist_ok=True)
    settings = model.peft_config[name]
    base = settings.base_model_name_or_path
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
        try:
            with quiet():
                model.save_pretrained(
                    scratch,
                    safe_serialization=True,
                    selected_adapters=[name],
                    save_embedding_layers=_embeddings_saved(model, name),
                )
        except LIBRARY_ERRORS as error:
            raise UnsavableError(f"PEFT cannot save the adapter {name!r}: {error}", object=name) from error
        finally:
            # PEFT fills in where the base model was loaded from, which may be a folder that is gone tomorrow.
            settings.base_model_name_or_path = base
        written = Path(scratch) if name == "default" else Path(scratch) / name
        shutil.move(written / WEIGHTS, directory / WEIGHTS)
        config = json.loads((written / CONFIG).read_text())
    config["base_model_name_or_path"] = base
    for key, value in vars(settings).items():
        if isinstance(value, (set, frozenset)):
            config[key] = sorted(value)
    _write_config(config, directory)


def _write_config(config: Mapping[str, Any], directory: Path) -> None:
    try:
        text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UnsavableError(f"adapter_config.json cannot hold this: {error}", object=CONFIG) from error
    (directory / CONFIG).write_text(text)


def is_adapter(source: Any) -> bool:
    """Whether something in memory that is to be a behavior is an adapter; else it is a whole model, or nothing at all.

    Args:
        source: See :data:`ModelSource`.
    """
    from transformers import PreTrainedModel

    source = uncompiled(source)
    if isinstance(source, PreTrainedModel):
        return bool(getattr(source, "peft_config", None))
    return not isinstance(source, Mapping) and not is_plain_module(source)


def save_model(model: Any, directory: Path) -> None:
    """Writes a live transformers model as a Hugging Face directory with safetensors weights.

    Raises:
        UnsavableError: Adapters are attached, or transformers cannot save it.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or getattr(model, "peft_config", None):
        raise UnsavableError(
            f"a {type(model).__name__} cannot be saved as an identity",
            object=type(model).__name__,
            hint="Pass a transformers model without adapters; commit adapters as behaviors.",
        )
    if meta := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise UnsavableError(
            f"{meta[0]!r} is on the meta device and has no values", object=meta[0], hint="Load the weights first."
        )
    try:
        with quiet():
            model.save_pretrained(directory)
    except LIBRARY_ERRORS as error:
        raise UnsavableError(f"transformers cannot save the model: {error}", object=type(model).__name__) from error


def save_tensor_mapping(mapping: Mapping[str, torch.Tensor], config: Mapping[str, Any], directory: Path) -> None:
    """Writes an adapter that is given as its tensors.

    Args:
        mapping: Tensors by the names that they have in ``adapter_model.safetensors``.
        config: The members of ``adapter_config.json``; ``peft_type`` is the least.
        directory: Where to write; made where it does not exist.

    Raises:
        UnsavableError: Not tensors, or a config without a kind.
    """
    wrong = [str(name) for name, value in mapping.items() if not isinstance(value, torch.Tensor)]
    if wrong or not mapping:
        raise UnsavableError(
            f"{wrong[0]!r} is not a tensor" if wrong else "there are no tensors", object=wrong[0] if wrong else None
        )
    if not isinstance(config.get("peft_type"), str):
        raise UnsavableError(
            "a mapping of tensors needs the members of an adapter_config.json, peft_type among them",
            hint='Pass (tensors, {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": [...]}).',
        )
    directory.mkdir(parents=True, exist_ok=True)
    _write_weights(dict(mapping), directory)
    _write_config(config, directory)


def _write_weights(tensors: dict[str, torch.Tensor], directory: Path, name: str = WEIGHTS) -> None:
    # A copy each: safetensors refuses tensors that share memory, and views that are not contiguous.
    flat = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    try:
        save_file(flat, directory / name, metadata={"format": "pt"})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UnsavableError(f"the tensors cannot be written: {error}", object=str(directory / name)) from error


def save_source(source: Any, directory: Path, *, identity: bool = False, adapter_name: str | None = None) -> None:
    """Writes whatever ``commit`` accepts that is in memory.

    Args:
        source: See :data:`ModelSource`.
        directory: Where to write.
        identity: Whether it is to be an identity; else a behavior.
        adapter_name: Which adapter of a PEFT model; None where it has only one.

    Raises:
        UnsavableError: Neither a model nor tensors with a config.
    """
    source = uncompiled(source)
    if identity and (tensors := tensors_given(source)) is not None:
        if wrong := [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]:
            raise UnsavableError(f"{wrong[0]!r} is not a tensor", object=wrong[0])
        if not tensors:
            raise UnsavableError("there are no tensors")
        _write_weights(dict(tensors), directory, "model.safetensors")
    elif identity:
        save_model(source, directory)
    elif isinstance(source, nn.Module):
        save_adapter(source, directory, adapter_name)
    elif isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, Mapping) for part in source):
        save_tensor_mapping(source[0], source[1], directory)
    elif isinstance(source, Mapping):
        save_tensor_mapping(source, {}, directory)
    else:
        raise UnsavableError(
            f"a {type(source).__name__} is neither a directory, a model nor tensors", object=type(source).__name__
        )


def keep_stored_dtypes(
    tensors: Mapping[str, torch.Tensor], stored: Mapping[str, torch.dtype]
) -> dict[str, torch.Tensor]:
    """Tensors in the dtype that was stored, wherever nothing is lost by it.

    Loading widens bf16 adapters to fp32; what was not trained since comes back to the very bytes.

    Args:
        tensors: From memory, by name.
        stored: The dtypes that were stored, by name.

    Returns:
        Each tensor cast to its stored dtype where casting it back gives the same bits, else as it is.
    """
    kept = {}
    for name, tensor in tensors.items():
        dtype = stored.get(name, tensor.dtype)
        narrow = tensor.to(dtype)
        exact = live_tensor_digest(narrow.to(tensor.dtype)) == live_tensor_digest(tensor)
        kept[name] = narrow if exact else tensor
    return kept


def keep_stored_form(directory: Path, stored: Path) -> None:
    """Gives an adapter that was saved from memory the form in which it was stored before, where its values are equal.

    A file whose values are all equal becomes the stored file byte for byte; otherwise tensors keep their stored dtypes
    where that loses nothing, and the config its stored text where it says the same.

    Args:
        directory: What :func:`save_adapter` wrote; changed in place.
        stored: The adapter's directory as it was stored.

    Raises:
        InputError: The stored directory is no adapter.
    """
    try:
        before = load_file(stored / WEIGHTS)
        old_config = json.loads((stored / CONFIG).read_text())
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{stored.name}: {error}", object=str(stored)) from error
    now = load_file(directory / WEIGHTS)
    kept = keep_stored_dtypes(now, {name: tensor.dtype for name, tensor in before.items()})
    same = kept.keys() == before.keys() and all(_equal(kept[name], before[name]) for name in before)
    if same:
        shutil.copyfile(stored / WEIGHTS, directory / WEIGHTS)
    elif any(kept[name].dtype != now[name].dtype for name in now):
        _write_weights(kept, directory)
    if config_meaning(json.loads((directory / CONFIG).read_text())) == config_meaning(old_config):
        shutil.copyfile(stored / CONFIG, directory / CONFIG)


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and live_tensor_digest(left) == live_tensor_digest(right)
    )


def config_meaning(config: dict[str, Any]) -> dict[str, Any]:
    """A config as PEFT reads it: defaults filled in, lists that are sets without order, incidental members left out."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(config.get("peft_type"))
    if kind is None:
        return config
    try:
        with quiet():
            read = kind.from_peft_type(**config).to_dict()
    except LIBRARY_ERRORS:
        return config
    for key, value in read.items():
        if isinstance(value, (list, set, tuple)) and all(isinstance(item, str) for item in value):
            read[key] = sorted(set(value))
    modules = set(read.get("modules_to_save") or ()) - _IMPLIED_MODULES
    return {**{key: value for key, value in read.items() if key not in _INCIDENTAL}, "modules_to_save": sorted(modules)}
