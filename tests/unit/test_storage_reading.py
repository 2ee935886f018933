"""The pipeline that reads: in order, verified before the last piece, wherever the pack went, and no thread left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import pytest
from storage_samples import MemorySource, Shelf, noise, nudged, sha256, weights

from rblstore.errors import CorruptError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId, PackId
from rblstore.storage import decoding
from rblstore.storage.backend import MissingObjectError
from rblstore.storage.codecs import DELTA
from rblstore.storage.decoding import Piece, Wanted, read_contents
from rblstore.storage.pack_check import check_pack
from rblstore.storage.pack_format import HEADER_BYTES, MalformedPackError, pack_key
from rblstore.storage.pack_reader import CorruptContentError, PackReader
from rblstore.storage.pack_writer import PackWriter
from rblstore.storage.stored_content import StoredContent

FRAME = 1000
WORKERS = [0, 1, 2, 8]
DATA = weights(5000)
BASE = weights(5000, 7)
TUNED = nudged(BASE)
TEXT = b"the quick brown fox " * 200
MANY = [noise(at % 37, at) for at in range(300)]
CONTENTS = [TEXT, DATA, b"", TUNED, *MANY[:40], noise(2500, 3), b"x", BASE]


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def shelf() -> Shelf:
    """Four packs: a base, differences from it, text, and many small contents with two large ones."""
    made = Shelf()
    made.put(BASE, frame_bytes=FRAME)
    made.put(TUNED, bases={TUNED: BASE}, frame_bytes=FRAME)
    made.put(TEXT, width=0, frame_bytes=FRAME)
    made.put(DATA, *MANY, noise(2500, 3), b"x", frame_bytes=FRAME)
    return made


def gather(pieces: Generator[Piece, None, None], got: list[Piece]) -> None:
    """Takes every piece as long as they come."""
    for piece in pieces:
        got.append(piece)  # noqa: PERF402


@pytest.mark.parametrize("workers", WORKERS)
class TestReading:
    @pytest.mark.parametrize("reuse", [False, True])
    def test_contents_come_in_order_frame_by_frame(self, shelf: Shelf, workers: int, reuse: bool) -> None:
        wanted = [Wanted(shelf.stored(data)) for data in CONTENTS]
        got: list[tuple[int, int, bytes, bool]] = []
        for piece in read_contents(wanted, workers=workers, reuse=reuse):
            at = next(number for number, one in enumerate(wanted) if one is piece.wanted)
            got.append((at, piece.start, bytes(piece.data), piece.last))
        expected = [
            (at, start, data[start : start + FRAME], start + FRAME >= len(data))
            for at, data in enumerate(CONTENTS)
            for start in range(0, max(len(data), 1), FRAME)
        ]
        assert got == expected

    def test_without_reuse_every_piece_stays(self, shelf: Shelf, workers: int) -> None:
        pieces = list(read_contents([Wanted(shelf.stored(data)) for data in CONTENTS], workers=workers))
        assert b"".join(piece.data for piece in pieces) == b"".join(CONTENTS)

    def test_into_memory_of_the_caller(self, shelf: Shelf, workers: int) -> None:
        rooms = [bytearray(b"?" * (len(data) + 2)) for data in CONTENTS]
        wanted = [
            Wanted(shelf.stored(data), out=memoryview(room)[1:-1]) for data, room in zip(CONTENTS, rooms, strict=True)
        ]
        for piece in read_contents(wanted, workers=workers, reuse=True):
            assert piece.data.obj is rooms[wanted.index(piece.wanted)]
        assert rooms == [b"?" + data + b"?" for data in CONTENTS]

    def test_sinks_get_every_byte_with_its_place(self, shelf: Shelf, workers: int) -> None:
        rooms, threads = [bytearray(len(data)) for data in CONTENTS], set()
        counts = [0] * len(CONTENTS)

        def sink_of(at: int) -> Callable[[memoryview, int], None]:
            def sink(data: memoryview, start: int) -> None:
                threads.add(threading.current_thread())
                rooms[at][start : start + len(data)] = data
                counts[at] += 1

            return sink

        wanted = [Wanted(shelf.stored(data), sink=sink_of(at)) for at, data in enumerate(CONTENTS)]
        pieces = sum(1 for _ in read_contents(wanted, workers=workers, reuse=True))
        assert rooms == CONTENTS
        assert sum(counts) == pieces
        assert (threading.main_thread() in threads) == (workers == 0)
        assert len(threads) <= max(workers, 1)

    def test_nothing_and_one(self, shelf: Shelf, workers: int) -> None:
        assert list(read_contents([], workers=workers)) == []
        (piece,) = read_contents([Wanted(shelf.stored(b"x"))], workers=workers)
        assert (bytes(piece.data), piece.start, piece.last) == (b"x", 0, True)
        (piece,) = read_contents([Wanted(shelf.stored(b""))], workers=workers)
        assert (bytes(piece.data), piece.start, piece.last) == (b"", 0, True)

    def test_what_is_wanted_is_asked_for_a_little_ahead(
        self, shelf: Shelf, workers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decoding, "_AHEAD_BYTES", 1)
        asked, got = 0, 0

        def wanted() -> Iterator[Wanted]:
            nonlocal asked
            for data in MANY:
                asked += 1
                yield Wanted(shelf.stored(data))

        for _ in read_contents(wanted(), workers=workers):
            got += 1
            assert asked - got <= 2
        assert got == len(MANY)

    def test_many_small_contents(self, shelf: Shelf, workers: int) -> None:
        pieces = list(read_contents([Wanted(shelf.stored(data)) for data in MANY * 3], workers=workers))
        assert [bytes(piece.data) for piece in pieces] == MANY * 3

    @pytest.mark.parametrize("after", [0, 1, 5, 12])
    def test_closing_early_ends_the_threads(self, shelf: Shelf, workers: int, after: int) -> None:
        before = threading.active_count()
        with closing(read_contents([Wanted(shelf.stored(data)) for data in CONTENTS], workers=workers)) as pieces:
            for _ in range(after):
                next(pieces)
            assert (threading.active_count() > before) == (workers > 0 and after > 0)
        assert threading.active_count() == before

    @pytest.mark.parametrize("frame", [0, 4, 9])
    def test_damage_comes_before_the_bytes_behind_it(self, shelf: Shelf, workers: int, frame: int) -> None:
        stored = shelf.stored(DATA)
        shelf.rot(stored.location.pack, stored.frames[frame].offset + 9)
        wanted = [Wanted(shelf.stored(TEXT)), Wanted(shelf.stored(DATA)), Wanted(shelf.stored(BASE))]
        got: list[Piece] = []
        with pytest.raises(CorruptContentError, match=f"checksum of its frame at {frame * FRAME}") as caught:
            gather(read_contents(wanted, workers=workers), got)
        assert caught.value.content == sha256(DATA)
        assert b"".join(piece.data for piece in got) == TEXT + DATA[: frame * FRAME]

    def test_the_digest_is_compared_before_the_last_piece(self, shelf: Shelf, workers: int) -> None:
        """A content whose frames are whole, under another's id."""
        real = shelf.stored(DATA)

        class Lie:
            content = sha256(b"the truth")
            frames, size, location = real.frames, real.size, real.location
            read_frame, wrong = staticmethod(real.read_frame), staticmethod(real.wrong)

        got: list[Piece] = []
        sunk: list[int] = []
        wanted = [Wanted(Lie(), sink=lambda data, start: sunk.append(start))]
        with pytest.raises(CorruptContentError, match="SHA-256"):
            gather(read_contents(wanted, workers=workers), got)
        assert [piece.start for piece in got] == list(range(0, 9 * FRAME, FRAME))
        assert sorted(sunk) == list(range(0, 10 * FRAME, FRAME))

    @pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
    @pytest.mark.parametrize("at", [0, 4000, 9000])
    def test_a_sink_that_fails(self, shelf: Shelf, workers: int, at: int, failure: type[BaseException]) -> None:
        def sink(_: memoryview, start: int) -> None:
            if start == at:
                raise failure("as told")

        got: list[Piece] = []
        wanted = [Wanted(shelf.stored(TEXT)), Wanted(shelf.stored(DATA), sink=sink), Wanted(shelf.stored(BASE))]
        with pytest.raises(failure, match="as told"):
            gather(read_contents(wanted, workers=workers), got)
        assert len(got) == len(TEXT) // FRAME + at // FRAME

    def test_what_is_wanted_fails(self, shelf: Shelf, workers: int) -> None:
        def wanted() -> Iterator[Wanted]:
            yield Wanted(shelf.stored(DATA))
            raise RuntimeError("as told")

        with pytest.raises(RuntimeError, match="as told"):
            list(read_contents(wanted(), workers=workers))

    def test_a_consumer_that_fails(self, shelf: Shelf, workers: int) -> None:
        def consume() -> None:
            with closing(read_contents([Wanted(shelf.stored(DATA))], workers=workers)) as pieces:
                for _ in pieces:
                    raise KeyboardInterrupt("as told")

        with pytest.raises(KeyboardInterrupt, match="as told"):
            consume()

    def test_differences_from_a_base_in_another_pack(self, shelf: Shelf, workers: int) -> None:
        assert {entry.codec for entry in shelf.entries(TUNED)} == {DELTA}
        assert shelf.stored(TUNED).location.pack != shelf.stored(BASE).location.pack
        pieces = read_contents([Wanted(shelf.stored(TUNED))], workers=workers)
        assert b"".join(piece.data for piece in pieces) == TUNED

    # -- packs that go away ---------------------------------------------------------------------------------------

    @pytest.mark.parametrize("after", [0, 1, 5])
    def test_a_pack_that_vanishes_is_read_where_it_went(self, shelf: Shelf, workers: int, after: int) -> None:
        """In frames of another size, and as another codec."""
        stored, gone = shelf.stored(DATA), shelf.stored(DATA).location.pack
        shelf.put(noise(77), DATA, frame_bytes=333, compression="none")
        got = bytearray()
        with closing(read_contents([Wanted(stored)], workers=workers)) as pieces:
            for _ in range(after):
                got += next(pieces).data
            shelf.remove(gone)
            for piece in pieces:
                got += piece.data
        assert got == DATA

    def test_a_base_that_vanishes_is_read_where_it_went(self, shelf: Shelf, workers: int) -> None:
        stored, gone = shelf.stored(TUNED), shelf.stored(BASE).location.pack
        shelf.put(BASE, frame_bytes=777)
        with closing(read_contents([Wanted(stored)], workers=workers)) as pieces:
            got = bytearray(next(pieces).data)
            shelf.remove(gone)
            for piece in pieces:
                got += piece.data
        assert got == TUNED

    def test_a_pack_that_is_nowhere_is_missing(self, shelf: Shelf, workers: int) -> None:
        stored, gone = shelf.stored(DATA), shelf.stored(DATA).location.pack
        shelf.remove(gone)
        pieces = read_contents([Wanted(stored)], workers=workers)
        with pytest.raises(MissingObjectError, match=gone):
            list(pieces)
        with pytest.raises(MissingObjectError, match=gone):
            shelf.reader(gone).stored(stored.location)
        alone = PackReader(shelf.backend, gone)
        with pytest.raises(MissingObjectError, match=gone):
            list(alone.read(stored.location))


