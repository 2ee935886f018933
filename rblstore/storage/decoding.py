"""The pipeline by which frames become bytes again: decoded ahead in threads, hashed, given out in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from rblstore.objects import limits
from rblstore.storage.rooms import Room, make_room
from rblstore.storage.stored_content import StoredContent

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from rblstore.storage.pack_format import FrameEntry

DEFAULT_WORKERS: Final = 2
# Raw bytes of frames decoded ahead of the one that the caller has.
_AHEAD_BYTES: Final = 24 << 20
# What one frame counts for at least, so that only so many small contents, and files, are ahead at once.
_LEAST_COST: Final = 256 << 10


@dataclass(frozen=True)
class Wanted:
    """A content to be read.

    Attributes:
        content: Which.
        out: Where its bytes go, as many as it has; None for buffers of the pipeline's own.
        sink: Is given each frame's bytes and their start in the content, in any order and in several threads at once.
    """

    content: StoredContent
    out: memoryview | None = None
    sink: Callable[[memoryview, int], None] | None = None


@dataclass(frozen=True)
class Piece:
    """The bytes of one frame.

    Attributes:
        wanted: What it is a part of.
        start: Where in the content it begins.
        data: Its bytes.
        last: Whether it is the content's last. Then the SHA-256 of the whole has been compared.
    """

    wanted: Wanted
    start: int
    data: memoryview
    last: bool


class _Frame:
    """One frame on its way out."""

    __slots__ = ("data", "decoding", "digest", "entry", "hashing", "last", "room", "wanted")

    def __init__(self, wanted: Wanted, entry: FrameEntry, digest: Any, *, last: bool) -> None:
        self.wanted = wanted
        self.entry = entry
        self.digest = digest
        self.last = last
        self.room: Room | None = None
        self.data = memoryview(b"")
        self.decoding: Future[None] | None = None
        self.hashing: Future[None] | None = None

    @property
    def cost(self) -> int:
        return max(self.entry.raw_length, _LEAST_COST)

    @property
    def alone(self) -> bool:
        return self.last and self.entry.start == 0

    def decode(self) -> None:
        self.wanted.content.read_frame(self.entry, self.data)
        if self.alone:
            self.hash()
        if self.wanted.sink is not None:
            self.wanted.sink(self.data, self.entry.start)

    def hash_in_turn(self) -> None:
        if self.decoding is not None:
            self.decoding.result()
        self.hash()

    def hash(self) -> None:
        self.digest.update(self.data)
        if self.last and self.digest.hexdigest() != self.wanted.content.content:
            raise self.wanted.content.wrong()


def read_contents(
    wanted: Iterable[Wanted], *, workers: int = DEFAULT_WORKERS, reuse: bool = False
) -> Generator[Piece, None, None]:
    """Reads contents frame by frame, verified, decoded ahead in threads that end with the iterator.

    Args:
        wanted: What to read, in order; asked for one at a time, a little ahead.
        workers: Threads that decode; 0 to do everything in the caller's.
        reuse: Whether a piece's bytes are the caller's only until the next piece is asked for, which is faster.

    Yields:
        Every frame of every content, in order. The SHA-256 of a content is compared before its last frame is given out:
        whoever has got all of a content has got the right bytes.

    Raises:
        CorruptContentError: A frame or a content is not what it must be.
        UnknownCodecError: A later version wrote it.
        CorruptError, ReadError: A pack cannot be read.
    """
    frames = _frames(wanted)
    first = list(islice(frames, 2))
    if not workers or len(first) < 2:
        for frame in chain(first, frames):
            frame.data = _room(frame, [], pooled=False)
            frame.decode()
            if not frame.alone:
                frame.hash()
            yield Piece(frame.wanted, frame.entry.start, frame.data, frame.last)
        return
    yield from _read_ahead(chain(first, frames), workers, reuse=reuse)


def fill_contents(wanted: Iterable[Wanted], *, workers: int = DEFAULT_WORKERS) -> None:
    """Reads contents to where they belong, in no particular order.

    For many contents of one frame each this takes less than :func:`read_contents`: nobody waits for anybody in between,
    and the caller's thread works too.

    Args:
        wanted: What to read; each with its ``out``.
        workers: Threads that read, the caller's among them.

    Raises:
        CorruptContentError: A frame or a content is not what it must be; memory that was given holds anything.
        UnknownCodecError: A later version wrote it.
        CorruptError, ReadError: A pack cannot be read.
    """
    whole: list[Wanted] = []
    parted: list[Wanted] = []
    for one in wanted:
        (whole if len(one.content.frames) == 1 else parted).append(one)
    for _ in read_contents(parted, workers=workers):
        pass
    # The largest first, so that no thread is left with one of them when the others are done.
    left = deque(sorted(whole, key=lambda one: one.content.size, reverse=True))
    if workers < 2 or len(left) < 2:
        _fill(left)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers - 1, thread_name_prefix="rbl-fill") as threads:
        others = [threads.submit(_fill, left) for _ in range(min(workers, len(left)) - 1)]
        _fill(left)
        for other in others:
            other.result()


def _fill(left: deque[Wanted]) -> None:
    """Reads contents of one frame each until none is left."""
    try:
        while left:
            try:
                one = left.popleft()
            except IndexError:  # another thread took the last one just now
                return
            for _ in read_contents([one], workers=0):
                pass
    except BaseException:
        left.clear()  # so that the other threads stop as well
        raise


def _frames(wanted: Iterable[Wanted]) -> Iterator[_Frame]:
    for one in wanted:
        digest = hashlib.sha256()
        entries = one.content.frames
        for number, entry in enumerate(entries, 1):
            yield _Frame(one, entry, digest, last=number == len(entries))


def _room(frame: _Frame, rooms: list[Room], *, pooled: bool) -> memoryview:
    start, length = frame.entry.start, frame.entry.raw_length
    if frame.wanted.out is not None:
        return frame.wanted.out[start : start + length]
    # Buffers of a frame's size are used again: the system would have to clear new pages each time.
    if not pooled or length * 4 < limits.FRAME_BYTES or length > limits.FRAME_BYTES:
        return memoryview(bytearray(length))
    frame.room = rooms.pop() if rooms else make_room(limits.FRAME_BYTES)
    return memoryview(frame.room)[:length]


def _read_ahead(frames: Iterator[_Frame], workers: int, *, reuse: bool) -> Generator[Piece, None, None]:
    from concurrent.futures import ThreadPoolExecutor  # not for the small contents that history is made of

    ahead: deque[_Frame] = deque()
    rooms: list[Room] = []
    used = 0
    upcoming = next(frames, None)
    decoders = ThreadPoolExecutor(workers, thread_name_prefix="rbl-decode")
    hasher = ThreadPoolExecutor(1, thread_name_prefix="rbl-hash")
    try:
        while upcoming is not None or ahead:
            while upcoming is not None and (not ahead or used + upcoming.cost <= _AHEAD_BYTES):
                upcoming.data = _room(upcoming, rooms, pooled=reuse)
                _start(upcoming, decoders, hasher)
                ahead.append(upcoming)
                used += upcoming.cost
                upcoming = next(frames, None)
            frame = ahead.popleft()
            for future in (frame.decoding, frame.hashing):
                if future is not None:
                    future.result()
            yield Piece(frame.wanted, frame.entry.start, frame.data, frame.last)
            used -= frame.cost
            if frame.room is not None:
                rooms.append(frame.room)
    finally:
        # The decoders first: the hasher waits for what they do.
        decoders.shutdown(wait=True, cancel_futures=True)
        hasher.shutdown(wait=True, cancel_futures=True)


def _start(frame: _Frame, decoders: ThreadPoolExecutor, hasher: ThreadPoolExecutor) -> None:
    frame.decoding = decoders.submit(frame.decode)
    if not frame.alone:
        frame.hashing = hasher.submit(frame.hash_in_turn)
