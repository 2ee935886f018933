"""What was removed on purpose: which tombstones there are, and the error of whatever needs what they cover."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rblstore.errors import NotFoundError, RblError
from rblstore.objects.content_records import FileManifest
from rblstore.objects.ids import ContentId, RecordId
from rblstore.objects.references import files_of
from rblstore.objects.tombstone_records import Tombstone

if TYPE_CHECKING:
    from rblstore.objects.history_records import Composition
    from rblstore.repository import Store


class ForgottenError(NotFoundError):
    """Something needs the content of an identity or behavior that was removed on purpose.

    Args:
        tombstone: What says so.
        slot: The behavior's slot where it is needed; "" for the identity, None where that is not known.

    Attributes:
        tombstone: The record that says so.
    """

    code = "forgotten"

    def __init__(self, tombstone: Tombstone, slot: str | None = None) -> None:
        subject = tombstone.subject
        what = (
            subject.short
            if slot is None
            else f"{slot!r} ({subject.short})"
            if slot
            else f"the identity ({subject.short})"
        )
        out = f"rbl revert --behavior {slot or 'NAME'} --no-verify"
        way = f"Go back to a commit without it, or take it out: {out}"
        if slot == "":
            way = "Nothing takes an identity out: go back to a commit on another one."
        super().__init__(
            f"{what} was removed on purpose by {tombstone.author} at {tombstone.time}: {tombstone.reason}",
            object=subject,
            hint=f"Its content is gone, or will be. {way}",
        )
        self.tombstone = tombstone


def tombstones_of(store: Store, subjects: Iterable[RecordId]) -> dict[RecordId, Tombstone]:
    """The tombstones of those of many identities and behaviors that have one; the first of each.

    Args:
        store: The repository.
        subjects: Their ids.

    Raises:
        CorruptError: A tombstone is damaged.
    """
    with store.catalog.read() as reader:
        found = reader.evidence_for(dict.fromkeys(subjects), Tombstone.KIND)
    return {subject: store.record(ids[0], Tombstone) for subject, ids in found.items() if ids}


def all_tombstones(store: Store) -> dict[RecordId, Tombstone]:
    """Every tombstone by its subject; the first of each.

    Raises:
        CorruptError: A tombstone is damaged.
    """
    with store.catalog.read() as reader:
        ids = [record_id for record_id, _ in reader.records(Tombstone.KIND)]
    found: dict[RecordId, Tombstone] = {}
    for record_id in ids:
        tombstone = store.record(record_id, Tombstone)
        found.setdefault(tombstone.subject, tombstone)
    return found


def require_remembered(store: Store, composition: Composition) -> None:
    """Refuses a composition of which something was removed on purpose, whether or not it has gone already.

    Args:
        store: The repository.
        composition: What is to be composed.

    Raises:
        ForgottenError: Something of it was.
        CorruptError: A tombstone is damaged.
    """
    names: dict[RecordId, str] = {slot.behavior: slot.name for slot in reversed(composition.slots)}
    names[composition.identity] = ""
    for subject, tombstone in tombstones_of(store, names).items():
        raise ForgottenError(tombstone, names[subject])


def contents_named_by(store: Store, subject: RecordId) -> frozenset[str]:
    """The contents that the files of an identity or behavior are put together from, as far as its records are there.

    Raises:
        CorruptError: A record is damaged.
    """
    found: set[str] = set()
    for entry in files_of(store.any_record(subject)):
        if entry.manifest is None:
            found.add(entry.sha256)
        elif store.has(ContentId(entry.manifest)):
            found.update(store.record(entry.manifest, FileManifest).contents())
    return frozenset(found)


def why_missing(store: Store, content: ContentId | RecordId) -> ForgottenError | None:
    """Why a content is in no pack: because of a tombstone, or None where there is another reason.

    Args:
        store: The repository.
        content: What was looked for.
    """
    try:
        with store.catalog.read() as reader:
            ids = [record_id for record_id, _ in reader.records(Tombstone.KIND)]
        if not all(store.has(ContentId(one)) for one in ids):
            return None  # and this would be asked about them
        for subject, tombstone in all_tombstones(store).items() if ids else ():
            if store.has(ContentId(subject)) and content in contents_named_by(store, subject):
                return ForgottenError(tombstone)
    except RblError:
        return None  # that it is missing is said by whoever asks
    return None


def gone_on_purpose(store: Store, subjects: Iterable[RecordId]) -> frozenset[str]:
    """Contents that are in no pack because those of these identities and behaviors that have a tombstone named them.

    Args:
        store: The repository.
        subjects: Ids of identities and behaviors.

    Raises:
        CorruptError: A record is damaged.
    """
    named = {one for subject in tombstones_of(store, subjects) for one in contents_named_by(store, subject)}
    with store.catalog.read() as reader:
        return frozenset(reader.missing_contents(map(ContentId, named))) if named else frozenset()


def is_kept(store: Store, content: ContentId) -> bool:
    """False of a content that is gone because it was removed on purpose; True also of one that is lost.

    Args:
        store: The repository.
        content: Which.
    """
    return store.has(content) or why_missing(store, content) is None
