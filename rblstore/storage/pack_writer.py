"""Writing one pack: contents stream in, are hashed and encoded side by side, and are published together or not at all.

How they are hashed and encoded is :mod:`rblstore.storage.encoding`'s; here frames become bytes of a file and entries of
its index, in the order in which they came in. What a large content turns out to have been stored as is cut off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

from rblstore.errors import CorruptError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId
from rblstore.objects.locations import ContentLocation, PackKind, PackSummary
from rblstore.storage.backend import Backend, Stage
from rblstore.storage.codecs import Buffer, Compression
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.durable import WriteError
from rblstore.storage.encoding import Beneath, EncodingPipeline, Frame, Incoming, RecordTooLargeError, Source
from rblstore.storage.pack_check import check_pack
from rblstore.storage.pack_format import (
    ENTRY_BYTES,
    FOOTER_BYTES,
    Footer,
    FrameEntry,
    encode_entry,
    encode_footer,
    encode_header,
    pack_id,
    pack_key,
)
from rblstore.storage.stored_content import StoredContent

__all__ = ["AddedContent", "CorruptPackError", "PackWriter", "RecordTooLargeError"]

_DEFAULT_WORKERS: Final = 2


class CorruptPackError(CorruptError):
    """The pack to be written is there already, and is damaged."""

    code = "corrupt_pack"


@dataclass(frozen=True)
class AddedContent:
    """What became of one content given to a :class:`PackWriter`; asking waits until it is known.

    Attributes:
        size: Raw bytes.
    """

    size: int
    _incoming: Incoming = field(repr=False)
    _drain: Callable[[], None] = field(repr=False)

    @property
    def content(self) -> ContentId:
        """Its id."""
        self._incoming.wait_known()
        if self._incoming.content is None:
            raise ValueError("the pack was abandoned before the content was hashed")
        return self._incoming.content

    @property
    def new(self) -> bool:
        """Whether this pack holds it; False where it was stored already, here or elsewhere."""
        return not self._incoming.wait_known()

    @property
    def stored(self) -> int:
        """Bytes that its frames take in this pack; 0 where it is not new."""
        if not self._incoming.taken:
            self._drain()
        return 0 if self._incoming.known else sum(frame.stored for frame in self._incoming.frames)


class PackWriter:
    """Writes one pack. Used by one thread; as a context manager it abandons whatever was not finished.

    Args:
        backend: Where the pack goes.
        kind: ``C`` for contents, ``R`` for records (each one frame, at most 64 MiB).
        is_stored: Whether a content is stored already, elsewhere; asked by one thread at a time.
        compression: How frames are encoded: ``none``, ``fast`` or ``max``.
        workers: Threads that encode; 0 to do everything in the caller's. The pack's bytes do not depend on it.
        frame_bytes: Raw bytes of a frame; part of what decides the pack's bytes.
    """

    def __init__(
        self,
        backend: Backend,
        kind: PackKind,
        *,
        is_stored: Callable[[ContentId], bool],
        compression: Compression = "fast",
        workers: int = _DEFAULT_WORKERS,
        frame_bytes: int = limits.FRAME_BYTES,
    ) -> None:
        self._backend = backend
        self._header = encode_header(kind)
        self._kind = kind
        self._pipeline = EncodingPipeline(
            is_stored=is_stored,
            compression=compression,
            # Records are small and many, and are read one at a time.
            workers=0 if kind == "R" else workers,
            frame_bytes=limits.FRAME_BYTES_CEILING if kind == "R" else frame_bytes,
            records=kind == "R",
            take=self._take,
        )
        self._stage: Stage | None = None
        self._index = bytearray()
        self._contents: list[tuple[ContentId, int, int, int, int]] = []
        self._adding = False
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
        incoming = Incoming(_checked_width(element_width))
        return self._add(incoming, lambda: self._pipeline.add_chunks(incoming, chunks))

    def add_source(
        self,
        source: Source,
        *,
        element_width: int = 0,
        expected: Beneath | None = None,
        base: Beneath | None = None,
        inspect: Callable[[memoryview], None] | None = None,
    ) -> AddedContent:
        """Adds one content that can be read by ranges, unless it is stored already. It is read before this returns.

        Args:
            source: Its bytes.
            element_width: Bytes of an element of what it holds, 0 where unknown.
            expected: What it probably is, stored; a guess that may be wrong.
            base: What its frames may be stored as a difference from. It must have no base itself.
            inspect: Is shown every byte once, in order, in a thread; done once the content's id is known.

        Raises:
            CorruptError: The base's stored bytes are damaged.
            WriteError: The system refused; the pack is lost.
        """
        incoming = Incoming(_checked_width(element_width), base, inspect)
        return self._add(incoming, lambda: self._pipeline.add_source(incoming, source, expected))

    def copy(self, stored: StoredContent) -> None:
        """Adds a content as another pack has it, frame by frame, once its bytes have been read and its id compared.

        Args:
            stored: The content, which nothing else adds to this pack.

        Raises:
            CorruptError: Its stored bytes are damaged.
            WriteError: The system refused; the pack is lost.
        """
        for _ in read_contents([Wanted(stored)], reuse=True):
            pass
        if self._adding:
            raise ValueError("another content is being added to this pack")
        self._require_open()
        self._pipeline.drain()
        first, length = len(self._index) // ENTRY_BYTES, 0
        try:
            for entry in stored.frames:
                data = stored.stored_frame(entry)
                stage = self._begin()
                self._index += encode_entry(replace(entry, offset=stage.size))
                stage.write(data)
                length += len(data)
        except BaseException:
            self.abandon()  # a part of a content would be a pack that nobody can read
            raise
        self._contents.append((stored.content, stored.size, first, len(stored.frames), length))

    @property
    def size(self) -> int:
        """Bytes that the pack's file would have, with what was added so far; waits until all of it is encoded."""
        self._pipeline.drain()
        entries = len(self._index) // ENTRY_BYTES
        return 0 if self._stage is None else self._stage.size + entries * ENTRY_BYTES + FOOTER_BYTES

    def _add(self, incoming: Incoming, send: Callable[[], None]) -> AddedContent:
        # A pack is a sequence: what is added while one content still streams in would end up inside of it.
        if self._adding:
            raise ValueError("another content is being added to this pack")
        self._require_open()
        self._adding = True
        try:
            send()
        except BaseException:
            self._pipeline.give_up(incoming)
            if not self._pipeline.failed:  # else the pack is lost, and its file closed where that was what failed
                self._cut(incoming)
            raise
        finally:
            self._adding = False
        return AddedContent(incoming.size, incoming, self._pipeline.drain)

    def _require_open(self) -> None:
        if self._ended:
            raise WriteError("the pack has been finished or abandoned already")
        if self._pipeline.failed:
            raise WriteError("the pack is lost: something that was added to it before failed")

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
        try:
            self._require_open()
            self._pipeline.drain()
            return None if self._stage is None or not self._index else self._publish(self._stage)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Forgets everything not published, and ends the threads. Does nothing the second time."""
        self._ended = True
        self._pipeline.abandon()
        self._index = bytearray()  # a write that failed may still look into the old one
        if self._stage is not None:
            self._stage.discard()
            self._stage = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _take(self, incoming: Incoming, frame: Frame | None) -> None:
        """Writes a frame, or, after the last one of a content, what the index says of it."""
        if frame is not None and frame.encoded is not None:
            stage = self._begin()
            frame.offset = stage.size
            stage.write(frame.encoded.data)
        elif incoming.known:
            self._cut(incoming)
        elif incoming.content is not None:
            self._add_to_index(incoming, incoming.content)

    def _begin(self) -> Stage:
        """The file, begun with its header."""
        if self._stage is None:
            self._stage = self._backend.stage()
            self._stage.write(self._header)
        return self._stage

    def _cut(self, incoming: Incoming) -> None:
        """Takes the latest content's frames back out of the file."""
        offsets = [frame.offset for frame in incoming.frames if frame.offset >= 0]
        if offsets and self._stage is not None:
            self._stage.truncate(offsets[0])

    def _add_to_index(self, incoming: Incoming, content: ContentId) -> None:
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
                    base=frame.base,
                )
            )
        stored = sum(frame.stored for frame in incoming.frames)
        self._contents.append((content, incoming.size, first, len(incoming.frames), stored))

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


def _checked_width(element_width: int) -> int:
    if not 0 <= element_width <= 255:
        raise ValueError(f"an element of {element_width} bytes")
    return element_width
