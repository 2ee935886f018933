"""Tensor bytes grouped by significance, so that what is alike lies together: the codecs ``planes`` and ``delta``.

The bytes of an element differ in kind. Of a trained bf16 weight the exponent takes a few of its 256 values and the
fraction looks like noise; so each frame is cut into one plane for each byte of an element, the most significant first,
and each plane is stored by itself, compressed or as it is. First the elements are transformed, which loses nothing:

* ``ROTATED``: one bit to the left, which moves the sign out of the exponent's way;
* ``XOR`` (delta): exclusive or with the base's element;
* ``DIFFERENCE`` (delta): the base's element is subtracted, in integers that wrap, and the sign folded into the lowest
  bit. Floats of like sign are ordered as their bits are, so a small change of weight is a small number.

Which transform, and how each plane is compressed, is decided by the entropy of a sample; the same bytes give the same
frame always. Layout and limits: docs/format.md, Codecs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import xxhash

from rblstore.storage.compressors import (
    BadFrameError,
    Buffer,
    compress_entropy,
    compress_matches,
    decompress,
)
from rblstore.storage.rooms import scratch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Elements = NDArray[np.unsignedinteger[Any]]
    Bytes = NDArray[np.uint8]

PLAIN: Final = 0
ROTATED: Final = 1
XOR: Final = 2
DIFFERENCE: Final = 3

WIDTHS: Final = (1, 2, 4, 8)

_PARAMETERS: Final = struct.Struct("<BB6sQ")
_WITHOUT_BASE: Final = (PLAIN, ROTATED)
_WITH_BASE: Final = (XOR, DIFFERENCE)
# Elements at a time: what a transform needs stays in the cache of one core.
_BLOCK: Final = 1 << 18
_SAMPLE_SLICES: Final = 8
_SAMPLE_ELEMENTS: Final = 1 << 10
# Bits of entropy a byte above which a plane is not worth a decoder's time, by how hard the writer tries.
_WORTH_BITS: Final = {"fast": 7.5, "max": 7.99}
# Share of the raw bits below which a difference is taken without a look at what else there is.
_SURELY: Final = 0.5
# Looking for repeats must save this share of what coding the bytes alone takes, or it is not done.
_WORTH_MATCHING: Final = 0.93


@dataclass(frozen=True)
class Layout:
    """What the 16 parameter bytes of a frame in planes say.

    Attributes:
        width: Bytes of an element.
        transform: ``PLAIN``, ``ROTATED``, ``XOR`` or ``DIFFERENCE``.
        raw_checksum: XXH3-64 of the raw bytes: what tells a wrong base at once.
    """

    width: int
    transform: int
    raw_checksum: int

    def encode(self) -> bytes:
        """The 16 bytes."""
        return _PARAMETERS.pack(self.width, self.transform, bytes(6), self.raw_checksum)

    @classmethod
    def parse(cls, parameters: bytes, *, delta: bool) -> Layout:
        """Reads the 16 bytes.

        Args:
            parameters: 16 bytes, as the index has them.
            delta: Whether the frame is a difference from a base.

        Raises:
            BadFrameError: No version writes them.
        """
        width, transform, zero, checksum = _PARAMETERS.unpack(parameters)
        if width not in WIDTHS or transform not in (_WITH_BASE if delta else _WITHOUT_BASE) or any(zero):
            raise BadFrameError("parameters that no version writes for planes")
        return cls(width, transform, checksum)


def encode_planes(
    data: Buffer, width: int, base: Buffer | None, effort: Literal["fast", "max"], out: memoryview | None = None
) -> tuple[Layout, Buffer] | None:
    """A frame as planes.

    Args:
        data: The raw bytes, a whole number of elements.
        width: Bytes of an element: 1, 2, 4 or 8.
        base: What may be subtracted: the base's bytes at the same start; where they end before, zeros follow.
        effort: How hard to try.
        out: Room for the stored bytes, at least as much as for the raw ones; None for bytes of their own.

    Returns:
        The layout, whose transform says whether the base is used, and the stored bytes; None where they would not be
        fewer than the raw ones.
    """
    import numpy as np

    view = memoryview(data).cast("B")
    values: Elements = np.frombuffer(view, dtype=f"<u{width}")
    beneath = None if base is None else _padded(base, values)
    # Differences first: where one takes less than half, nothing else is looked at.
    transforms = (() if beneath is None else _WITH_BASE) + _WITHOUT_BASE[: 1 if width == 1 else 2]
    slices = _sample_slices(len(values), whole=effort == "max")
    sample = np.concatenate([values[where] for where in slices])
    sample_beneath = None if beneath is None else np.concatenate([beneath[where] for where in slices])
    best, best_bits = PLAIN, [8.0 * width + 1]
    for transform in transforms:
        if transform == PLAIN and sum(best_bits) < _SURELY * 8 * width:
            break
        bits = [_entropy(plane) for plane in _split(sample, sample_beneath, transform)]
        if sum(bits) < sum(best_bits):
            best, best_bits = transform, bits
    if min(best_bits) > _WORTH_BITS[effort]:
        return None
    planes = _split(values, beneath, best, room=scratch(len(view), "planes"))
    sampled_planes = _split(sample, sample_beneath, best)
    pieces = [
        _smallest(plane, few, bits, effort) for plane, few, bits in zip(planes, sampled_planes, best_bits, strict=True)
    ]
    lengths = struct.pack(f"<{width}I", *(len(piece) for piece in pieces))
    total = len(lengths) + sum(map(len, pieces))
    if total >= len(view):
        return None
    stored = memoryview(bytearray(total)) if out is None else out[:total]
    at = 0
    for piece in (lengths, *pieces):
        stored[at : at + len(piece)] = piece
        at += len(piece)
    return Layout(width, best, xxhash.xxh3_64_intdigest(view)), stored


def decode_planes(layout: Layout, stored: Buffer, base: Buffer | None, out: memoryview) -> None:
    """The raw bytes of a frame in planes, which may be hostile.

    Args:
        layout: Its parameters.
        stored: Its stored bytes.
        base: The base's bytes, for a transform that needs one; where they end before, zeros follow.
        out: Where the raw bytes go; its length is the frame's raw length.

    Raises:
        BadFrameError: The bytes are not what the codec writes for that many raw bytes, or the base is another one.
    """
    import numpy as np

    width = layout.width
    view = memoryview(stored).cast("B")
    if len(out) % width or len(view) < 4 * width:
        raise BadFrameError(f"{len(view)} bytes in planes of {width} for {len(out)} raw bytes")
    count = len(out) // width
    lengths = struct.unpack_from(f"<{width}I", view)
    if sum(lengths) != len(view) - 4 * width or max(lengths) > count:
        raise BadFrameError("planes whose lengths do not add up")
    planes: list[Bytes] = []
    offset = 4 * width
    for length in lengths:
        piece = view[offset : offset + length]
        planes.append(np.frombuffer(piece if length == count else decompress(piece, count), dtype=np.uint8))
        offset += length
    values: Elements = np.frombuffer(out, dtype=f"<u{width}")
    _join(planes, None if base is None else _padded(base, values), layout.transform, values)
    if xxhash.xxh3_64_intdigest(out) != layout.raw_checksum:
        raise BadFrameError("the raw bytes have another checksum")


def _padded(base: Buffer, like: Elements) -> Elements:
    """The base's elements, as many as there are values, zeros where it ends before."""
    import numpy as np

    view = memoryview(base).cast("B")
    if len(view) < like.nbytes:
        whole = bytearray(like.nbytes)
        whole[: len(view)] = view
        view = memoryview(whole)
    return np.frombuffer(view[: like.nbytes], dtype=like.dtype)


