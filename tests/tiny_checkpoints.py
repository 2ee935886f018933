"""Checkpoints and adapters written by hand, without torch: a few tensors each, in microseconds, from fixed seeds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WIDTH = 4
LAYERS = 2


class Tensor(NamedTuple):
    """A tensor as a safetensors file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def values(*shape: int, seed: int = 0) -> Tensor:
    """Random F32 values."""
    drawn = np.random.default_rng(seed).standard_normal(shape).astype("<f4")
    return Tensor("F32", shape, drawn.tobytes())


def raw(dtype: str, shape: tuple[int, ...], element_bytes: int, seed: int = 0) -> Tensor:
    """Random bytes in the place of values of any element type."""
    size = math.prod(shape) * element_bytes
    return Tensor(dtype, shape, np.random.default_rng(seed).integers(0, 2, size, "u1").tobytes())


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None, padding: int = 0
) -> Path:
    """Writes a safetensors file in the order given, without rblstore's or safetensors' own writer."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(tensor.data)],
        }
        offset += len(tensor.data)
    text = json.dumps(header).encode() + b" " * padding
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values()))
    return path


def base_tensors(seed: int = 0) -> dict[str, Tensor]:
    """The tensors of :func:`write_base`: an embedding, two projections a layer, a norm and a head."""
    names = ["model.embed_tokens.weight"]
    for layer in range(LAYERS):
        names += [f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in ("q", "v")]
    tensors = {name: values(WIDTH, WIDTH, seed=100 * seed + at) for at, name in enumerate(names)}
    tensors["model.norm.weight"] = values(WIDTH, seed=100 * seed + 50)
    tensors["lm_head.weight"] = values(8, WIDTH, seed=100 * seed + 51)
    return tensors


def write_base(directory: Path, *, seed: int = 0, **changed: Tensor) -> Path:
    """Writes a base checkpoint, and returns its directory.

    Args:
        directory: Where.
        seed: Of its values.
        changed: Tensors in the place of the drawn ones, dots written as double underscores.
    """
    tensors = base_tensors(seed)
    tensors.update({name.replace("__", "."): tensor for name, tensor in changed.items()})
    write_safetensors(directory / "model.safetensors", tensors, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 8}))
    return directory


def adapter_name(layer: int, part: str, factor: str) -> str:
    """The name of a LoRA factor in an adapter's file."""
    return f"base_model.model.model.layers.{layer}.self_attn.{part}_proj.lora_{factor}.weight"


def write_adapter(
    directory: Path,
    *,
    seed: int = 1,
    parts: Sequence[str] = ("q",),
    layers: int = LAYERS,
    rank: int = 2,
    extra: Mapping[str, Tensor] | None = None,
    **config: Any,
) -> Path:
    """Writes a LoRA adapter for :func:`write_base`, and returns its directory.

    Args:
        directory: Where.
        seed: Of its values.
        parts: Projections that it acts on.
        layers: How many layers it acts on.
        rank: Of its factors.
        extra: More tensors, by their names in the file.
        config: Members of ``adapter_config.json`` besides the usual ones.
    """
    tensors = {}
    for layer in range(layers):
        for at, part in enumerate(parts):
            number = 1000 * seed + 10 * layer + 2 * at
            tensors[adapter_name(layer, part, "A")] = values(rank, WIDTH, seed=number)
            tensors[adapter_name(layer, part, "B")] = values(WIDTH, rank, seed=number + 1)
    tensors.update(extra or {})
    write_safetensors(directory / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    members = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [f"{part}_proj" for part in parts],
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(members))
    return directory


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file under a directory, by relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def checked_out(directory: Path) -> dict[str, str]:
    """The same for a checkout, its manifest left out."""
    found = digests(directory)
    del found["rbl-composition.json"]
    return found
