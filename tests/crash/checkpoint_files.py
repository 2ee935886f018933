"""Checkpoints of random bytes, written without numpy or torch: a worker starts in the time of its imports."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path

TENSORS = 4
BYTES = {"small": 8 << 10, "large": 30_000_000}


def write_checkpoint(folder: Path, size: int, seed: int) -> Path:
    """Writes a directory with about so many bytes of random 16-bit integers in four tensors, and returns it."""
    folder.mkdir(parents=True)
    length = size // TENSORS & ~1
    header = {
        f"layer{number}.weight": {
            "dtype": "I16",
            "shape": [length // 2],
            "data_offsets": [number * length, (number + 1) * length],
        }
        for number in range(TENSORS)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "seed": seed}))
    data = random.Random(seed).randbytes(TENSORS * length)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def write_tuned(folder: Path, base: Path, seed: int) -> Path:
    """Writes a fine-tune of a checkpoint: some of its bytes one step up."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    data = bytearray((base / "model.safetensors").read_bytes())
    first = 8 + int.from_bytes(data[:8], "little")
    for at in random.Random(seed).sample(range(first, len(data)), (len(data) - first) // 20):
        data[at] = (data[at] + 1) % 256
    (folder / "model.safetensors").write_bytes(data)
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkout but its manifest."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "rbl-composition.json"
    }
