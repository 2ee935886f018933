"""Reading one pack: nothing is trusted further than it has been checked.

Reading one content takes the footer, its own index entries and its frames. Every frame's XXH3 and lengths are checked,
and in the end the SHA-256 of the whole content, before its last frame is given out: whoever has got all of a content
has got the right bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from typing import Final, Protocol

from rblstore.errors import CorruptError, InputError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackKind, PackSummary
from rblstore.storage.backend import MEND, Backend
from rblstore.storage.codecs import RAW, BadFrameError, UnknownCodecError, decode_frame
from rblstore.storage.decoding import Wanted, read_contents
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
from rblstore.storage.stored_content import Find, StoredContent

_INDEX_BLOCK_ENTRIES: Final = 8192
_AHEAD_ENTRIES: Final = 32


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
            hint=MEND,
        )
        self.content = content
        self.pack = pack
        self.why = why


class ContentTooLargeError(InputError):
    """A content is larger than what it is wanted for may be."""

    code = "content_too_large"


class Readable(Protocol):
    """The part of a :class:`~rblstore.storage.backend.Backend` by which packs are read."""

    def size(self, key: str) -> int:
        """See :meth:`rblstore.storage.backend.Backend.size`."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See :meth:`rblstore.storage.backend.Backend.read`."""

    def read_into(self, key: str, offset: int, out: memoryview) -> None:
        """See :meth:`rblstore.storage.backend.Backend.read_into`."""


