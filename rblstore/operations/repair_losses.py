"""What a repair brings back, what it does not, and who needs that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from rblstore.objects.content_records import Behavior, Identity
from rblstore.objects.ids import RecordId
from rblstore.objects.record import Record
from rblstore.objects.references import files_of, references
from rblstore.objects.tombstone_records import Tombstone
from rblstore.operations.fsck_needs import described

_NEEDS: Final = 20


@dataclass(frozen=True)
class Restored:
    """Something that comes back.

    Attributes:
        object: The content's or record's id.
        kind: ``content``, or the record's kind.
        bytes: How many it has.
        source: Where it was found.
    """

    object: str
    kind: str
    bytes: int
    source: str


@dataclass(frozen=True)
class RepairLoss:
    """Something that nothing has any more.

    Attributes:
        object: The content's or record's id.
        kind: ``content`` or ``record``.
        needed_by: Commits, files and behaviors that need it, in words; at most twenty.
    """

    object: str
    kind: str
    needed_by: tuple[str, ...]


def records_of(record: Record) -> list[RecordId]:
    """The records that a record cannot do without."""
    return [cast("RecordId", target) for target, what in references(record) if what == "record"]  # typed by kind


def forgotten_records(records: Mapping[RecordId, Record]) -> frozenset[RecordId]:
    """The records whose contents nobody needs any more: what was removed on purpose, and files of nothing else.

    Args:
        records: Every record.
    """
    forgotten = {record.subject for record in records.values() if isinstance(record, Tombstone)}
    found = {one for one in forgotten if isinstance(records.get(one), (Identity, Behavior))}
    if not found:
        return frozenset()
    manifests: dict[RecordId, bool] = {}
    for record_id, record in records.items():
        for entry in files_of(record):
            if entry.manifest is not None:
                manifests[entry.manifest] = manifests.get(entry.manifest, True) and record_id in found
    return frozenset(found | {one for one, alone in manifests.items() if alone})


def losses(
    contents: Iterable[str], missing: Iterable[str], records: Mapping[RecordId, Record]
) -> tuple[RepairLoss, ...]:
    """What is lost, and who needs it.

    Args:
        contents: Ids of contents.
        missing: Ids of records.
        records: Every record that is left.
    """
    users = _users(records)
    return tuple(
        RepairLoss(object, kind, _needs(object, users))
        for kind, objects in (("content", contents), ("record", missing))
        for object in sorted(objects)
    )


def _users(records: Mapping[RecordId, Record]) -> dict[str, list[tuple[RecordId, Record]]]:
    users: dict[str, list[tuple[RecordId, Record]]] = {}
    for record_id, record in records.items():
        for target, _ in references(record):
            users.setdefault(target, []).append((record_id, record))
    return users


def _needs(lost: str, users: Mapping[str, list[tuple[RecordId, Record]]]) -> tuple[str, ...]:
    """Who needs something that is lost, in words."""
    words: list[str] = []
    waiting, seen = [lost], {lost}
    while waiting and len(words) < _NEEDS:
        target = waiting.pop(0)
        for record_id, record in users.get(target, ()):
            words.append(described(record_id, record, target))
            if record_id not in seen:
                seen.add(record_id)
                waiting.append(record_id)
    return tuple(dict.fromkeys(words))[:_NEEDS]
