"""The pipeline that writes: the same pack whatever the threads and guesses, and nothing left of what went wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass

import pytest
from storage_samples import MemorySource, Shelf, noise, nudged, sha256, weights

from rblstore.errors import CorruptError, RblError
from rblstore.objects.ids import ContentId
from rblstore.storage import encoding
from rblstore.storage.codecs import DELTA, PLANES, RAW
from rblstore.storage.encoding import EncodingPipeline
from rblstore.storage.memory import MemoryBackend
from rblstore.storage.pack_check import check_pack
from rblstore.storage.pack_format import checksum, pack_key
from rblstore.storage.pack_reader import PackReader
from rblstore.storage.pack_writer import AddedContent, PackWriter

FRAME = 1000
WORKERS = [0, 1, 2, 8]
DATA = weights(5000)  # ten frames
FRAMES = len(DATA) // FRAME


@pytest.fixture(params=[0, 1 << 30], ids=["threads", "inline"])
def _inline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether small contents are handed to another thread to be encoded."""
    monkeypatch.setattr(encoding, "_INLINE_BYTES", request.param)


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def never(_: ContentId) -> bool:
    return False


def writer_on(backend: MemoryBackend, **options: object) -> PackWriter:
    return PackWriter(backend, "C", **{"is_stored": never, "frame_bytes": FRAME, **options})


def packs(backend: MemoryBackend) -> list[bytes]:
    return [backend.read(key, 0, backend.size(key)) for key in backend.list("")]


# -- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_inline")
@pytest.mark.parametrize("compression", ["none", "fast", "max"])
def test_the_pack_does_not_depend_on_the_threads(compression: str) -> None:
    shelf = Shelf()
    base, tuned, half = weights(4000, 1), nudged(weights(4000, 1)), nudged(weights(4000, 1))[:5000]
    shelf.put(base, noise(3500, 4), frame_bytes=FRAME)
    text = b"the quick brown fox " * 130
    written = []
    for workers in WORKERS:
        backend = MemoryBackend()
        with writer_on(
            backend, is_stored=lambda one: one == sha256(base), compression=compression, workers=workers
        ) as writer:
            added = [
                writer.add_source(MemorySource(text)),
                writer.add_source(MemorySource(tuned), element_width=2, base=shelf.stored(base)),
                writer.add([text[:7], text[7:]]),  # a large one twice in one pack
                writer.add_source(MemorySource(base), element_width=2, expected=shelf.stored(base)),
                writer.add([weights(10, 2)], element_width=2),
                writer.add_source(MemorySource(weights(10, 2)), element_width=2),  # a small one twice
                writer.add_source(MemorySource(b"")),
                writer.add([noise(900, 3), noise(900, 4)], element_width=4),
                writer.add_source(
                    MemorySource(half), element_width=2, base=shelf.stored(base), expected=shelf.stored(base)
                ),
                # Two frames look like what is expected, the third does not.
                writer.add_source(
                    MemorySource(base[:2500] + noise(5500, 9)), element_width=2, expected=shelf.stored(base)
                ),
                writer.add([b""]),
                writer.add_source(MemorySource(DATA), element_width=2),
            ]
            known = [one.new for one in added]
            summary = writer.finish()
        assert summary is not None
        stored = [one.stored for one in added]
        assert known == [True, True, False, False, True, False, True, True, True, True, False, True]
        assert sum(stored) == sum(location.stored for location in summary.locations)
        assert list(check_pack(backend, summary.pack, full=True, find=shelf.find)) == []
        written.append((summary, packs(backend), stored, [one.content for one in added]))
    assert all(one == written[0] for one in written)
    reader = PackReader(backend, written[0][0].pack, shelf.find)
    codecs = {entry.codec for entry in reader.entries(0, reader.footer().entries)}
    assert codecs == ({RAW} if compression == "none" else {0, 1, PLANES, DELTA})