def test_a_content_whose_pack_is_gone_before_it_is_looked_at(shelf: Shelf) -> None:
    location = shelf.stored(DATA).location
    shelf.put(DATA, frame_bytes=400)
    reader = shelf.reader(location.pack)
    shelf.remove(location.pack)
    stored = reader.stored(location)
    assert len(stored.frames) == len(DATA) // 400
    assert b"".join(piece.data for piece in read_contents([Wanted(stored)])) == DATA
    out = bytearray(500)
    stored.read_into(memoryview(out), 701)
    assert out == DATA[701:1201]


def test_a_find_that_gives_the_same_pack_again_does_not_go_round(shelf: Shelf) -> None:
    location = shelf.stored(DATA).location
    stored: list[StoredContent] = []

    def find(content: ContentId, gone: PackId | None, damaged: frozenset[PackId]) -> StoredContent | None:
        return stored[0]

    stored.append(PackReader(shelf.backend, location.pack, find).stored(location))
    shelf.remove(location.pack)
    with pytest.raises(MissingObjectError, match=location.pack):
        list(read_contents([Wanted(stored[0])]))


def test_two_repacks_within_one_read(shelf: Shelf) -> None:
    """A difference was stored whole, and then its base was dropped: the old pack is gone, and so is what it needs."""
    stored = shelf.stored(TUNED)
    old, base = stored.location.pack, shelf.stored(BASE).location.pack
    with closing(read_contents([Wanted(stored)], workers=0)) as pieces:
        got = bytearray(next(pieces).data)
        shelf.put(noise(9), TUNED, frame_bytes=700)
        shelf.remove(old)
        shelf.remove(base)
        del shelf.locations[sha256(BASE)]
        for piece in pieces:
            got += piece.data
    assert got == TUNED


