"""Frames in planes and differences that nobody wrote: refused by a typed error, in bounded memory."""

from __future__ import annotations

import gc
import struct
import tracemalloc
from dataclasses import replace

import pytest
import xxhash
import zstandard
from storage_samples import MemorySource, Shelf, noise, nudged, sha256, weights

from rblstore.objects.locations import ContentLocation
from rblstore.storage import planes
from rblstore.storage.codecs import (
    DELTA,
    NO_PARAMETERS,
    PLANES,
    RAW,
    BadFrameError,
    EncodedFrame,
    decode_frame,
    encode_frame,
)
from rblstore.storage.pack_check import check_pack
from rblstore.storage.pack_format import (
    Footer,
    FrameEntry,
    checksum,
    encode_entry,
    encode_footer,
    encode_header,
    pack_id,
    pack_key,
)
from rblstore.storage.pack_reader import CorruptContentError
from rblstore.storage.pack_writer import PackWriter
from rblstore.storage.planes import DIFFERENCE, PLAIN, ROTATED, XOR, Layout

DATA = weights(400)
BASE = nudged(DATA)


def a_frame(codec: int) -> tuple[EncodedFrame, bytes | None]:
    base = BASE if codec == DELTA else None
    frame = encode_frame(DATA, "fast", element_width=2, base=base)
    assert frame.codec == codec
    return replace(frame, data=bytes(frame.data)), base


def refused_or_right(codec: int, parameters: bytes, stored: bytes, base: bytes | None) -> bool:
    """Whether it is refused; if not, what comes out must be right."""
    out = memoryview(bytearray(len(DATA)))
    try:
        decode_frame(codec, parameters, stored, len(DATA), base=base, out=out)
    except BadFrameError:
        return True
    assert out == DATA
    return False


@pytest.mark.parametrize("codec", [PLANES, DELTA])
def test_every_byte_of_the_parameters_and_the_lengths_counts(codec: int) -> None:
    frame, base = a_frame(codec)
    for position in range(16):
        for change in (1, 2, 3, 0x10, 0x80, 0xFF):
            parameters = bytearray(frame.parameters)
            parameters[position] ^= change
            assert refused_or_right(codec, bytes(parameters), bytes(frame.data), base)
    for position in range(8):
        for change in (1, 2, 0x80, 0xFF):
            stored = bytearray(frame.data)
            stored[position] ^= change
            assert refused_or_right(codec, frame.parameters, bytes(stored), base)


@pytest.mark.parametrize("codec", [PLANES, DELTA])
def test_no_change_of_a_byte_and_no_truncation_comes_out_as_something_else(codec: int) -> None:
    frame, base = a_frame(codec)
    stored = bytes(frame.data)
    for size in range(len(stored)):
        assert refused_or_right(codec, frame.parameters, stored[:size], base)
    for more in (b"\0", b"more", stored):
        assert refused_or_right(codec, frame.parameters, stored + more, base)
    refused = 0
    for position in range(len(stored)):
        changed = bytearray(stored)
        changed[position] ^= 0x21
        refused += refused_or_right(codec, frame.parameters, bytes(changed), base)
    assert refused > 0.99 * len(stored)


@pytest.mark.parametrize("codec", [PLANES, DELTA])
@pytest.mark.parametrize("raw_length", [0, 1, 2, len(DATA) - 2, len(DATA) - 1, len(DATA) + 1, len(DATA) + 2, 1 << 22])
def test_another_raw_length_is_refused(codec: int, raw_length: int) -> None:
    frame, base = a_frame(codec)
    with pytest.raises(BadFrameError):
        decode_frame(codec, frame.parameters, frame.data, raw_length, base=base)


def test_each_codec_has_its_own_transforms() -> None:
    for codec, transforms in ((PLANES, (PLAIN, ROTATED)), (DELTA, (XOR, DIFFERENCE))):
        frame, _ = a_frame(codec)
        for transform in range(256):
            parameters = frame.parameters[:1] + bytes([transform]) + frame.parameters[2:]
            if transform in transforms:
                assert Layout.parse(parameters, delta=codec == DELTA).transform == transform
            else:
                with pytest.raises(BadFrameError, match="parameters"):
                    Layout.parse(parameters, delta=codec == DELTA)
    for width in range(256):
        parameters = bytes([width]) + bytes(15)
        if width in (1, 2, 4, 8):
            assert Layout.parse(parameters, delta=False) == Layout(width, PLAIN, 0)
        else:
            with pytest.raises(BadFrameError, match="parameters"):
                Layout.parse(parameters, delta=False)