@pytest.mark.parametrize("workers", WORKERS)
def test_a_large_content_that_is_stored_leaves_no_trace_of_those_beside_it(workers: int) -> None:
    """It streams in between others whose frames are in flight before and after it."""
    others = [noise(7300, 1), weights(900, 2), DATA, noise(20, 3), weights(3100, 4)]
    plain, beside = MemoryBackend(), MemoryBackend()
    with writer_on(plain, workers=workers) as writer:
        for data in others:
            writer.add_source(MemorySource(data), element_width=2)
        expected = writer.finish()
    known = noise(9900, 5)
    with writer_on(beside, workers=workers, is_stored=lambda one: one == sha256(known)) as writer:
        added = []
        for data in others:
            added.append(writer.add_source(MemorySource(data), element_width=2))
            added.append(writer.add_source(MemorySource(known), element_width=2))
            added.append(writer.add([known]))
        added.append(writer.add_source(MemorySource(DATA), element_width=2))
        assert writer.finish() == expected
    assert [one.new for one in added] == [True, False, False] * 5 + [False]
    assert [one.stored for one in added[1::3]] == [0] * 5
    assert packs(beside) == packs(plain)


def test_the_bytes_of_a_content_may_change_once_it_was_added() -> None:
    """Each piece is copied before the next is asked for."""

    def reusing() -> Iterator[bytes]:
        room = bytearray(700)
        for start in range(0, len(DATA), 700):
            piece = DATA[start : start + 700]
            room[: len(piece)] = piece
            yield memoryview(room)[: len(piece)]

    backend = MemoryBackend()
    with writer_on(backend) as writer:
        assert writer.add(reusing(), element_width=2).content == sha256(DATA)
        summary = writer.finish()
    assert b"".join(PackReader(backend, summary.pack).read(summary.locations[0])) == DATA


# -- guesses ----------------------------------------------------------------------------------------------------------


@dataclass
class Guess:
    """A stored content that claims to have certain frames."""

    content: ContentId
    size: int
    like: bytes

    def read_into(self, out: memoryview, start: int) -> None:
        raise AssertionError("a guess is not read")

    def frame_checksum(self, start: int, length: int) -> int | None:
        return checksum(self.like[start : start + length])


def write_with(source: MemorySource, expected: object, is_stored: Callable[[ContentId], bool], workers: int) -> tuple:
    backend = MemoryBackend()
    with writer_on(backend, workers=workers, is_stored=is_stored) as writer:
        before = writer.add([b"before" * 300])
        added = writer.add_source(source, element_width=2, expected=expected)
        after = writer.add([b"after" * 300])
        writer.finish()
    assert before.new
    assert after.new
    return added, packs(backend)


def in_order(count: int = FRAMES) -> list[tuple[int, int]]:
    return [(start * FRAME, FRAME) for start in range(count)]


