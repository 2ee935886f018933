"""``reindex``: rebuild the catalog from packs and ``refs.log``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rblstore.catalog.database import Catalog
from rblstore.configuration import Configuration
from rblstore.errors import CorruptError, RblError
from rblstore.opening import FOLDER, check_format
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.result import Result
from rblstore.repository import Store, oldest_first
from rblstore.storage.durable import fsync_directory
from rblstore.storage.locks import exclusive


@dataclass(frozen=True)
class ReindexResult(Result):
    """A rebuilt catalog.

    Attributes:
        packs: Packs read.
        records: Records indexed.
        operations: Operations replayed.
        skipped: (pack, problem) of packs that could not be read; they stay where they are.
    """

    packs: int
    records: int
    operations: int
    skipped: tuple[tuple[str, str], ...]


def reindex(root: Path, *, progress: Progress | None = None) -> ReindexResult:
    """Builds a new catalog beside the old one, and puts it in its place when it is whole.

    Args:
        root: The folder that holds ``.rbl``. The old catalog may be missing, damaged, or of another version.
        progress: Is told bytes of packs read.

    Raises:
        NoRepositoryError: There is none.
        CorruptError: ``refs.log`` is damaged before its end.
        LockedError: Another process is writing.
    """
    folder = root / FOLDER
    check_format(folder)
    fresh = folder / "tmp" / "catalog.db"
    with exclusive(folder / "lock"):
        for stale in (fresh, fresh.with_name("catalog.db-journal")):
            stale.unlink(missing_ok=True)
        store = Store(root, Catalog.create(fresh), Configuration())
        try:
            result = _fill(store, progress)
        finally:
            store.close()
        try:
            # The old journal belongs to the old file and must never be played into the new one.
            (folder / "catalog.db-journal").unlink(missing_ok=True)
            fresh.replace(folder / "catalog.db")
        except OSError as error:
            raise RblError(
                f"the new catalog could not take its place: {error.strerror}", object=str(folder / "catalog.db")
            ) from error
        fsync_directory(folder)
    return result


def _fill(store: Store, progress: Progress | None) -> ReindexResult:
    packs = store.packs()
    sizes = {pack: store.backend.size(f"packs/{pack[:2]}/{pack}.pack") for pack in packs}
    meter = Meter(progress, sum(sizes.values()))
    skipped: list[tuple[str, str]] = []
    count = 0
    with store.log.locked(), store.catalog.write() as writer:
        records = []
        for pack in packs:
            try:
                reader = store.pack(pack)
                summary = reader.summary()
                found = list(store.records_of(summary, reader)) if summary.kind == "R" else []
            except CorruptError as error:
                skipped.append((pack, error.message))
                continue
            writer.add_pack(summary)
            records += found
            meter.add("reading packs", sizes[pack])
        writer.add_records(oldest_first(records))
        count = len(records)
        operations = store.log.read().operations
        for operation in operations:
            writer.replay(operation)
    return ReindexResult(len(packs), count, len(operations), tuple(skipped))
