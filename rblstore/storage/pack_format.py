"""The bytes of a pack (docs/format.md, Packs): header, index entries, footer, and the rules that an index must keep.

Pure functions of bytes. What they read may be hostile: every number is checked against the file's size and the limits
before anyone allocates or seeks by it, and the only error is :class:`MalformedPackError`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import xxhash

from rblstore.errors import CorruptError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackKind
from rblstore.storage.backend import MEND, Room
from rblstore.storage.codecs import DELTA, NAMES, NO_PARAMETERS, RAW, ZSTD

HEADER_BYTES: Final = 16
ENTRY_BYTES: Final = 128
FOOTER_BYTES: Final = 80

_MAGIC: Final = b"RBLPACK1"
_END_MAGIC: Final = b"RBLPACKE"
_HEADER: Final = struct.Struct("<8sc7s")
_ENTRY: Final = struct.Struct("<32sQQQIIQHHB3s16s32s")
_FOOTER: Final = struct.Struct("<QQ32s16sQ8s")
_HAS_BASE: Final = 1
_NO_ID: Final = bytes(32)


class MalformedPackError(CorruptError):
    """A pack's header, index or footer is not what any version writes."""

    code = "malformed_pack"


def malformed(pack: PackId, why: str) -> MalformedPackError:
    """The error for a pack that breaks a rule of the format."""
    return MalformedPackError(f"pack {pack}: {why}", object=pack, hint=MEND)


@dataclass(frozen=True)
class FrameEntry:
    """One frame, as the index describes it.

    Attributes:
        content: The content that it is a slice of.
        size: The content's raw bytes.
        start: Where in the content the frame begins.
        offset: Where in the pack its stored bytes begin.
        raw_length: Bytes of the slice.
        stored_length: Bytes as stored.
        checksum: XXH3-64 of the stored bytes, seed 0.
        codec: See :mod:`rblstore.storage.codecs`; may be one that this version does not decode.
        element_width: Bytes of an element of what the content holds, 0 where unknown.
        parameters: 16 bytes, as the codec defines.
        base: The content that a delta is taken from, or None.
    """

    content: ContentId
    size: int
    start: int
    offset: int
    raw_length: int
    stored_length: int
    checksum: int
    codec: int
    element_width: int = 0
    parameters: bytes = NO_PARAMETERS
    base: ContentId | None = None


@dataclass(frozen=True)
class Footer:
    """The last 80 bytes of a pack.

    Attributes:
        index_offset: Where the index begins.
        entries: How many entries it has.
        pack: The pack's id.
    """

    index_offset: int
    entries: int
    pack: PackId

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.index_offset + self.entries * ENTRY_BYTES + FOOTER_BYTES


def checksum(data: bytes | bytearray | memoryview) -> int:
    """XXH3-64 with seed 0: guards against bit rot, never an identity."""
    return xxhash.xxh3_64_intdigest(data)


def pack_key(pack: PackId, room: Room = "packs") -> str:
    """The key under which a backend keeps a pack.

    Args:
        pack: Which.
        room: ``packs``, ``trash`` (what gc took) or ``quarantine`` (what repair took).
    """
    return f"{room}/{pack[:2]}/{pack}.pack"


def pack_of_key(key: str) -> PackId:
    """The pack that a backend keeps under a valid key."""
    return PackId(key[-69:-5])


def pack_id(header: bytes, index: Iterable[bytes | bytearray | memoryview]) -> PackId:
    """A pack's id: SHA-256 of its header and its index.

    Args:
        header: 16 bytes.
        index: The index bytes, in pieces.
    """
    digest = hashlib.sha256(header)
    for piece in index:
        digest.update(piece)
    return PackId(digest.hexdigest())


def encode_header(kind: PackKind) -> bytes:
    """The first 16 bytes of a pack of a kind."""
    return _HEADER.pack(_MAGIC, kind.encode(), bytes(7))


def parse_header(data: bytes, pack: PackId) -> PackKind:
    """The kind that a pack's first 16 bytes name.

    Raises:
        MalformedPackError: They are not a header.
    """
    kinds: tuple[PackKind, ...] = ("C", "R")
    for kind in kinds:
        if data == encode_header(kind):
            return kind
    raise malformed(pack, "it does not begin as a pack of this version does")


def encode_footer(footer: Footer) -> bytes:
    """The last 80 bytes of a pack."""
    body = _FOOTER.pack(footer.index_offset, footer.entries, bytes.fromhex(footer.pack), bytes(16), 0, b"")[:64]
    return body + struct.pack("<Q8s", checksum(body), _END_MAGIC)


def parse_footer(data: bytes, pack: PackId, file_size: int) -> Footer:
    """Reads a pack's last 80 bytes.

    Args:
        data: 80 bytes.
        pack: The pack whose name the file has.
        file_size: The file's bytes, which the footer must account for exactly.

    Raises:
        MalformedPackError: They are not the footer of that pack in a file of that size.
    """
    if len(data) != FOOTER_BYTES:
        raise malformed(pack, f"its footer has {len(data)} bytes")
    index_offset, entries, named, zero, check, magic = _FOOTER.unpack(data)
    if magic != _END_MAGIC or check != checksum(data[:64]):
        raise malformed(pack, "its footer is damaged or missing")
    if named != bytes.fromhex(pack):
        raise malformed(pack, f"its footer is that of pack {named.hex()}")
    if zero != bytes(16):
        raise malformed(pack, "its footer has bytes that are not zero where they must be")
    if not 0 < entries <= limits.PACK_INDEX_ENTRIES:
        raise malformed(pack, f"its footer says {entries} entries")
    footer = Footer(index_offset, entries, pack)
    if index_offset < HEADER_BYTES or footer.file_size != file_size:
        raise malformed(pack, f"its footer accounts for {footer.file_size} bytes, the file has {file_size}")
    return footer


