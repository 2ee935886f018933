"""Keeps what a model in memory has in common with the checkpoint beneath it in the form in which that is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rblstore.checkpoints.attaching import LIBRARY_ERRORS
from rblstore.checkpoints.quiet import quiet
from rblstore.checkpoints.saving import keep_stored_dtypes

# Members of a config that say what wrote it and where it was, not what the model is.
_INCIDENTAL = frozenset({"_name_or_path", "transformers_version"})
_DTYPE = ("dtype", "torch_dtype")


def keep_stored_values(
    directory: Path, stored: Mapping[str, torch.dtype], *, left_out: Collection[str] = ()
) -> tuple[frozenset[str], bool]:
    """Casts the tensors of a saved model to the element types that are stored beneath, where nothing is lost by it.

    Args:
        directory: What was saved; its weight files are changed in place.
        stored: The element type that lies beneath, by name.
        left_out: Names of tensors that go.

    Returns:
        The names of all tensors, and whether each has the element type that lies beneath.
    """
    names: set[str] = set()
    all_kept = True
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        wanted = {name: tensor for name, tensor in tensors.items() if name not in left_out}
        names |= wanted.keys()
        kept = keep_stored_dtypes(wanted, stored)
        all_kept = all_kept and all(tensor.dtype == stored.get(name, tensor.dtype) for name, tensor in kept.items())
        if len(kept) < len(tensors) or any(kept[name].dtype != tensors[name].dtype for name in kept):
            save_file(kept, path, metadata=metadata)
    return frozenset(names), all_kept


def keep_stored_settings(directory: Path, stored: Path, *, dtypes_kept: bool) -> None:
    """Puts the stored config in the place of a saved one that says the same, and drops what saving made up.

    Args:
        directory: What transformers saved; changed in place.
        stored: Holds ``config.json`` and ``generation_config.json`` as they lie beneath, where they do.
        dtypes_kept: Whether the element type that the saved config names is only the one that the model was loaded in.
    """
    if (directory / "config.json").is_file() and (stored / "config.json").is_file():
        left_out = _INCIDENTAL | (frozenset(_DTYPE) if dtypes_kept else frozenset())
        if same_config(directory, stored, left_out):
            shutil.copyfile(stored / "config.json", directory / "config.json")
    made = directory / "generation_config.json"
    if not made.is_file():
        return
    now, kept = _settings(made), stored / made.name
    if kept.is_file() and now == _settings(kept):
        shutil.copyfile(kept, made)
    elif not kept.is_file() and now.get("_from_model_config") is True:
        made.unlink()


def same_config(one: Path, other: Path, left_out: frozenset[str] = _INCIDENTAL) -> bool:
    """Whether two directories' ``config.json`` describe one model, once transformers has filled its defaults in.

    Args:
        one: A directory.
        other: A directory.
        left_out: Members that do not count.
    """
    if (one / "config.json").read_bytes() == (other / "config.json").read_bytes():
        return True
    left, right = (config_members(directory, left_out) for directory in (one, other))
    return left is not None and left == right


def config_members(directory: Path, left_out: frozenset[str] = _INCIDENTAL) -> dict[str, Any] | None:
    """The members of a directory's ``config.json``, once transformers has filled its defaults in; None where it cannot.

    Args:
        directory: Holds ``config.json``.
        left_out: Members that do not count.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            read: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    except LIBRARY_ERRORS:
        return None
    return {key: value for key, value in read.items() if key not in left_out}


def _settings(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return {key: value for key, value in read.items() if key not in _INCIDENTAL} if isinstance(read, dict) else {}