def test_a_difference_wants_its_own_base() -> None:
    frame, base = a_frame(DELTA)
    assert base is not None
    for wrong in (b"", base[:-1], base[2:], bytes(len(base)), DATA, nudged(DATA, seed=2)):
        with pytest.raises(BadFrameError, match="checksum"):
            decode_frame(DELTA, frame.parameters, frame.data, len(DATA), base=wrong)
    with pytest.raises(BadFrameError, match="without the base"):
        decode_frame(DELTA, frame.parameters, frame.data, len(DATA))
    # The frame of one codec is none of the other.
    for codec in (PLANES, RAW, 1):
        with pytest.raises(BadFrameError):
            decode_frame(codec, frame.parameters, frame.data, len(DATA), base=base)


def framed(*pieces: bytes, raw: bytes = bytes(100), lengths: tuple[int, ...] = ()) -> tuple[bytes, bytes]:
    """Parameters and stored bytes of planes of a width of two, whose checksum is right."""
    table = struct.pack("<2I", *(lengths or map(len, pieces)))
    return Layout(2, PLAIN, xxhash.xxh3_64_intdigest(raw)).encode(), table + b"".join(pieces)


def zstd(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def with_window(log: int, data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=log, write_content_size=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(data))
    return compressor.compress(data) + compressor.flush()


ZEROS = zstd(bytes(50))


def interleaved(low: bytes, high: bytes) -> bytes:
    """The elements of two planes."""
    return bytes(byte for pair in zip(low, high, strict=True) for byte in pair)


def test_planes_made_by_hand_decode() -> None:
    for high in (bytes(50), ZEROS):
        assert bytes(decode_frame(PLANES, *framed(high, bytes(50)), 100)) == bytes(100)


BAD = {
    "a plane that declares more": framed(zstd(bytes(51)), bytes(50)),
    "a plane that declares less": framed(zstd(bytes(49)), bytes(50)),
    "a plane that declares nothing": framed(zstd(bytes(50), write_content_size=False), bytes(50)),
    "a short plane that is no frame": framed(bytes(49), bytes(50)),
    "a frame longer than the plane": framed(zstd(noise(50)), bytes(50), raw=interleaved(bytes(50), noise(50))),
    "an empty plane": framed(b"", bytes(50)),
    "two frames in a plane": framed(zstd(b"") + ZEROS, bytes(50)),
    "bytes after a plane's frame": framed(ZEROS + b"x", bytes(50)),
    "bytes after the planes": (framed(ZEROS, bytes(50))[0], framed(ZEROS, bytes(50))[1] + b"x"),
    "lengths that overlap": framed(ZEROS, bytes(50), lengths=(len(ZEROS) + 1, 50)),
    "lengths that leave a gap": framed(ZEROS, bytes(50), lengths=(len(ZEROS) - 1, 50)),
    "lengths that move the border": framed(ZEROS, ZEROS, lengths=(len(ZEROS) - 1, len(ZEROS) + 1)),
    "lengths that wrap": framed(ZEROS, bytes(50), lengths=((1 << 32) - 1, len(ZEROS) + 51)),
    "lengths that are huge": framed(ZEROS, bytes(50), lengths=((1 << 32) - 1, (1 << 32) - 1)),
    "only lengths": framed(lengths=(0, 0)),
    "half of the lengths": (framed(ZEROS, bytes(50))[0], b"\0\0\0\0"),
    "another checksum": framed(ZEROS, bytes(50), raw=b"x"),
}


@pytest.mark.parametrize("name", BAD)
def test_planes_that_lie_are_refused_in_little_memory(name: str) -> None:
    parameters, stored = BAD[name]
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(BadFrameError):
            decode_frame(PLANES, parameters, stored, 100)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [10_001, 1 << 20, 1 << 27])
