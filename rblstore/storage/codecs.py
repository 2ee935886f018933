"""How a frame is encoded: a registry of codec ids, and the policies by which a writer chooses.

A codec never changes what a content is, only how many bytes it takes, and never stores more than the raw bytes.
Decoding trusts nothing: what comes out has exactly the declared length, which is capped, or is an error. numpy and
zstandard are imported when the first frame needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from rblstore.errors import RblError
from rblstore.objects import limits
from rblstore.storage.compressors import BadFrameError, Buffer, compress_matches, decompress

__all__ = ["BadFrameError", "Buffer", "EncodedFrame", "UnknownCodecError", "decode_frame", "encode_frame"]

Compression = Literal["none", "fast", "max"]

RAW: Final = 0
ZSTD: Final = 1
PLANES: Final = 2
DELTA: Final = 3

NAMES: Final[Mapping[int, str]] = MappingProxyType({RAW: "raw", ZSTD: "zstd", PLANES: "planes", DELTA: "delta"})
NO_PARAMETERS: Final = bytes(16)


class UnknownCodecError(RblError):
    """A frame is encoded in a way that this version does not decode."""

    code = "unknown_codec"


@dataclass(frozen=True)
class EncodedFrame:
    """A frame as it will be stored.

    Attributes:
        codec: Which codec; ``DELTA`` where the base is needed to decode it.
        parameters: 16 bytes, as the codec defines.
        data: The stored bytes.
    """

    codec: int
    parameters: bytes
    data: Buffer


def codec_name(codec: int) -> str:
    """A codec's name, or its number where it has none."""
    return NAMES.get(codec, str(codec))


def encode_frame(
    data: Buffer,
    compression: Compression,
    *,
    element_width: int = 0,
    base: Buffer | None = None,
    out: memoryview | None = None,
) -> EncodedFrame:
    """Encodes one frame by a policy, never into more bytes than it has.

    Args:
        data: The frame's raw bytes; referred to, not copied, where they stay raw.
        compression: ``none``; ``fast``; or ``max``, which tries harder and never decodes more slowly for it.
        element_width: Bytes of an element of what the frame holds, 0 where it holds none. Widths of 1, 2, 4 and 8 go
            into planes, anything else through zstd.
        base: The bytes that lie beneath, at the same start. They may be fewer.
        out: Room for the stored bytes, at least as much as for the raw ones, which may be used; None for bytes of their
            own.

    Returns:
        The same frame for the same input, always.
    """
    if compression == "none" or not len(data):
        return EncodedFrame(RAW, NO_PARAMETERS, data)
    if element_width in (1, 2, 4, 8) and len(data) % element_width == 0:
        from rblstore.storage import planes

        found = planes.encode_planes(data, element_width, base, compression, out)
        if found is None:
            return EncodedFrame(RAW, NO_PARAMETERS, data)
        layout, stored = found
        codec = DELTA if layout.transform in (planes.XOR, planes.DIFFERENCE) else PLANES
        return EncodedFrame(codec, layout.encode(), stored)
    compressed = compress_matches(data, compression)
    if len(compressed) < len(data):
        return EncodedFrame(ZSTD, NO_PARAMETERS, compressed)
    return EncodedFrame(RAW, NO_PARAMETERS, data)


def raw_checksum(codec: int, parameters: bytes, stored_checksum: int) -> int | None:
    """XXH3-64 of a frame's raw bytes as its index entry tells it, or None where the codec does not.

    Args:
        codec: Which codec.
        parameters: 16 bytes.
        stored_checksum: XXH3-64 of the stored bytes.
    """
    if codec == RAW:
        return stored_checksum
    return int.from_bytes(parameters[8:], "little") if codec in (PLANES, DELTA) else None


def decode_frame(
    codec: int,
    parameters: bytes,
    stored: Buffer,
    raw_length: int,
    *,
    base: Buffer | None = None,
    out: memoryview | None = None,
) -> Buffer:
    """Decodes one frame, whose bytes may be hostile.

    Args:
        codec: Which codec.
        parameters: 16 bytes, as the codec defines.
        stored: The stored bytes.
        raw_length: Exactly how many bytes must come out.
        base: For ``delta``, the base's bytes from the same start on.
        out: Where they shall go, exactly that many bytes; None for bytes of their own.

    Returns:
        The raw bytes: ``out`` where it was given.

    Raises:
        UnknownCodecError: No version, or a later one, has this codec.
        BadFrameError: The bytes are not what the codec writes for that many bytes.
    """
    if codec not in NAMES:
        raise UnknownCodecError(
            f"the codec {codec_name(codec)!r} is not known to this version",
            object=codec_name(codec),
            hint="A newer rblstore wrote it; upgrade.",
        )
    if raw_length > limits.FRAME_BYTES_CEILING:
        raise BadFrameError(f"a frame of {raw_length} bytes, more than the {limits.FRAME_BYTES_CEILING} allowed")
    if codec in (PLANES, DELTA):
        from rblstore.storage import planes

        layout = planes.Layout.parse(parameters, delta=codec == DELTA)
        if codec == DELTA and base is None:
            raise BadFrameError("a difference without the base that it is taken from")
        room = memoryview(bytearray(raw_length)) if out is None else out
        planes.decode_planes(layout, stored, base if codec == DELTA else None, room)
        return room
    if parameters != NO_PARAMETERS:
        raise BadFrameError(f"parameters for the codec {codec_name(codec)!r}, which has none")
    if codec == ZSTD:
        raw: Buffer = decompress(stored, raw_length)
    elif len(stored) == raw_length:
        raw = stored
    else:
        raise BadFrameError(f"{len(stored)} bytes stored raw where {raw_length} are declared")
    if out is None:
        return raw
    out[:] = raw
    return out
