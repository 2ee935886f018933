"""Reading contents: from an id to its bytes, through the catalog and whichever pack holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final

from rblstore.catalog.database import Catalog
from rblstore.errors import CorruptError, RblError
from rblstore.objects.ids import ContentId, PackId, RecordId
from rblstore.objects.locations import ContentLocation
from rblstore.storage.backend import MEND, Backend, ReadError

if TYPE_CHECKING:
    from rblstore.storage.pack_reader import PackReader
    from rblstore.storage.stored_content import StoredContent

# Bases are few and asked for once a frame.
_KEPT: Final = 64
_KEPT_PACKS: Final = 256


class MissingContentError(CorruptError):
    """A content or record that something refers to is in no pack."""

    code = "missing_content"


def _missing(content: ContentId | RecordId) -> MissingContentError:
    return MissingContentError(f"content {content.short} is in no pack", object=content, hint=MEND)


class Contents:
    """Every content of one repository, for several threads to read.

    Args:
        backend: Where the packs are.
        catalog: What is in them.
        workers: Threads that decode.
        explain: Is asked about a content that is in no pack for the error to raise; None where nothing is known of it.
    """

    def __init__(
        self,
        backend: Backend,
        catalog: Catalog,
        workers: int,
        explain: Callable[[ContentId | RecordId], RblError | None] = lambda _: None,
    ) -> None:
        self._backend = backend
        self._catalog = catalog
        self._workers = workers
        self._explain = explain
        self._packs: dict[PackId, PackReader] = {}
        self._found: dict[ContentId, StoredContent] = {}

    def close(self) -> None:
        """Forgets open packs."""
        self._packs.clear()
        self._found.clear()

    def look_anew(self) -> None:
        """Forgets where contents were found: for whoever holds the lock, under which they stay where they are."""
        self._found.clear()

    def pack(self, pack: PackId) -> PackReader:
        """A reader of one pack, kept."""
        reader = self._packs.get(pack)
        if reader is None:
            from rblstore.storage.pack_reader import PackReader

            if len(self._packs) >= _KEPT_PACKS:
                self._packs.clear()  # a training run makes thousands, and reads few of them twice
            # Another thread may clear it at any time: what is returned is not looked up again.
            self._packs[pack] = reader = PackReader(self._backend, pack, self.find)
        return reader

    def has(self, content: ContentId) -> bool:
        """Whether a content is stored."""
        return self._catalog.has_content(content)

    def location(self, content: ContentId | RecordId) -> ContentLocation:
        """Where a content is.

        Raises:
            MissingContentError: In no pack.
        """
        with self._catalog.read() as reader:
            location = reader.location(ContentId(content))
        if location is None:
            raise self._explain(content) or _missing(content)
        return location

    def stored(self, contents: Iterable[ContentId]) -> list[StoredContent]:
        """Many contents, in the order asked for.

        Raises:
            MissingContentError: One is in no pack.
            CorruptError: A pack is missing or damaged.
        """
        wanted = list(contents)
        found = self.stored_of(wanted)
        for content in wanted:
            if content not in found:
                raise self._explain(content) or _missing(content)
        return [found[content] for content in wanted]

    def stored_of(self, contents: Iterable[ContentId]) -> dict[ContentId, StoredContent]:
        """Those of many contents that some pack holds. A copy that is damaged gives way to one that is not.

        Raises:
            CorruptError: A pack is missing or damaged, and no other has the content.
        """
        with self._catalog.read() as reader:
            locations = reader.locations(contents)
        # In the order in which they lie: index entries that are next to each other are read together.
        places = sorted(locations.items(), key=lambda one: (one[1].pack, one[1].first_entry))
        return {content: self.pack(location.pack).stored(location, any_copy=True) for content, location in places}

    def find(
        self, content: ContentId, gone: PackId | None = None, damaged: frozenset[PackId] = frozenset()
    ) -> StoredContent | None:
        """A content that others are differences from, or one that cannot be read where it was looked for.

        Args:
            content: Which.
            gone: The pack in which it was looked for last.
            damaged: Packs in which it was looked for and found damaged.

        Returns:
            None where no other pack holds it.

        Raises:
            CorruptError: Every pack that holds it is missing or damaged.
        """
        passed_over = damaged if gone is None else damaged | {gone}
        kept = self._found.get(content)
        # What was a difference may be none since another process repacked, and others differences from it.
        if kept is not None and kept.location.pack not in passed_over and not kept.bases:
            return kept
        found: StoredContent | None = None
        failed: RblError | None = None
        for location in self._locations(content, passed_over):
            try:
                copy = self.pack(location.pack).stored(location, any_copy=True, damaged=damaged)
            except (CorruptError, ReadError) as error:
                failed = failed or error
                continue
            if found is None or not copy.bases:
                found = copy
            if not found.bases:  # what others are differences from is none itself, but another copy of it may be
                break
        if found is None:
            if failed is not None:
                raise failed
            return None
        if len(self._found) >= _KEPT:
            self._found.clear()
        self._found[content] = found
        return found

    def _locations(self, content: ContentId, passed_over: frozenset[PackId]) -> list[ContentLocation]:
        """Every copy of a content; where packs were found gone or damaged, those in others that are there."""
        from rblstore.storage.pack_format import pack_key

        if not passed_over:
            with self._catalog.read() as reader:
                return reader.all_locations(content)
        gone = set(passed_over)
        while True:
            with self._catalog.read() as reader:
                locations = [at for at in reader.all_locations(content) if at.pack not in gone]
            # Packs may all be gone, and each would be looked for in the others without end.
            there = [at for at in locations if self._backend.exists(pack_key(at.pack))]
            if there or not locations:
                return there
            gone.update(at.pack for at in locations)  # gone since the catalog was asked, which knows better now

    def read(self, contents: Iterable[StoredContent]) -> Iterator[memoryview]:
        """The bytes of contents, one after the other; each digest is compared before the content's last piece comes.

        Raises:
            CorruptError: Damaged, or not what its id says.
        """
        from rblstore.storage.decoding import Wanted, read_contents

        with closing(read_contents(map(Wanted, contents), workers=self._workers)) as pieces:
            for piece in pieces:
                yield piece.data

    def read_small(self, content: ContentId | RecordId, max_bytes: int) -> bytes:
        """A small content whole.

        Raises:
            CorruptError: Missing or damaged.
            InputError: Larger than ``max_bytes``.
        """
        location = self.location(content)
        return self.pack(location.pack).read_small(location, max_bytes, any_copy=True)

    def read_buffer(self, content: ContentId, max_bytes: int) -> bytearray:
        """A content whole, in memory that is the caller's to change.

        Raises:
            CorruptError: Missing or damaged.
            InputError: Larger than ``max_bytes``.
        """
        from rblstore.storage.decoding import Wanted, read_contents
        from rblstore.storage.pack_reader import check_size

        location = self.location(content)
        check_size(location, max_bytes)
        whole = bytearray(location.size)
        stored = self.pack(location.pack).stored(location, any_copy=True)
        with closing(read_contents([Wanted(stored, memoryview(whole))], workers=self._workers)) as pieces:
            for _ in pieces:
                pass
        return whole
