"""Checkpoints of any size, written as they are made, so that whoever writes them stays small."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

TENSOR_BYTES = 16 << 20


def write_checkpoint(folder: Path, size: int, seed: int = 0) -> Path:
    """Writes a directory with one safetensors file of random BF16 tensors, and a config.

    Args:
        folder: Made where it is missing.
        size: Bytes of all tensors, rounded up to whole rows of 1,024 elements.
        seed: Another seed, other contents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row = 2 * 1024
    tensors, offset = {}, 0
    while offset < size:
        length = min(TENSOR_BYTES, -(-(size - offset) // row) * row)
        tensors[f"model.layers.{len(tensors)}.weight"] = {
            "dtype": "BF16",
            "shape": [length // row, 1024],
            "data_offsets": [offset, offset + length],
        }
        offset += length
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "seed": seed}))
    source = random.Random(seed)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for tensor in tensors.values():
            begin, end = tensor["data_offsets"]
            # The random top byte of a BF16 would be NaN now and then; weights are small numbers.
            values = bytearray(source.randbytes(end - begin))
            values[1::2] = (b"\x3c\xbc\x3d\xbd" * ((end - begin) // 8 + 1))[: (end - begin) // 2]
            stream.write(values)
    return folder
