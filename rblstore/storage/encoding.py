"""The pipeline by which contents become frames: hashed in one thread, encoded in several, taken out in order.

The caller reads. Each frame goes to one thread that hashes and decides (is the content stored already?) and to the
threads that encode; what comes out is in the order in which it went in, whatever the threads did meanwhile, so the same
contents give the same frames on one core and on eight. A content of one frame is hashed before it is encoded, so that
nothing is encoded for nothing. Of a larger one the frames are encoded while it still streams in, unless they look like
those of a content that is stored and expected here: then they are only hashed, until one looks different.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from rblstore.errors import ConflictError, InputError
from rblstore.objects.ids import ContentId
from rblstore.storage.codecs import DELTA, Buffer, Compression, EncodedFrame, encode_frame
from rblstore.storage.pack_format import checksum
from rblstore.storage.rooms import Room, Rooms, scratch

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# Between reading and writing: the raw bytes and the room for what they are encoded to.
_IN_FLIGHT_BYTES: Final = 40 << 20
# Small records stay raw, so that reading history loads no codec.
_RAW_RECORD_BYTES: Final = 4 << 10
# Below this handing over to another thread costs more than it saves.
_INLINE_BYTES: Final = 64 << 10


class RecordTooLargeError(InputError):
    """A record takes more bytes than any may."""

    code = "record_too_large"


class SourceChangedError(ConflictError):
    """What is stored was written to while it was being read."""

    code = "source_changed"


class Source(Protocol):
    """A content that can be read by ranges: once in order, and again where a guess about it was wrong."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read_into(self, out: memoryview, start: int) -> None:
        """Fills ``out`` with the bytes from ``start`` on."""


