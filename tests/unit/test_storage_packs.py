"""Packs: what the writer leaves, what the reader refuses, and the format's worked example."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rblstore.errors import CorruptError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackSummary
from rblstore.storage import encoding
from rblstore.storage.backend import MissingObjectError
from rblstore.storage.codecs import DELTA, PLANES, RAW, ZSTD, UnknownCodecError
from rblstore.storage.disk import DiskBackend
from rblstore.storage.durable import WriteError
from rblstore.storage.memory import MemoryBackend
from rblstore.storage.pack_check import check_pack
from rblstore.storage.pack_format import (
    ENTRY_BYTES,
    FOOTER_BYTES,
    Footer,
    FrameEntry,
    MalformedPackError,
    checksum,
    encode_entry,
    encode_footer,
    encode_header,
    pack_id,
    pack_key,
    pack_of_key,
)
from rblstore.storage.pack_reader import ContentTooLargeError, CorruptContentError, PackReader, read_small
from rblstore.storage.pack_writer import CorruptPackError, PackWriter, RecordTooLargeError


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> ContentId:
    return ContentId(hashlib.sha256(data).hexdigest())


def never(_: ContentId) -> bool:
    return False


def write(backend: MemoryBackend, *contents: bytes, **options: object) -> PackSummary:
    with PackWriter(backend, options.pop("kind", "C"), is_stored=never, **options) as writer:
        for data in contents:
            writer.add_bytes(data)
        summary = writer.finish()
    assert summary is not None
    return summary


def whole(backend: MemoryBackend, summary: PackSummary) -> bytes:
    return backend.read(pack_key(summary.pack), 0, summary.size)


def forge(
    header: bytes, frames: bytes, *entries: FrameEntry, index: bytes | None = None
) -> tuple[MemoryBackend, PackId]:
    """A pack whose id and checksums are right and whose index says what the test wants."""
    index = b"".join(map(encode_entry, entries)) if index is None else index
    pack = pack_id(header, [index])
    footer = Footer(len(header) + len(frames), len(index) // ENTRY_BYTES, pack)
    backend = MemoryBackend()
    backend.put(pack_key(pack), header + frames + index + encode_footer(footer))
    return backend, pack


def change(backend: MemoryBackend, pack: PackId, mutate: Callable[[bytearray], None]) -> MemoryBackend:
    """The same pack in a backend of its own, after bit rot."""
    data = bytearray(backend.read(pack_key(pack), 0, backend.size(pack_key(pack))))
    mutate(data)
    changed = MemoryBackend()
    changed.put(pack_key(pack), bytes(data))
    return changed


# -- writing ----------------------------------------------------------------------------------------------------------


def test_the_worked_example_of_the_format() -> None:
    """Byte for byte what docs/format.md says; this may never change."""
    backend = MemoryBackend()
    summary = write(backend, b"hello", b"", compression="none")
    data = whole(backend, summary)
    hello, nothing = hashlib.sha256(b"hello").digest(), hashlib.sha256(b"").digest()
    numbers = bytes.fromhex
    first = (
        hello
        + numbers("0500000000000000 0000000000000000 1000000000000000 05000000 05000000")
        + checksum(b"hello").to_bytes(8, "little")
        + bytes(48 + 8)
    )
    second = (
        nothing
        + numbers("0000000000000000 0000000000000000 1500000000000000 00000000 00000000")
        + checksum(b"").to_bytes(8, "little")
        + bytes(48 + 8)
    )
    header = b"RBLPACK1C" + bytes(7)
    assert data[:16] == header
    assert data[16:21] == b"hello"
    assert data[21 : 21 + 256] == first + second
    footer = data[277:]
    body = numbers("1500000000000000 0200000000000000") + hashlib.sha256(header + first + second).digest() + bytes(16)
    assert footer == body + checksum(body).to_bytes(8, "little") + b"RBLPACKE"
    assert checksum(b"hello") == 0x9555E8555C62DCFD
    assert summary.pack == "72e476368e81d38743f800e023a53431e711c10f83cd167612848cbb53763cdf"
    assert summary.locations == (
        ContentLocation(sha256(b"hello"), 5, summary.pack, 0, 1, 5),
        ContentLocation(sha256(b""), 0, summary.pack, 1, 1, 0),
    )


def test_added_says_what_became_of_a_content() -> None:
    backend = MemoryBackend()
    known = b"stored elsewhere"
    with PackWriter(backend, "C", is_stored=lambda content: content == sha256(known)) as writer:
        first = writer.add([b"some ", bytearray(b"bytes"), memoryview(b"")], element_width=2)
        again = writer.add_bytes(b"some bytes")
        elsewhere = writer.add_bytes(known)
        summary = writer.finish()
    assert (first.content, first.size, first.new, first.stored) == (sha256(b"some bytes"), 10, True, 10)
    assert (again.content, again.size, again.new, again.stored) == (sha256(b"some bytes"), 10, False, 0)
    assert (elsewhere.content, elsewhere.size, elsewhere.new, elsewhere.stored) == (sha256(known), 16, False, 0)
    assert summary is not None
    assert [location.content for location in summary.locations] == [sha256(b"some bytes")]
    assert PackReader(backend, summary.pack).entries(0, 1)[0].element_width == 2


def test_a_pack_with_nothing_new_is_not_published() -> None:
    backend = MemoryBackend()
    with PackWriter(backend, "C", is_stored=lambda _: True, frame_bytes=4) as writer:
        writer.add_bytes(b"longer than a frame")
        writer.add_bytes(b"x")
        assert writer.finish() is None
    with PackWriter(backend, "C", is_stored=never) as writer:
        assert writer.finish() is None
    assert list(backend.list("")) == []
    assert backend.open_stages == 0


@pytest.mark.parametrize("inline", [0, 1 << 30])
def test_a_large_content_that_turns_out_stored_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, inline: int) -> None:
    monkeypatch.setattr(encoding, "_INLINE_BYTES", inline)
    large = noise(1000)
    plain, speculated = MemoryBackend(), MemoryBackend()
    expected = write(plain, b"before", b"after" * 50, frame_bytes=64)
    with PackWriter(speculated, "C", is_stored=lambda content: content == sha256(large), frame_bytes=64) as writer:
        writer.add_bytes(b"before")
        assert not writer.add_bytes(large).new
        writer.add_bytes(b"after" * 50)
        assert not writer.add_bytes(large).new
        assert writer.finish() == expected
    assert whole(speculated, expected) == whole(plain, expected)


@pytest.mark.parametrize("inline", [0, 1 << 30])
def test_a_source_that_fails_leaves_the_pack_as_it_was(monkeypatch: pytest.MonkeyPatch, inline: int) -> None:
    monkeypatch.setattr(encoding, "_INLINE_BYTES", inline)

    def failing() -> Iterator[bytes]:
        yield noise(1000)
        raise OSError("the source went away")

    backend = MemoryBackend()
    with PackWriter(backend, "C", is_stored=never, frame_bytes=64) as writer:
        writer.add_bytes(b"before")
        with pytest.raises(OSError, match="went away"):
            writer.add(failing())
        writer.add_bytes(b"after")
        summary = writer.finish()
    assert summary == write(MemoryBackend(), b"before", b"after", frame_bytes=64)
    assert list(check_pack(backend, summary.pack, full=True)) == []


def test_a_full_disk_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of the content that is being added were written already: taking them back out is no use any more."""
    left = [4]

    def full(descriptor: int, data: memoryview) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    real = os.write
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(os, "write", full)
    with PackWriter(DiskBackend(tmp_path), "C", is_stored=never, workers=0, frame_bytes=100) as writer:
        with pytest.raises(WriteError, match="writing failed: No space left on device"):
            writer.add_bytes(noise(100_000))
        with pytest.raises(WriteError, match="the pack is lost"):
            writer.add_bytes(b"more")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_exception_abandons_the_pack_and_its_threads() -> None:
    backend = MemoryBackend()
    before = threading.active_count()

    def body(writer: PackWriter) -> None:
        added = writer.add_bytes(noise(20 << 20))
        assert threading.active_count() > before
        assert added.new
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), PackWriter(backend, "C", is_stored=never) as writer:
        body(writer)
    assert threading.active_count() == before
    assert backend.open_stages == 0
    assert list(backend.list("")) == []
    for call in (lambda: writer.add_bytes(b"x"), writer.finish):
        with pytest.raises(WriteError):
            call()


