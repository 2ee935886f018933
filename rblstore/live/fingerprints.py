"""Fingerprints of live tensors, to notice that they changed; never their identity, which is SHA-256.

Tensors in main memory are hashed where they lie (XXH3-128, at memory speed). Tensors on an accelerator are summed
there, so that they need not be copied: 32-bit words times odd pseudo-random 64-bit weights, modulo 2^64. That is
weaker: it notices every change of a single word, and of several all but about one in 2^32, but not somebody who sets
out to deceive it. Both kinds can be taken of a tensor on any device, and are the same everywhere.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import xxhash

Kind = Literal["xxh3", "sums"]

CHUNK_BYTES = 8 << 20
"""Tensors are fingerprinted in pieces of this size, so that a large one can be sampled and shared among threads."""

_SPOTS = 64
_SPOT_BYTES = 64
WHOLE_BYTES = 16 << 10
"""Up to this size the spots of a tensor are all of it."""

_WORDS = CHUNK_BYTES // 4


def kind_for(tensor: torch.Tensor) -> Kind:
    """The kind that costs least where a tensor lies."""
    return "xxh3" if tensor.device.type == "cpu" else "sums"


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, row-major, as uint8 of shape (bytes,): the memory itself if contiguous, else a copy."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    if flat.is_neg():
        flat = flat.resolve_neg()
    return flat.view(torch.uint8)


def chunks_of(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """(start, end) in bytes of each piece of a tensor; one piece where the bytes would have to be copied for each."""
    size = tensor.numel() * tensor.element_size()
    if not tensor.is_contiguous():
        return [(0, size)] if size else []
    return [(start, min(start + CHUNK_BYTES, size)) for start in range(0, size, CHUNK_BYTES)]


def fingerprint(flat: torch.Tensor, kind: Kind) -> int:
    """The fingerprint of bytes.

    Args:
        flat: uint8 of shape (bytes,), on any device.
        kind: Which.
    """
    return xxhash.xxh3_128_intdigest(memoryview(flat.cpu().numpy())) if kind == "xxh3" else _weighted_sum(flat)


def spots(flat: torch.Tensor, kind: Kind) -> int:
    """The fingerprint of 4 KiB taken from 64 places of a tensor's bytes, or of all of them up to 16 KiB.

    Next to nothing to take, and an optimizer's step, which writes everywhere, does not get past it.
    """
    if len(flat) <= WHOLE_BYTES:
        return fingerprint(flat, kind)
    # No multiple of the element size, nor of a row: the last places reach the end.
    stride = (len(flat) - _SPOT_BYTES) // (_SPOTS - 1)
    return fingerprint(flat.as_strided((_SPOTS, _SPOT_BYTES), (stride, 1), flat.storage_offset()).reshape(-1), kind)


def _weighted_sum(flat: torch.Tensor) -> int:
    total = 0
    for number, start in enumerate(range(0, len(flat), CHUNK_BYTES)):
        piece = flat[start : start + CHUNK_BYTES]
        lacking = -len(piece) % 4
        if lacking:
            piece = torch.nn.functional.pad(piece, (0, lacking))
        elif piece.storage_offset() % 4 or piece.data_ptr() % 4:
            piece = piece.clone()
        words = piece.view(torch.int32).to(torch.int64)
        weights = _weights(flat.device)[: len(words)]
        total += int((words * weights).sum()) * (2 * _mixed(number) + 1)
    return total % (1 << 64)


def _mixed(number: int) -> int:
    # One step of splitmix64, as for the weights.
    value = (number + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
    return value ^ (value >> 27)


@lru_cache(maxsize=4)
def _weights(device: torch.device) -> torch.Tensor:
    """Odd weights, int64 of shape (words of a chunk,): 16 MiB that stay on each device that was asked for."""
    value = torch.arange(1, _WORDS + 1, dtype=torch.int64) * -7046029254386353131
    value = (value ^ (value >> 30)) * -4658895280553007687
    value = (value ^ (value >> 27)) * -7723592293110705685
    return ((value ^ (value >> 31)) | 1).to(device)