def test_a_base_that_is_lost_is_what_is_named_while_the_pack_is_there(shelf: Shelf) -> None:
    stored = shelf.stored(TUNED)
    del shelf.locations[sha256(BASE)]
    with pytest.raises(CorruptContentError, match=f"its base {sha256(BASE)} is not stored"):
        stored.read_into(memoryview(bytearray(len(TUNED))), 0)


@pytest.mark.parametrize("frame", [0, 4, 9])
def test_a_whole_copy_serves_where_one_is_damaged_but_not_whoever_asks_about_that_one(shelf: Shelf, frame: int) -> None:
    location = shelf.stored(DATA).location
    entry = shelf.stored(DATA).frames[frame]
    shelf.put(noise(5), DATA, frame_bytes=FRAME)
    shelf.put(noise(6), DATA, frame_bytes=333)
    second = shelf.find(sha256(DATA), location.pack)
    assert second is not None
    shelf.rot(location.pack, entry.offset)
    shelf.rot(second.location.pack, second.frames[1].offset)
    reader = shelf.reader(location.pack)
    with pytest.raises(CorruptContentError, match=f"checksum of its frame at {frame * FRAME}"):
        list(reader.read(location))
    assert b"".join(reader.read(location, any_copy=True)) == DATA


def test_a_whole_copy_serves_where_a_pack_is_no_pack(shelf: Shelf) -> None:
    location = shelf.stored(DATA).location
    shelf.put(noise(5), DATA, frame_bytes=FRAME)
    shelf.rot(location.pack, shelf.backend.size(pack_key(location.pack)) - 1)
    with pytest.raises(MalformedPackError):
        shelf.reader(location.pack).stored(location)
    assert b"".join(shelf.reader(location.pack).read(location, any_copy=True)) == DATA