def test_a_bomb_is_not_unpacked(size: int) -> None:
    """A plane shorter than it is raw, that declares and would decode to more."""
    bomb = zstd(bytes(size))
    assert len(bomb) < 10_000
    parameters, stored = framed(bomb, bytes(10_000), raw=bytes(20_000))
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(BadFrameError, match="declare"):
            decode_frame(PLANES, parameters, stored, 20_000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


def test_a_plane_with_a_window_beyond_the_limit_is_refused() -> None:
    high = with_window(24, bytes(20 << 20))
    parameters, stored = framed(high, zstd(bytes(20 << 20)), raw=b"")
    with pytest.raises(BadFrameError, match="window"):
        decode_frame(PLANES, parameters, stored, 40 << 20)


def test_decoding_takes_memory_for_what_is_declared_and_no_more() -> None:
    """A few bytes that decode to 32 MiB: the result, its planes, and a block beside."""
    raw = 32 << 20
    stored = struct.pack("<2I", *[len(zstd(bytes(raw // 2)))] * 2) + zstd(bytes(raw // 2)) * 2
    parameters = Layout(2, PLAIN, xxhash.xxh3_64_intdigest(bytes(raw))).encode()
    gc.collect()
    tracemalloc.start()
    try:
        assert len(decode_frame(PLANES, parameters, stored, raw)) == raw
        assert tracemalloc.get_traced_memory()[1] < 2.2 * raw
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("transform", [PLAIN, ROTATED, XOR, DIFFERENCE])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_what_each_transform_means(width: int, transform: int) -> None:
    """By the formulas of docs/format.md, in Python's integers."""
    bits, count = 8 * width, 33
    mask = (1 << bits) - 1
    values = [int.from_bytes(noise(width, seed), "little") for seed in range(count)]
    beneath = [int.from_bytes(noise(width, seed), "little") for seed in range(100, 100 + count - 3)] + [0, 0, 0]

    def transformed(value: int, under: int) -> int:
        if transform == PLAIN:
            return value
        if transform == ROTATED:
            return (value << 1 | value >> (bits - 1)) & mask
        if transform == XOR:
            return value ^ under
        difference = (value - under) & mask
        return 2 * difference if difference < 1 << (bits - 1) else 2 * (mask - difference) + 1

    words = [transformed(value, under) for value, under in zip(values, beneath, strict=True)]
    stored = struct.pack(f"<{width}I", *[count] * width)
    for plane in range(width - 1, -1, -1):
        stored += bytes(word >> 8 * plane & 0xFF for word in words)
    raw = b"".join(value.to_bytes(width, "little") for value in values)
    base = b"".join(under.to_bytes(width, "little") for under in beneath[:-3])
    parameters = bytes([width, transform]) + bytes(6) + xxhash.xxh3_64_intdigest(raw).to_bytes(8, "little")
    codec = DELTA if transform in (XOR, DIFFERENCE) else PLANES
    assert bytes(decode_frame(codec, parameters, stored, len(raw), base=base)) == raw


def test_the_transform_that_takes_fewest_bits_is_taken() -> None:
    """Small steps are small differences; flipped low bits are small exclusive ors; signs want to be rotated."""

    def transform_of(data: bytes, base: bytes | None) -> int:
        return encode_frame(data, "fast", element_width=2, base=base).parameters[1]

    assert transform_of(weights(5000), None) == ROTATED
    assert transform_of(bytes(at % 7 for at in range(10_000)), None) in (PLAIN, ROTATED)
    stepped = struct.pack("<5000H", *range(3, 5003))
    assert transform_of(stepped, struct.pack("<5000H", *range(5000))) == DIFFERENCE
    data = noise(10_000)
    assert transform_of(bytes(byte ^ (0x80 if at % 2 else 1) for at, byte in enumerate(data)), data) == XOR


# -- in packs ---------------------------------------------------------------------------------------------------------


def forge(shelf: Shelf, data: bytes, frame: EncodedFrame, base: bytes) -> ContentLocation:
    """Stores a difference that the writer would not have written, in a pack whose checksums are right."""
    entry = FrameEntry(
        sha256(data), len(data), 0, 16, len(data), len(frame.data), checksum(frame.data), frame.codec, 2,
        frame.parameters, sha256(base),
    )  # fmt: skip
    header, index = encode_header("C"), encode_entry(entry)
    pack = pack_id(header, [index])
    footer = encode_footer(Footer(16 + len(frame.data), 1, pack))
    shelf.backend.put(pack_key(pack), header + bytes(frame.data) + index + footer)
    shelf.learn(shelf.reader(pack).summary())
    return shelf.stored(data).location


def require_damaged(shelf: Shelf, location: ContentLocation, why: str) -> None:
    reader = shelf.reader(location.pack)
    with pytest.raises(CorruptContentError, match=why) as caught:
        list(reader.read(location))
    assert caught.value.content == location.content
    with pytest.raises(CorruptContentError, match=why):
        reader.stored(location).read_into(memoryview(bytearray(3)), 1)
    assert list(check_pack(shelf.backend, location.pack, full=False)) == []
    (damage,) = check_pack(shelf.backend, location.pack, full=True, find=shelf.find)
    assert (damage.content, damage.pack) == (location.content, location.pack)
    assert damage.problem


def test_a_difference_in_a_pack_needs_its_base_stored() -> None:
    shelf = Shelf()
    frame, _ = a_frame(DELTA)
    location = forge(shelf, DATA, frame, BASE)
    require_damaged(shelf, location, f"base {sha256(BASE)} is not stored")
    shelf.put(BASE)
    assert b"".join(shelf.reader(location.pack).read(location)) == DATA
    assert list(check_pack(shelf.backend, location.pack, full=True, find=shelf.find)) == []


def test_another_base_than_it_was_taken_from_is_damage() -> None:
    shelf = Shelf()
    other = nudged(DATA, seed=9)
    shelf.put(other, b"tiny")
    for base, why in ((other, "checksum"), (b"tiny", "checksum")):
        require_damaged(shelf, forge(shelf, DATA, a_frame(DELTA)[0], base), why)


def test_a_chain_of_two_differences_is_refused() -> None:
    shelf = Shelf()
    root = nudged(BASE, seed=5)
    shelf.put(root)
    shelf.put(BASE, bases={BASE: root})
    assert [entry.codec for entry in shelf.entries(BASE)] == [DELTA]
    require_damaged(shelf, forge(shelf, DATA, a_frame(DELTA)[0], BASE), "a difference itself")


def test_two_contents_that_are_differences_of_one_another_end() -> None:
    shelf = Shelf()
    backwards = encode_frame(BASE, "fast", element_width=2, base=DATA)
    there, back = forge(shelf, DATA, a_frame(DELTA)[0], BASE), forge(shelf, BASE, backwards, DATA)
    for location in (there, back):
        require_damaged(shelf, location, "a difference itself")


def test_a_damaged_base_is_named_and_nothing_is_written_from_it() -> None:
    shelf = Shelf()
    shelf.put(BASE)
    shelf.put(DATA, bases={DATA: BASE})
    before = list(shelf.packs())
    shelf.rot(shelf.stored(BASE).location.pack, 40)
    with pytest.raises(CorruptContentError) as caught:
        list(shelf.reader(shelf.stored(DATA).location.pack).read(shelf.stored(DATA).location))
    assert caught.value.content == sha256(BASE)
    fresh = nudged(BASE, seed=11)

    def write() -> None:
        with PackWriter(shelf.backend, "C", is_stored=lambda _: False) as writer:
            writer.add_source(MemorySource(fresh), element_width=2, base=shelf.stored(BASE))
            writer.finish()

    with pytest.raises(CorruptContentError, match=sha256(BASE)):
        write()
    assert list(shelf.packs()) == before
    assert shelf.backend.open_stages == 0


def test_a_base_that_is_longer_shorter_or_cut_in_the_middle_of_an_element_serves() -> None:
    for base in (BASE + weights(50), BASE[:-40], BASE[:-41], BASE[:333]):
        shelf = Shelf()
        shelf.put(base, width=0)
        shelf.put(DATA, bases={DATA: base}, frame_bytes=256)
        codecs = [entry.codec for entry in shelf.entries(DATA)]
        assert codecs[0] == DELTA
        location = shelf.stored(DATA).location
        assert b"".join(shelf.reader(location.pack).read(location)) == DATA
        assert list(check_pack(shelf.backend, location.pack, full=True, find=shelf.find)) == []


def test_frames_beyond_the_base_name_none() -> None:
    shelf = Shelf()
    base = weights(256)
    grown = base + weights(256, seed=3)
    shelf.put(base, frame_bytes=256)
    shelf.put(grown, bases={grown: base}, frame_bytes=256)
    entries = shelf.entries(grown)
    assert [(entry.codec, entry.base) for entry in entries[:2]] == [(DELTA, sha256(base))] * 2
    assert all(entry.base is None and entry.codec == PLANES for entry in entries[2:])
    assert shelf.stored(grown).bases == {sha256(base)}


# -- what is known of a frame without reading it ----------------------------------------------------------------------


def test_the_checksum_of_a_stored_frame_is_that_of_its_raw_bytes() -> None:
    shelf = Shelf()
    data, base = weights(1000), weights(1000)
    tuned = nudged(base)
    shelf.put(noise(600), frame_bytes=256)
    shelf.put(b"text " * 100, width=0, frame_bytes=256)
    shelf.put(data, frame_bytes=256)
    shelf.put(tuned, bases={tuned: base}, frame_bytes=256)
    cases = ((noise(600), RAW), (b"text " * 100, 1), (data, PLANES), (tuned, DELTA))
    for content, codec in cases:
        stored = shelf.stored(content)
        assert {entry.codec for entry in stored.frames[:-1]} == {codec}
        for entry in stored.frames:
            start, length = entry.start, entry.raw_length
            known = stored.frame_checksum(start, length)
            expected = xxhash.xxh3_64_intdigest(content[start : start + length])
            assert known == (None if entry.codec == 1 else expected)
            for wrong in ((start, length - 1), (start, length + 1), (start + 1, length), (start + 1, length - 1)):
                assert stored.frame_checksum(*wrong) is None
        assert stored.frame_checksum(0, len(content)) is None
        assert stored.frame_checksum(1 << 40, 256) is None


def test_parameters_are_the_layout() -> None:
    layout = Layout(4, ROTATED, 0x0102030405060708)
    assert layout.encode() == bytes.fromhex("0401 000000000000 0807060504030201")
    assert Layout.parse(layout.encode(), delta=False) == layout
    assert bytes(16) == NO_PARAMETERS
    assert planes.WIDTHS == (1, 2, 4, 8)
