"""Laws of packs: what goes in comes out, and no change of a byte ever comes out as something else."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from hypothesis_tiers import law

from rblstore.errors import CorruptError, RblError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import PackSummary
from rblstore.storage import encoding
from rblstore.storage.codecs import decode_frame, encode_frame
from rblstore.storage.memory import MemoryBackend
from rblstore.storage.pack_check import check_pack
from rblstore.storage.pack_format import (
    ENTRY_BYTES,
    Footer,
    FrameEntry,
    encode_entry,
    encode_footer,
    encode_header,
    pack_id,
    pack_key,
    parse_entries,
    parse_footer,
)
from rblstore.storage.pack_reader import PackReader
from rblstore.storage.pack_writer import PackWriter

FRAME = 32
LAW = law(120, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Sizes around the frame's, of bytes that compress and bytes that do not.
sizes = st.sampled_from(sorted({max(0, FRAME * k + d) for k in range(5) for d in (-1, 0, 1)}))
contents = st.one_of(
    st.binary(max_size=3 * FRAME),
    sizes.flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255)),
)
compressions = st.sampled_from(["none", "fast", "max"])


@pytest.fixture(autouse=True, params=[0, 1 << 30], ids=["threads", "inline"])
def _inline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_INLINE_BYTES", request.param)


def sha256(data: bytes) -> ContentId:
    return ContentId(hashlib.sha256(data).hexdigest())


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces of any size, some empty."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def write(backend: MemoryBackend, items: list[bytes], compression: str = "fast") -> PackSummary:
    with PackWriter(backend, "C", is_stored=lambda _: False, compression=compression, frame_bytes=FRAME) as writer:
        for data in items:
            writer.add_bytes(data)
        summary = writer.finish()
    assert summary is not None
    return summary


@LAW
@given(
    st.lists(st.tuples(contents, st.lists(st.integers(0, 4 * FRAME), max_size=5)), min_size=1, max_size=8),
    st.sets(st.integers(0, 7)),
    compressions,
    st.integers(0, 2),
)
def test_what_is_added_comes_back(
    items: list[tuple[bytes, list[int]]], stored: set[int], compression: str, workers: int
) -> None:
    elsewhere = {sha256(items[index][0]) for index in stored if index < len(items)}
    backend = MemoryBackend()
    expected: dict[ContentId, bytes] = {}
    with PackWriter(
        backend,
        "C",
        is_stored=elsewhere.__contains__,
        compression=compression,
        workers=workers,
        frame_bytes=FRAME,
    ) as writer:
        added = []
        for data, cuts in items:
            one = writer.add(pieces(data, cuts))
            added.append(one)
            assert (one.content, one.size) == (sha256(data), len(data))
            assert one.new == (one.content not in elsewhere and one.content not in expected)
            if one.new:
                expected[one.content] = data
        summary = writer.finish()
    assert backend.open_stages == 0
    if not expected:
        assert summary is None
        assert list(backend.list("")) == []
        return
    assert summary is not None
    reader = PackReader(backend, summary.pack)
    assert reader.summary() == summary
    assert [location.content for location in summary.locations] == list(expected)
    for location in summary.locations:
        assert b"".join(reader.read(location)) == expected[location.content]
        assert location.stored <= location.size
    assert {one.content: one.stored for one in added if one.new} == {
        location.content: location.stored for location in summary.locations
    }
    assert list(check_pack(backend, summary.pack, full=True)) == []
    twin = MemoryBackend()
    assert write(twin, list(expected.values()), compression) == summary
    key = pack_key(summary.pack)
    assert twin.read(key, 0, summary.size) == backend.read(key, 0, summary.size)


@LAW
@given(contents, st.data())
def test_a_range_is_the_slice(data: bytes, draw: st.DataObject) -> None:
    backend = MemoryBackend()
    summary = write(backend, [b"before", data] if data != b"before" else [data])
    start = draw.draw(st.integers(0, len(data)))
    length = draw.draw(st.integers(0, len(data) - start))
    location = summary.locations[-1]
    got = bytearray(length)
    PackReader(backend, summary.pack).stored(location).read_into(memoryview(got), start)
    assert got == data[start : start + length]


@LAW
@given(contents, compressions)
def test_a_frame_decodes_to_what_was_encoded(data: bytes, compression: str) -> None:
    frame = encode_frame(data, compression)
    assert decode_frame(frame.codec, frame.parameters, bytes(frame.data), len(data)) == data


@LAW
@given(st.binary(max_size=200), st.integers(0, 4), st.integers(0, 1 << 20))
def test_hostile_frames_decode_to_their_length_or_are_refused(stored: bytes, codec: int, raw_length: int) -> None:
    for candidate in (stored, b"\x28\xb5\x2f\xfd" + stored):
        try:
            data = decode_frame(codec, bytes(16), candidate, raw_length)
        except RblError:
            continue
        assert len(data) == raw_length


mutations = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 1 << 16), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 1 << 16), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 1 << 16), st.integers(0, 255)),
    st.tuples(st.just("delete"), st.integers(0, 1 << 16), st.just(0)),
)


def mutate(data: bytes, mutation: tuple[str, int, int]) -> bytes:
    what, position, value = mutation
    position %= len(data)
    changed = bytearray(data)
    if what == "flip":
        changed[position] ^= value
    elif what == "cut":
        del changed[position:]
    elif what == "insert":
        changed.insert(position, value)
    else:
        del changed[position]
    return bytes(changed)


def require_detected(changed: bytes, summary: PackSummary, expected: dict[ContentId, bytes]) -> None:
    backend = MemoryBackend()
    backend.put(pack_key(summary.pack), changed)
    reader = PackReader(backend, summary.pack)
    for location in summary.locations:
        try:
            got = b"".join(reader.read(location))
        except CorruptError:
            continue
        assert got == expected[location.content]
    assert list(check_pack(backend, summary.pack, full=False)) != []
    assert list(check_pack(backend, summary.pack, full=True)) != []


@LAW
@given(
    st.lists(contents, min_size=1, max_size=3, unique=True), compressions, st.lists(mutations, min_size=1, max_size=8)
)
def test_any_change_is_found_and_never_comes_out(
    items: list[bytes], compression: str, changes: list[tuple[str, int, int]]
) -> None:
    backend = MemoryBackend()
    summary = write(backend, items, compression)
    data = backend.read(pack_key(summary.pack), 0, summary.size)
    expected = {sha256(item): item for item in items}
    for mutation in changes:
        changed = mutate(data, mutation)
        if changed != data:
            require_detected(changed, summary, expected)


def test_every_flipped_byte_of_a_pack_is_found() -> None:
    items = [b"raw bytes", b"z" * 100, b""]
    backend = MemoryBackend()
    summary = write(backend, items)
    data = backend.read(pack_key(summary.pack), 0, summary.size)
    expected = {sha256(item): item for item in items}
    for position in range(len(data)):
        for value in (0x01, 0x80):
            require_detected(mutate(data, ("flip", position, value)), summary, expected)


ids = st.binary(min_size=32, max_size=32).map(lambda raw: ContentId(raw.hex()))
edges = st.sampled_from([0, 1, 15, 16, 17, 48, (1 << 26) + 1, (1 << 53) - 1, 1 << 53, (1 << 63) - 1, (1 << 64) - 1])
small = st.sampled_from([0, 1, 16, 1 << 26, (1 << 26) + 1, (1 << 32) - 1])
entries = st.builds(
    FrameEntry,
    content=ids,
    size=edges | st.integers(0, 64),
    start=edges | st.integers(0, 64),
    offset=edges | st.integers(0, 64),
    raw_length=small | st.integers(0, 64),
    stored_length=small | st.integers(0, 64),
    checksum=edges,
    codec=st.integers(0, 4) | st.just(65535),
    element_width=st.integers(0, 255),
    parameters=st.sampled_from([bytes(16), b"p" * 16]),
    base=st.none() | ids,
)


@LAW
@given(entries)
def test_an_entry_reads_as_it_was_written(entry: FrameEntry) -> None:
    data = encode_entry(entry)
    assert len(data) == ENTRY_BYTES
    footer = Footer((1 << 64) - 1, 1, PackId("0" * 64))
    try:
        (parsed,) = parse_entries(data, footer)
    except CorruptError:
        return
    assert parsed == entry


@LAW
@given(st.integers(16, 1 << 60), st.integers(1, 8_000_000), ids)
def test_a_footer_reads_as_it_was_written(offset: int, count: int, named: ContentId) -> None:
    footer = Footer(offset, count, PackId(named))
    assert parse_footer(encode_footer(footer), footer.pack, footer.file_size) == footer


@LAW
@given(
    st.binary(max_size=64),
    st.lists(entries, min_size=1, max_size=4),
    st.sampled_from([encode_header("C"), encode_header("R"), bytes(16)]),
    st.lists(st.tuples(st.integers(0, 511), st.integers(1, 255)), max_size=3),
    st.booleans(),
)
def test_a_hostile_index_raises_nothing_of_another_family(
    frames: bytes, forged: list[FrameEntry], header: bytes, flips: list[tuple[int, int]], repair: bool
) -> None:
    """Id and checksums are right, so that the rules themselves are reached."""
    if repair:
        offset, content = 16, None
        for number, entry in enumerate(forged):
            length = min(entry.raw_length, 16 + len(frames) - offset)
            content = entry.content if content is None else content
            forged[number] = replace(entry, offset=offset, raw_length=length, stored_length=length, codec=0)
            offset += length
    index = bytearray(b"".join(map(encode_entry, forged)))
    for position, value in flips:
        index[position % len(index)] ^= value
    pack = pack_id(header, [index])
    footer = Footer(16 + len(frames), len(forged), pack)
    backend = MemoryBackend()
    backend.put(pack_key(pack), header + frames + index + encode_footer(footer))
    reader = PackReader(backend, pack)
    list(check_pack(backend, pack, full=False))
    list(check_pack(backend, pack, full=True))
    try:
        locations = reader.summary().locations
    except CorruptError:
        return
    for location in locations:
        try:
            data = b"".join(reader.read(location))
        except RblError:
            continue
        assert sha256(data) == location.content