def test_where_every_copy_is_damaged_the_content_is_named(shelf: Shelf) -> None:
    location = shelf.stored(DATA).location
    shelf.put(noise(5), DATA, frame_bytes=FRAME)
    for one in list(shelf.locations[sha256(DATA)]):
        shelf.rot(one.pack, shelf.reader(one.pack).stored(one).frames[0].offset)
    with pytest.raises(CorruptContentError) as caught:
        list(shelf.reader(location.pack).read(location, any_copy=True))
    assert caught.value.content == sha256(DATA)


def test_a_base_that_became_a_difference_meanwhile_never_gives_wrong_bytes(shelf: Shelf) -> None:
    """Nothing writes such a repository. What is read from it is right, or an error that names the content."""
    base, tuned = shelf.stored(BASE), shelf.stored(TUNED)
    root = nudged(BASE, seed=5)
    shelf.put(root, frame_bytes=FRAME)
    shelf.put(BASE, bases={BASE: root}, frame_bytes=FRAME)
    gone = base.location.pack

    def find(content: ContentId, gone: PackId | None, damaged: frozenset[PackId]) -> StoredContent | None:
        return base if content == sha256(BASE) and gone is None else shelf.find(content, gone, damaged)

    stored = PackReader(shelf.backend, tuned.location.pack, find).stored(tuned.location)
    shelf.remove(gone)
    out = bytearray(len(TUNED))
    try:
        stored.read_into(memoryview(out), 0)
    except CorruptError as error:
        assert error.object in (sha256(TUNED), sha256(BASE))  # noqa: PT017
    else:
        assert out == TUNED


