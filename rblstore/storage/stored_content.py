"""One stored content: where its frames are, and any of its bytes, whatever they take to decode.

A frame may be a difference from a base, which another pack may hold; a pack may be replaced by another (repack)
while it is read, or be damaged where another holds the same content. So a content is read with a way to find others,
and itself again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from rblstore.errors import CorruptError, RblError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation
from rblstore.storage.backend import MissingObjectError, ReadError
from rblstore.storage.codecs import UnknownCodecError, raw_checksum
from rblstore.storage.rooms import scratch

if TYPE_CHECKING:
    from rblstore.storage.pack_format import FrameEntry
    from rblstore.storage.pack_reader import PackReader

Find: TypeAlias = "Callable[[ContentId, PackId | None, frozenset[PackId]], StoredContent | None]"
"""Finds a content by its id, in another pack than the one that is gone, if one is, and than those that are damaged."""


class StoredContent:
    """A content in a pack.

    Args:
        reader: Of the pack.
        location: Where in it.
        find: Finds another content, or the same one anew; None where there is no way to.
        any_copy: Whether another copy serves where this one is damaged, as one does where the pack is gone. Whoever
            asks whether this very copy is whole says no.
        damaged: Packs in which it was looked for already and found damaged.

    Raises:
        MalformedPackError: The pack does not have it there.
        CorruptError, ReadError: As for :meth:`rblstore.storage.pack_reader.PackReader.footer`.
    """

    def __init__(
        self,
        reader: PackReader,
        location: ContentLocation,
        find: Find | None = None,
        *,
        any_copy: bool = False,
        damaged: frozenset[PackId] = frozenset(),
    ) -> None:
        self.location = location
        self.content = location.content
        self.size = location.size
        self._reader = reader
        self._find = find
        self._damaged = damaged
        self._replaceable = (CorruptError, ReadError, UnknownCodecError) if any_copy else (MissingObjectError,)
        self._moved: StoredContent | None = None
        try:
            self.frames = self._entries()
        except self._replaceable as error:
            self.frames = self._elsewhere(error).frames
        self._starts = [frame.start for frame in self.frames]

    def _entries(self) -> tuple[FrameEntry, ...]:
        location = self.location
        if not 1 <= location.entries <= limits.CONTENT_FRAMES:
            raise self._reader.misplaced(self.content)
        entries = self._reader.entries(location.first_entry, location.entries)
        follows = all(before.start + before.raw_length == after.start for before, after in pairwise(entries))
        ends = entries[0].start == 0 and entries[-1].start + entries[-1].raw_length == location.size
        named = all((entry.content, entry.size) == (location.content, location.size) for entry in entries)
        if not (follows and ends and named):
            raise self._reader.misplaced(self.content)
        return entries

    @property
    def bases(self) -> frozenset[ContentId]:
        """What its frames are differences from."""
        return frozenset(frame.base for frame in self.frames if frame.base is not None)

    def frame_checksum(self, start: int, length: int) -> int | None:
        """XXH3-64 of the raw bytes of the frame that it has at exactly that place, or None where that is not known."""
        frame = self.frames[max(bisect_right(self._starts, start) - 1, 0)]
        if (frame.start, frame.raw_length) != (start, length):
            return None
        return raw_checksum(frame.codec, frame.parameters, frame.checksum)

    def read_frame(self, frame: FrameEntry, out: memoryview) -> None:
        """The raw bytes of one of its frames.

        Args:
            frame: One of :attr:`frames`.
            out: As many bytes as the frame's raw length.

        Raises:
            CorruptContentError: The frame, or what it is a difference from, is not what it must be.
            UnknownCodecError: A later version wrote it.
            CorruptError, ReadError: The pack cannot be read.
        """
        if self._moved is None:
            try:
                self._decode(frame, out)
                return
            except self._replaceable as error:
                self._elsewhere(error)
        if self._moved is not None:
            self._moved.read_into(out, frame.start)

    def _decode(self, frame: FrameEntry, out: memoryview) -> None:
        try:
            beneath = self._beneath(frame)
        except CorruptError:
            # What was a difference is none in the pack that took this one's place, and its base may be gone by now.
            self._reader.require()
            raise
        self._reader.decode_into(frame, out, beneath)

    def stored_frame(self, frame: FrameEntry) -> bytes:
        """One of its frames as the pack has it; raises as :meth:`read_frame` does."""
        return self._reader.stored_frame(frame)

    def read_into(self, out: memoryview, start: int) -> None:
        """Fills ``out`` with the bytes from ``start`` on; raises as :meth:`read_frame` does."""
        end = start + len(out)
        if start < 0 or end > self.size:
            raise ValueError(f"bytes {start} to {end} of a content of {self.size}")
        at = max(bisect_right(self._starts, start) - 1, 0)
        for frame in self.frames[at:]:
            if frame.start >= end:
                break
            first, last = max(start, frame.start), min(end, frame.start + frame.raw_length)
            part = out[first - start : last - start]
            if len(part) == frame.raw_length:
                self.read_frame(frame, part)
            elif part:
                whole = memoryview(bytearray(frame.raw_length))
                self.read_frame(frame, whole)
                part[:] = whole[first - frame.start : last - frame.start]

    def wrong(self) -> CorruptError:
        """The error for bytes that came out whole and are not the content."""
        return self._reader.damaged(self.frames[0], "its SHA-256 differs")

    def _beneath(self, frame: FrameEntry) -> memoryview | None:
        """The base's bytes where a frame needs them, in this thread's own memory."""
        if frame.base is None:
            return None
        base = None if self._find is None else self._find(frame.base, None, frozenset())
        if base is None:
            raise self._reader.damaged(frame, f"its base {frame.base} is not stored")
        if base.bases:
            raise self._reader.damaged(frame, f"its base {frame.base} is a difference itself")
        room = scratch(max(0, min(frame.raw_length, base.size - frame.start)), "base")
        if room:
            base.read_into(room, frame.start)
        return room

    def _elsewhere(self, error: RblError) -> StoredContent:
        """The same content in another pack than the one that is gone, or damaged; from now on it is read from there.

        Raises:
            RblError: There is none, and this is why one is needed.
        """
        if self._moved is None:
            own = self.location.pack
            # A pack that is gone may be there again later: a repack undone makes the same one. Damage stays.
            damaged = self._damaged if isinstance(error, MissingObjectError) else self._damaged | {own}
            try:
                moved = None if self._find is None else self._find(self.content, own, damaged)
            except (CorruptError, ReadError):
                moved = None  # the other copies are no better
            if moved is None or moved.location.pack == own:
                raise error
            self._moved = moved
        return self._moved
