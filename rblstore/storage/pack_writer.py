"""Writing one pack: contents stream in, are hashed and encoded side by side, and are published together or not at all.

The hash runs in the caller's thread, the codec in worker threads, and frames go out in the order in which they came in,
so the same contents in the same order give the same file. At most four frames are in memory, whatever a content's size.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final

from typing_extensions import Self

from rblstore.errors import CorruptError, InputError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId
from rblstore.objects.locations import ContentLocation, PackKind, PackSummary
from rblstore.storage.backend import Backend, Stage
from rblstore.storage.codecs import Buffer, Compression, EncodedFrame, encode_frame
from rblstore.storage.durable import WriteError
from rblstore.storage.pack_check import check_pack
from rblstore.storage.pack_format import (
    ENTRY_BYTES,
    Footer,
    FrameEntry,
    checksum,
    encode_entry,
    encode_footer,
    encode_header,
    pack_id,
    pack_key,
)

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# With the frame being filled these make four; records may come as one large frame, so bytes count too.
_PENDING_FRAMES: Final = 3
_PENDING_BYTES: Final = _PENDING_FRAMES * limits.FRAME_BYTES
# Below this a thread costs more than it saves.
_INLINE_BYTES: Final = 64 << 10
# Small records stay raw, so that reading history loads no codec.
_RAW_RECORD_BYTES: Final = 4 << 10


class RecordTooLargeError(InputError):
    """A record takes more bytes than any may."""

    code = "record_too_large"


class CorruptPackError(CorruptError):
    """The pack to be written is there already, and is damaged."""

    code = "corrupt_pack"


class _Frame:
    """One frame on its way into the pack. Its bytes go as soon as they are written; what the index needs stays."""

    __slots__ = ("checksum", "codec", "encoded", "future", "offset", "parameters", "raw_length", "start", "stored")

    def __init__(self, start: int, raw_length: int) -> None:
        self.start = start
        self.raw_length = raw_length
        self.offset = -1
        self.codec = self.checksum = self.stored = 0
        self.parameters = b""
        self.encoded: EncodedFrame | None = None
        self.future: Future[EncodedFrame] | None = None

    def settle(self) -> None:
        """Waits for the codec and keeps its outcome."""
        if self.future is not None:
            encoded, self.future = self.future.result(), None
            self.keep(encoded)

    def keep(self, encoded: EncodedFrame) -> None:
        """Keeps the outcome of the codec."""
        self.encoded = encoded
        self.codec, self.parameters = encoded.codec, encoded.parameters
        self.stored = len(encoded.data)
        self.checksum = checksum(encoded.data)

    def cancel(self) -> None:
        """Drops the frame; returns only when no thread works on it."""
        future, self.future, self.encoded, self.stored = self.future, None, None, 0
        if future is not None and not future.cancel():
            future.exception()


@dataclass
class _Incoming:
    """One content of which not everything is in the pack and its index yet."""

    element_width: int
    frames: list[_Frame] = field(default_factory=list)
    content: ContentId | None = None
    size: int = 0
    written: int = 0


@dataclass(frozen=True)
class AddedContent:
    """What became of one content given to a :class:`PackWriter`.

    Attributes:
        content: Its id.
        size: Raw bytes.
        new: Whether this pack holds it; False where it was stored already, here or elsewhere.
    """

    content: ContentId
    size: int
    new: bool
    _frames: tuple[_Frame, ...] = field(default=(), repr=False, compare=False)

    @property
    def stored(self) -> int:
        """Bytes that its frames take in this pack; waits for the codec where it is not done. 0 where not new."""
        for frame in self._frames:
            frame.settle()
        return sum(frame.stored for frame in self._frames)


class PackWriter:
    """Writes one pack. Used by one thread; as a context manager it abandons whatever was not finished.

    Args:
        backend: Where the pack goes.
        kind: ``C`` for contents, ``R`` for records (each one frame, at most 64 MiB).
        is_stored: Whether a content is stored already, elsewhere; asked in the caller's thread.
        compression: How frames are encoded: ``none``, ``fast`` or ``max``.
        workers: Threads that encode; 0 to encode in the caller's.
        frame_bytes: Raw bytes of a frame; part of what decides the pack's bytes.
    """

    def __init__(
        self,
        backend: Backend,
        kind: PackKind,
        *,
        is_stored: Callable[[ContentId], bool],
        compression: Compression = "fast",
        workers: int = 2,
        frame_bytes: int = limits.FRAME_BYTES,
    ) -> None:
        self._backend = backend
        self._kind = kind
        self._is_stored = is_stored
        self._compression = compression
        self._workers = workers
        self._frame_bytes = limits.FRAME_BYTES_CEILING if kind == "R" else frame_bytes
        self._header = encode_header(kind)
        self._executor: ThreadPoolExecutor | None = None
        self._stage: Stage | None = None
        self._pending: deque[tuple[_Incoming, _Frame]] = deque()
        self._pending_bytes = 0
        self._incoming: deque[_Incoming] = deque()
        self._here: set[ContentId] = set()
        self._index = bytearray()
        self._contents: list[tuple[ContentId, int, int, int, int]] = []
        self._ended = False

    def add(self, chunks: Iterable[Buffer], *, element_width: int = 0) -> AddedContent:
        """Adds one content, unless it is stored already.

        Args:
            chunks: The content's bytes in pieces of any size; each piece is copied before the next is asked for.
            element_width: Bytes of an element of what the content holds, 0 where unknown.

        Raises:
            RecordTooLargeError: A record above the limit.
            WriteError: The system refused; the pack is lost.
        """
        # A pack is a sequence: what is added while one content still streams in would end up inside of it.
        if self._incoming and self._incoming[-1].content is None:
            raise ValueError("another content is being added to this pack")
        if not 0 <= element_width <= 255:
            raise ValueError(f"an element of {element_width} bytes")
        if self._ended:
            raise WriteError("the pack has been finished or abandoned already")
        incoming = _Incoming(element_width)
        self._incoming.append(incoming)
        try:
            content, known = self._take(incoming, chunks)
            if known:
                self._drop(incoming)
                return AddedContent(content, incoming.size, new=False)
            self._here.add(content)
            incoming.content = content
            self._write_pending(_PENDING_FRAMES)
            return AddedContent(content, incoming.size, True, tuple(incoming.frames))
        except BaseException:
            if self._incoming and self._incoming[-1] is incoming and incoming.content is None:
                self._drop(incoming)
            raise

    def add_bytes(self, data: Buffer, *, element_width: int = 0) -> AddedContent:
        """Adds one content that is in memory; see :meth:`add`."""
        return self.add((data,), element_width=element_width)

    def finish(self) -> PackSummary | None:
        """Publishes the pack durably.

        Returns:
            What is in it; None where nothing was new, and then nothing is published.

        Raises:
            WriteError: The system refused; the pack is lost.
            CorruptPackError: The pack was there already (its commit never came about) and is damaged.
        """
        if self._ended:
            raise WriteError("the pack has been finished or abandoned already")
        try:
            self._write_pending(0)
            return None if self._stage is None or not self._index else self._publish(self._stage)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Forgets everything not published, and ends the threads. Does nothing the second time."""
        self._ended = True
        while self._pending:
            self._pending.pop()[1].cancel()
        self._incoming.clear()
        self._index = bytearray()  # a write that failed may still look into the old one
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
        if self._stage is not None:
            self._stage.discard()
            self._stage = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _take(self, incoming: _Incoming, chunks: Iterable[Buffer]) -> tuple[ContentId, bool]:
        """Hashes a content, sending full frames to the codec as more follows, the last one only if it is needed.

        Returns:
            Its id, and whether it is stored already.
        """
        digest = hashlib.sha256()
        buffer = bytearray()
        for chunk in chunks:
            view = memoryview(chunk)
            if not view.nbytes:
                continue
            view = view.cast("B")
            digest.update(view)
            incoming.size += len(view)
            while view:
                if len(buffer) == self._frame_bytes:
                    self._send(incoming, buffer)
                    buffer = bytearray()
                room = self._frame_bytes - len(buffer)
                buffer += view[:room]
                view = view[room:]
        content = ContentId(digest.hexdigest())
        known = content in self._here or self._is_stored(content)
        if not known:
            self._send(incoming, buffer)
        return content, known

    def _send(self, incoming: _Incoming, data: bytearray) -> None:
        """Hands one frame to the codec, and writes what is done."""
        start = incoming.frames[-1].start + incoming.frames[-1].raw_length if incoming.frames else 0
        if self._kind == "R" and start:
            raise RecordTooLargeError(f"a record takes more than the {self._frame_bytes} bytes allowed")
        frame = _Frame(start, len(data))
        compression = self._compression
        if self._kind == "R" and len(data) < _RAW_RECORD_BYTES:
            compression = "none"
        if self._workers and len(data) >= _INLINE_BYTES:
            if self._executor is None:
                from concurrent.futures import ThreadPoolExecutor  # most commands write nothing this large

                self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="rbl-pack-writer")
            frame.future = self._executor.submit(encode_frame, data, compression)
        else:
            frame.keep(encode_frame(data, compression))
        incoming.frames.append(frame)
        self._pending.append((incoming, frame))
        self._pending_bytes += frame.raw_length
        self._write_pending(_PENDING_FRAMES)

    def _write_pending(self, leave: int) -> None:
        """Writes the oldest frames until at most so many are left, and any that are done, and indexes what is whole."""
        while self._pending:
            incoming, frame = self._pending[0]
            done = frame.future is None or frame.future.done()
            if not done and len(self._pending) <= leave and self._pending_bytes <= _PENDING_BYTES:
                break
            frame.settle()
            self._pending.popleft()
            self._pending_bytes -= frame.raw_length
            self._write(frame)
            incoming.written += 1
        while self._incoming:
            incoming = self._incoming[0]
            if incoming.content is None or incoming.written < len(incoming.frames):
                break
            self._incoming.popleft()
            self._add_to_index(incoming, incoming.content)

    def _write(self, frame: _Frame) -> None:
        if self._stage is None:
            self._stage = self._backend.stage()
            self._stage.write(self._header)
        frame.offset = self._stage.size
        encoded, frame.encoded = frame.encoded, None
        if encoded is not None:
            self._stage.write(encoded.data)

    def _add_to_index(self, incoming: _Incoming, content: ContentId) -> None:
        first = len(self._index) // ENTRY_BYTES
        for frame in incoming.frames:
            self._index += encode_entry(
                FrameEntry(
                    content=content,
                    size=incoming.size,
                    start=frame.start,
                    offset=frame.offset,
                    raw_length=frame.raw_length,
                    stored_length=frame.stored,
                    checksum=frame.checksum,
                    codec=frame.codec,
                    element_width=incoming.element_width,
                    parameters=frame.parameters,
                )
            )
        stored = sum(frame.stored for frame in incoming.frames)
        self._contents.append((content, incoming.size, first, len(incoming.frames), stored))

    def _drop(self, incoming: _Incoming) -> None:
        """Takes the latest content back out: frames under way are cancelled, frames written are cut off."""
        while self._pending and self._pending[-1][0] is incoming:
            frame = self._pending.pop()[1]
            self._pending_bytes -= frame.raw_length
            frame.cancel()
        self._incoming.pop()
        if incoming.written and self._stage is not None:
            self._stage.truncate(incoming.frames[0].offset)

    def _publish(self, stage: Stage) -> PackSummary:
        pack = pack_id(self._header, (self._index,))
        footer = Footer(stage.size, len(self._index) // ENTRY_BYTES, pack)
        stage.write(self._index)
        stage.write(encode_footer(footer))
        if stage.size != footer.file_size:
            raise WriteError(f"pack {pack} has {stage.size} bytes where {footer.file_size} were written", object=pack)
        if not stage.publish(pack_key(pack)):
            # An earlier attempt left this pack and nothing checked it since. To refer to it, it must be whole.
            for damage in check_pack(self._backend, pack, full=False):
                raise CorruptPackError(
                    f"pack {pack} is there already and is damaged: {damage.problem}",
                    object=pack,
                    hint="Run 'rbl fsck'; move the file away, then run the command again.",
                )
        locations = (ContentLocation(content, size, pack, *rest) for content, size, *rest in self._contents)
        return PackSummary(pack, self._kind, footer.file_size, tuple(locations))