def _sample_slices(count: int, *, whole: bool) -> list[slice]:
    if whole or count <= _SAMPLE_SLICES * _SAMPLE_ELEMENTS:
        return [slice(0, count)]
    step = (count - _SAMPLE_ELEMENTS) // (_SAMPLE_SLICES - 1)
    return [slice(at * step, at * step + _SAMPLE_ELEMENTS) for at in range(_SAMPLE_SLICES)]


def _entropy(plane: Bytes) -> float:
    """Bits a byte, if each byte were coded by how often its value occurs."""
    import numpy as np

    counts = np.bincount(plane, minlength=256)
    shares = counts[counts > 0] / len(plane)
    return float(-(shares * np.log2(shares)).sum())


def _split(
    values: Elements, beneath: Elements | None, transform: int, *, room: memoryview | None = None
) -> list[Bytes]:
    """The planes of the transformed elements, most significant first; in ``room``, where it is given."""
    import numpy as np

    width = values.itemsize
    if width == 1 and transform == PLAIN:
        return [values.view(np.uint8)]
    count = len(values)
    whole: Bytes = np.empty(values.nbytes, np.uint8) if room is None else np.frombuffer(room, np.uint8)
    planes = [whole[at * count : (at + 1) * count] for at in range(width)]
    size = min(_BLOCK, count)
    blocks: Elements = np.frombuffer(scratch(2 * size * width, "blocks"), dtype=values.dtype)
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        here, spare = blocks[: len(block)], blocks[size : size + len(block)]
        if transform == PLAIN:
            here = block
        elif transform == ROTATED:
            np.right_shift(block, 8 * width - 1, out=spare)
            np.left_shift(block, 1, out=here)
            np.bitwise_or(here, spare, out=here)
        elif beneath is not None and transform == XOR:
            np.bitwise_xor(block, beneath[start : start + _BLOCK], out=here)
        elif beneath is not None:
            np.subtract(block, beneath[start : start + _BLOCK], out=here)
            signed = f"<i{width}"
            np.right_shift(here.view(signed), 8 * width - 1, out=spare.view(signed))
            np.left_shift(here, 1, out=here)
            np.bitwise_xor(here, spare, out=here)
        for plane, shift in zip(planes, range(8 * (width - 1), -1, -8), strict=True):
            moved = np.right_shift(here, shift, out=spare) if shift else here
            np.copyto(plane[start : start + len(block)], moved, casting="unsafe")
    return planes