# -- ranges -----------------------------------------------------------------------------------------------------------


def test_any_range_of_any_codec(shelf: Shelf) -> None:
    for data in (TUNED, DATA, TEXT):
        stored = shelf.stored(data)
        for start in (0, 1, 999, 1000, 1001, 2500, len(data) - 1, len(data)):
            for length in (0, 1, 999, 1000, 1001, 2001, len(data)):
                if start + length <= len(data):
                    out = bytearray(length)
                    stored.read_into(memoryview(out), start)
                    assert out == data[start : start + length]


def test_a_difference_reads_only_what_lies_beneath(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, base = shelf.stored(TUNED), shelf.stored(BASE)
    entry, beneath = stored.frames[3], base.frames[3]
    reads, real = [], shelf.backend.read

    def read(key: str, offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return real(key, offset, length)

    def read_into(key: str, offset: int, out: memoryview) -> None:
        reads.append((offset, len(out)))
        out[:] = real(key, offset, len(out))

    reader = PackReader(shelf.backend, stored.location.pack, lambda content, gone, damaged: base)
    finder = reader.stored(stored.location)
    monkeypatch.setattr(shelf.backend, "read", read)
    monkeypatch.setattr(shelf.backend, "read_into", read_into)
    finder.read_into(memoryview(bytearray(10)), 3 * FRAME + 5)
    assert sorted(set(reads)) == sorted({(entry.offset, entry.stored_length), (beneath.offset, beneath.stored_length)})
    assert len(reads) == 2


# -- at full size -----------------------------------------------------------------------------------------------------


def test_frames_of_full_size_use_their_buffers_again() -> None:
    """Contents of several frames of 8 MiB, as they are written."""
    shelf = Shelf()
    data, small = noise(1 << 20) * 27 + b"tail", noise(3 << 20)
    with PackWriter(shelf.backend, "C", is_stored=lambda _: False) as writer:
        for one in (data, small):
            writer.add_source(MemorySource(one))
        shelf.learn(writer.finish())
    assert [entry.raw_length for entry in shelf.entries(data)[:3]] == [limits.FRAME_BYTES] * 3
    wanted = [Wanted(shelf.stored(one)) for one in (data, small, data)]
    rooms, got = set(), []
    for piece in read_contents(wanted, workers=2, reuse=True):
        rooms.add(id(piece.data.obj))
        got.append(sha256(bytes(piece.data)))
    once = [sha256(bytes(piece.data)) for piece in read_contents(wanted, workers=0)]
    assert got == once
    assert len(rooms) < len(got)


def test_every_frame_of_a_pack_that_rotted_is_found(shelf: Shelf) -> None:
    pack = shelf.stored(TUNED).location.pack
    for at in range(HEADER_BYTES, sum(entry.stored_length for entry in shelf.entries(TUNED)), 61):
        shelf.rot(pack, at)
        for full in (False, True):
            (damage,) = check_pack(shelf.backend, pack, full=full, find=shelf.find)
            assert damage.content == sha256(TUNED)
        shelf.rot(pack, at)
    assert list(check_pack(shelf.backend, pack, full=True, find=shelf.find)) == []
