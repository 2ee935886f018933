"""Checking every pack: its index, its frames, and whether the catalog knows what it holds."""

from __future__ import annotations

from rblstore.catalog.reader import CatalogReader
from rblstore.catalog.rows import PackRow
from rblstore.errors import CorruptError
from rblstore.objects.ids import PackId
from rblstore.operations.fsck_findings import REINDEX, REPAIR, Findings
from rblstore.operations.progress import Meter, Progress
from rblstore.repository import Store
from rblstore.storage.backend import ReadError
from rblstore.storage.pack_check import CheckedPack, check_packs


def check_stored_packs(found: Findings, *, frames: bool, progress: Progress | None) -> int:
    """Checks every pack under ``packs/``; what trash and quarantine hold is nobody's any more, and is not looked at.

    Args:
        found: Where what is there and what is wrong is noted.
        frames: Whether to compare the checksum of every frame; without, somebody decodes them later.
        progress: Is told bytes of packs.

    Returns:
        How many there are.
    """
    store = found.store
    packs = store.packs()
    sizes = {pack: _size(store, pack) for pack in packs}
    rows = found.ask(CatalogReader.packs)
    by_pack = {row.pack: row for row in rows or ()}
    # Where the catalog does not say, what is there is what counts.
    found.listed = set(packs) if rows is None else set(by_pack)
    for pack in sorted(found.listed - sizes.keys()):
        _lose(found, pack, "the catalog names it and it is not there")
    meter = Meter(progress, sum(sizes.values()))
    for checked in check_packs(store.backend, packs, workers=store.configuration.workers, frames=frames):
        _take(found, checked, by_pack.get(checked.pack))
        meter.add("checking packs" if frames else "checking indexes", sizes[checked.pack])
    return len(packs)


def _size(store: Store, pack: PackId) -> int:
    try:
        return store.pack_size(pack)
    except (CorruptError, ReadError):
        return 0  # which checking it says again


def _lose(found: Findings, pack: PackId, problem: str) -> None:
    """Notes a pack of which nothing can be read."""
    lost = found.ask(lambda reader: reader.contents_of_pack(pack)) or []
    found.lost[pack] = tuple(location.content for location in lost)
    for location in lost:
        found.damaged.setdefault(location.content, set()).add(pack)
    found.add(pack, "pack", problem, REPAIR)


def _take(found: Findings, checked: CheckedPack, row: PackRow | None) -> None:
    pack, summary = checked.pack, checked.summary
    for damage in checked.damages:
        if damage.content is not None:
            found.add_content(damage.content, pack, damage.problem)
    if summary is None:
        for damage in checked.damages:
            _lose(found, pack, damage.problem)
        return
    found.raw[pack] = sum(location.size for location in summary.locations)
    if pack not in found.listed:
        # What a lost race or a crash leaves: nothing refers to it. Where something does, a reference is broken.
        found.unlisted.update(location.content for location in summary.locations)
        return
    found.contents.update(location.content for location in summary.locations)
    if row is not None:
        known = found.ask(lambda reader: reader.contents_of_pack(pack))
        if (row.kind, row.size) != (summary.kind, summary.size) or known not in (None, list(summary.locations)):
            found.add(pack, "catalog", "the catalog misplaces what is in this pack", REINDEX)
    if summary.kind == "R":
        found.records.extend(summary.locations)
    for content, bases in checked.bases.items():
        for base in bases:
            found.differences.setdefault(base, []).append(content)