def test_leaving_without_finishing_publishes_nothing() -> None:
    backend = MemoryBackend()
    with PackWriter(backend, "C", is_stored=never) as writer:
        writer.add_bytes(b"x")
    assert list(backend.list("")) == []
    assert backend.open_stages == 0


def test_adding_inside_of_another_content_is_refused() -> None:
    with PackWriter(MemoryBackend(), "C", is_stored=never) as writer:

        def nested() -> Iterator[bytes]:
            yield b"x"
            writer.add_bytes(b"y")

        with pytest.raises(ValueError, match="another content"):
            writer.add(nested())


def test_the_same_contents_give_the_same_bytes_whatever_the_chunks_and_threads() -> None:
    contents = [noise(3 << 20) + bytes(7 << 20), b"a" * 70_000, noise(100), b""]
    backends = []
    for workers, step in ((0, 1 << 20), (1, 999_983), (2, 1 << 24)):
        backend = MemoryBackend()
        with PackWriter(backend, "C", is_stored=never, workers=workers) as writer:
            for data in contents:
                writer.add(data[start : start + step] for start in range(0, len(data), step))
            summary = writer.finish()
        assert summary is not None
        backends.append((summary, whole(backend, summary)))
    assert backends[0] == backends[1] == backends[2]
    assert [location.entries for location in backends[0][0].locations] == [3, 1, 1, 1]


