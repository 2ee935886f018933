"""Checkpoints of any size, written as they are made, so that whoever writes them stays small.

    python synthetic.py DIR BYTES

writes one of normal weights, in a process of its own: a process that measures others must not have been large.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TENSOR_BYTES = 16 << 20
NORMAL_TENSOR_BYTES = 64_000_000


def write_checkpoint(folder: Path, size: int, seed: int = 0) -> Path:
    """Writes a directory with one safetensors file of random BF16 tensors, and a config.

    Args:
        folder: Made where it is missing.
        size: Bytes of all tensors, rounded up to whole rows of 1,024 elements.
        seed: Another seed, other contents.
    """
    source = random.Random(seed)

    def draw(size: int) -> bytearray:
        # The random top byte of a BF16 would be NaN now and then; weights are small numbers.
        values = bytearray(source.randbytes(size))
        values[1::2] = (b"\x3c\xbc\x3d\xbd" * (size // 8 + 1))[: size // 2]
        return values

    return _write(folder, size, seed, TENSOR_BYTES, draw)


def write_normal_checkpoint(folder: Path, size: int, seed: int = 0) -> Path:
    """The same with normal weights of a trained model's spread, in tensors of at most 64 MB; needs numpy.

    Args:
        folder: Made where it is missing.
        size: Bytes of all tensors, rounded up to whole rows of 1,024 elements.
        seed: Another seed, other contents.
    """
    import numpy as np

    source = np.random.default_rng(seed)

    def draw(size: int) -> bytes:
        drawn = source.standard_normal(size // 2, dtype=np.float32) * np.float32(0.02)
        # To BF16 by rounding half to even, as torch does.
        bits = drawn.view(np.uint32)
        bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return bytes((bits >> np.uint32(16)).astype("<u2").data)

    return _write(folder, size, seed, NORMAL_TENSOR_BYTES, draw)


def _write(folder: Path, size: int, seed: int, most: int, draw: Callable[[int], bytes | bytearray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    row = 2 * 1024
    tensors: dict[str, dict[str, Any]] = {}
    offset = 0
    while offset < size:
        length = min(most // row * row, -(-(size - offset) // row) * row)
        tensors[f"model.layers.{len(tensors)}.weight"] = {
            "dtype": "BF16",
            "shape": [length // row, 1024],
            "data_offsets": [offset, offset + length],
        }
        offset += length
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "seed": seed}))
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for tensor in tensors.values():
            begin, end = tensor["data_offsets"]
            stream.write(draw(end - begin))
    return folder


if __name__ == "__main__":
    write_normal_checkpoint(Path(sys.argv[1]), int(sys.argv[2]))
