"""``gc --restore``: what lies in the trash comes back, as far as it is whole and lacks nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from rblstore.errors import RblError
from rblstore.forgotten import all_tombstones, contents_named_by
from rblstore.objects import limits
from rblstore.objects.content_records import FileManifest
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import CommitId, ContentId, PackId, RecordId
from rblstore.objects.locations import PackSummary
from rblstore.objects.record import Record
from rblstore.objects.references import files_of, references
from rblstore.objects.tombstone_records import Tombstone
from rblstore.operations.gc_marking import look
from rblstore.operations.gc_plan import UnreachedCommit, before_what_they_need
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.repair_losses import forgotten_records
from rblstore.operations.restore_parts import InRoom, write_parts
from rblstore.operations.result import Result
from rblstore.repository import HEADS, Store, oldest_first
from rblstore.storage.backend import Room
from rblstore.storage.pack_bases import bases_of
from rblstore.storage.pack_check import CheckedPack, check_packs
from rblstore.storage.pack_format import pack_key
from rblstore.storage.pack_reader import PackReader
from rblstore.storage.pack_writer import PackWriter

_NAMED: Final = 20


@dataclass(frozen=True)
class RestoreResult(Result):
    """What came back.

    Attributes:
        packs: Packs that the catalog lists again.
        bytes: What they take.
        records: How many records came back.
        commits: How many of them are commits that no branch reaches.
        named: Those commits, at most twenty: first those that no other of them has for a parent, the newest first.
        stayed: (pack, why) of what stays in the trash.
    """

    packs: tuple[PackId, ...]
    bytes: int
    records: int
    commits: int
    named: tuple[UnreachedCommit, ...]
    stayed: tuple[tuple[PackId, str], ...]


def restore_trash(store: Store, *, progress: Progress | None = None) -> RestoreResult:
    """Brings back what lies in the trash, and what lies in ``packs/`` without being listed.

    A pack comes back as it is where everything that it refers to is stored or comes back with it. Of one with records
    to which that does not apply, the other records come back in a new pack; of one with contents that were removed on
    purpose, the other contents do. Their grace begins anew, and nothing is deleted.

    Args:
        store: The repository.
        progress: Is told bytes.

    Raises:
        LockedError: Somebody is writing, and took too long.
        WriteError: The system refused; what has come back so far is listed when this is run again.
    """
    with store.maintenance():
        try:
            return _Restore(store, progress).run()
        finally:
            store.contents.close()  # where a pack lay a moment ago, it does not lie now


@dataclass(frozen=True)
class _Pack:
    """A pack that may come back."""

    summary: PackSummary
    room: Room
    bases: dict[str, tuple[str, ...]]
    records: dict[RecordId, Record]


class _Restore:
    """Brings packs back; the repository's lock is held alone."""

    def __init__(self, store: Store, progress: Progress | None) -> None:
        self._store = store
        self._progress = progress
        self._packs: dict[PackId, _Pack] = {}
        self._stayed: dict[PackId, str] = {}
        self._records: dict[RecordId, Record] = {}
        self._parts: PackSummary | None = None

    def run(self) -> RestoreResult:
        seen = look(self._store)
        listed = frozenset(seen.listed)
        for pack in seen.trash & seen.there:
            self._stayed[pack] = "the same pack lies in packs/ again"
        # Unlisted packs in packs/ are what a restore that did not come to its end had moved.
        self._read({"trash": seen.trash - seen.there, "packs": seen.there - listed})
        self._part_forgotten()
        self._drop_without_bases()
        self._drop_dangling()
        for pack in self._order():
            if self._packs[pack].room != "packs":
                self._store.backend.move(pack_key(pack, "trash"), pack_key(pack))
        summaries = [one.summary for one in self._packs.values()]
        if self._parts is not None:
            summaries.append(self._parts)
        if (rest := self._write_rest()) is not None:
            summaries.append(rest)
        with self._store.catalog.write() as index:
            for summary in summaries:
                index.add_pack(summary)
            index.add_records(oldest_first(self._records.items()))
        commits = self._off_branches()
        return RestoreResult(
            tuple(summary.pack for summary in summaries),
            sum(summary.size for summary in summaries),
            len(self._records),
            len(commits),
            commits[:_NAMED],
            tuple(sorted((pack, why) for pack, why in self._stayed.items() if pack in seen.trash)),
        )

    def _read(self, rooms: dict[Room, frozenset[PackId]]) -> None:
        sizes = {
            pack: self._store.backend.size(pack_key(pack, room)) for room, packs in rooms.items() for pack in packs
        }
        meter = Meter(self._progress, sum(sizes.values()))
        for room, packs in rooms.items():
            view = InRoom(self._store.backend, room)
            for checked in check_packs(view, sorted(packs)):
                if checked.summary is None or checked.damages:
                    self._stayed[checked.pack] = checked.damages[0].problem
                else:
                    self._read_records(view, room, checked, checked.summary)
                meter.add("reading the trash", sizes[checked.pack])
        with self._store.catalog.read() as index:
            known = {record_id for record_id, _ in index.records()}
        for one in self._packs.values():
            self._records.update((found, record) for found, record in one.records.items() if found not in known)

    def _read_records(self, view: InRoom, room: Room, checked: CheckedPack, summary: PackSummary) -> None:
        records: dict[RecordId, Record] = {}
        reader = PackReader(view, checked.pack)
        try:
            for at in summary.locations if summary.kind == "R" else ():
                data = reader.read_small(at, limits.RECORD_BYTES + 128)
                record_id, record = self._store.parse(RecordId(at.content), data)
                records[record_id] = record
        except RblError as error:
            self._stayed[checked.pack] = error.message
            return
        bases = {str(content): tuple(map(str, beneath)) for content, beneath in checked.bases.items()}
        self._packs[checked.pack] = _Pack(summary, room, bases, records)

    def _stay(self, pack: PackId, why: str) -> None:
        self._stayed[pack] = why
        del self._packs[pack]

    # What would lack something stays.

    def _contents(self) -> Iterable[_Pack]:
        return [one for one in self._packs.values() if one.summary.kind == "C"]

    def _coming(self) -> set[str]:
        """Contents that come back."""
        found: set[str] = {at.content for one in self._contents() for at in one.summary.locations}
        if self._parts is not None:
            found.update(at.content for at in self._parts.locations)
        return found

    def _part_forgotten(self) -> None:
        """Lets packs stay of which a content was removed on purpose, as a tombstone says that is here or comes back.

        What else they hold is written to a new pack, and so are differences from what was removed.
        """
        tombstones = [record for record in self._records.values() if isinstance(record, Tombstone)]
        forgotten = {*all_tombstones(self._store), *(one.subject for one in tombstones)}
        if not forgotten:
            return
        covered: set[str] = set()
        needed: set[str] = set()
        for record_id, record in self._records.items():
            (covered if record_id in forgotten else needed).update(self._contents_of(record))
        for subject in forgotten:
            if self._store.has(ContentId(subject)):
                covered.update(contents_named_by(self._store, subject))
        goes = covered - needed
        unlisted = {one.summary.pack: (one.summary, one.room) for one in self._contents()}
        parted = []
        for one in list(self._contents()):
            if any(at.content in goes for at in one.summary.locations):
                self._stay(one.summary.pack, "it holds what was removed on purpose")
            elif any(base in goes for beneath in one.bases.values() for base in beneath):
                self._stay(one.summary.pack, "it holds differences from what was removed on purpose")
            else:
                continue
            parted.append(one.summary)
        if not parted:
            return
        coming = self._coming()
        rest = {at.content: at for summary in parted for at in summary.locations if at.content not in goes | coming}
        with self._store.catalog.read() as index:
            missing = set(index.missing_contents(map(ContentId, rest)))
        self._parts = write_parts(self._store, unlisted, [at for content, at in rest.items() if content in missing])
        if self._parts is not None:
            back = {at.content for at in self._parts.locations}
            for summary in parted:
                if any(at.content in back for at in summary.locations):
                    self._stayed[summary.pack] += "; the rest of it came back in a new pack"

    def _contents_of(self, record: Record) -> Iterator[str]:
        """The contents of an identity's or behavior's files, as far as their manifests are here or come back."""
        for entry in files_of(record):
            if entry.manifest is None:
                yield entry.sha256
                continue
            manifest = self._records.get(entry.manifest)
            if manifest is None and self._store.has(ContentId(entry.manifest)):
                manifest = self._store.any_record(entry.manifest)
            if isinstance(manifest, FileManifest):
                yield from manifest.contents()

    def _drop_without_bases(self) -> None:
        """Lets packs stay of which a content is a difference from what is not there, or is a difference itself."""
        if not any(one.bases for one in self._contents()):
            return
        store = self._store
        plain: set[str] = set()
        with store.catalog.read() as index:
            listed = [row.pack for row in index.packs() if row.kind == "C" and row.pack not in self._packs]
        for pack in listed:
            reader = store.pack(pack)
            differences = bases_of(store.backend, reader.footer())
            plain.update(at.content for at in reader.summary().locations if at.content not in differences)
        while True:
            coming = {
                at.content for one in self._contents() for at in one.summary.locations if at.content not in one.bases
            }
            if self._parts is not None:
                coming.update(at.content for at in self._parts.locations)
            lacking = [
                one.summary.pack
                for one in self._contents()
                if any(base not in plain and base not in coming for beneath in one.bases.values() for base in beneath)
            ]
            for pack in lacking:
                self._stay(pack, "what its contents are differences from is gone")
            if not lacking:
                return

    def _drop_dangling(self) -> None:
        """Passes over records that refer to what is gone, and lets the packs stay that have some."""
        gone = forgotten_records(self._records)
        targets = {
            record_id: [
                (target, what) for target, what in references(record) if what == "record" or record_id not in gone
            ]
            for record_id, record in self._records.items()
        }
        users: dict[str, list[RecordId]] = {}
        for record_id, named in targets.items():
            for target, _ in named:
                users.setdefault(target, []).append(record_id)
        coming = self._coming()
        wanted = {
            ContentId(target)
            for named in targets.values()
            for target, what in named
            if target not in (self._records if what == "record" else coming)
        }
        with self._store.catalog.read() as index:
            lacking: deque[str] = deque(index.missing_contents(wanted))
        while lacking:
            for user in users.get(lacking.popleft(), ()):
                if self._records.pop(user, None) is not None:
                    lacking.append(user)
        dropped = targets.keys() - self._records.keys()
        for pack, one in list(self._packs.items()):
            if missing := len(dropped & one.records.keys()):
                self._stay(pack, f"{missing} of its {len(one.records)} records refer to what is gone")

    def _order(self) -> list[PackId]:
        """What is needed first, so that a catalog that is rebuilt half-way lists nothing that lacks a part."""
        holders = {at.content: pack for pack, one in self._packs.items() for at in one.summary.locations}
        needs: dict[PackId, set[PackId]] = {}
        for pack, one in self._packs.items():
            named = {base for beneath in one.bases.values() for base in beneath}
            named.update(target for record in one.records.values() for target, _ in references(record))
            needs[pack] = {holders[ContentId(target)] for target in named if target in holders}
        return before_what_they_need(needs)[::-1]

    def _write_rest(self) -> PackSummary | None:
        """A new pack of the records that come back and whose packs do not."""
        whole = {record_id for one in self._packs.values() for record_id in one.records}
        rest = [record for record_id, record in self._records.items() if record_id not in whole]
        with PackWriter(self._store.backend, "R", is_stored=lambda content: False) as writer:
            for record in rest:
                writer.add([record.encode()])
            return writer.finish()

    def _off_branches(self) -> tuple[UnreachedCommit, ...]:
        found = {CommitId(one): record for one, record in self._records.items() if isinstance(record, Commit)}
        with self._store.catalog.read() as index:
            heads = [CommitId(value) for value in index.refs(HEADS).values()]
            reached = {row.id for row in index.commits(heads)} if found.keys() & set(heads) else set()
        off = [(one, commit) for one, commit in found.items() if one not in reached]
        parents = {parent for _, commit in off for parent in commit.parents}
        off.sort(key=lambda pair: pair[1].time, reverse=True)
        off.sort(key=lambda pair: pair[0] in parents)
        return tuple(UnreachedCommit(one, commit.subject, commit.time) for one, commit in off)