class Beneath(Protocol):
    """A stored content that another may be taken for, or stored as a difference from."""

    @property
    def content(self) -> ContentId:
        """Its id."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read_into(self, out: memoryview, start: int) -> None:
        """Fills ``out`` with the bytes from ``start`` on, checked."""

    def frame_checksum(self, start: int, length: int) -> int | None:
        """XXH3-64 of the raw bytes of the frame that it has at exactly that place, or None."""


class Frame:
    """One frame on its way into the pack. Its bytes go as soon as they are written; what the index needs stays."""

    __slots__ = (
        "base",
        "checksum",
        "codec",
        "data",
        "encoded",
        "encoding",
        "hashing",
        "offset",
        "parameters",
        "raw_length",
        "rooms",
        "start",
        "stored",
    )

    def __init__(self, start: int, data: memoryview, *rooms: Room) -> None:
        self.start = start
        self.raw_length = len(data)
        self.offset = -1
        self.codec = self.checksum = self.stored = 0
        self.parameters = b""
        self.base: ContentId | None = None
        self.data = data
        self.rooms = rooms
        self.encoded: EncodedFrame | None = None
        self.hashing: Future[None] | None = None
        self.encoding: Future[None] | None = None

    def encode(self, compression: Compression, element_width: int, base: Beneath | None) -> None:
        """Fills in what the codec makes of the bytes."""
        beneath: Buffer | None = None
        if base is not None and self.start < base.size and compression != "none":
            beneath = scratch(min(self.raw_length, base.size - self.start), "beneath")
            base.read_into(beneath, self.start)
        out = memoryview(self.rooms[1]) if len(self.rooms) > 1 else None
        encoded = encode_frame(self.data, compression, element_width=element_width, base=beneath, out=out)
        self.encoded = encoded
        self.codec, self.parameters = encoded.codec, encoded.parameters
        self.base = base.content if base is not None and encoded.codec == DELTA else None
        self.stored = len(encoded.data)
        self.checksum = checksum(encoded.data)


@dataclass
class Incoming:
    """One content on its way into the pack.

    Attributes:
        element_width: Bytes of an element of what it holds, 0 where unknown.
        base: What it may be stored as a difference from.
        inspect: Is shown every byte once, in order, in a thread.
        frames: Those that are encoded, in order.
        size: Raw bytes so far.
        content: Its id, once everything was hashed.
        known: Whether it is stored already, here or elsewhere; certain once ``content`` is.
        taken: Whether all of its frames were taken.
    """

    element_width: int = 0
    base: Beneath | None = None
    inspect: Callable[[memoryview], None] | None = None
    frames: list[Frame] = field(default_factory=list)
    size: int = 0
    content: ContentId | None = None
    known: bool = False
    taken: bool = False
    digest: Any = field(default_factory=hashlib.sha256)
    deciding: Future[None] | None = None

    def wait_known(self) -> bool:
        """Whether it is stored already, once that is certain."""
        if self.deciding is not None:
            self.deciding.result()
        return self.known


class EncodingPipeline:
    """Hashes and encodes, and gives frames back in order. Used by one thread.

    Args:
        is_stored: Whether a content is stored elsewhere already; asked in one thread at a time.
        compression: How frames are encoded.
        workers: Threads that encode; 0 to do everything in the caller's.
        frame_bytes: Raw bytes of a frame; part of what decides the frames.
        records: Whether contents are records: of one frame each, and the small ones stored raw.
        take: Is given each encoded frame when it is its turn, and, with None, each content after its frames. The frames
            of a large content come before it is certain that it is not stored already.

    Attributes:
        failed: Whether something went wrong with what had been added before: what comes out is not whole.
    """

    def __init__(
        self,
        *,
        is_stored: Callable[[ContentId], bool],
        compression: Compression,
        workers: int,
        frame_bytes: int,
        records: bool,
        take: Callable[[Incoming, Frame | None], None],
    ) -> None:
        self._is_stored = is_stored
        self._compression = compression
        self._workers = workers
        self._frame_bytes = frame_bytes
        self._records = records
        self._take = take
        self._here: set[ContentId] = set()
        self._queue: deque[tuple[Incoming, Frame | None]] = deque()
        self._rooms = Rooms(_IN_FLIGHT_BYTES)
        self._encoders: ThreadPoolExecutor | None = None
        self._hasher: ThreadPoolExecutor | None = None
        self.failed = False

    # -- what the caller does -----------------------------------------------------------------------------------

    def add_chunks(self, incoming: Incoming, chunks: Iterable[Buffer]) -> None:
        """Takes a content whose bytes come in pieces of any size; each is copied before the next is asked for."""
        gathered = bytearray()
        for chunk in chunks:
            piece = memoryview(chunk)
            piece = piece.cast("B") if piece.nbytes else memoryview(b"")
            while piece:
                if len(gathered) == self._frame_bytes:
                    self._gathered(incoming, gathered, only=False)
                    gathered = bytearray()
                room = self._frame_bytes - len(gathered)
                gathered += piece[:room]
                piece = piece[room:]
        self._gathered(incoming, gathered, only=not incoming.frames)
        self._end(incoming)

    def add_source(self, incoming: Incoming, source: Source, expected: Beneath | None) -> None:
        """Takes a content that can be read by ranges.

        Args:
            incoming: What becomes of it.
            source: Its bytes, read in order.
            expected: What it probably is; a guess that may be wrong, and then what looked like it is read again.
        """
        starts = range(0, source.size, self._frame_bytes) or range(1)
        guess = expected if expected is not None and len(starts) > 1 and expected.size == source.size else None
        for number, start in enumerate(starts):
            frame = self._read(source, start)
            if guess is not None and guess.frame_checksum(start, frame.raw_length) != checksum(frame.data):
                self._reread(incoming, source, starts[:number], guess)
                guess = None
            self._send(incoming, frame, only=len(starts) == 1, encode=guess is None)
        if guess is not None:
            incoming.deciding = self._submit(self._hashers(), self._decide, incoming)
            if not incoming.wait_known():
                self._reread(incoming, source, starts, guess)
        self._end(incoming)

    def give_up(self, incoming: Incoming) -> None:
        """Forgets the latest content, of which something went wrong; returns when no thread works on it."""
        for owner, frame in self._queue:
            if owner is incoming and frame is not None:
                self._wait_or_cancel(frame.hashing)
                self._wait_or_cancel(frame.encoding)  # asked for only now: hashing may have begun it
        self._wait_or_cancel(incoming.deciding)
        if incoming.content is not None and not incoming.known:
            self._here.discard(incoming.content)
        while self._queue and self._queue[-1][0] is incoming:
            frame = self._queue.pop()[1]
            if frame is not None:
                self._release(frame)

    @staticmethod
    def _wait_or_cancel(future: Future[None] | None) -> None:
        if future is not None and not future.cancel():
            future.exception()

    def drain(self) -> None:
        """Waits until everything that was added has been taken."""
        while self._queue:
            self._advance()

    def abandon(self) -> None:
        """Forgets everything not taken, and ends the threads; returns when none of them works any more."""
        self._queue.clear()
        for executor in (self._hasher, self._encoders):
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
        self._hasher = self._encoders = None
        self._rooms = Rooms(_IN_FLIGHT_BYTES)

    # -- in the caller's thread ---------------------------------------------------------------------------------

    def _gathered(self, incoming: Incoming, data: bytearray, *, only: bool) -> None:
        # These bytes are not from the pool, but count as if they were.
        rooms = self._take_rooms(len(data))
        self._send(incoming, Frame(incoming.size, memoryview(data), *rooms), only=only, encode=True)

    def _read(self, source: Source, start: int) -> Frame:
        length = min(self._frame_bytes, source.size - start)
        rooms = self._take_rooms(length)
        view = memoryview(rooms[0])[:length]
        try:
            source.read_into(view, start)
        except BaseException:
            for room in rooms:
                self._rooms.give(room)
            raise
        return Frame(start, view, *rooms)

    def _take_rooms(self, length: int) -> list[Room]:
        """Room for that many raw bytes and, where it is worth it, for what they are encoded to."""
        count = 1 if self._compression == "none" or length < _INLINE_BYTES else 2
        while self._queue and self._rooms.in_use + count * Rooms.size_for(length) > _IN_FLIGHT_BYTES:
            self._advance()
        return [self._rooms.take(length) for _ in range(count)]

    def _send(self, incoming: Incoming, frame: Frame, *, only: bool, encode: bool) -> None:
        """Hands one frame to the threads."""
        if self._records and incoming.frames:
            raise RecordTooLargeError(f"a record takes more than the {self._frame_bytes} bytes allowed")
        incoming.size += frame.raw_length
        if only:
            incoming.frames.append(frame)
            frame.hashing = incoming.deciding = self._submit(self._hashers(), self._hash_only, incoming, frame)
        else:
            frame.hashing = self._submit(self._hashers(), self._hash, incoming, frame)
            if encode:
                self._send_to_encoder(incoming, frame)
        self._queue_frame(incoming, frame)

    def _send_to_encoder(self, incoming: Incoming, frame: Frame) -> None:
        incoming.frames.append(frame)
        frame.encoding = self._submit(self._encoding(), self._encode, incoming, frame)

    def _queue_frame(self, incoming: Incoming, frame: Frame) -> None:
        self._queue.append((incoming, frame))
        while self._queue and self._is_ready(*self._queue[0]):
            self._advance()

    def _reread(self, incoming: Incoming, source: Source, starts: Iterable[int], like: Beneath) -> None:
        """Encodes after all what was taken for something that is stored: bytes like those that were hashed."""
        for start in starts:
            frame = self._read(source, start)
            if like.frame_checksum(start, frame.raw_length) != checksum(frame.data):
                raise SourceChangedError("a content was written to while it was read")
            self._send_to_encoder(incoming, frame)
            self._queue_frame(incoming, frame)

    def _end(self, incoming: Incoming) -> None:
        if incoming.deciding is None and incoming.content is None:
            incoming.deciding = self._submit(self._hashers(), self._decide, incoming)
        self._queue.append((incoming, None))

    @staticmethod
    def _is_ready(incoming: Incoming, frame: Frame | None) -> bool:
        """Whether taking it would not have to wait."""
        if frame is None:
            return incoming.deciding is None or incoming.deciding.done()
        return all(future is None or future.done() for future in (frame.hashing, frame.encoding))

    def _advance(self) -> None:
        """Takes what is next, and waits for it. What fails here was added before, and is missing from now on."""
        try:
            self._advance_one()
        except BaseException:
            self.failed = True
            raise

    def _advance_one(self) -> None:
        incoming, frame = self._queue.popleft()
        if frame is None:
            incoming.wait_known()
            incoming.taken = True
            self._take(incoming, None)
            return
        # Hashing comes first: of a content of one frame it decides whether there is any encoding.
        if frame.hashing is not None:
            frame.hashing.result()
        if frame.encoding is not None:
            frame.encoding.result()
        if frame.encoded is not None:
            self._take(incoming, frame)
        self._release(frame)

    def _release(self, frame: Frame) -> None:
        frame.encoded, frame.data = None, memoryview(b"")
        for room in frame.rooms:
            self._rooms.give(room)
        frame.rooms = ()

    def _hashers(self) -> ThreadPoolExecutor | None:
        if self._hasher is None and self._workers:
            from concurrent.futures import ThreadPoolExecutor  # most commands write nothing large

            self._hasher = ThreadPoolExecutor(1, thread_name_prefix="rbl-hash")
            self._encoders = ThreadPoolExecutor(self._workers, thread_name_prefix="rbl-encode")
        return self._hasher

    def _encoding(self) -> ThreadPoolExecutor | None:
        self._hashers()
        return self._encoders

    @staticmethod
    def _submit(executor: ThreadPoolExecutor | None, work: Callable[..., None], *arguments: Any) -> Future[None] | None:
        if executor is None:
            work(*arguments)
            return None
        return executor.submit(work, *arguments)

    # -- in the threads -----------------------------------------------------------------------------------------

    def _hash(self, incoming: Incoming, frame: Frame) -> None:
        incoming.digest.update(frame.data)
        if incoming.inspect is not None:
            incoming.inspect(frame.data)

    def _decide(self, incoming: Incoming) -> None:
        content = ContentId(incoming.digest.hexdigest())
        incoming.known = content in self._here or self._is_stored(content)
        self._here.add(content)
        incoming.content = content

    def _hash_only(self, incoming: Incoming, frame: Frame) -> None:
        """Hashes a content of one frame, and encodes it, or has it encoded, if it is new."""
        self._hash(incoming, frame)
        self._decide(incoming)
        if not incoming.known:
            encoders = self._encoders if frame.raw_length >= _INLINE_BYTES else None
            frame.encoding = self._submit(encoders, self._encode, incoming, frame)

    def _encode(self, incoming: Incoming, frame: Frame) -> None:
        raw = self._records and frame.raw_length < _RAW_RECORD_BYTES
        frame.encode("none" if raw else self._compression, incoming.element_width, incoming.base)
