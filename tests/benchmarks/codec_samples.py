"""What codecs are tried on: frames of tensors, from given checkpoints and from seeded weights of every element type.

The frames are as long as rblstore's own at most.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FRAME_BYTES = 8 << 20
# Bytes an element, by the name that safetensors gives its type.
WIDTHS: Mapping[str, int] = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "I16": 2, "I32": 4, "I64": 8,
}  # fmt: skip
# The spread of a trained model's weights, and that of what a short fine-tune adds to them.
WEIGHT, STEP = 0.02, 2e-5
VOCABULARY = 262_144


@dataclass(frozen=True)
class Sample:
    """Frames of one kind of content.

    Attributes:
        name: How tables call it.
        width: Bytes an element.
        frames: At most 8 MiB each; no frame spans two tensors.
        bases: The bytes beneath each frame, or None.
    """

    name: str
    width: int
    frames: tuple[bytes, ...]
    bases: tuple[bytes, ...] | None = None

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(map(len, self.frames))


def cut(data: bytes, width: int) -> tuple[bytes, ...]:
    """The frames of a tensor's bytes."""
    step = FRAME_BYTES // width * width
    return tuple(data[at : at + step] for at in range(0, len(data), step))


def seeded_samples(size: int, seed: int = 0) -> Iterator[Sample]:
    """Normal weights of every element type, and differences from them, one after another.

    Args:
        size: Bytes of each.
        seed: Of the draw.
    """
    import torch

    types = {
        "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    }  # fmt: skip

    def bytes_of(tensor: Any) -> bytes:
        return bytes(tensor.contiguous().view(torch.uint8).numpy().data)

    for name, kind in types.items():
        width = WIDTHS[name]
        draw = torch.Generator().manual_seed(seed)
        drawn = torch.float64 if name == "F64" else torch.float32
        # Stored fp8 is scaled so that its few exponents are used.
        spread = 1.0 if width == 1 else WEIGHT
        weights = torch.randn(size // width, generator=draw, dtype=drawn) * spread
        beneath = cut(bytes_of(weights.to(kind)), width)
        yield Sample(f"{name}, seeded", width, beneath)
        if name in ("BF16", "F16", "F32"):
            # As an optimizer in the stored type would: what is too small to change a value leaves it.
            tuned = weights.to(kind).to(drawn) + torch.randn(size // width, generator=draw, dtype=drawn) * STEP
            yield Sample(f"{name}, seeded fine-tune", width, cut(bytes_of(tuned.to(kind)), width), beneath)
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(size, generator=draw)
    eighth = (weights / weights.abs().max() * 127).round().to(torch.int8)
    yield Sample("I8, seeded", 1, cut(bytes_of(eighth), 1))
    ids = torch.randint(VOCABULARY, (size // 8,), generator=draw, dtype=torch.int64)
    yield Sample("I64, seeded ids", 8, cut(bytes_of(ids), 8))


def _tensors(folder: Path) -> dict[str, tuple[Path, str, int, int]]:
    """Every tensor of a checkpoint: its file, element type, and where in the file it begins and ends."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = (path, entry["dtype"], 8 + length + begin, 8 + length + end)
    return found


def _read(place: tuple[Path, str, int, int], most: int) -> bytes:
    path, _, begin, end = place
    with path.open("rb") as stream:
        stream.seek(begin)
        return stream.read(min(end - begin, most))


def checkpoint_samples(base: Path, tuned: Path | None, size: int) -> Iterator[Sample]:
    """Tensors of a checkpoint by element type, and those of its fine-tune over them.

    They are taken evenly from the whole checkpoint, a frame of each tensor at most.

    Args:
        base: The checkpoint.
        tuned: Its fine-tune, or None.
        size: Bytes of each sample, about.
    """
    beneath = _tensors(base)
    above = _tensors(tuned) if tuned is not None else {}
    for kind in sorted({place[1] for place in beneath.values()} & WIDTHS.keys()):
        width = WIDTHS[kind]
        names = sorted(name for name, place in beneath.items() if place[1] == kind and place[3] > place[2])
        total = sum(min(beneath[name][3] - beneath[name][2], FRAME_BYTES) for name in names)
        chosen = names[:: max(1, total // size)]
        yield Sample(f"{kind}, base", width, tuple(_read(beneath[name], FRAME_BYTES) for name in chosen))
        both = [
            name
            for name in chosen
            if name in above and above[name][1] == kind and _length(above[name]) == _length(beneath[name])
        ]
        if both:
            frames = tuple(_read(above[name], FRAME_BYTES) for name in both)
            yield Sample(f"{kind}, fine-tune", width, frames, tuple(_read(beneath[name], FRAME_BYTES) for name in both))


def _length(place: tuple[Path, str, int, int]) -> int:
    return place[3] - place[2]
