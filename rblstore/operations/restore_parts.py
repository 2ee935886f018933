"""Of packs in the trash that hold what was removed on purpose: the rest comes back, in a pack of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rblstore.errors import CorruptError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackSummary
from rblstore.repository import Store
from rblstore.storage.backend import Backend, Room
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.pack_format import pack_key, pack_of_key
from rblstore.storage.pack_reader import PackReader
from rblstore.storage.pack_writer import PackWriter
from rblstore.storage.stored_content import StoredContent


class InRoom:
    """Packs of another room, to be read as if they lay in ``packs/``.

    Args:
        backend: Where they are.
        room: In which of its rooms.
    """

    def __init__(self, backend: Backend, room: Room) -> None:
        self._backend = backend
        self._room: Room = room

    def _key(self, key: str) -> str:
        return pack_key(pack_of_key(key), self._room)

    def size(self, key: str) -> int:
        """Bytes of a pack."""
        return self._backend.size(self._key(key))

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Some bytes of a pack."""
        return self._backend.read(self._key(key), offset, length)

    def read_into(self, key: str, offset: int, out: memoryview) -> None:
        """Some bytes of a pack, into memory that is there."""
        self._backend.read_into(self._key(key), offset, out)


class _Anywhere:
    """Contents of the repository and of packs that it does not list."""

    def __init__(self, store: Store, unlisted: Mapping[PackId, tuple[PackSummary, Room]]) -> None:
        self._store = store
        self._readers = {
            pack: PackReader(InRoom(store.backend, room), pack, self.find) for pack, (_, room) in unlisted.items()
        }
        self._places: dict[str, list[ContentLocation]] = {}
        for summary, _ in unlisted.values():
            for at in summary.locations:
                self._places.setdefault(at.content, []).append(at)

    def stored(self, at: ContentLocation) -> StoredContent:
        """A content of an unlisted pack."""
        return self._readers[at.pack].stored(at)

    def find(
        self, content: ContentId, gone: PackId | None = None, damaged: frozenset[PackId] = frozenset()
    ) -> StoredContent | None:
        """What others are differences from: a copy that is no difference itself."""
        passed_over = damaged if gone is None else damaged | {gone}
        found = [self._store.contents.find(content, gone, damaged)]
        found += [self.stored(at) for at in self._places.get(content, ()) if at.pack not in passed_over]
        known = [one for one in found if one is not None]
        return next((one for one in known if not one.bases), known[0] if known else None)


def write_parts(
    store: Store, unlisted: Mapping[PackId, tuple[PackSummary, Room]], wanted: Iterable[ContentLocation]
) -> PackSummary | None:
    """Writes a new pack of some contents of packs that the repository does not list. Each is read and compared.

    What is stored as a difference is encoded by itself: what it is one from may be what does not come back. A content
    that cannot be read is left out.

    Args:
        store: The repository, whose lock is held alone.
        unlisted: The packs in which contents, and what they are differences from, lie; with their rooms.
        wanted: Where in them they are, each content once.

    Returns:
        What was written; None where it is nothing.

    Raises:
        WriteError: The system refused.
    """
    anywhere = _Anywhere(store, unlisted)
    with PackWriter(
        store.backend,
        "C",
        is_stored=lambda content: False,
        compression=store.configuration.compression,
        workers=store.configuration.workers,
    ) as writer:
        for at in wanted:
            try:
                stored = anywhere.stored(at)
                for _ in read_contents([Wanted(stored)], reuse=True):
                    pass
            except CorruptError:
                continue
            if stored.bases:
                writer.add_source(stored, element_width=stored.frames[0].element_width)
            else:
                writer.copy(stored)
        return writer.finish()
