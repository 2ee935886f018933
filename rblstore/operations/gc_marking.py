"""What lies in packs, and what of it is reached: by refs, by recent operations, and as evidence about what is.

Everything is read from the packs themselves, every digest compared. The catalog is asked for refs, for operations and
for which packs count; a catalog that lost a row must not cost anybody a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from rblstore.errors import CorruptError, RblError
from rblstore.objects import limits
from rblstore.objects.evidence_records import Baseline, Statement, Verification
from rblstore.objects.history_records import SYMBOLIC, Operation
from rblstore.objects.ids import PackId, RecordId
from rblstore.objects.locations import ContentLocation, PackKind
from rblstore.objects.record import Record
from rblstore.objects.references import references
from rblstore.objects.signature_records import Signature
from rblstore.objects.study_records import Study
from rblstore.objects.tombstone_records import Tombstone
from rblstore.objects.training_records import TrainingState
from rblstore.operations.content_needs import names_in
from rblstore.operations.progress import Meter, Progress
from rblstore.repository import Store
from rblstore.storage.pack_bases import bases_of
from rblstore.storage.pack_format import pack_key, pack_of_key

DAY_SECONDS: Final = 86_400
# A file system's clock ticks a few times a second, and is read after the one that operations go by.
_TICK_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Seen:
    """What decides what is reached. While it stays, a plan does.

    Attributes:
        refs: Every ref and its value.
        operation: Sequence of the latest operation, 0 for none.
        listed: Packs that the catalog lists, in the order in which they were added.
        there: Packs that lie in ``packs/``.
        trash: Packs that lie in ``trash/``.
    """

    refs: Mapping[str, str]
    operation: int
    listed: tuple[PackId, ...]
    there: frozenset[PackId]
    trash: frozenset[PackId]


def look(store: Store) -> Seen:
    """What there is now."""
    with store.catalog.read() as reader:
        last = reader.last_operation()
        refs, listed = reader.refs(""), tuple(row.pack for row in reader.packs())
    there = frozenset(store.packs())
    trash = frozenset(pack_of_key(key) for key in store.backend.list("trash/"))
    return Seen(refs, 0 if last is None else last.sequence, listed, there, trash)


@dataclass(frozen=True)
class StoredPack:
    """A pack in ``packs/``.

    Attributes:
        pack: Its id.
        kind: ``C`` for contents, ``R`` for records.
        size: Bytes of the file.
        listed: Whether the catalog lists it.
        young: Whether its grace is not over, or has not begun: its time lies in the future.
        locations: What is in it.
        bases: What those of its contents that are differences are differences from.
    """

    pack: PackId
    kind: PackKind
    size: int
    listed: bool
    young: bool
    locations: tuple[ContentLocation, ...]
    bases: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Node:
    """A stored record: what it is, and what it names.

    Attributes:
        kind: Its kind.
        records: Records that it cannot do without.
        contents: Contents that it cannot do without.
        about: What it is evidence about: it lives while all of that does.
    """

    kind: str
    records: tuple[str, ...]
    contents: tuple[str, ...]
    about: tuple[str, ...] = ()


@dataclass
class Stored:
    """Everything in ``packs/``.

    Attributes:
        packs: Every pack that can be read; those that the catalog lists first, in its order.
        records: Every record of the packs that the catalog lists.
        unlisted: Every record that only other packs have.
        unreadable: Packs that the catalog does not list and that cannot be read, and why.
        future: Packs whose time lies in the future.
    """

    packs: list[StoredPack] = field(default_factory=list)
    records: dict[str, Node] = field(default_factory=dict)
    unlisted: dict[str, Node] = field(default_factory=dict)
    unreadable: list[tuple[PackId, str]] = field(default_factory=list)
    future: list[PackId] = field(default_factory=list)


def read_stored(store: Store, seen: Seen, now: float, grace_seconds: float, progress: Progress | None) -> Stored:
    """Reads every index, and every record.

    Raises:
        CorruptError: A pack that the catalog lists is missing or damaged, or a later version wrote a record in it.
    """
    listed = dict.fromkeys(seen.listed)
    order = [*listed, *sorted(seen.there - listed.keys())]
    sizes = {pack: store.pack_size(pack) for pack in order}
    meter = Meter(progress, sum(sizes.values()))
    found = Stored()
    shared: dict[str, str] = {}  # many records name few contents
    for pack in order:
        age = now - store.backend.modified(pack_key(pack))
        if age < 0:
            found.future.append(pack)
        try:
            one, records = _read_pack(store, pack, pack in listed, age < grace_seconds, shared)
        except RblError as error:
            if pack in listed:
                raise
            found.unreadable.append((pack, error.message))
        else:
            found.packs.append(one)
            for record_id, node in records.items():
                (found.records if one.listed else found.unlisted).setdefault(record_id, node)
        meter.add("reading packs", sizes[pack])
    for record_id in found.records.keys() & found.unlisted.keys():
        del found.unlisted[record_id]
    return found


def _read_pack(
    store: Store, pack: PackId, listed: bool, young: bool, shared: dict[str, str]
) -> tuple[StoredPack, dict[str, Node]]:
    reader = store.pack(pack)
    summary = reader.summary()
    bases = bases_of(store.backend, reader.footer()) if summary.kind == "C" else {}
    records: dict[str, Node] = {}
    for location in summary.locations if summary.kind == "R" else ():
        data = reader.read_small(location, limits.RECORD_BYTES + 128)
        records[location.content] = _node(store, RecordId(location.content), data, shared)
    return StoredPack(pack, summary.kind, summary.size, listed, young, summary.locations, bases), records


def _node(store: Store, record_id: RecordId, data: bytes, shared: dict[str, str]) -> Node:
    def once(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(shared.setdefault(name, name) for name in dict.fromkeys(names))

    named = names_in(data.decode("utf-8", "replace"))
    if named is not None:
        kind = data[: data.index(b"\n")].decode().split("/")[1]
        return Node(kind, once(named[0]), once(named[1]))
    _, record = store.parse(record_id, data)
    targets = list(references(record))
    return Node(
        record.KIND,
        once(target for target, what in targets if what == "record"),
        once(target for target, what in targets if what == "content"),
        once(_lives_with(record)),
    )


def _lives_with(record: Record) -> tuple[RecordId, ...]:
    """What a piece of evidence lives with. A tag is none: it lives while a ref names it.

    A verification vouches for a commit. If it lived with the composition, too, which a revert shares with the commits
    before, then no reverted behavior would ever go: what it was taken out of is a part of the evidence.
    """
    match record:
        case Statement() | Signature() | Tombstone():
            return (record.subject,)
        case Baseline():
            return (record.composition,)
        case Verification(commit=None):
            return (record.composition,) if record.adapted is None else (record.composition, record.adapted)
        case Verification():
            return () if record.commit is None else (record.commit,)
        case TrainingState():
            return (record.commit,)
        case Study():
            return record.commits
    return ()


class Reached:
    """What is reached.

    Args:
        stored: Everything there is.

    Attributes:
        records: Records.
        contents: Contents.
        covered: Contents that tombstones cover, as far as :meth:`settle` found nothing else that needs them.
    """

    def __init__(self, stored: Stored) -> None:
        self.records: set[str] = set()
        self.contents: set[str] = set()
        self.covered: set[str] = set()
        nodes = stored.records
        self._forgotten = {
            subject
            for node in nodes.values()
            if node.kind == "tombstone"
            for subject in node.about
            if subject in nodes and nodes[subject].kind in ("identity", "behavior")
        }
        # Files of what is forgotten; whether anything else has them is known in the end.
        self._withheld = {manifest for subject in self._forgotten for manifest in nodes[subject].records}
        self._stored = stored
        self._evidence: dict[str, list[str]] = {}
        for record_id, node in stored.records.items():
            for subject in node.about:
                self._evidence.setdefault(subject, []).append(record_id)

    def mark(self, roots: Iterable[str], *, unlisted: bool = False) -> None:
        """Marks records, what they name, the evidence about all that, and so on.

        Args:
            roots: Ids of records.
            unlisted: Whether to go on through packs that the catalog does not list, and past what is in none.

        Raises:
            CorruptError: Something that is reached is in no pack.
        """
        waiting = [(root, "something") for root in roots if root not in self.records]
        while waiting:
            record_id, by = waiting.pop()
            if record_id in self.records:
                continue
            node = self._stored.records.get(record_id)
            if node is None and unlisted:
                node = self._stored.unlisted.get(record_id)
                if node is None:
                    continue
            if node is None:
                raise self._missing(record_id, by)
            self.records.add(record_id)
            if record_id not in self._forgotten and record_id not in self._withheld:
                self.contents.update(node.contents)
            evidence = [
                one
                for one in self._evidence.get(record_id, ())
                if self.records.issuperset(self._stored.records[one].about)
            ]
            follow = (*node.records, *evidence)
            waiting += [(target, f"{node.kind} {record_id[:12]}") for target in follow if target not in self.records]

    def settle(self) -> None:
        """Once everything is marked: what is covered by tombstones, and is needed by nothing else."""
        if not self._forgotten:
            return
        nodes = {**self._stored.unlisted, **self._stored.records}
        shared = {
            manifest
            for record_id in self.records - self._forgotten
            for manifest in nodes[record_id].records
            if manifest in self._withheld
        }
        for manifest in shared:
            self.contents.update(nodes[manifest].contents)
        for record_id in self._forgotten | self._withheld:
            if record_id in nodes:
                self.covered.update(nodes[record_id].contents)
        self.covered -= self.contents

    def _missing(self, record_id: str, by: str) -> CorruptError:
        unlisted = record_id in self._stored.unlisted
        where, command = ("no pack that the catalog knows", "reindex") if unlisted else ("no pack", "fsck")
        return CorruptError(
            f"{by} refers to record {record_id[:12]}, which is in {where}",
            object=record_id,
            hint=f"Nothing is collected from a damaged repository. Run: rbl {command}",
        )


def reached_by(store: Store, seen: Seen, stored: Stored, now: float) -> Reached:
    """What is reached in a repository, young packs included.

    Args:
        store: The repository.
        seen: Its refs.
        stored: Everything in its packs.
        now: The time, by the clock of its file system.

    Raises:
        CorruptError: Something that is reached is in no pack.
    """
    with store.catalog.read() as reader:
        operations = [one for one in reader.operations_after(0) if one.sequence <= seen.operation]
    reached = Reached(stored)
    for name, value in seen.refs.items():
        if not value.startswith(SYMBOLIC):
            if value not in stored.records:
                raise CorruptError(
                    f"{name} names {value[:12]}, which is in no pack that the catalog knows",
                    object=name,
                    hint="Nothing is collected from a damaged repository. Run: rbl fsck",
                )
            reached.mark([value])
    undoable = _values(_recent(operations, now, store.configuration.operation_days))
    reached.mark(undoable & stored.records.keys())  # of the others an earlier gc took what they named
    young = [pack for pack in stored.packs if pack.kind == "R" and pack.young]
    for pack in young:
        reached.mark([location.content for location in pack.locations], unlisted=not pack.listed)
    reached.settle()
    return reached


def _recent(operations: Iterable[Operation], now: float, days: int) -> Iterable[Operation]:
    """Operations of the last days, oldest first, and those of the future.

    What follows a recent one is as recent, whatever a clock that was set back says.
    """
    began = False
    for operation in operations:
        time = _seconds(operation.time)
        if time is None or time > now + _TICK_SECONDS:
            yield operation
            continue
        began = began or (days > 0 and now - days * DAY_SECONDS < time)
        if began:
            yield operation


def _seconds(time: str) -> float | None:
    """An RFC 3339 time in seconds of the Unix epoch, its fraction cut off; None where no calendar reaches."""
    offset = "+00:00" if time.endswith("Z") else time[-6:]
    try:
        return datetime.fromisoformat(time[:19] + offset).timestamp()
    except (ValueError, OverflowError):
        return None


def _values(operations: Iterable[Operation]) -> set[str]:
    values = {value for one in operations for change in one.changes for value in (change.before, change.after)}
    return {value for value in values if value is not None}