def _join(planes: Sequence[Bytes], beneath: Elements | None, transform: int, out: Elements) -> None:
    """Undoes :func:`_split` into ``out``."""
    import numpy as np

    width = out.itemsize
    spare_room: Elements = np.frombuffer(scratch(min(_BLOCK, len(out)) * width, "blocks"), dtype=out.dtype)
    for start in range(0, len(out), _BLOCK):
        here = out[start : start + _BLOCK]
        spare = spare_room[: len(here)]
        np.copyto(here, planes[0][start : start + _BLOCK])
        for plane in planes[1:]:
            np.left_shift(here, 8, out=here)
            np.bitwise_or(here, plane[start : start + _BLOCK], out=here)
        if transform == ROTATED:
            np.left_shift(here, 8 * width - 1, out=spare)
            np.right_shift(here, 1, out=here)
            np.bitwise_or(here, spare, out=here)
        elif beneath is not None and transform == XOR:
            np.bitwise_xor(here, beneath[start : start + _BLOCK], out=here)
        elif beneath is not None and transform == DIFFERENCE:
            np.bitwise_and(here, 1, out=spare)
            np.negative(spare, out=spare)
            np.right_shift(here, 1, out=here)
            np.bitwise_xor(here, spare, out=here)
            np.add(here, beneath[start : start + _BLOCK], out=here)


def _smallest(plane: Bytes, sample: Bytes, bits: float, effort: Literal["fast", "max"]) -> Buffer:
    """A plane compressed, or as it is where that takes no more."""
    if bits > _WORTH_BITS[effort]:
        return plane.data
    few = sample[: _SAMPLE_SLICES * _SAMPLE_ELEMENTS].data
    matching = len(compress_matches(few, effort)) < _WORTH_MATCHING * len(compress_entropy(few))
    piece = compress_matches(plane.data, effort) if matching else compress_entropy(plane.data)
    return piece if len(piece) < len(plane) else plane.data
