"""Reading what is left of packs: each content by itself, whatever has become of the pack around it.

A pack that is damaged still has contents that are whole. What is read here is taken for nothing but bytes that may be
right: whoever uses a content reads all of it first, and its SHA-256 is compared on the way.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Final

from rblstore.errors import CorruptError, InputError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackKind
from rblstore.storage.backend import Backend, ReadError, Room
from rblstore.storage.codecs import UnknownCodecError
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.pack_format import (
    ENTRY_BYTES,
    FOOTER_BYTES,
    HEADER_BYTES,
    Footer,
    FrameEntry,
    encode_header,
    pack_id,
    pack_of_key,
    parse_entries,
    parse_footer,
)
from rblstore.storage.pack_reader import ContentTooLargeError, PackReader
from rblstore.storage.stored_content import Find, StoredContent

UNREADABLE: Final = (CorruptError, UnknownCodecError, ContentTooLargeError, ReadError)
"""What reading a content may raise; a :class:`ReadError` among them goes through :func:`require_disk_error`."""

_BLOCK_ENTRIES: Final = 8192


def require_disk_error(error: Exception) -> None:
    """Raises a read error again unless it is the disk's: what may not be read is not damaged.

    Raises:
        ReadError: No permission, too many open files, or the like.
    """
    if isinstance(error, ReadError) and getattr(error.__cause__, "errno", None) not in (errno.EIO, None):
        raise error


class SalvagedPack(PackReader):
    """What is left of one pack. Nothing is checked against the pack's id.

    Args:
        backend: Where the pack is.
        key: Under which key.
        find: Finds what frames are differences from.
    """

    def __init__(self, backend: Backend, key: str, find: Find | None = None) -> None:
        super().__init__(backend, pack_of_key(key), find)
        self._key = key

    @property
    def id(self) -> PackId:
        """Its id, as its name says."""
        return self._pack

    def moved_to(self, key: str) -> None:
        """Says that it lies under another key from now on."""
        self._key = key

    def footer(self) -> Footer:
        """Its footer; where that is damaged, what the last entry of the index says.

        Raises:
            CorruptError: Neither can be read.
            ReadError: The system refused.
        """
        if self._footer is None:
            size = self._backend.size(self._key)
            if size < HEADER_BYTES + ENTRY_BYTES + FOOTER_BYTES:
                raise self.misread(f"it has only {size} bytes")
            tail = self._backend.read(self._key, size - FOOTER_BYTES, FOOTER_BYTES)
            try:
                self._footer = parse_footer(tail, self._pack, size)
            except CorruptError:
                self._footer = self._footer_from_index(size)
        return self._footer

    def _footer_from_index(self, size: int) -> Footer:
        """Frames stand back to back up to the index, so its last entry says where it begins."""
        last = size - FOOTER_BYTES - ENTRY_BYTES
        data = self._backend.read(self._key, last, ENTRY_BYTES)
        (entry,) = parse_entries(data, Footer(last, 1, self._pack))
        begin = entry.offset + entry.stored_length
        entries, rest = divmod(size - FOOTER_BYTES - begin, ENTRY_BYTES)
        if rest or not 0 < entries <= limits.PACK_INDEX_ENTRIES:
            raise self.misread("neither its footer nor the end of its index can be read")
        return Footer(begin, entries, self._pack)

    def misread(self, why: str) -> CorruptError:
        """The error for a pack of which nothing can be read."""
        return CorruptError(f"pack {self._pack}: {why}", object=self._pack)

    def kind(self) -> PackKind:
        """What it holds, as its header says; where that is damaged, as its id does.

        Raises:
            CorruptError, ReadError: As for :meth:`footer`.
        """
        if self._kind is None:
            footer = self.footer()
            header = self._backend.read(self._key, 0, HEADER_BYTES)
            kinds: tuple[PackKind, ...] = ("C", "R")
            named = [kind for kind in kinds if encode_header(kind) == header]
            named += [
                kind for kind in kinds if pack_id(encode_header(kind), self._index_blocks(footer)) == self._pack
            ] * (not named)
            self._kind = named[0] if named else "C"
        return self._kind

    def contents(self) -> Iterator[ContentLocation]:
        """Every content that the index still describes whole, in its order.

        Raises:
            CorruptError, ReadError: As for :meth:`footer`.
        """
        held: list[FrameEntry] = []
        first = 0
        for number, entry in enumerate(self._entries_left()):
            follows = entry is not None and (
                entry.start == sum(one.raw_length for one in held[-1:]) + (held[-1].start if held else 0)
                and (not held or (entry.content, entry.size) == (held[0].content, held[0].size))
            )
            if entry is None or not follows:
                held = []
                if entry is None or entry.start:
                    continue
            if not held:
                first = number
            held.append(entry)
            if entry.start + entry.raw_length == entry.size and len(held) <= limits.CONTENT_FRAMES:
                stored = sum(one.stored_length for one in held)
                yield ContentLocation(entry.content, entry.size, self._pack, first, len(held), stored)
                held = []

    def _entries_left(self) -> Iterator[FrameEntry | None]:
        footer = self.footer()
        for block in self._index_blocks(footer):
            for at in range(0, len(block), ENTRY_BYTES):
                try:
                    yield next(parse_entries(block[at : at + ENTRY_BYTES], footer))
                except (CorruptError, InputError):
                    yield None


class PackPile:
    """Whatever packs are in some rooms of a repository, whole or not, listed in its catalog or not.

    Args:
        backend: Where they are.
        rooms: Which rooms; copies in earlier ones come first.
        workers: Threads that decode.

    Attributes:
        packs: Those of which something can be read.
        unreadable: Why of others nothing can be, by id.
    """

    def __init__(self, backend: Backend, rooms: Iterable[Room], workers: int) -> None:
        self.packs: list[SalvagedPack] = []
        self.unreadable: dict[PackId, str] = {}
        self.locations: dict[PackId, list[ContentLocation]] = {}
        self._workers = workers
        self._copies: dict[ContentId, list[tuple[SalvagedPack, ContentLocation]]] = {}
        for room in rooms:
            for key in sorted(backend.list(f"{room}/")):
                self._add(SalvagedPack(backend, key, self.base))

    def _add(self, pack: SalvagedPack) -> None:
        try:
            pack.kind()
            locations = list(pack.contents())
        except (CorruptError, ReadError) as error:
            require_disk_error(error)
            self.unreadable[pack.id] = error.message
            return
        self.packs.append(pack)
        self.locations[pack.id] = locations
        for location in locations:
            self._copies.setdefault(location.content, []).append((pack, location))

    def base(
        self, content: ContentId, gone: PackId | None = None, damaged: frozenset[PackId] = frozenset()
    ) -> StoredContent | None:
        """A copy that is no difference itself: what frames are differences from."""
        if gone is not None or damaged:
            return None  # each copy stands for itself: whoever wants another asks for it
        return next((copy for copy in self.copies(content) if not copy.bases), None)

    def copies(self, content: ContentId, find: Find | None = None) -> Iterator[StoredContent]:
        """Every copy of a content, none of them read.

        Args:
            content: Which.
            find: Finds what they are differences from; None for what the pile itself has.
        """
        for pack, location in self._copies.get(content, ()):
            try:
                yield StoredContent(pack, location, find or self.base)
            except UNREADABLE as error:
                require_disk_error(error)

    def size(self, content: ContentId) -> int | None:
        """Bytes of a content as an index says; None where none does."""
        return next((location.size for _, location in self._copies.get(content, ())), None)

    def whole(self, content: ContentId, find: Find | None = None) -> StoredContent | None:
        """The first copy of a content that is whole: all of it was read, and its SHA-256 compared."""
        return next((copy for copy in self.copies(content, find) if problem_of(copy, self._workers) is None), None)

    def record(self, content: ContentId) -> bytes | None:
        """A record's bytes out of a copy that is whole; None where there is none, or it is too large for a record."""
        for copy in self.copies(content):
            if copy.size <= limits.RECORD_BYTES + 128:
                try:
                    return b"".join(piece.data for piece in read_contents([Wanted(copy)], workers=0))
                except UNREADABLE as error:
                    require_disk_error(error)
        return None


def problem_of(copy: StoredContent, workers: int) -> str | None:
    """Reads all of a stored content and compares its SHA-256.

    Returns:
        What is wrong with it; None for a whole one.

    Raises:
        ReadError: The system refused for another reason than the disk.
    """
    try:
        for _ in read_contents([Wanted(copy)], workers=workers, reuse=True):
            pass
    except UNREADABLE as error:
        require_disk_error(error)
        return error.message
    return None
