"""What a repack would do: which packs are written anew, into which, and what becomes of the contents in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rblstore.configuration import Compression
from rblstore.errors import CorruptError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation, PackKind
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.repack_bases import BaseCandidates, choose_bases
from rblstore.repository import Store
from rblstore.storage.codecs import DELTA, RAW, ZSTD, encode_frame
from rblstore.storage.pack_bases import bases_of
from rblstore.storage.pack_format import FrameEntry
from rblstore.storage.planes import WIDTHS
from rblstore.storage.stored_content import StoredContent

# Packs that hold less are merged. Raw bytes, since no repack changes those: a second one finds nothing to merge.
SMALL_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class PackRewrite:
    """Packs of one kind whose contents go into one new pack.

    Attributes:
        kind: ``C`` for contents, ``R`` for records.
        packs: The packs.
        size: Bytes of their files.
        contents: How many contents (records) the new pack will hold.
        reencoded: How many of them are encoded anew; the others are copied.
        deltas: How many of these become differences.
        duplicates: How many copies of what another pack holds are dropped.
        reasons: Why: ``compression`` (stored under another policy), ``delta``, ``duplicates``, ``small``.
    """

    kind: PackKind
    packs: tuple[PackId, ...]
    size: int
    contents: int
    reencoded: int
    deltas: int
    duplicates: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RepackPlan:
    """What is to be done.

    Attributes:
        compression: The policy.
        rewrites: Packs to be written anew.
        encode: Contents to be encoded anew, and what each becomes a difference from, or None.
        deltas: Those that are no difference yet.
        kept: Of contents and records in several packs of a kind, the pack whose copy stays.
        raw: Raw bytes to be read.
    """

    compression: Compression
    rewrites: tuple[PackRewrite, ...]
    encode: Mapping[ContentId, ContentId | None]
    deltas: Mapping[ContentId, ContentId]
    kept: Mapping[PackKind, Mapping[ContentId, PackId]]
    raw: int

    def stays(self, kind: PackKind, location: ContentLocation) -> bool:
        """Whether this copy of a content is the one to keep."""
        return self.kept[kind].get(location.content, location.pack) == location.pack


@dataclass
class _Pack:
    pack: PackId
    size: int
    raw: int = 0
    contents: int = 0
    reencoded: int = 0
    deltas: int = 0
    duplicates: int = 0

    @property
    def changes(self) -> bool:
        return self.reencoded > 0 or self.duplicates > 0


@dataclass
class _Found:
    """What was decided about contents."""

    kept: dict[PackKind, dict[ContentId, PackId]] = field(default_factory=lambda: {"C": {}, "R": {}})
    bases: dict[ContentId, tuple[str, ...]] = field(default_factory=dict)
    deltas: dict[ContentId, ContentId] = field(default_factory=dict)
    encode: dict[ContentId, ContentId | None] = field(default_factory=dict)


def plan_repack(store: Store, compression: Compression, progress: Progress | None = None) -> RepackPlan:
    """Looks at everything stored, and decides. Nothing is changed.

    Whether a content would take fewer bytes is judged by its first frame, encoded for the purpose.

    Args:
        store: The repository.
        compression: The policy to go by.
        progress: Is told bytes of packs looked at.

    Raises:
        CorruptError: A pack or a record is missing or damaged, or the catalog misplaces what is in it.
        UnknownCodecError: A later version wrote something.
    """
    with store.catalog.read() as reader:
        rows = reader.packs()
    found = _Found()
    _choose_copies(store, found)
    if compression != "none":
        found.deltas = _choose_deltas(store, compression, found.bases)
        found.encode.update(found.deltas)
    meter = Meter(progress, sum(row.size for row in rows))
    packs: dict[PackKind, list[_Pack]] = {"C": [], "R": []}
    for row in rows:
        packs[row.kind].append(_look_at(store, compression, found, row.kind, _Pack(row.pack, row.size)))
        meter.add("planning", row.size)
    chosen = [(kind, group) for kind, of_kind in packs.items() for group in _groups(of_kind)]
    return RepackPlan(
        compression,
        tuple(_rewrite(kind, group) for kind, group in chosen),
        found.encode,
        found.deltas,
        found.kept,
        sum(pack.raw for _, group in chosen for pack in group),
    )


def _choose_copies(store: Store, found: _Found) -> None:
    """Of what several packs hold, the copy of the fewest bytes; but what others are differences from must be none."""
    copies: dict[PackKind, dict[ContentId, list[ContentLocation]]] = {"C": {}, "R": {}}
    bases: dict[PackId, dict[str, tuple[str, ...]]] = {}
    with store.catalog.read() as reader:
        kinds = {row.pack: row.kind for row in reader.packs()}
        for kind, several in copies.items():
            for content in reader.copied_contents(kind):
                several[content] = [at for at in reader.all_locations(content) if kinds[at.pack] == kind]
    for pack, kind in kinds.items():
        if kind == "C":
            bases[pack] = bases_of(store.backend, store.pack(pack).footer())

    def smallest(locations: Sequence[ContentLocation]) -> PackId:
        return min(locations, key=lambda location: (location.stored, location.pack)).pack

    for kind, several in copies.items():
        found.kept[kind] = {content: smallest(locations) for content, locations in several.items()}
    kept = found.kept["C"]
    while True:
        found.bases = {
            ContentId(content): beneath
            for pack, of_pack in bases.items()
            for content, beneath in of_pack.items()
            if kept.get(ContentId(content), pack) == pack
        }
        beneath_some = {base for several_bases in found.bases.values() for base in several_bases}
        wrong = [content for content in kept if content in beneath_some and content in found.bases]
        for content in wrong:
            alone = [at for at in copies["C"][content] if content not in bases[at.pack]]
            if not alone:
                raise CorruptError(
                    f"content {content.short} is a difference in every pack, and others are differences from it",
                    object=content,
                    hint="Run: rbl fsck --full",
                )
            kept[content] = smallest(alone)
        if not wrong:
            return


def _choose_deltas(
    store: Store, compression: Compression, stored_bases: Mapping[ContentId, tuple[str, ...]]
) -> dict[ContentId, ContentId]:
    def helps(content: ContentId, base: ContentId) -> bool:
        stored, beneath = store.contents.find(content), store.contents.find(base)
        if stored is None or beneath is None or stored.bases or beneath.bases:
            return False
        entry = stored.frames[0]
        return entry.element_width in WIDTHS and _shrinks(stored, entry, compression, beneath)

    already = {content: ContentId(bases[0]) for content, bases in stored_bases.items()}
    return choose_bases(BaseCandidates(store).beside, already, helps)


def _shrinks(stored: StoredContent, entry: FrameEntry, compression: Compression, base: StoredContent | None) -> bool:
    """Whether a frame would take fewer bytes; with a base, as a difference from it."""
    data = memoryview(bytearray(entry.raw_length))
    stored.read_frame(entry, data)
    under = None
    if base is not None:
        under = memoryview(bytearray(max(0, min(len(data), base.size - entry.start))))
        base.read_into(under, entry.start)
    encoded = encode_frame(data, compression, element_width=entry.element_width, base=under)
    return len(encoded.data) < entry.stored_length and (base is None or encoded.codec == DELTA)


def _look_at(store: Store, compression: Compression, found: _Found, kind: PackKind, pack: _Pack) -> _Pack:
    """Counts what there is to do in a pack, and decides which of its contents are encoded anew."""
    reader = store.pack(pack.pack)
    locations = reader.summary().locations
    with store.catalog.read() as index:
        if index.contents_of_pack(pack.pack) != list(locations):
            raise CorruptError(
                f"the catalog misplaces what is in pack {pack.pack.short}", object=pack.pack, hint="Run: rbl reindex"
            )
    for location in locations:
        content = location.content
        if found.kept[kind].get(content, pack.pack) != pack.pack:
            pack.duplicates += 1
            continue
        pack.raw += location.size
        pack.contents += 1
        if kind == "R":
            continue
        if content not in found.encode and _differs(store, compression, found, location):
            beneath = found.bases.get(content)
            found.encode[content] = None if compression == "none" or beneath is None else ContentId(beneath[0])
        pack.reencoded += content in found.encode
        pack.deltas += content in found.deltas
    return pack


def _differs(store: Store, compression: Compression, found: _Found, location: ContentLocation) -> bool:
    """Whether a content is stored otherwise than this policy stores it, to no advantage."""
    reader = store.pack(location.pack)
    if compression == "none":
        return any(entry.codec != RAW for entry in reader.entries(location.first_entry, location.entries))
    (entry,) = reader.entries(location.first_entry, 1)
    planes = entry.element_width in WIDTHS
    if compression == "fast" and entry.codec not in ((RAW, ZSTD) if planes else (RAW,)):
        return False  # encoded by it, or by one that tries harder
    beneath = found.bases.get(location.content, ())
    if len(beneath) > 1 or not entry.raw_length:
        return False
    base = store.contents.find(ContentId(beneath[0])) if beneath else None
    stored = reader.stored(location)
    return _shrinks(stored, entry, compression, base)


def _groups(packs: Sequence[_Pack]) -> Iterator[list[_Pack]]:
    """Packs that are written anew, together where they are small."""
    small = [pack for pack in packs if pack.raw < SMALL_BYTES]
    together: list[_Pack] = []
    for pack in packs:
        if len(small) > 1 and pack.raw < SMALL_BYTES:
            together.append(pack)
            if sum(one.raw for one in together) >= SMALL_BYTES:
                yield together
                together = []
        elif pack.changes:
            yield [pack]
    if len(together) > 1 or any(pack.changes for pack in together):
        yield together


def _rewrite(kind: PackKind, group: Sequence[_Pack]) -> PackRewrite:
    reencoded, deltas = sum(pack.reencoded for pack in group), sum(pack.deltas for pack in group)
    duplicates = sum(pack.duplicates for pack in group)
    why = {"compression": reencoded > deltas, "delta": deltas, "duplicates": duplicates, "small": len(group) > 1}
    return PackRewrite(
        kind,
        tuple(pack.pack for pack in group),
        sum(pack.size for pack in group),
        sum(pack.contents for pack in group),
        reencoded,
        deltas,
        duplicates,
        tuple(reason for reason, holds in why.items() if holds),
    )
