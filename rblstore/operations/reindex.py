"""``reindex``: rebuild the catalog from packs and ``refs.log``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from rblstore.catalog.database import Catalog
from rblstore.configuration import Configuration
from rblstore.errors import CorruptError, NoRepositoryError, RblError
from rblstore.objects import limits
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import RecordId
from rblstore.objects.locations import PackSummary
from rblstore.objects.record import Record
from rblstore.opening import FOLDER, check_format
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.result import Result
from rblstore.operations.scratch import scratch_in
from rblstore.repository import Store, oldest_first
from rblstore.storage.codecs import UnknownCodecError
from rblstore.storage.durable import fsync_directory
from rblstore.storage.locks import maintaining


@dataclass(frozen=True)
class ReindexResult(Result):
    """A rebuilt catalog.

    Attributes:
        packs: Packs read.
        records: Records indexed.
        operations: Operations replayed.
        skipped: (pack or record, problem) of what could not be indexed; it stays where it is.
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
    with maintaining(folder):
        _save_operations(root)
        return build_catalog(root, progress)


def build_catalog(root: Path, progress: Progress | None) -> ReindexResult:
    """The same, for whoever holds the repository's lock alone and has seen to ``refs.log``; see :func:`reindex`.

    Raises:
        CorruptError: ``refs.log`` is damaged.
    """
    folder = root / FOLDER
    # In a folder that is claimed: a catalog under way must not look like what a dead process left.
    with scratch_in(folder / "tmp", "reindex") as beside:
        fresh = beside / "catalog.db"
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


def _save_operations(root: Path) -> None:
    """Appends to ``refs.log`` what only the old catalog has, as opening would do, before that catalog goes."""
    # A catalog that is damaged, or of another version or history, has nothing to add.
    with suppress(CorruptError, NoRepositoryError):
        store = Store(root, Catalog.open(root / FOLDER / "catalog.db"), Configuration())
        with closing(store):
            store.append_operations()


def _fill(store: Store, progress: Progress | None) -> ReindexResult:
    packs = store.packs()
    sizes = {pack: store.pack_size(pack) for pack in packs}
    meter = Meter(progress, sum(sizes.values()))
    skipped: list[tuple[str, str]] = []
    with store.log.locked(), store.catalog.write() as writer:
        records: list[tuple[RecordId, Record]] = []
        for pack in packs:
            try:
                summary = store.pack(pack).summary()
            except CorruptError as error:
                skipped.append((pack, error.message))
                continue
            writer.add_pack(summary)
            if summary.kind == "R":
                records += _readable(store, summary, skipped)
            meter.add("reading packs", sizes[pack])
        records = _rooted(records, skipped)
        writer.add_records(oldest_first(records))
        operations = store.log.read().operations
        for operation in operations:
            writer.replay(operation)
    return ReindexResult(len(packs), len(records), len(operations), tuple(skipped))


def _readable(store: Store, summary: PackSummary, skipped: list[tuple[str, str]]) -> Iterator[tuple[RecordId, Record]]:
    """The records of a pack, one by one: a damaged one, or a later version's, takes no other with it."""
    reader = store.pack(summary.pack)
    for location in summary.locations:
        try:
            yield store.parse(RecordId(location.content), reader.read_small(location, limits.RECORD_BYTES + 128))
        except (CorruptError, UnknownCodecError) as error:
            skipped.append((location.content, error.message))


def _rooted(records: list[tuple[RecordId, Record]], skipped: list[tuple[str, str]]) -> list[tuple[RecordId, Record]]:
    """The records without the commits that have lost an ancestor: these have no place in the graph."""
    commits: dict[RecordId, Commit] = {id: record for id, record in records if isinstance(record, Commit)}
    children: dict[RecordId, list[RecordId]] = {}
    for commit_id, commit in commits.items():
        for parent in commit.parents:
            children.setdefault(parent, []).append(commit_id)
    lost: dict[RecordId, str] = {parent: "" for parent in children if parent not in commits}
    queue: deque[RecordId] = deque(lost)
    while queue:
        above = queue.popleft()
        for child in children.get(above, ()):
            if child not in lost:
                lost[child] = f"the parent {above.short} of this commit is not there"
                queue.append(child)
    skipped += [(commit_id, problem) for commit_id, problem in lost.items() if problem]
    return [found for found in records if found[0] not in lost]
