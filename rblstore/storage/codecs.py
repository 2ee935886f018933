"""How a frame is encoded: a registry of codec ids, and the policies by which a writer chooses.

A codec never changes what a content is, only how many bytes it takes. Decoding trusts nothing: what comes out has
exactly the declared length, which is capped, or is an error. zstandard is imported when the first frame needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from rblstore.errors import CorruptError, RblError
from rblstore.objects import limits

Compression = Literal["none", "fast", "max"]
Buffer: TypeAlias = "bytes | bytearray | memoryview"

RAW: Final = 0
ZSTD: Final = 1
PLANES: Final = 2
DELTA: Final = 3

NAMES: Final[Mapping[int, str]] = MappingProxyType({RAW: "raw", ZSTD: "zstd", PLANES: "planes", DELTA: "delta"})
NO_PARAMETERS: Final = bytes(16)

_ZSTD_LEVELS: Final[Mapping[str, int]] = MappingProxyType({"fast": 1, "max": 9})
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class UnknownCodecError(RblError):
    """A frame is encoded in a way that this version does not decode."""

    code = "unknown_codec"


class BadFrameError(CorruptError):
    """A frame's stored bytes are not what its codec writes."""

    code = "bad_frame"


@dataclass(frozen=True)
class EncodedFrame:
    """A frame as it will be stored.

    Attributes:
        codec: Which codec.
        parameters: 16 bytes, as the codec defines.
        data: The stored bytes.
    """

    codec: int
    parameters: bytes
    data: Buffer


def codec_name(codec: int) -> str:
    """A codec's name, or its number where it has none."""
    return NAMES.get(codec, str(codec))


def encode_frame(data: Buffer, compression: Compression) -> EncodedFrame:
    """Encodes one frame by a policy: whichever of raw and zstd takes fewer bytes, raw where they take the same.

    Args:
        data: The frame's raw bytes; referred to, not copied, where they stay raw.
        compression: ``none``, ``fast`` (zstd level 1) or ``max`` (zstd level 9).

    Returns:
        The same bytes for the same input, always (a compressor's state is never reused).
    """
    if compression != "none" and len(data):
        import zstandard

        compressed = zstandard.ZstdCompressor(level=_ZSTD_LEVELS[compression]).compress(data)
        if len(compressed) < len(data):
            return EncodedFrame(ZSTD, NO_PARAMETERS, compressed)
    return EncodedFrame(RAW, NO_PARAMETERS, data)


def decode_frame(codec: int, parameters: bytes, stored: bytes, raw_length: int) -> bytes:
    """Decodes one frame, whose bytes may be hostile.

    Args:
        codec: Which codec.
        parameters: 16 bytes, as the codec defines.
        stored: The stored bytes.
        raw_length: Exactly how many bytes must come out.

    Raises:
        UnknownCodecError: No version, or a later one, has this codec.
        BadFrameError: The bytes are not what the codec writes for that many bytes.
    """
    decode = _DECODERS.get(codec)
    if decode is None:
        raise UnknownCodecError(
            f"the codec {codec_name(codec)!r} is not known to this version",
            object=codec_name(codec),
            hint="A newer rblstore wrote it; upgrade.",
        )
    if raw_length > limits.FRAME_BYTES_CEILING:
        raise BadFrameError(f"a frame of {raw_length} bytes, more than the {limits.FRAME_BYTES_CEILING} allowed")
    if parameters != NO_PARAMETERS:
        raise BadFrameError(f"parameters for the codec {codec_name(codec)!r}, which has none")
    return decode(stored, raw_length)


def _decode_raw(stored: bytes, raw_length: int) -> bytes:
    if len(stored) != raw_length:
        raise BadFrameError(f"{len(stored)} bytes stored raw where {raw_length} are declared")
    return stored


def _decode_zstd(stored: bytes, raw_length: int) -> bytes:
    # Everything the frame's header declares is compared before anything is allocated: max_output_size alone does not
    # stop a frame that declares more.
    if stored[:4] != _ZSTD_MAGIC:
        raise BadFrameError("not a zstd frame")
    import zstandard

    try:
        header = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError as error:
        raise BadFrameError(f"the zstd frame's header is damaged ({error})") from error
    if header.content_size != raw_length:
        raise BadFrameError(f"the zstd frame does not declare the {raw_length} bytes that the index does")
    if header.window_size > limits.ZSTD_WINDOW_BYTES:
        raise BadFrameError(f"the zstd frame wants a window of {header.window_size} bytes")
    if header.dict_id:
        raise BadFrameError("the zstd frame wants a dictionary")
    decompressor = zstandard.ZstdDecompressor(max_window_size=limits.ZSTD_WINDOW_BYTES)
    try:
        data = decompressor.decompress(stored, max_output_size=raw_length, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise BadFrameError(f"the zstd frame is damaged ({error})") from error
    if len(data) != raw_length:
        raise BadFrameError(f"{len(data)} bytes came out of the zstd frame where {raw_length} are declared")
    return data


_DECODERS: Final[Mapping[int, Callable[[bytes, int], bytes]]] = MappingProxyType({
    RAW: _decode_raw,
    ZSTD: _decode_zstd,
})  # fmt: skip
