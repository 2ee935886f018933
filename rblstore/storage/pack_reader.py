"""Reading one pack: nothing is trusted further than it has been checked.

Reading one content takes the footer, its own index entries and its frames. Every frame's XXH3 and lengths are checked,
and in the end the SHA-256 of the whole content, before its last frame is given out: whoever has got all of a content
has got the right bytes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from rblstore.errors import CorruptError, InputError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackKind, PackSummary
from rblstore.storage.backend import Backend
from rblstore.storage.codecs import BadFrameError, UnknownCodecError, decode_frame
from rblstore.storage.pack_format import (
    ENTRY_BYTES,
    FOOTER_BYTES,
    HEADER_BYTES,
    Footer,
    FrameEntry,
    IndexRules,
    checksum,
    encode_header,
    malformed,
    pack_id,
    pack_key,
    parse_entries,
    parse_footer,
    parse_header,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

_INDEX_BLOCK_ENTRIES: Final = 8192
_READERS: Final = 2
# Stored and raw bytes of frames read ahead of the one that the caller has.
_AHEAD_BYTES: Final = 32 << 20


class CorruptContentError(CorruptError):
    """A content's stored bytes are not the bytes that were stored.

    Attributes:
        content: Which content.
        pack: The pack that holds this copy of it.
    """

    code = "corrupt_content"

    def __init__(self, content: ContentId, pack: PackId, why: str) -> None:
        super().__init__(
            f"content {content} in pack {pack} is damaged: {why}",
            object=content,
            hint="Run 'rbl fsck' to see what needs it.",
        )
        self.content = content
        self.pack = pack
        self.why = why


class ContentTooLargeError(InputError):
    """A content is larger than what it is wanted for may be."""

    code = "content_too_large"


class PackReader:
    """Reads one pack; opens nothing until it must. May be used from several threads.

    Args:
        backend: Where the pack is.
        pack: Which one.
    """

    def __init__(self, backend: Backend, pack: PackId) -> None:
        self._backend = backend
        self._pack = pack
        self._key = pack_key(pack)
        self._kind: PackKind | None = None
        self._footer: Footer | None = None

    def footer(self) -> Footer:
        """The pack's footer; the first call reads and checks header and footer.

        Raises:
            MissingObjectError: There is no such pack.
            MalformedPackError: It does not begin and end as that pack does.
            ReadError: The system refused.
        """
        if self._footer is None:
            size = self._backend.size(self._key)
            if size < HEADER_BYTES + FOOTER_BYTES:
                raise malformed(self._pack, f"it has only {size} bytes")
            self._kind = parse_header(self._backend.read(self._key, 0, HEADER_BYTES), self._pack)
            tail = self._backend.read(self._key, size - FOOTER_BYTES, FOOTER_BYTES)
            self._footer = parse_footer(tail, self._pack, size)
        return self._footer

    def kind(self) -> PackKind:
        """What the pack holds: ``C`` contents, ``R`` records. Raises as :meth:`footer` does."""
        self.footer()
        return self._kind or "C"

    def entries(self, first: int, count: int) -> tuple[FrameEntry, ...]:
        """Some entries of the index, each checked by itself.

        Args:
            first: Number of the first one, from 0.
            count: How many.

        Raises:
            MalformedPackError: The index has no such entries, or one of them breaks a rule.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        footer = self.footer()
        if first < 0 or count < 0 or first + count > footer.entries:
            raise malformed(self._pack, f"its index has no entries {first} to {first + count}")
        return tuple(parse_entries(self._index_bytes(first, count), footer))

    def summary(self) -> PackSummary:
        """Everything in the pack: the whole index, checked against the rules and the pack's id.

        Raises:
            MalformedPackError: The index is not that of this pack.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        return PackSummary(self._pack, self.kind(), self.footer().file_size, tuple(self._locations()))

    def read(self, location: ContentLocation, *, verify: bool = True) -> Iterator[memoryview]:
        """A content's bytes, frame by frame, decoded ahead in threads that end with the iterator.

        Args:
            location: Where it is; checked against the index.
            verify: Whether to compare the SHA-256 of the whole before giving out the last frame; XXH3 always is.

        Raises:
            CorruptContentError: A frame or the whole is not what it must be.
            UnknownCodecError: A later version wrote it.
            MalformedPackError: The pack does not have it there.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        digest = hashlib.sha256()
        entries = self._entries_of(location)
        with closing(self._frames(entries)) as frames:
            for number, frame in enumerate(frames, 1):
                if verify:
                    digest.update(frame)
                    if number == len(entries) and digest.hexdigest() != location.content:
                        raise CorruptContentError(location.content, self._pack, "its SHA-256 differs")
                yield memoryview(frame)

    def read_range(self, location: ContentLocation, start: int, length: int) -> bytes:
        """A part of a content, from the frames that it lies in; their XXH3 is compared.

        Args:
            location: Where the content is; checked against the index.
            start: First byte wanted.
            length: How many.

        Raises:
            CorruptContentError, UnknownCodecError, CorruptError, ReadError: As for :meth:`read`.
        """
        if start < 0 or length < 0 or start + length > location.size:
            raise ValueError(f"bytes {start} to {start + length} of a content of {location.size}")
        end = start + length
        wanted = [
            entry
            for entry in self._entries_of(location)
            if entry.start < end and start < entry.start + entry.raw_length
        ]
        parts = []
        with closing(self._frames(wanted)) as frames:
            for entry, frame in zip(wanted, frames, strict=True):
                parts.append(memoryview(frame)[max(start - entry.start, 0) : end - entry.start])
        return b"".join(parts)

    def read_small(self, location: ContentLocation, max_bytes: int) -> bytes:
        """A whole content in memory, verified.

        Args:
            location: Where it is; checked against the index.
            max_bytes: Size above which nothing is read.

        Raises:
            ContentTooLargeError: It is larger.
            CorruptContentError, UnknownCodecError, CorruptError, ReadError: As for :meth:`read`.
        """
        if location.size > max_bytes:
            raise ContentTooLargeError(
                f"content {location.content} has {location.size} bytes, more than the {max_bytes} allowed",
                object=location.content,
            )
        return b"".join(self.read(location))

    def stored_frame(self, entry: FrameEntry) -> bytes:
        """A frame's stored bytes, their XXH3 compared.

        Raises:
            CorruptContentError: It differs.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        stored = self._backend.read(self._key, entry.offset, entry.stored_length)
        if checksum(stored) != entry.checksum:
            raise CorruptContentError(entry.content, self._pack, f"the checksum of its frame at {entry.start} differs")
        return stored

    def _index_bytes(self, first: int, count: int) -> bytes:
        offset = self.footer().index_offset + first * ENTRY_BYTES
        return self._backend.read(self._key, offset, count * ENTRY_BYTES)

    def _locations(self) -> Iterator[ContentLocation]:
        footer, kind = self.footer(), self.kind()
        digest = hashlib.sha256(encode_header(kind))
        rules = IndexRules(footer, kind)
        for block in self._index_blocks(footer):
            digest.update(block)
            for entry in parse_entries(block, footer):
                location = rules.add(entry)
                if location is not None:
                    yield location
        rules.finish()
        if digest.hexdigest() != self._pack:
            raise malformed(self._pack, "its index is damaged")

    def _index_blocks(self, footer: Footer) -> Iterator[bytes]:
        for first in range(0, footer.entries, _INDEX_BLOCK_ENTRIES):
            yield self._index_bytes(first, min(_INDEX_BLOCK_ENTRIES, footer.entries - first))

    def _verify_id(self, footer: Footer) -> None:
        header = self._backend.read(self._key, 0, HEADER_BYTES)
        if pack_id(header, self._index_blocks(footer)) != self._pack:
            raise malformed(self._pack, "its index is damaged")

    def _entries_of(self, location: ContentLocation) -> tuple[FrameEntry, ...]:
        if location.pack != self._pack or location.entries < 1:
            raise malformed(self._pack, f"it is not where content {location.content} is said to be")
        entries = self.entries(location.first_entry, location.entries)
        follows = all(before.start + before.raw_length == after.start for before, after in pairwise(entries))
        ends = entries[0].start == 0 and entries[-1].start + entries[-1].raw_length == location.size
        named = all((entry.content, entry.size) == (location.content, location.size) for entry in entries)
        if not (follows and ends and named):
            self._verify_id(self.footer())
            raise malformed(self._pack, f"content {location.content} is not where it is said to be")
        return entries

    def _decode(self, entry: FrameEntry) -> bytes:
        stored = self.stored_frame(entry)
        try:
            return decode_frame(entry.codec, entry.parameters, stored, entry.raw_length)
        except UnknownCodecError as error:
            self._verify_id(self.footer())  # an index that rotted is no later version's
            raise UnknownCodecError(
                f"content {entry.content} in pack {self._pack}: {error.message}",
                object=entry.content,
                hint=error.hint,
            ) from error
        except BadFrameError as error:
            raise CorruptContentError(entry.content, self._pack, error.message) from error

    def _frames(self, entries: Sequence[FrameEntry]) -> Generator[bytes, None, None]:
        if len(entries) < 2:
            yield from map(self._decode, entries)
            return
        from concurrent.futures import ThreadPoolExecutor  # not for the small contents that history is made of

        ahead: deque[tuple[int, Future[bytes]]] = deque()
        waiting = deque(entries)
        used = 0
        executor = ThreadPoolExecutor(_READERS, thread_name_prefix="rbl-pack-reader")
        try:
            while waiting or ahead:
                while waiting and len(ahead) <= _READERS:
                    cost = waiting[0].raw_length + waiting[0].stored_length
                    if ahead and used + cost > _AHEAD_BYTES:
                        break
                    used += cost
                    ahead.append((cost, executor.submit(self._decode, waiting.popleft())))
                cost, future = ahead.popleft()
                yield future.result()
                used -= cost
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def read_small(backend: Backend, location: ContentLocation, max_bytes: int) -> bytes:
    """A whole content in memory, verified; see :meth:`PackReader.read_small`."""
    return PackReader(backend, location.pack).read_small(location, max_bytes)
