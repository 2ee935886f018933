"""What a check of the storage has found so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from rblstore.catalog.engine import CatalogFailedError
from rblstore.catalog.reader import CatalogReader
from rblstore.errors import CorruptError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation
from rblstore.repository import Store

T = TypeVar("T")

REINDEX: Final = "Run: rbl reindex"
REPAIR: Final = "Mend it from another copy, or from the directory that it came from: rbl repair --from PATH"
WHOLE_ELSEWHERE: Final = "Nothing is lost: reading takes the whole copy. Set the damaged one aside: rbl repair --apply"


@dataclass(frozen=True)
class FsckDamage:
    """One thing that is wrong.

    Attributes:
        object: A pack, a content, a record, a ref or a file of the repository.
        kind: ``pack``, ``content``, ``record``, ``reference``, ``ref``, ``log``, ``catalog`` or ``composition``.
        problem: What is wrong with it.
        needed_by: Commits, files and behaviors that need it, in words; at most twenty.
        hint: What to do.
    """

    object: str
    kind: str
    problem: str
    needed_by: tuple[str, ...]
    hint: str


@dataclass
class Findings:
    """What is there, and what is wrong with it. It grows with the number of contents, not with their bytes.

    Attributes:
        store: The repository.
        damages: What is wrong, in the order in which it was found.
        listed: The packs that the catalog lists.
        raw: Raw bytes of what each pack holds whose index is whole.
        contents: Everything that a listed pack with a whole index holds.
        unlisted: Everything that other packs hold.
        lost: What the catalog says of packs of which nothing can be read.
        damaged: Contents of which a copy is damaged, and the packs of those copies.
        differences: The contents that are stored as differences from each base.
        records: Where the listed record packs have what.
    """

    store: Store
    damages: list[FsckDamage] = field(default_factory=list)
    listed: set[PackId] = field(default_factory=set)
    raw: dict[PackId, int] = field(default_factory=dict)
    contents: set[str] = field(default_factory=set)
    unlisted: set[str] = field(default_factory=set)
    lost: dict[PackId, tuple[ContentId, ...]] = field(default_factory=dict)
    damaged: dict[str, set[PackId]] = field(default_factory=dict)
    differences: dict[str, list[ContentId]] = field(default_factory=dict)
    records: list[ContentLocation] = field(default_factory=list)

    def add(self, object: str, kind: str, problem: str, hint: str) -> None:
        """Notes that something is wrong."""
        self.damages.append(FsckDamage(object, kind, problem, (), hint))

    def add_content(self, content: ContentId, pack: PackId, problem: str) -> None:
        """Notes that a copy of a content is damaged, once."""
        if pack not in self.damaged.setdefault(content, set()):
            self.damaged[content].add(pack)
            self.add(content, "content", f"{problem} (pack {pack.short})", REPAIR)

    def is_named(self, content: str) -> bool:
        """Whether a content that cannot be had has been named as damaged, or as part of a pack that is."""
        return content in self.damaged

    def is_damaged_in(self, location: ContentLocation) -> bool:
        """Whether this very copy is damaged."""
        return location.pack in self.damaged.get(location.content, ())

    def ask(self, question: Callable[[CatalogReader], T]) -> T | None:
        """What the catalog answers; None where it cannot, which is noted."""
        try:
            with self.store.catalog.read() as reader:
                return question(reader)
        except (CorruptError, CatalogFailedError) as error:
            self.add_catalog(error)
            return None

    def add_catalog(self, error: CorruptError | CatalogFailedError) -> None:
        """Notes once that the catalog cannot be asked; a disk that fails is not mended by building another there."""
        if not any((one.object, one.problem) == ("catalog.db", error.message) for one in self.damages):
            hint = error.hint if isinstance(error, CatalogFailedError) else None
            self.add("catalog.db", "catalog", error.message, hint or REINDEX)
