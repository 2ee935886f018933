"""Packs and frames put together byte by byte, so that they can be wrong in every way; and what reads them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import xxhash
import zstandard

from rblstore.errors import RblError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId, PackId
from rblstore.storage.codecs import DELTA, PLANES, RAW, ZSTD, decode_frame, encode_frame
from rblstore.storage.compressors import decompress
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.memory import MemoryBackend
from rblstore.storage.pack_bases import bases_of
from rblstore.storage.pack_check import check_pack
from rblstore.storage.pack_format import FrameEntry, encode_entry, encode_header, pack_key
from rblstore.storage.pack_reader import PackReader
from rblstore.storage.stored_content import StoredContent

HEADER: Final = 16
ENTRY: Final = 128
FOOTER: Final = 80

Frame = tuple[bytes, int, int, bytes, int, ContentId | None]
"""Stored bytes, start, codec, parameters, raw length, base."""


def sha256(data: bytes) -> ContentId:
    """A content's id."""
    return ContentId(hashlib.sha256(data).hexdigest())


def build(contents: Sequence[tuple[ContentId, int, Sequence[Frame]]], kind: Any = "C") -> bytes:
    """A pack of contents, given as (id, size, frames); nothing is checked."""
    body = b""
    index = b""
    for content, size, frames in contents:
        for stored, start, codec, parameters, raw, base in frames:
            check = xxhash.xxh3_64_intdigest(stored)
            index += encode_entry(
                FrameEntry(
                    content, size, start, HEADER + len(body), raw, len(stored), check, codec, 2, parameters, base
                )
            )
            body += stored
    return finish(encode_header(kind) + body, index)


def finish(frames: bytes, index: bytes, entries: int | None = None) -> bytes:
    """Header and frames with an index and a footer that fit."""
    named = hashlib.sha256(frames[:HEADER] + index).digest()
    count = len(index) // ENTRY if entries is None else entries
    footer = struct.pack("<QQ32s16s", len(frames), count, named, bytes(16))
    return frames + index + footer + struct.pack("<Q8s", xxhash.xxh3_64_intdigest(footer), b"RBLPACKE")


def encoded(raw: bytes, *, width: int = 0, base: bytes | None = None, start: int = 0) -> Frame:
    """A frame as the store would write it."""
    frame = encode_frame(raw, compression="fast", element_width=width, base=base)
    under = sha256(base) if frame.codec == DELTA and base is not None else None
    return bytes(frame.data), start, frame.codec, frame.parameters, len(raw), under


def named_pack(data: bytes) -> PackId:
    """The id that a pack's footer says."""
    found = data[-FOOTER + 16 : -FOOTER + 48].hex()
    return PackId(found if len(found) == 64 else "0" * 64)


def mend(data: bytes) -> bytes:
    """The pack with the checksums of its frames, its id and its footer made right, as far as it has them."""
    if len(data) < HEADER + FOOTER:
        return data
    offset, entries = struct.unpack_from("<QQ", data, len(data) - FOOTER)
    if not HEADER <= offset <= len(data) - FOOTER:
        offset = max(HEADER, len(data) - FOOTER - ENTRY * min(entries, 1000))
    index = bytearray(data[offset : len(data) - FOOTER])
    for at in range(0, len(index) - ENTRY + 1, ENTRY):
        begin, _, stored = struct.unpack_from("<QII", index, at + 48)
        if begin + stored <= len(data):
            struct.pack_into("<Q", index, at + 64, xxhash.xxh3_64_intdigest(data[begin : begin + stored]))
    return finish(data[:offset], bytes(index), entries if entries * ENTRY == len(index) else None)


def read_pack(data: bytes) -> None:
    """Reads everything in a pack in every way; what comes out whole is what its id says."""
    pack = named_pack(data)
    backend = MemoryBackend()
    backend.put(pack_key(pack), data)
    found: dict[ContentId, StoredContent] = {}
    reader = PackReader(backend, pack, lambda content, *_: found.get(content))
    footer = reader.footer()
    bases_of(backend, footer)
    whole = list(check_pack(backend, pack, full=False))
    locations = reader.summary().locations
    for location in locations:
        found[location.content] = reader.stored(location)
    for location in locations[:50]:
        try:
            raw = b"".join(bytes(piece.data) for piece in read_contents([Wanted(found[location.content])], workers=0))
        except RblError:
            continue
        assert sha256(raw) == location.content
        assert len(raw) == location.size
        assert not any(damage.content == location.content for damage in whole)


def read_frame(data: bytes) -> None:
    """Decodes one frame: a byte for the codec, one for a base, u32 raw length, 16 parameters, and the stored bytes."""
    head, stored = data[:22].ljust(22, b"\0"), data[22:]
    codec, has_base, raw_length = struct.unpack_from("<BBI", head)
    if raw_length <= limits.FRAME_BYTES_CEILING:
        raw_length %= 1 << 20  # what may be declared may be allocated
    base = bytes(range(256)) if has_base & 1 else None
    out = decode_frame(codec, head[6:22], stored, raw_length, base=base)
    assert len(out) == raw_length
    if codec in (PLANES, DELTA):
        assert xxhash.xxh3_64_digest(out)[::-1] == head[14:22]