class Nowhere(MemoryBackend):
    """Takes packs of any size and keeps none of their bytes."""

    def stage(self) -> object:
        return NullStage()


class NullStage:
    size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)

    def truncate(self, size: int) -> None:
        self.size = size

    def publish(self, key: str) -> bool:
        return True

    def discard(self) -> None:
        pass


class Repeated:
    """A source that gives the same block over and over."""

    def __init__(self, block: bytes, times: int) -> None:
        self.size = len(block) * times
        self._twice = block + block

    def read_into(self, out: memoryview, start: int) -> None:
        block = len(self._twice) // 2
        for at in range(0, len(out), block):
            piece = out[at : at + block]
            piece[:] = self._twice[(start + at) % block :][: len(piece)]


@pytest.mark.parametrize(("by", "element_width"), [("chunks", 0), ("source", 2)])
def test_memory_stays_small_whatever_the_size_of_a_content(by: str, element_width: int) -> None:
    """In memory are the frames in flight, what they are encoded to, and what two threads are at work on."""
    frames = 64
    # Each byte holds half a byte: worth encoding, and still half a frame when encoded.
    source = Repeated(noise(1 << 19).hex().encode(), frames * 8)
    gc.collect()
    tracemalloc.start()
    try:
        with PackWriter(Nowhere(), "C", is_stored=never) as writer:
            if by == "source":
                writer.add_source(source, element_width=element_width)
            else:
                block = bytearray(1 << 20)
                source.read_into(memoryview(block), 0)
                writer.add((block for _ in range(frames * 8)), element_width=element_width)
            writer.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bound = 2 * encoding._IN_FLIGHT_BYTES + 8 * limits.FRAME_BYTES
    assert peak < bound < source.size / 2


def test_a_pack_that_is_there_already_must_be_whole() -> None:
    contents = (b"one" * 100, b"two")
    backend = MemoryBackend()
    summary = write(backend, *contents)
    assert write(backend, *contents) == summary

    def rot(data: bytearray) -> None:
        data[20] ^= 1

    damaged = change(backend, summary.pack, rot)
    with pytest.raises(CorruptPackError, match=summary.pack):
        write(damaged, *contents)


def test_a_record_is_one_frame_and_small_ones_stay_raw() -> None:
    backend = MemoryBackend()
    small, large = b'{"a":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}', b"r" * (9 << 20)
    summary = write(backend, small, large, kind="R")
    assert summary.kind == "R"
    entries = PackReader(backend, summary.pack).entries(0, 2)
    assert [(entry.codec, entry.raw_length) for entry in entries] == [(RAW, len(small)), (ZSTD, 9 << 20)]
    assert read_small(backend, summary.locations[1], limits.RECORD_BYTES) == large


