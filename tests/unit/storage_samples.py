"""Contents, sources and packs in memory for the tests of storage."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable

from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackSummary
from rblstore.storage.memory import MemoryBackend
from rblstore.storage.pack_format import FrameEntry, pack_key
from rblstore.storage.pack_reader import PackReader
from rblstore.storage.pack_writer import PackWriter
from rblstore.storage.stored_content import StoredContent


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that nothing makes smaller."""
    return random.Random(seed).randbytes(size)


def weights(count: int, seed: int = 0) -> bytes:
    """Elements of two bytes like those of a trained bf16 tensor: the upper halves of normal floats."""
    drawn = random.Random(seed)
    floats = struct.pack(f"<{count}f", *(drawn.gauss(0, 0.02) for _ in range(count)))
    data = bytearray(2 * count)
    data[0::2], data[1::2] = floats[2::4], floats[3::4]
    return bytes(data)


def nudged(data: bytes, seed: int = 1, width: int = 2, one_in: int = 3) -> bytes:
    """The same elements, some of them one step of their lowest bits up or down."""
    drawn, changed = random.Random(seed), bytearray(data)
    for at in range(0, len(data) - width + 1, width):
        if drawn.randrange(one_in) == 0:
            value = int.from_bytes(data[at : at + width], "little") + drawn.choice([-2, -1, 1, 2])
            changed[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(changed)


def sha256(data: bytes) -> ContentId:
    """A content's id."""
    return ContentId(hashlib.sha256(data).hexdigest())


class MemorySource:
    """A source of bytes in memory that keeps a note of what was read.

    Attributes:
        reads: Start and length of every read.
    """

    def __init__(self, data: bytes, fail: Callable[[int], None] | None = None) -> None:
        self.size = len(data)
        self.reads: list[tuple[int, int]] = []
        self._data = data
        self._fail = fail

    def read_into(self, out: memoryview, start: int) -> None:
        """Fills ``out``."""
        self.reads.append((start, len(out)))
        if self._fail is not None:
            self._fail(start)
        out[:] = self._data[start : start + len(out)]


class Shelf:
    """Packs in memory, and where each content of them is: what a catalog does."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.locations: dict[ContentId, list[ContentLocation]] = {}

    def put(self, *contents: bytes, bases: dict[bytes, bytes] | None = None, width: int = 2, **options: object) -> None:
        """Writes a pack of contents, some as differences from others that are there already."""
        with PackWriter(self.backend, "C", is_stored=lambda _: False, **options) as writer:
            for data in contents:
                base = None if bases is None or data not in bases else self.find(sha256(bases[data]))
                writer.add_source(MemorySource(data), element_width=width, base=base)
            self.learn(writer.finish())

    def learn(self, summary: PackSummary | None) -> None:
        """Takes note of a pack's contents, the latest pack first."""
        assert summary is not None
        for location in summary.locations:
            self.locations.setdefault(location.content, []).insert(0, location)

    def reader(self, pack: PackId) -> PackReader:
        """A reader of one of the packs, that finds the others."""
        return PackReader(self.backend, pack, self.find)

    def find(
        self, content: ContentId, gone: PackId | None = None, damaged: frozenset[PackId] = frozenset()
    ) -> StoredContent | None:
        """A content in another pack than those that are gone or damaged."""
        found = [location for location in self.locations.get(content, []) if location.pack not in {gone, *damaged}]
        if not found:
            return None
        return self.reader(found[0].pack).stored(found[0], any_copy=bool(damaged), damaged=damaged)

    def stored(self, data: bytes) -> StoredContent:
        """The stored content of these bytes."""
        found = self.find(sha256(data))
        assert found is not None
        return found

    def entries(self, data: bytes) -> tuple[FrameEntry, ...]:
        """What the index says of these bytes."""
        return self.stored(data).frames

    def packs(self) -> dict[str, bytes]:
        """Every pack, whole."""
        return {key: self.backend.read(key, 0, self.backend.size(key)) for key in self.backend.list("")}

    def remove(self, pack: PackId) -> None:
        """Deletes a pack; what is known of it stays, as with a reader that was there before."""
        self.backend.delete(pack_key(pack))

    def rot(self, pack: PackId, at: int) -> None:
        """Turns a bit of a pack over."""
        key = pack_key(pack)
        data = bytearray(self.backend.read(key, 0, self.backend.size(key)))
        data[at] ^= 0x10
        self.backend.delete(key)
        self.backend.put(key, bytes(data))