def encode_entry(entry: FrameEntry) -> bytes:
    """The 128 bytes of an index entry."""
    return _ENTRY.pack(
        bytes.fromhex(entry.content),
        entry.size,
        entry.start,
        entry.offset,
        entry.raw_length,
        entry.stored_length,
        entry.checksum,
        entry.codec,
        0 if entry.base is None else _HAS_BASE,
        entry.element_width,
        bytes(3),
        entry.parameters,
        _NO_ID if entry.base is None else bytes.fromhex(entry.base),
    )


def parse_entries(data: bytes, footer: Footer) -> Iterator[FrameEntry]:
    """Reads index entries, each by itself; :class:`IndexRules` says whether they fit together.

    Args:
        data: A whole number of entries.
        footer: The pack's footer.

    Raises:
        MalformedPackError: An entry breaks a rule.
    """
    if len(data) % ENTRY_BYTES:
        raise malformed(footer.pack, "a part of an index entry")
    for values in _ENTRY.iter_unpack(data):
        content, size, start, offset, raw, stored, check, codec, flags, width, zero, parameters, base = values
        entry = FrameEntry(
            ContentId(content.hex()),
            size,
            start,
            offset,
            raw,
            stored,
            check,
            codec,
            width,
            parameters,
            ContentId(base.hex()) if flags & _HAS_BASE else None,
        )
        why = _entry_problem(entry, footer)
        if flags & ~_HAS_BASE or any(zero) or (base != _NO_ID) != bool(flags & _HAS_BASE):
            why = "flags or zero bytes that no version writes"
        if why is not None:
            raise malformed(footer.pack, f"the index entry of content {entry.content} at {start} has {why}")
        yield entry


def _entry_problem(entry: FrameEntry, footer: Footer) -> str | None:
    if entry.size > limits.JSON_INTEGER or entry.start + entry.raw_length > entry.size:
        return "a slice that its content does not have"
    if max(entry.raw_length, entry.stored_length) > limits.FRAME_BYTES_CEILING:
        return f"a frame larger than {limits.FRAME_BYTES_CEILING} bytes"
    if entry.offset < HEADER_BYTES or entry.offset + entry.stored_length > footer.index_offset:
        return "stored bytes outside of the frames"
    if (entry.raw_length == 0) != (entry.size == 0) or (entry.raw_length == 0) != (entry.stored_length == 0):
        return "a length of zero where it may not be"
    if entry.codec in (RAW, ZSTD) and entry.parameters != NO_PARAMETERS:
        return "parameters that its codec does not have"
    if entry.codec in NAMES and (entry.base is not None) != (entry.codec == DELTA):
        return "a base that its codec does not have, or none where it must"
    if entry.base == entry.content:
        return "itself for a base"
    if entry.codec == RAW and entry.raw_length != entry.stored_length:
        return "a raw frame of another length than its slice"
    if entry.size == 0 and entry.codec != RAW:
        return "no bytes, yet a codec"
    return None


class IndexRules:
    """Checks that entries fit together, and groups them into contents.

    The rules: frames stand back to back from the header to the index, in the order of the entries; the entries of a
    content stand together, in the order of their starts, agree on its size and cover it without gap or overlap; no
    content comes twice; in a record pack every content has one entry.

    Args:
        footer: The pack's footer.
        kind: The kind that its header names.
    """

    def __init__(self, footer: Footer, kind: PackKind) -> None:
        self._footer = footer
        self._kind = kind
        self._offset = HEADER_BYTES
        self._number = 0
        self._first: FrameEntry | None = None
        self._first_number = 0
        self._covered = 0
        self._stored = 0
        self._seen: set[ContentId] = set()

    def add(self, entry: FrameEntry) -> ContentLocation | None:
        """Takes the next entry; gives the content that it completes, if it does.

        Raises:
            MalformedPackError: It does not fit what came before.
        """
        if entry.offset != self._offset:
            raise self._refuse(entry, "whose frame does not follow the one before")
        if self._first is None:
            if entry.content in self._seen:
                raise self._refuse(entry, "whose content comes twice")
            self._seen.add(entry.content)
            self._first, self._first_number, self._covered, self._stored = entry, self._number, 0, 0
        elif (entry.content, entry.size) != (self._first.content, self._first.size):
            raise self._refuse(self._first, "whose content is not complete")
        if entry.start != self._covered:
            raise self._refuse(entry, "that leaves a gap or overlaps")
        self._number += 1
        self._offset += entry.stored_length
        self._covered += entry.raw_length
        self._stored += entry.stored_length
        if self._covered < entry.size:
            if self._kind == "R":
                raise self._refuse(entry, "that is a part of a record")
            return None
        self._first = None
        first = self._first_number
        return ContentLocation(entry.content, entry.size, self._footer.pack, first, self._number - first, self._stored)

    def finish(self) -> None:
        """Says that there are no more entries.

        Raises:
            MalformedPackError: The last content is incomplete, or there are bytes between the frames and the index.
        """
        if self._first is not None:
            raise self._refuse(self._first, "whose content is not complete")
        if self._offset != self._footer.index_offset or self._number != self._footer.entries:
            raise malformed(self._footer.pack, "its frames do not end where its index begins")

    def _refuse(self, entry: FrameEntry, why: str) -> MalformedPackError:
        return malformed(self._footer.pack, f"an index entry of content {entry.content} at {entry.start} {why}")