@pytest.mark.usefixtures("_inline")
@pytest.mark.parametrize("workers", WORKERS)
class TestGuesses:
    def without(self, data: bytes) -> list[bytes]:
        return write_with(MemorySource(data), None, never, 0)[1]

    def test_what_is_as_expected_is_read_once_and_not_encoded(
        self, workers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shelf, encoded = Shelf(), []
        shelf.put(DATA, frame_bytes=FRAME)
        real = encoding.encode_frame

        def note(data: bytes, *arguments: object, **options: object) -> object:
            encoded.append(bytes(data))
            return real(data, *arguments, **options)

        monkeypatch.setattr(encoding, "encode_frame", note)
        source = MemorySource(DATA)
        added, _ = write_with(source, shelf.stored(DATA), lambda one: one == sha256(DATA), workers)
        assert (added.content, added.new, added.stored, added.size) == (sha256(DATA), False, 0, len(DATA))
        assert source.reads == in_order()
        assert set(encoded) == {(word * 300)[at : at + FRAME] for word in (b"before", b"after") for at in (0, FRAME)}

    @pytest.mark.parametrize("first", [0, 1, 4, FRAMES - 1])
    def test_a_frame_that_differs_brings_the_earlier_ones_back(self, workers: int, first: int) -> None:
        shelf = Shelf()
        shelf.put(DATA, frame_bytes=FRAME)
        data = bytearray(DATA)
        data[first * FRAME + 7] ^= 1
        source = MemorySource(bytes(data))
        added, written = write_with(source, shelf.stored(DATA), never, workers)
        assert (added.new, added.content) == (True, sha256(data))
        assert source.reads == in_order(first + 1) + in_order(first) + in_order()[first + 1 :]
        assert written == self.without(bytes(data))

    def test_equal_checksums_are_no_proof(self, workers: int) -> None:
        other = bytes(reversed(DATA))
        source = MemorySource(other)
        added, written = write_with(source, Guess(sha256(DATA), len(DATA), other), never, workers)
        assert (added.new, added.content) == (True, sha256(other))
        assert source.reads == in_order() * 2
        assert written == self.without(other)

    def test_what_looks_like_one_and_is_another_that_is_stored_is_not_written(self, workers: int) -> None:
        other = bytes(reversed(DATA))
        source = MemorySource(other)
        guess = Guess(sha256(DATA), len(DATA), other)
        added, _ = write_with(source, guess, lambda one: one == sha256(other), workers)
        assert (added.new, added.stored) == (False, 0)
        assert source.reads == in_order()

    @pytest.mark.parametrize("change", [-2, -FRAME, 2, FRAME])
    def test_another_size_is_no_guess(self, workers: int, change: int) -> None:
        shelf = Shelf()
        expected = (DATA + noise(FRAME))[: len(DATA) + change]
        shelf.put(expected, frame_bytes=FRAME)
        source = MemorySource(DATA)
        added, written = write_with(source, shelf.stored(expected), never, workers)
        assert (added.new, source.reads) == (True, in_order())
        assert written == self.without(DATA)

    def test_frames_that_nothing_is_known_of_are_no_guess(self, workers: int) -> None:
        for options in ({"frame_bytes": FRAME // 2}, {"width": 0, "frame_bytes": FRAME}):
            shelf = Shelf()
            shelf.put(DATA, **options)
            source = MemorySource(DATA)
            _, written = write_with(source, shelf.stored(DATA), never, workers)
            assert source.reads == in_order()
            assert written == self.without(DATA)

    def test_a_content_of_one_frame_is_hashed_before_anything(self, workers: int) -> None:
        shelf, data = Shelf(), DATA[:FRAME]
        shelf.put(data, frame_bytes=FRAME)
        source = MemorySource(data)
        added, _ = write_with(source, shelf.stored(data), lambda one: one == sha256(data), workers)
        assert (added.new, source.reads) == (False, [(0, FRAME)])

    def test_a_guess_and_a_base_together(self, workers: int) -> None:
        """What was taken for a stored difference, and is another one from the same base."""
        shelf, base, tuned = Shelf(), weights(5000, 7), nudged(weights(5000, 7))
        shelf.put(base, frame_bytes=FRAME)
        shelf.put(tuned, bases={tuned: base}, frame_bytes=FRAME)
        again = tuned[: 6 * FRAME] + nudged(tuned[6 * FRAME :], seed=3)
        backend = MemoryBackend()
        with writer_on(backend, workers=workers) as writer:
            source = MemorySource(again)
            writer.add_source(source, element_width=2, expected=shelf.stored(tuned), base=shelf.stored(base))
            summary = writer.finish()
        assert source.reads == in_order(7) + in_order(6) + in_order()[7:]
        reader = PackReader(backend, summary.pack, shelf.find)
        assert {(entry.codec, entry.base) for entry in reader.entries(0, FRAMES)} == {(DELTA, sha256(base))}
        assert b"".join(reader.read(summary.locations[0])) == again

    def test_every_byte_is_shown_once_in_order(self, workers: int) -> None:
        shelf, data = Shelf(), bytearray(DATA)
        shelf.put(DATA, frame_bytes=FRAME)
        data[5 * FRAME] ^= 1
        for expected in (None, shelf.stored(DATA)):
            for content, pieces in ((bytes(data), FRAMES), (bytes(data[:300]), 1), (b"", 1)):
                seen: list[bytes] = []
                with writer_on(MemoryBackend(), workers=workers) as writer:
                    added = writer.add_source(
                        MemorySource(content),
                        element_width=2,
                        expected=expected,
                        inspect=lambda piece, seen=seen: seen.append(bytes(piece)),
                    )
                    assert added.content == sha256(content)
                    assert b"".join(seen) == content, "known before its id is"
                    writer.finish()
                assert b"".join(seen) == content
                assert len(seen) == pieces


# -- what goes wrong --------------------------------------------------------------------------------------------------

FAILURES = [RuntimeError, KeyboardInterrupt, OSError]


def failing_after(count: int, failure: type[BaseException]) -> Callable[..., bool]:
    calls = iter(range(count))

    def fail(*_: object) -> bool:
        if next(calls, None) is None:
            raise failure("as told")
        return False

    return fail


def add_three(writer: PackWriter, **options: object) -> list[AddedContent]:
    fail = options.pop("fail", None)
    return [
        writer.add_source(MemorySource(weights(2600, 1)), element_width=2),
        writer.add_source(MemorySource(DATA, fail), element_width=2, **options),
        writer.add_source(MemorySource(noise(300)), element_width=2, **options),
        writer.add([noise(2300, 2)]),
    ]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("workers", [0, 2])
class TestFailures:
    def require_nothing_left(self, backend: MemoryBackend, failure: type[BaseException], body: Callable) -> None:
        before = threading.active_count()
        with pytest.raises(failure, match="as told"):
            body()
        assert threading.active_count() == before
        assert backend.open_stages == 0
        assert list(backend.list("")) == []

    @pytest.mark.parametrize("at", [0, 1, 5, FRAMES - 1])
    def test_reading_fails(self, workers: int, failure: type[BaseException], at: int) -> None:
        backend = MemoryBackend()

        def body() -> None:
            with writer_on(backend, workers=workers) as writer:
                add_three(writer, fail=failing_after(at, failure))
                writer.finish()

        self.require_nothing_left(backend, failure, body)

    @pytest.mark.parametrize("at", [0, 3, FRAMES - 1, FRAMES])
    def test_inspecting_fails(self, workers: int, failure: type[BaseException], at: int) -> None:
        backend = MemoryBackend()

        def body() -> None:
            with writer_on(backend, workers=workers) as writer:
                add_three(writer, inspect=failing_after(at, failure))
                writer.finish()

        self.require_nothing_left(backend, failure, body)

    @pytest.mark.parametrize("at", [0, 1, 2, 3])
    def test_asking_whether_it_is_stored_fails(self, workers: int, failure: type[BaseException], at: int) -> None:
        backend = MemoryBackend()

        def body() -> None:
            with writer_on(backend, workers=workers, is_stored=failing_after(at, failure)) as writer:
                add_three(writer)
                writer.finish()

        self.require_nothing_left(backend, failure, body)

    def test_asking_what_became_of_it_gives_the_failure(self, workers: int, failure: type[BaseException]) -> None:
        backend = MemoryBackend()

        def body() -> None:
            with writer_on(backend, workers=workers, is_stored=failing_after(1, failure)) as writer:
                writer.add([b"first"])
                _ = writer.add([b"x" * 5000]).content

        self.require_nothing_left(backend, failure, body)

    @pytest.mark.parametrize("at", [0, 1, 7])
    def test_encoding_fails(
        self, workers: int, failure: type[BaseException], at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend, fail, real = MemoryBackend(), failing_after(at, failure), encoding.encode_frame

        def encode(*arguments: object, **options: object) -> object:
            fail()
            return real(*arguments, **options)

        monkeypatch.setattr(encoding, "encode_frame", encode)

        def body() -> None:
            with writer_on(backend, workers=workers) as writer:
                add_three(writer)
                writer.finish()

        self.require_nothing_left(backend, failure, body)

    @pytest.mark.parametrize("at", [0, 1, 7])
    def test_writing_fails(self, workers: int, failure: type[BaseException], at: int) -> None:
        fail = failing_after(at, failure)

        class Full(MemoryBackend):
            def stage(self) -> object:
                stage = super().stage()
                real = stage.write

                def write(data: bytes) -> None:
                    fail()
                    real(data)

                stage.write = write  # type: ignore[method-assign]
                return stage

        backend = Full()

        def body() -> None:
            with writer_on(backend, workers=workers) as writer:
                add_three(writer)
                writer.finish()

        self.require_nothing_left(backend, failure, body)

    @pytest.mark.parametrize("where", ["read", "inspect", "is_stored", "encode"])
    @pytest.mark.parametrize("at", [0, 1, 2, 3, 7, 9])
    def test_whoever_goes_on_after_a_failure_gets_no_wrong_pack(
        self, workers: int, failure: type[BaseException], where: str, at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A failure may come out of a later call than the one that it is about; the pack is whole, or there is none."""
        # Nothing may be in flight: reading waits for what was added just before, and fails where that has failed.
        monkeypatch.setattr(encoding, "_IN_FLIGHT_BYTES", 1)
        monkeypatch.setattr(EncodingPipeline, "_is_ready", staticmethod(lambda incoming, frame: False))
        backend, fail, real = MemoryBackend(), failing_after(at, failure), encoding.encode_frame

        def encode(*arguments: object, **options: object) -> object:
            fail()
            return real(*arguments, **options)

        if where == "encode":
            monkeypatch.setattr(encoding, "encode_frame", encode)
        with writer_on(backend, workers=workers, is_stored=fail if where == "is_stored" else never) as writer:
            told = {}
            for number in range(12):
                data = weights(900 * (number // 2 % 3) + 200, number // 4)  # each twice
                with suppress(failure, RblError):
                    told[number] = writer.add_source(
                        MemorySource(data, fail if where == "read" else None),
                        element_width=2,
                        inspect=fail if where == "inspect" else None,
                    )
            summary = None
            with suppress(failure, RblError):
                summary = writer.finish()
        assert backend.open_stages == 0
        if summary is None:
            assert list(backend.list("")) == []
            return
        assert list(check_pack(backend, summary.pack, full=True)) == []
        stored = {location.content for location in summary.locations}
        for added in told.values():
            with suppress(failure, CancelledError):
                assert added.content in stored


def test_a_source_that_fails_leaves_the_rest_of_the_pack() -> None:
    for at in range(FRAMES):
        backend, whole = MemoryBackend(), MemoryBackend()
        with writer_on(backend) as writer, writer_on(whole) as other:
            for one in (writer, other):
                one.add_source(MemorySource(weights(2500, 1)), element_width=2)
            with pytest.raises(OSError, match="as told"):
                writer.add_source(MemorySource(DATA, failing_after(at, OSError)), element_width=2)
            for one in (writer, other):
                assert one.add_source(MemorySource(DATA), element_width=2).new
            assert writer.finish() == other.finish()
        assert packs(backend) == packs(whole)


def test_a_source_that_changes_between_two_readings_is_never_stored_as_something_else() -> None:
    """What is read again must be what was hashed."""
    shelf = Shelf()
    shelf.put(DATA, frame_bytes=FRAME)
    data = bytearray(DATA)
    data[6 * FRAME] ^= 1

    class Changing(MemorySource):
        def read_into(self, out: memoryview, start: int) -> None:
            again = any(read[0] == start for read in self.reads)
            super().read_into(out, start)
            if again:
                out[0] ^= 1

    backend = MemoryBackend()
    summary = None
    with suppress(RblError), writer_on(backend) as writer:
        writer.add_source(Changing(bytes(data)), element_width=2, expected=shelf.stored(DATA))
        summary = writer.finish()
    if summary is not None:
        assert list(check_pack(backend, summary.pack, full=True)) == []


def test_a_damaged_base_is_an_error_and_no_pack() -> None:
    shelf = Shelf()
    base = weights(5000, 7)
    shelf.put(base, frame_bytes=FRAME)
    pack = shelf.stored(base).location.pack
    shelf.rot(pack, shelf.entries(base)[4].offset + 20)
    backend = MemoryBackend()

    def write(backend: MemoryBackend, workers: int) -> None:
        with writer_on(backend, workers=workers) as writer:
            writer.add([b"before"])
            writer.add_source(MemorySource(nudged(base)), element_width=2, base=shelf.stored(base))
            writer.add([b"after"])
            writer.finish()

    for workers in WORKERS:
        with pytest.raises(CorruptError, match=sha256(base)):
            write(backend, workers)
        assert list(backend.list("")) == []
        assert backend.open_stages == 0
    # Under ``none`` no base is looked at.
    with writer_on(backend, compression="none") as writer:
        writer.add_source(MemorySource(nudged(base)), element_width=2, base=shelf.stored(base))
        assert writer.finish() is not None


def test_what_was_abandoned_says_so() -> None:
    with writer_on(MemoryBackend()) as writer:
        added = writer.add([noise(5000)])
    with suppress(ValueError, CancelledError):
        assert added.content == sha256(noise(5000))
    assert writer.abandon() is None


def test_a_width_that_no_index_can_hold_is_refused() -> None:
    with writer_on(MemoryBackend()) as writer:
        for width in (-1, 256):
            with pytest.raises(ValueError, match="element"):
                writer.add_source(MemorySource(b"x"), element_width=width)
            with pytest.raises(ValueError, match="element"):
                writer.add([b"x"], element_width=width)
        writer.add([b"x"], element_width=255)
        summary = writer.finish()
    assert summary is not None
    assert pack_key(summary.pack)