class PackReader:
    """Reads one pack; opens nothing until it must. May be used from several threads.

    Args:
        backend: Where the pack is.
        pack: Which one.
        find: Finds contents of other packs, for frames that are differences; None where there is no way to.
    """

    def __init__(self, backend: Readable, pack: PackId, find: Find | None = None) -> None:
        self._backend = backend
        self._find = find
        self._block = (-1, b"")
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
        number, block = self._block
        if not number <= first <= first + count <= number + len(block) // ENTRY_BYTES:
            # Contents that were written together are read together: their entries come with the first one's.
            number, block = first, self._index_bytes(first, min(max(count, _AHEAD_ENTRIES), footer.entries - first))
            self._block = (number, block)
        at = (first - number) * ENTRY_BYTES
        return tuple(parse_entries(block[at : at + count * ENTRY_BYTES], footer))

    def summary(self) -> PackSummary:
        """Everything in the pack: the whole index, checked against the rules and the pack's id.

        Raises:
            MalformedPackError: The index is not that of this pack.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        locations = tuple(location for _, location in self.walk() if location is not None)
        return PackSummary(self._pack, self.kind(), self.footer().file_size, locations)

    def walk(self) -> Iterator[tuple[FrameEntry, ContentLocation | None]]:
        """Every frame in order, and with the last one of each content where that content is.

        Nothing of it is to be believed before the end, where the whole index is known to be that of the pack.

        Raises:
            MalformedPackError: It is not.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        footer, kind = self.footer(), self.kind()
        digest = hashlib.sha256(encode_header(kind))
        rules = IndexRules(footer, kind)
        for block in self._index_blocks(footer):
            digest.update(block)
            for entry in parse_entries(block, footer):
                yield entry, rules.add(entry)
        rules.finish()
        if digest.hexdigest() != self._pack:
            raise malformed(self._pack, "its index is damaged")

    def stored(
        self, location: ContentLocation, *, any_copy: bool = False, damaged: frozenset[PackId] = frozenset()
    ) -> StoredContent:
        """A content of this pack, whose frames can be read in any order.

        Args:
            location: Where it is; checked against the index.
            any_copy: Whether another copy serves where this one is damaged.
            damaged: Packs in which it was looked for already and found damaged.

        Raises:
            MalformedPackError: The pack does not have it there.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        if location.pack != self._pack:
            raise self.misplaced(location.content)
        return StoredContent(self, location, self._find, any_copy=any_copy, damaged=damaged)

    def read(self, location: ContentLocation, *, any_copy: bool = False) -> Iterator[memoryview]:
        """A content's bytes, frame by frame, decoded ahead in threads that end with the iterator.

        Args:
            location: Where it is; checked against the index.
            any_copy: As for :meth:`stored`.

        Raises:
            CorruptContentError: A frame or the whole is not what it must be.
            UnknownCodecError: A later version wrote it.
            MalformedPackError: The pack does not have it there.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        with closing(read_contents([Wanted(self.stored(location, any_copy=any_copy))])) as pieces:
            for piece in pieces:
                yield piece.data

    def read_small(self, location: ContentLocation, max_bytes: int, *, any_copy: bool = False) -> bytes:
        """A whole content in memory, verified.

        Args:
            location: Where it is; checked against the index.
            max_bytes: Size above which nothing is read.
            any_copy: As for :meth:`stored`.

        Raises:
            ContentTooLargeError: It is larger.
            CorruptContentError, UnknownCodecError, CorruptError, ReadError: As for :meth:`read`.
        """
        check_size(location, max_bytes)
        return b"".join(self.read(location, any_copy=any_copy))

    def stored_frame(self, entry: FrameEntry) -> bytes:
        """A frame's stored bytes, their XXH3 compared.

        Raises:
            CorruptContentError: It differs.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        stored = self._backend.read(self._key, entry.offset, entry.stored_length)
        self._check(entry, stored)
        return stored

    def decode_into(self, entry: FrameEntry, out: memoryview, base: memoryview | None) -> None:
        """The raw bytes of one frame.

        Args:
            entry: Which.
            out: Where they go: as many bytes as its raw length.
            base: What lies beneath it, where it is a difference.

        Raises:
            CorruptContentError: The stored bytes are not what they must be.
            UnknownCodecError: A later version wrote it.
            CorruptError, ReadError: As for :meth:`footer`.
        """
        if entry.codec == RAW and entry.stored_length == len(out):
            self._backend.read_into(self._key, entry.offset, out)
            self._check(entry, out)
            return
        stored = self.stored_frame(entry)
        try:
            decode_frame(entry.codec, entry.parameters, stored, entry.raw_length, base=base, out=out)
        except UnknownCodecError as error:
            self._verify_id(self.footer())  # an index that rotted is no later version's
            raise UnknownCodecError(
                f"content {entry.content} in pack {self._pack}: {error.message}",
                object=entry.content,
                hint=error.hint,
            ) from error
        except BadFrameError as error:
            raise self.damaged(entry, error.message) from error

    def damaged(self, entry: FrameEntry, why: str) -> CorruptContentError:
        """The error for a frame that is not what it must be."""
        return CorruptContentError(entry.content, self._pack, why)

    def misplaced(self, content: ContentId) -> CorruptError:
        """The error for a content that is not where it is said to be.

        Raises:
            MalformedPackError: The index is damaged, which explains it.
        """
        self._verify_id(self.footer())
        return malformed(self._pack, f"content {content} is not where it is said to be")

    def require(self) -> None:
        """Says so where the pack is not there any more.

        Raises:
            MissingObjectError: It is gone.
            ReadError: The system refused.
        """
        self._backend.size(self._key)

    def _check(self, entry: FrameEntry, stored: bytes | memoryview) -> None:
        if checksum(stored) != entry.checksum:
            raise self.damaged(entry, f"the checksum of its frame at {entry.start} differs")

    def _index_bytes(self, first: int, count: int) -> bytes:
        offset = self.footer().index_offset + first * ENTRY_BYTES
        return self._backend.read(self._key, offset, count * ENTRY_BYTES)

    def _index_blocks(self, footer: Footer) -> Iterator[bytes]:
        for first in range(0, footer.entries, _INDEX_BLOCK_ENTRIES):
            yield self._index_bytes(first, min(_INDEX_BLOCK_ENTRIES, footer.entries - first))

    def _verify_id(self, footer: Footer) -> None:
        header = self._backend.read(self._key, 0, HEADER_BYTES)
        if pack_id(header, self._index_blocks(footer)) != self._pack:
            raise malformed(self._pack, "its index is damaged")


def check_size(location: ContentLocation, max_bytes: int) -> None:
    """Refuses a content that is larger than its reader allows.

    Raises:
        ContentTooLargeError: It is.
    """
    if location.size > max_bytes:
        raise ContentTooLargeError(
            f"content {location.content} has {location.size} bytes, more than the {max_bytes} allowed",
            object=location.content,
        )


def read_small(backend: Backend, location: ContentLocation, max_bytes: int) -> bytes:
    """A whole content in memory, verified; see :meth:`PackReader.read_small`."""
    return PackReader(backend, location.pack).read_small(location, max_bytes)
