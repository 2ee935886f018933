"""``fsck``: storage integrity. Every frame, digest, record and reference; what is damaged, and what needs it."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.operations.fsck_catalog import check_catalog, check_log
from rblstore.operations.fsck_findings import Findings, FsckDamage
from rblstore.operations.fsck_needs import name_needs
from rblstore.operations.fsck_packs import check_stored_packs
from rblstore.operations.fsck_records import Records
from rblstore.operations.progress import Progress, ProgressEvent
from rblstore.operations.result import Result
from rblstore.repository import Store

__all__ = ["FsckDamage", "FsckResult", "fsck"]


@dataclass(frozen=True)
class FsckResult(Result):
    """What a check of the storage found.

    Attributes:
        ok: Whether nothing is damaged.
        full: Whether every content was decoded and hashed.
        damages: What is wrong.
        packs: How many packs were read.
        contents: How many contents they hold.
        records: How many records were parsed.
        commits: How many commits there are.
        operations: How many operations the log holds.
        forgotten: How many contents are in no pack because they were removed on purpose; no damage.
    """

    ok: bool
    full: bool
    damages: tuple[FsckDamage, ...]
    packs: int
    contents: int
    records: int
    commits: int
    operations: int
    forgotten: int = 0


def fsck(store: Store, *, full: bool = False, progress: Progress | None = None) -> FsckResult:
    """Checks the repository and changes nothing.

    Args:
        store: The repository.
        full: Whether to decode and hash every content, compose every file and every composition, besides checking
            every frame's checksum, every record and every reference.
        progress: Is told bytes of packs, of records, and of what is hashed; a total of 0 where a stage has no bytes.

    Returns:
        Everything that is wrong; it does not raise for damage.
    """

    def begin(stage: str) -> None:
        if progress is not None:
            progress(ProgressEvent(stage, 0, 0))

    found = Findings(store)
    packs = check_stored_packs(found, frames=not full, progress=progress)
    records = Records(found)
    records.read(progress)
    begin("checking references")
    records.check_references()
    records.check_refs()
    begin("checking the catalog")
    operations = check_log(found)
    check_catalog(found, records)
    if full:
        from rblstore.operations.fsck_contents import ContentCheck
        from rblstore.operations.fsck_models import check_compositions, check_overlays

        ContentCheck(found, records, progress).run()
        begin("checking compositions")
        check_overlays(found, records)
        check_compositions(found, records)
    if found.damages:
        begin("looking for what needs it")
        name_needs(found, records)
    return FsckResult(
        not found.damages,
        full,
        tuple(found.damages),
        packs,
        len(found.contents) - sum(record_id in found.contents for record_id in records.kinds),
        len(records.kinds),
        len(records.commits),
        operations,
        len(records.forgotten),
    )
