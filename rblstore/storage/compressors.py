"""zstd, used in two ways, and decoded in one strict way. zstandard is imported when the first frame needs it.

What is noise with an uneven spread of values (the exponents of weights) has nothing to find twice: there, looking for
repeats costs at least half of the time and makes the result larger, since each chance repeat cuts the literals short.
``compress_entropy`` all but forgoes it: repeats of seven bytes, looked up in a table of 64 places. Measured in
docs/decisions/0009-codecs.md.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from rblstore.errors import CorruptError
from rblstore.objects import limits

if TYPE_CHECKING:
    from zstandard import ZstdCompressionParameters

Buffer: TypeAlias = "bytes | bytearray | memoryview"

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_LEVELS: Final = {"fast": 1, "max": 9}


class BadFrameError(CorruptError):
    """A frame's stored bytes are not what its codec writes."""

    code = "bad_frame"


@cache
def _entropy_parameters() -> ZstdCompressionParameters:
    import zstandard

    # A target length above 0 would switch the coding of literals off.
    return zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST,
        window_log=18,
        hash_log=6,
        chain_log=6,
        search_log=1,
        min_match=7,
        target_length=0,
    )


def compress_entropy(data: Buffer) -> bytes:
    """One zstd frame that codes bytes by how often they occur, and repeats only where they are long and near."""
    import zstandard

    return zstandard.ZstdCompressor(compression_params=_entropy_parameters()).compress(data)


def compress_matches(data: Buffer, effort: Literal["fast", "max"]) -> bytes:
    """One zstd frame of level 1 (``fast``) or 9 (``max``)."""
    import zstandard

    # A compressor's state is never reused, so that the same bytes always give the same frame.
    return zstandard.ZstdCompressor(level=_LEVELS[effort]).compress(data)


def decompress(stored: Buffer, raw_length: int) -> bytes:
    """Decodes one zstd frame, which may be hostile.

    Args:
        stored: Exactly the frame.
        raw_length: Exactly how many bytes must come out; the caller has capped it.

    Raises:
        BadFrameError: It is not a frame of that many bytes, or wants more memory than the limits give.
    """
    # Everything the frame's header declares is compared before anything is allocated: max_output_size alone does not
    # stop a frame that declares more.
    if bytes(stored[:4]) != _MAGIC:
        raise BadFrameError("not a zstd frame")
    import zstandard

    try:
        header = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError as error:
        raise BadFrameError(f"the zstd frame's header is damaged ({error})") from error
    if header.content_size != raw_length:
        raise BadFrameError(f"the zstd frame does not declare the {raw_length} bytes that it should")
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
