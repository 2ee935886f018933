"""Codecs: what they write comes back, and what nobody wrote is refused before anything is allocated for it."""

from __future__ import annotations

import random
import struct

import pytest
import zstandard

from rblstore.objects import limits
from rblstore.storage.codecs import (
    DELTA,
    NO_PARAMETERS,
    PLANES,
    RAW,
    ZSTD,
    BadFrameError,
    UnknownCodecError,
    decode_frame,
    encode_frame,
)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


TEXT = b"the quick brown fox " * 500


@pytest.mark.parametrize("compression", ["none", "fast", "max"])
@pytest.mark.parametrize("data", [b"", b"x", TEXT, noise(5000), bytes(100_000)])
def test_what_is_encoded_decodes(compression: str, data: bytes) -> None:
    frame = encode_frame(data, compression)
    assert decode_frame(frame.codec, frame.parameters, bytes(frame.data), len(data)) == data
    assert frame == encode_frame(data, compression)


def test_the_smaller_of_raw_and_zstd_is_kept() -> None:
    assert encode_frame(TEXT, "fast").codec == ZSTD
    assert encode_frame(TEXT, "none").codec == RAW
    kept = noise(5000)
    frame = encode_frame(kept, "max")
    assert frame.codec == RAW
    assert frame.data is kept


@pytest.mark.parametrize("compression", ["fast", "max"])
def test_the_largest_frame_keeps_within_the_window(compression: str) -> None:
    data = noise(1 << 18) * 36
    frame = encode_frame(data, compression)
    assert zstandard.get_frame_parameters(frame.data).window_size <= limits.ZSTD_WINDOW_BYTES
    assert decode_frame(frame.codec, frame.parameters, bytes(frame.data), len(data)) == data


@pytest.mark.parametrize(("codec", "name"), [(4, "4"), (777, "777")])
def test_an_unknown_codec_is_named(codec: int, name: str) -> None:
    with pytest.raises(UnknownCodecError, match=name) as caught:
        decode_frame(codec, NO_PARAMETERS, b"", 0)
    assert caught.value.object == name


def zstd(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def zstd_declaring(size: int) -> bytes:
    """A valid frame of zeros that declares, and would decode to, another size."""
    return zstd(bytes(size))


def skippable(size: int) -> bytes:
    return struct.pack("<II", 0x184D2A50, size) + bytes(size)


def without_size(data: bytes) -> bytes:
    return zstd(data, write_content_size=False)


def with_window(log: int, data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=log, write_content_size=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(data))
    return compressor.compress(data) + compressor.flush()


BAD = {
    "empty": b"",
    "garbage": noise(200),
    "magic alone": b"\x28\xb5\x2f\xfd",
    "declares more": zstd_declaring(101),
    "declares much more": zstd_declaring(1 << 26),
    "declares less": zstd_declaring(99),
    "declares nothing": without_size(bytes(100)),
    "truncated": zstd(bytes(100))[:-1],
    "trailing bytes": zstd(bytes(100)) + b"x",
    "two frames": zstd(bytes(100)) + zstd(bytes(100)),
    "empty frame after": zstd(bytes(100)) + zstd(b""),
    "skippable": skippable(100),
    "frame after a skippable one": skippable(0) + zstd(bytes(100)),
    "skippable after": zstd(bytes(100)) + skippable(0),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_zstd_frame_is_refused(name: str) -> None:
    with pytest.raises(BadFrameError):
        decode_frame(ZSTD, NO_PARAMETERS, BAD[name], 100)


def test_a_wrong_checksum_inside_the_frame_is_refused() -> None:
    stored = bytearray(zstd(TEXT, write_checksum=True))
    stored[-1] ^= 1
    with pytest.raises(BadFrameError):
        decode_frame(ZSTD, NO_PARAMETERS, bytes(stored), len(TEXT))


def test_a_window_beyond_the_limit_is_refused() -> None:
    data = bytes(20 << 20)
    stored = with_window(24, data)
    assert zstandard.get_frame_parameters(stored).window_size > limits.ZSTD_WINDOW_BYTES
    with pytest.raises(BadFrameError, match="window"):
        decode_frame(ZSTD, NO_PARAMETERS, stored, len(data))


def test_a_dictionary_is_refused() -> None:
    dictionary = zstandard.train_dictionary(4096, [noise(50, seed) * 4 for seed in range(200)], dict_id=7)
    stored = zstd(TEXT, dict_data=dictionary)
    with pytest.raises(BadFrameError, match="dictionary"):
        decode_frame(ZSTD, NO_PARAMETERS, stored, len(TEXT))


@pytest.mark.parametrize("codec", [RAW, ZSTD, PLANES, DELTA])
def test_parameters_and_absurd_lengths_are_refused(codec: int) -> None:
    with pytest.raises(BadFrameError, match="parameters"):
        decode_frame(codec, b"\3" + bytes(15), b"", 0)
    with pytest.raises(BadFrameError, match="more than"):
        decode_frame(codec, NO_PARAMETERS, b"", limits.FRAME_BYTES_CEILING + 1)


@pytest.mark.parametrize("length", [0, 4, 6])
def test_a_raw_frame_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadFrameError):
        decode_frame(RAW, NO_PARAMETERS, b"12345", length)
