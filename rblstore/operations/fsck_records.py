"""Reading every record once, and whether what records and refs refer to is there.

Records of many tensors are not kept: a history has thousands of them, and what is asked of one again is read again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from rblstore.catalog.reader import CatalogReader
from rblstore.catalog.writer import subjects_of
from rblstore.errors import RblError
from rblstore.objects import limits
from rblstore.objects.content_records import Behavior, FileManifest, Identity
from rblstore.objects.history_records import SYMBOLIC, Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, RecordId, is_full_id
from rblstore.objects.locations import ContentLocation
from rblstore.objects.record import Record
from rblstore.objects.references import references
from rblstore.objects.tombstone_records import Tombstone
from rblstore.operations.fsck_findings import REINDEX, REPAIR, Findings
from rblstore.operations.progress import Meter, Progress
from rblstore.repository import HEADS, PROBES, TAGS

_RECORD_BYTES: Final = limits.RECORD_BYTES + 128
_KEPT: Final = 32
_KIND_OF_REF: Final = {HEADS: "commit", TAGS: "tag", PROBES: "probe"}


class Records:
    """Every record that can be read.

    Attributes:
        kinds: What each is.
        commits: Whole.
        compositions: Whole.
        users: The records that refer to each record.
        about: The records that are evidence about each subject.
        forgotten: Contents that are in no pack because they were removed on purpose.
    """

    def __init__(self, found: Findings) -> None:
        self._found = found
        self.kinds: dict[RecordId, str] = {}
        self.commits: dict[CommitId, Commit] = {}
        self.compositions: dict[CompositionId, Composition] = {}
        self.users: dict[str, list[RecordId]] = {}
        self.about: dict[RecordId, set[RecordId]] = {}
        self._places: dict[RecordId, ContentLocation] = {}
        self._kept: OrderedDict[RecordId, Record] = OrderedDict()
        self.forgotten: set[str] = set()
        self._missing: set[str] = set()
        self._tombstoned: set[str] = set()
        self._absent: dict[str, list[RecordId]] = {}

    def read(self, progress: Progress | None) -> None:
        """Reads every record of the listed packs, and says which of the contents that they refer to are missing."""
        found = self._found
        meter = Meter(progress, sum(location.size for location in found.records))
        for location in found.records:
            if not found.is_damaged_in(location):
                try:
                    record_id, record = self._parse(location)
                except RblError as error:
                    found.add(location.content, "record", error.message, REPAIR)
                else:
                    self._take(record_id, record, location)
            meter.add("checking records", location.size)
        for content, users in self._absent.items():
            needing = next((user for user in users if not self._is_forgotten(user)), None)
            if needing is None:
                self.forgotten.add(content)
            else:
                self._miss(content, f"{self.kinds[needing]} {needing.short} refers to this content")

    def _is_forgotten(self, user: RecordId) -> bool:
        """Whether what names a content was removed on purpose: an identity, a behavior, or all that have a file."""
        if self.kinds[user] in (Identity.KIND, Behavior.KIND):
            return user in self._tombstoned
        owners = self.users.get(user, ()) if self.kinds[user] == FileManifest.KIND else ()
        return bool(owners) and all(self._is_forgotten(owner) for owner in owners)

    def _parse(self, location: ContentLocation) -> tuple[RecordId, Record]:
        store = self._found.store
        data = store.pack(location.pack).read_small(location, _RECORD_BYTES)
        return store.parse(RecordId(location.content), data)

    def _take(self, record_id: RecordId, record: Record, location: ContentLocation) -> None:
        if record_id in self.kinds:
            return
        self.kinds[record_id] = record.KIND
        self._places[record_id] = location
        if isinstance(record, Commit):
            self.commits[CommitId(record_id)] = record
        elif isinstance(record, Composition):
            self.compositions[CompositionId(record_id)] = record
        if isinstance(record, Tombstone):
            self._tombstoned.add(record.subject)
        for subject in subjects_of(record):
            self.about.setdefault(subject, set()).add(record_id)
        for target, what in references(record):
            if what == "record":
                self.users.setdefault(target, []).append(record_id)
            elif target not in self._found.contents:
                self._absent.setdefault(target, []).append(record_id)

    def _miss(self, target: str, why: str) -> None:
        found = self._found
        if target in found.damaged or target in self._missing:
            return
        self._missing.add(target)
        unlisted = target in found.unlisted
        found.add(
            target,
            "reference",
            f"{why}, and it is in no pack" + (" that the catalog knows" if unlisted else ""),
            REINDEX if unlisted else REPAIR,
        )

    def load(self, record_id: RecordId) -> Record:
        """A record that could be read.

        Raises:
            RblError: Not any more.
        """
        kept = self.commits.get(CommitId(record_id)) or self.compositions.get(CompositionId(record_id))
        kept_record: Record | None = kept or self._kept.get(record_id)
        if kept_record is None:
            _, kept_record = self._parse(self._places[record_id])
            self._kept[record_id] = kept_record
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return kept_record

    def of_kinds(self, *kinds: str) -> Iterator[tuple[RecordId, Record]]:
        """Every record of some kinds, one after the other; what cannot be read any more is left out."""
        for record_id, kind in self.kinds.items():
            if kind in kinds:
                try:
                    record = self.load(record_id)
                except RblError:
                    continue
                yield record_id, record

    def check_references(self) -> None:
        """Says which records, and which bases of differences, are referred to and are not there."""
        for target, users in self.users.items():
            if target not in self.kinds:
                self._miss(target, f"{self.kinds[users[0]]} {users[0].short} refers to this record")
        for base, contents in self._found.differences.items():
            if base not in self._found.contents:
                self._miss(base, f"content {contents[0].short} is stored as a difference from this content")

    def check_refs(self) -> None:
        """Says which refs name nothing that is stored, or something of another kind than they must."""
        found = self._found
        for name, value in (found.ask(CatalogReader.refs) or {}).items():
            if value.startswith(SYMBOLIC):
                continue
            kind = self.kinds.get(RecordId(value)) if is_full_id(value) else None
            wanted = next((wanted for prefix, wanted in _KIND_OF_REF.items() if name.startswith(prefix)), kind)
            if kind is None:
                hint = REINDEX if value in found.unlisted else "Move it with: rbl undo"
                found.add(name, "ref", f"it names {value[:12]}, which is not stored", hint)
            elif kind != wanted:
                found.add(name, "ref", f"it names {value[:12]}, which is a {kind}, not a {wanted}", REINDEX)