def test_a_record_beyond_the_limit_is_refused() -> None:
    block = bytes(1 << 20)
    with PackWriter(MemoryBackend(), "R", is_stored=never) as writer, pytest.raises(RecordTooLargeError):
        writer.add(block for _ in range(65))


def test_nothing_of_the_codec_is_imported_for_small_records(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    program = """
import sys
from pathlib import Path
from rblstore.storage.disk import DiskBackend
from rblstore.storage.pack_reader import read_small
from rblstore.storage.pack_writer import PackWriter
from rblstore.storage.refs_log import RefsLog
backend = DiskBackend(Path(sys.argv[1]))
with PackWriter(backend, "R", is_stored=lambda _: False) as writer:
    writer.add_bytes(b"a" * 1000)
    summary = writer.finish()
assert read_small(backend, summary.locations[0], 1000) == b"a" * 1000
RefsLog(Path(sys.argv[1]) / "refs.log").last()
print(sorted({"zstandard", "numpy", "torch", "concurrent.futures", "sqlalchemy", "yaml"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- reading ----------------------------------------------------------------------------------------------------------


def test_contents_come_back_from_a_disk(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    backend = DiskBackend(tmp_path)
    contents = [noise(limits.FRAME_BYTES + 1), bytes(3 * limits.FRAME_BYTES), b"", b"x"]
    summary = write(backend, *contents)  # type: ignore[arg-type]
    reader = PackReader(backend, summary.pack)
    before = threading.active_count()
    for location, data in zip(summary.locations, contents, strict=True):
        assert b"".join(reader.read(location)) == data
    assert threading.active_count() == before
    assert reader.summary() == summary
    assert reader.kind() == "C"
    assert list(check_pack(backend, summary.pack, full=True)) == []
    assert [pack_of_key(key) for key in backend.list("packs/")] == [summary.pack]


def test_an_iterator_that_is_dropped_leaves_no_threads() -> None:
    backend = MemoryBackend()
    summary = write(backend, noise(1000), frame_bytes=10)
    before = threading.active_count()
    frames = PackReader(backend, summary.pack).read(summary.locations[0])
    next(frames)
    assert threading.active_count() > before
    frames.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def read_range(reader: PackReader, location: ContentLocation, start: int, length: int) -> bytes:
    out = bytearray(b"?" * length)
    reader.stored(location).read_into(memoryview(out), start)
    return bytes(out)


def test_a_range_reads_only_the_frames_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MemoryBackend()
    data = noise(100)
    summary = write(backend, b"before", data, frame_bytes=10)
    reader, location = PackReader(backend, summary.pack), summary.locations[1]
    for start in range(0, 101, 7):
        for length in (0, 1, 9, 10, 11, 100 - start):
            if start + length <= 100:
                assert read_range(reader, location, start, length) == data[start : start + length]
    spans = []
    real = backend.read

    def note(key: str, offset: int, length: int) -> bytes:
        spans.append((offset, length))
        return real(key, offset, length)

    stored = reader.stored(location)
    monkeypatch.setattr(backend, "read", note)
    for start, length, frames in ((39, 2, (30, 40)), (30, 10, (30,)), (31, 1, (30,)), (40, 0, ()), (95, 5, (90,))):
        spans.clear()
        stored.read_into(memoryview(bytearray(length)), start)
        assert spans == [(16 + 6 + frame, 10) for frame in frames]
    for start, length in ((-1, 2), (0, 101), (100, 1), (101, 0)):
        with pytest.raises(ValueError, match="content of 100"):
            stored.read_into(memoryview(bytearray(length)), start)


def test_a_content_too_large_for_its_purpose_is_not_read() -> None:
    backend = MemoryBackend()
    summary = write(backend, b"12345")
    assert read_small(backend, summary.locations[0], 5) == b"12345"
    with pytest.raises(ContentTooLargeError):
        read_small(backend, summary.locations[0], 4)


def test_a_damaged_frame_names_content_and_pack_and_leaves_the_others() -> None:
    good, bad = noise(100, 1), noise(100, 2)
    backend = MemoryBackend()
    summary = write(backend, good, bad, frame_bytes=30)

    def rot(data: bytearray) -> None:
        data[16 + 100 + 35] ^= 0x10

    damaged = change(backend, summary.pack, rot)
    reader = PackReader(damaged, summary.pack)
    assert b"".join(reader.read(summary.locations[0])) == good
    with pytest.raises(CorruptContentError) as caught:
        list(reader.read(summary.locations[1]))
    assert (caught.value.content, caught.value.pack) == (sha256(bad), summary.pack)
    assert sha256(bad) in caught.value.message
    assert summary.pack in caught.value.message
    assert read_range(reader, summary.locations[1], 60, 40) == bad[60:]
    with pytest.raises(CorruptContentError):
        read_range(reader, summary.locations[1], 59, 1)
    for full in (False, True):
        (damage,) = check_pack(damaged, summary.pack, full=full)
        assert (damage.pack, damage.content) == (summary.pack, sha256(bad))


def entry(data: bytes, **changes: object) -> FrameEntry:
    made = FrameEntry(sha256(data), len(data), 0, 16, len(data), len(data), checksum(data), RAW)
    return replace(made, **changes)


HEADER = encode_header("C")


def test_a_content_that_is_not_what_its_id_says_never_comes_out_whole() -> None:
    """Checksums and pack id are right; only SHA-256 can tell. The last frame is held back."""
    lie = sha256(b"the truth, and")
    frames = [
        entry(b"a lie, ", content=lie, size=14),
        entry(b"whole", content=lie, size=14, start=7, offset=23, raw_length=7, stored_length=7),
    ]
    frames[1] = replace(frames[1], checksum=checksum(b"really."))
    backend, pack = forge(HEADER, b"a lie, really.", *frames)
    (location,) = PackReader(backend, pack).summary().locations
    got = PackReader(backend, pack).read(location)
    assert bytes(next(got)) == b"a lie, "
    with pytest.raises(CorruptContentError, match="SHA-256"):
        next(got)
    assert read_range(PackReader(backend, pack), location, 0, 14) == b"a lie, really."
    assert list(check_pack(backend, pack, full=False)) == []
    (damage,) = check_pack(backend, pack, full=True)
    assert damage.content == lie


def test_an_unknown_codec_is_an_error_for_its_own_contents_alone() -> None:
    odd = entry(b"odd", codec=777, parameters=b"p" * 16, base=sha256(b"base"))
    backend, pack = forge(HEADER, b"oddplain", odd, entry(b"plain", offset=19))
    reader = PackReader(backend, pack)
    first, second = reader.summary().locations
    assert reader.entries(0, 1)[0] == odd
    assert b"".join(reader.read(second)) == b"plain"
    with pytest.raises(UnknownCodecError, match="777") as caught:
        list(PackReader(backend, pack, lambda content, gone, damaged: reader.stored(second)).read(first))
    assert first.content in caught.value.message
    with pytest.raises(CorruptContentError, match="base"):
        list(reader.read(first))
    assert list(check_pack(backend, pack, full=False)) == []
    (damage,) = check_pack(backend, pack, full=True)
    assert damage.content == first.content


def test_a_codec_that_rotted_is_damage_and_no_later_version() -> None:
    backend = MemoryBackend()
    summary = write(backend, b"data", compression="none")

    def rot(data: bytearray) -> None:
        data[20 + 72] = 99

    with pytest.raises(MalformedPackError, match="index"):
        list(PackReader(change(backend, summary.pack, rot), summary.pack).read(summary.locations[0]))


ONE, TWO = b"first", b"second!"
RULES_BROKEN = {
    "a gap between frames": (ONE + b"?" + TWO, [entry(ONE), entry(TWO, offset=22)]),
    "frames in another order": (ONE + TWO, [entry(TWO, offset=21), entry(ONE)]),
    "bytes before the index": (ONE + b"?", [entry(ONE)]),
    "shared bytes": (ONE, [entry(ONE), entry(ONE, content=sha256(b"other"))]),
    "a frame in the header": (ONE, [entry(ONE, offset=11)]),
    "a frame in the index": (ONE, [entry(ONE, offset=17)]),
    "a frame far away": (ONE, [entry(ONE, offset=1 << 63)]),
    "a content twice": (ONE + TWO + ONE, [entry(ONE), entry(TWO, offset=21), entry(ONE, offset=28)]),
    "a content twice at once": (ONE + ONE, [entry(ONE), entry(ONE, offset=21)]),
    "a content apart": (
        b"abX" + b"cd",
        [
            entry(b"ab", content=sha256(b"abcd"), size=4),
            entry(b"X", offset=18),
            entry(b"cd", content=sha256(b"abcd"), size=4, start=2, offset=19),
        ],
    ),
    "an incomplete content": (ONE, [entry(ONE, size=6)]),
    "an incomplete content, then another": (ONE + TWO, [entry(ONE, size=6), entry(TWO, offset=21)]),
    "a late start": (ONE, [entry(ONE, size=6, start=1)]),
    "an overlap": (ONE + TWO, [entry(ONE, size=11), entry(TWO, content=sha256(ONE), size=11, start=4, offset=21)]),
    "two sizes": (ONE + TWO, [entry(ONE, size=12), entry(TWO, content=sha256(ONE), size=13, start=5, offset=21)]),
    "a slice beyond its content": (ONE, [entry(ONE, size=4)]),
    "a size beyond 2^53": (ONE, [entry(ONE, size=1 << 53)]),
    "a raw frame of two lengths": (ONE, [entry(ONE, raw_length=6, size=6)]),
    "raw bytes out of nothing": (b"", [entry(b"", codec=ZSTD, size=5, raw_length=5)]),
    "nothing out of bytes": (ONE, [entry(ONE, codec=ZSTD, size=0, raw_length=0)]),
    "an empty frame": (ONE, [entry(ONE, raw_length=0, stored_length=0), entry(ONE)]),
    "an empty content in planes": (b"", [entry(b"", codec=PLANES)]),
    "an empty content of a later codec": (b"", [entry(b"", codec=777)]),
    "a frame too large": (ONE, [entry(ONE, codec=ZSTD, raw_length=(64 << 20) + 1, size=(64 << 20) + 1)]),
    "parameters of raw": (ONE, [entry(ONE, parameters=b"p" * 16)]),
    "parameters of zstd": (ONE, [entry(ONE, codec=ZSTD, parameters=b"p" * 16)]),
    "a base of raw": (ONE, [entry(ONE, base=sha256(TWO))]),
    "a base of zstd": (ONE, [entry(ONE, codec=ZSTD, base=sha256(TWO))]),
    "a base of planes": (ONE, [entry(ONE, codec=PLANES, base=sha256(TWO))]),
    "a difference without a base": (ONE, [entry(ONE, codec=DELTA)]),
    "a difference from itself": (ONE, [entry(ONE, codec=DELTA, base=sha256(ONE))]),
    "itself as the base of a later codec": (ONE, [entry(ONE, codec=777, base=sha256(ONE))]),
    "a base of zeros": (ONE, [entry(ONE, codec=777, base=ContentId("0" * 64))]),
}


@pytest.mark.parametrize("name", RULES_BROKEN)
def test_an_index_that_breaks_a_rule_is_refused_though_its_checksums_are_right(name: str) -> None:
    frames, entries = RULES_BROKEN[name]
    backend, pack = forge(HEADER, frames, *entries)
    with pytest.raises(MalformedPackError, match=pack):
        PackReader(backend, pack).summary()
    (damage,) = check_pack(backend, pack, full=False)
    assert damage.content is None


def test_an_index_that_keeps_every_rule_is_still_not_that_of_another_pack() -> None:
    """The width of elements is a hint that no rule ties to anything else: only the pack's id covers it."""
    backend = MemoryBackend()
    summary = write(backend, ONE)

    def widen(data: bytearray) -> None:
        data[-FOOTER_BYTES - ENTRY_BYTES + 76] = 2

    changed = change(backend, summary.pack, widen)
    with pytest.raises(MalformedPackError, match="its index is damaged"):
        PackReader(changed, summary.pack).summary()
    (damage,) = check_pack(changed, summary.pack, full=False)
    assert damage.content is None


def test_slices_that_do_not_follow_are_refused_without_reading_the_whole_index() -> None:
    parts = [
        entry(b"ab", content=sha256(b"abcd"), size=4),
        entry(b"cd", content=sha256(b"abcd"), size=4, start=1, offset=18),
        entry(b"cd", content=sha256(b"abcd"), size=4, start=2, offset=20),
    ]
    backend, pack = forge(HEADER, b"abcdcd", *parts)
    with pytest.raises(MalformedPackError, match="not where"):
        list(PackReader(backend, pack).read(ContentLocation(sha256(b"abcd"), 4, pack, 0, 3, 6)))


@pytest.mark.parametrize("position", [74, 75, 77, 78, 79, 96])
def test_flags_and_zero_bytes_of_an_entry_are_refused(position: int) -> None:
    index = bytearray(encode_entry(entry(ONE, codec=PLANES)))
    index[position] |= 2
    backend, pack = forge(HEADER, ONE, index=bytes(index))
    with pytest.raises(MalformedPackError):
        PackReader(backend, pack).summary()


def test_a_record_in_two_frames_is_refused() -> None:
    parts = [entry(ONE, size=12), entry(TWO, content=sha256(ONE), size=12, start=5, offset=21)]
    assert PackReader(*forge(HEADER, ONE + TWO, *parts)).summary().locations[0].entries == 2
    with pytest.raises(MalformedPackError, match="record"):
        PackReader(*forge(encode_header("R"), ONE + TWO, *parts)).summary()


def test_a_footer_that_lies_is_refused() -> None:
    index = encode_entry(entry(ONE))
    pack = pack_id(HEADER, [index])
    right = Footer(21, 1, pack)
    for footer, tail in (
        (replace(right, entries=2), b""),
        (replace(right, entries=0, index_offset=149), b""),
        (replace(right, index_offset=20), b""),
        (replace(right, entries=1 << 62), b""),
        (replace(right, pack=PackId("0" * 64)), b""),
        (right, b"trailing"),
    ):
        backend = MemoryBackend()
        backend.put(pack_key(pack), HEADER + ONE + index + encode_footer(footer) + tail)
        with pytest.raises(MalformedPackError):
            PackReader(backend, pack).footer()


def test_zero_bytes_of_the_footer_are_refused_though_its_checksum_is_right() -> None:
    index = encode_entry(entry(ONE))
    pack = pack_id(HEADER, [index])
    body = bytearray(encode_footer(Footer(21, 1, pack))[:64])
    body[63] = 1
    backend = MemoryBackend()
    footer = bytes(body) + checksum(body).to_bytes(8, "little") + b"RBLPACKE"
    backend.put(pack_key(pack), HEADER + ONE + index + footer)
    with pytest.raises(MalformedPackError, match="zero"):
        PackReader(backend, pack).footer()


def test_every_truncation_is_found() -> None:
    backend = MemoryBackend()
    summary = write(backend, b"some content")
    data = whole(backend, summary)
    for size in range(len(data)):
        cut = MemoryBackend()
        cut.put(pack_key(summary.pack), data[:size])
        assert list(check_pack(cut, summary.pack, full=False)) != []
        with pytest.raises(CorruptError):
            list(PackReader(cut, summary.pack).read(summary.locations[0]))


def test_a_missing_pack_is_damage_and_an_error() -> None:
    pack = PackId("ab" * 32)
    with pytest.raises(MissingObjectError):
        PackReader(MemoryBackend(), pack).summary()
    (damage,) = check_pack(MemoryBackend(), pack, full=True)
    assert (damage.pack, damage.content) == (pack, None)


def test_a_location_that_is_not_so_is_refused() -> None:
    backend = MemoryBackend()
    summary = write(backend, noise(30, 1), noise(30, 2), frame_bytes=10)
    right = summary.locations[0]
    reader = PackReader(backend, summary.pack)
    for wrong in (
        replace(right, content=sha256(b"other")),
        replace(right, size=29),
        replace(right, first_entry=1),
        replace(right, first_entry=3),
        replace(right, entries=2),
        replace(right, entries=4),
        replace(right, entries=0),
        replace(right, first_entry=5),
        replace(right, first_entry=-1),
        replace(right, entries=1 << 60),
        replace(right, pack=PackId("0" * 64)),
    ):
        with pytest.raises(MalformedPackError):
            list(reader.read(wrong))
