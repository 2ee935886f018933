"""Contents read all at once to where they belong: every byte, verified, and every failure raised."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import pytest
from storage_samples import Shelf, noise, nudged, sha256, weights

from rblstore.storage import decoding
from rblstore.storage.decoding import Wanted, fill_contents
from rblstore.storage.pack_format import FrameEntry
from rblstore.storage.pack_reader import CorruptContentError
from rblstore.storage.stored_content import StoredContent

FRAME = 1000
WORKERS = [0, 1, 2, 8]
DATA = weights(5000)
BASE = weights(5000, 7)
TUNED = nudged(BASE)
MANY = [noise(at % 37, at) for at in range(300)]
CONTENTS = [DATA, b"", TUNED, *MANY[:40], noise(2500, 3), b"x", BASE]


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def shelf() -> Shelf:
    """A base, differences from it, and many small contents with two of several frames."""
    made = Shelf()
    made.put(BASE, frame_bytes=FRAME)
    made.put(TUNED, bases={TUNED: BASE}, frame_bytes=FRAME)
    made.put(DATA, *MANY, noise(2500, 3), b"x", frame_bytes=FRAME)
    return made


@pytest.mark.parametrize("workers", WORKERS)
class TestFilling:
    """All of it at once, into memory of the caller."""

    def filling(self, shelf: Shelf) -> tuple[list[bytearray], list[Wanted]]:
        rooms = [bytearray(b"?" * (len(data) + 2)) for data in CONTENTS]
        return rooms, [
            Wanted(shelf.stored(data), out=memoryview(room)[1:-1]) for data, room in zip(CONTENTS, rooms, strict=True)
        ]

    def test_every_byte_and_no_other(self, shelf: Shelf, workers: int) -> None:
        rooms, wanted = self.filling(shelf)
        fill_contents(wanted, workers=workers)
        assert rooms == [b"?" + data + b"?" for data in CONTENTS]
        fill_contents([], workers=workers)

    @pytest.mark.parametrize("data", [DATA, MANY[3], b"x"])
    def test_damage_is_named(self, shelf: Shelf, workers: int, data: bytes) -> None:
        stored = shelf.stored(data)
        shelf.rot(stored.location.pack, stored.frames[0].offset)
        with pytest.raises(CorruptContentError) as caught:
            fill_contents(self.filling(shelf)[1], workers=workers)
        assert caught.value.content == sha256(data)

    def test_digests_are_compared(self, shelf: Shelf, workers: int) -> None:
        real = shelf.stored(MANY[5])

        class Lie:
            content = sha256(b"the truth")
            frames, size, location = real.frames, real.size, real.location
            read_frame, wrong = staticmethod(real.read_frame), staticmethod(real.wrong)

        wanted = [*self.filling(shelf)[1], Wanted(Lie(), out=memoryview(bytearray(real.size)))]
        with pytest.raises(CorruptContentError, match="SHA-256"):
            fill_contents(wanted, workers=workers)

    @pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("at", [0, 1, 150, 299])
    def test_a_failure_in_any_thread_is_raised(
        self, shelf: Shelf, workers: int, at: int, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = [Wanted(shelf.stored(data), out=memoryview(bytearray(len(data)))) for data in MANY]
        read = StoredContent.read_frame

        def read_frame(stored: StoredContent, entry: FrameEntry, out: memoryview) -> None:
            if stored is wanted[at].content:
                raise failure("as told")
            read(stored, entry, out)

        monkeypatch.setattr(StoredContent, "read_frame", read_frame)
        with pytest.raises(failure, match="as told"):
            fill_contents(wanted, workers=workers)


def test_a_failure_leaves_nothing_for_the_other_threads(shelf: Shelf) -> None:
    shelf.rot(shelf.stored(MANY[9]).location.pack, shelf.stored(MANY[9]).frames[0].offset)
    left = deque(Wanted(shelf.stored(data), out=memoryview(bytearray(len(data)))) for data in MANY)
    with pytest.raises(CorruptContentError):
        decoding._fill(left)
    assert not left