def read_zstd(data: bytes) -> None:
    """Decodes one zstd frame, of a length that stands before it."""
    raw_length = int.from_bytes(data[:4], "little") % (1 << 20)
    assert len(decompress(data[4:], raw_length)) == raw_length


def _frame_input(raw: bytes, width: int, base: bytes | None) -> bytes:
    frame = encode_frame(raw, compression="fast", element_width=width, base=base)
    return struct.pack("<BBI", frame.codec, base is not None, len(raw)) + frame.parameters + bytes(frame.data)


def bomb(length: int, declared: int | None = None) -> bytes:
    """A zstd frame of as many zeros, which may declare another number of them, or with -1 none."""
    data = zstandard.ZstdCompressor(level=1, write_content_size=declared != -1).compress(bytes(length))
    if declared is None or declared == -1:
        return data
    width = (0, 2, 4, 8)[data[4] >> 6]
    assert width
    at = 5 if data[4] & 0x20 else 6
    return data[:at] + declared.to_bytes(width, "little") + data[at + width :]


def _values(count: int) -> bytes:
    return b"".join(struct.pack("<H", 0x3F80 + (at * 7) % 50) for at in range(count))


def _packs() -> tuple[bytes, ...]:
    base, text = _values(600), b"some words " * 40
    near = bytes(byte ^ (1 if at % 40 == 0 else 0) for at, byte in enumerate(base))
    first, second = base[:800], base[800:]
    pack = build([
        (sha256(text), len(text), [encoded(text)]),
        (sha256(base), len(base), [encoded(first, width=2), encoded(second, width=2, start=800)]),
        (sha256(near), len(near), [encoded(near, width=2, base=base)]),
        (sha256(b""), 0, [(b"", 0, RAW, bytes(16), 0, None)]),
    ])  # fmt: skip
    record = build([(sha256(text), len(text), [(text, 0, RAW, bytes(16), len(text), None)])], "R")
    return pack, record


def cycle() -> bytes:
    """A pack of two contents, each a difference from the other, and one that is a difference from one of them."""
    one, other, third = _values(300), _values(301)[2:], _values(302)[4:]
    frames = [list(encoded(data, width=2, base=base)) for data, base in ((one, other), (other, one), (third, one))]
    frames = [[*frame[:5], under] for frame, under in zip(frames, map(sha256, (other, one, one)), strict=True)]
    for frame in frames:
        if frame[2] != DELTA:
            frame[2], frame[3] = DELTA, bytes([2, 2]) + bytes(14)
    ids = map(sha256, (one, other, third))
    return build([(content, 600, [tuple(frame)]) for content, frame in zip(ids, frames, strict=True)])  # type: ignore[misc]


def giant() -> bytes:
    """A pack of a few bytes with a content of one frame that would take two gigabytes."""
    return build([(sha256(b"giant"), 1 << 31, [(bomb(1 << 20, 1 << 31), 0, ZSTD, bytes(16), 1 << 31, None)])])


def read_all(data: bytes) -> dict[ContentId, RblError | None]:
    """What reading each content of a pack raises."""
    backend = MemoryBackend()
    pack = named_pack(data)
    backend.put(pack_key(pack), data)
    found: dict[ContentId, StoredContent] = {}
    reader = PackReader(backend, pack, lambda content, *_: found.get(content))
    for location in reader.summary().locations:
        found[location.content] = reader.stored(location)
    problems: dict[ContentId, RblError | None] = dict.fromkeys(found)
    for content, stored in found.items():
        try:
            list(read_contents([Wanted(stored)], workers=0))
        except RblError as error:
            problems[content] = error
    return problems


def pack_targets(target: Callable[..., Any]) -> tuple[Any, ...]:
    """The readers of this page, made by the class that the others are made by."""
    noise = hashlib.sha512(b"noise").digest() * 3
    values = _values(400)
    base = bytes(range(256))
    near = bytes((byte + (at % 9 == 0)) % 256 for at, byte in enumerate(base))
    frames = [
        _frame_input(noise, 0, None), _frame_input(b"abc" * 99, 0, None), _frame_input(values, 2, None),
        _frame_input(near, 1, base), _frame_input(near, 4, base), _frame_input(bytes(4096), 8, None),
    ]  # fmt: skip
    words = (
        b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", bomb(1 << 20), bomb(1 << 20, -1), bomb(1 << 20, 1 << 30),
        struct.pack("<H", PLANES), struct.pack("<H", DELTA), struct.pack("<H", ZSTD), b"\x01\x00", bytes(32),
        b"RBLPACKE",
    )  # fmt: skip
    long_window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    ).compress(noise)
    zstd = (bomb(1 << 20, -1), bomb(1 << 20, 1 << 31), long_window, bomb(1 << 22))
    return (
        target(
            "pack",
            _packs(),
            read_pack,
            words,
            None,
            mend,
            memory=5 * limits.FRAME_BYTES_CEILING,
            hostile=(cycle(), giant()),
        ),
        target("frame", tuple(frames), read_frame, words),
        target(
            "zstd",
            (len(noise).to_bytes(4, "little") + zstandard.compress(noise),),
            read_zstd,
            words,
            hostile=tuple((1 << 19).to_bytes(4, "little") + one for one in zstd),
        ),
    )
