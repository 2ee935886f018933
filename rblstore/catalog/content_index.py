"""Where contents are, and which records there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Select, and_, func, or_, select

from rblstore.catalog.rows import PackRow, read_count, read_id, read_pack_kind, read_text
from rblstore.catalog.snapshot import Snapshot, batches
from rblstore.catalog.tables import contents, evidence, packs, records
from rblstore.objects.ids import ContentId, PackId, RecordId, parse_prefix
from rblstore.objects.locations import ContentLocation, PackKind

_PAGE: Final = 2000


def id_range(prefix: str) -> tuple[str, str]:
    """The first and last id that begin with a prefix, both included.

    Raises:
        UsageError: It is not 6 to 64 hexadecimal digits.
    """
    digits = parse_prefix(prefix)
    return digits.ljust(64, "0"), digits.ljust(64, "f")


def _locations(rows: Iterable[Sequence[Any]]) -> Iterator[ContentLocation]:
    named: dict[object, PackId] = {}  # many contents share few packs, and making an id costs more than reading a row
    for content, size, pack, first_entry, entries, stored in rows:
        if pack not in named:
            named[pack] = read_id(pack, PackId)
        yield ContentLocation(
            read_id(content, ContentId),
            read_count(size),
            named[pack],
            read_count(first_entry),
            read_count(entries),
            read_count(stored),
        )


def _select_locations() -> Select[Any]:
    return select(
        contents.c.content,
        contents.c.size,
        packs.c.id.label("pack_id"),
        contents.c.first_entry,
        contents.c.entries,
        contents.c.stored,
    ).join_from(contents, packs, packs.c.number == contents.c.pack)


class ContentIndex(Snapshot):
    """Contents, packs and records."""

    def location(self, content: ContentId) -> ContentLocation | None:
        """Where a content is, in the pack that was added first where several hold it; None where none does."""
        return next(iter(self.all_locations(content)), None)

    def locations(self, wanted: Iterable[ContentId]) -> dict[ContentId, ContentLocation]:
        """The same for many contents; those that no pack holds are left out."""
        found: dict[ContentId, ContentLocation] = {}
        for batch in batches(dict.fromkeys(wanted)):
            statement = _select_locations().where(contents.c.content.in_(batch)).order_by(contents.c.pack)
            for location in _locations(self._all(statement)):
                found.setdefault(location.content, location)
        return found

    def all_locations(self, content: ContentId) -> list[ContentLocation]:
        """Every stored copy of a content, in the order in which the packs were added."""
        statement = _select_locations().where(contents.c.content == content).order_by(contents.c.pack)
        return list(_locations(self._all(statement)))

    def has_content(self, content: ContentId) -> bool:
        """Whether any pack holds it."""
        return self._first(select(contents.c.pack).where(contents.c.content == content).limit(1)) is not None

    def copied_contents(self, kind: PackKind) -> list[ContentId]:
        """Contents that several packs of a kind hold, sorted."""
        statement = (
            select(contents.c.content)
            .join_from(contents, packs, packs.c.number == contents.c.pack)
            .where(packs.c.kind == kind)
            .group_by(contents.c.content)
            .having(func.count() > 1)
            .order_by(contents.c.content)
        )
        return [read_id(row.content, ContentId) for row in self._all(statement)]

    def missing_contents(self, wanted: Iterable[ContentId]) -> set[ContentId]:
        """Those of many contents that no pack holds."""
        missing = set(wanted)
        for batch in batches(sorted(missing)):  # sorted as the index is: each of its pages is read once
            statement = select(contents.c.content).where(contents.c.content.in_(batch))
            missing.difference_update(row.content for row in self._all(statement))
        return missing

    def packs(self) -> list[PackRow]:
        """Every pack, in the order in which they were added."""
        return [
            PackRow(read_id(row.id, PackId), read_pack_kind(row.kind), read_count(row.size))
            for row in self._all(select(packs).order_by(packs.c.number))
        ]

    def contents_of_pack(self, pack: PackId) -> list[ContentLocation]:
        """What a pack holds, in the order of its index; nothing where it is not known."""
        statement = _select_locations().where(packs.c.id == pack).order_by(contents.c.first_entry)
        return list(_locations(self._all(statement)))

    def content_sizes(self, kind: PackKind, after: str = "") -> Iterator[tuple[str, int, int]]:
        """Contents of packs of a kind with their raw and stored bytes, each once, sorted by id; read as they are taken.

        For counting millions: the ids are plain text, since making a typed one costs more than reading the row.

        Args:
            kind: Of the packs.
            after: Only larger ids: where another snapshot left off.
        """
        while True:
            statement = (
                select(contents.c.content, contents.c.size, contents.c.stored)
                .join_from(contents, packs, packs.c.number == contents.c.pack)
                .where(contents.c.content > after, packs.c.kind == kind)
                .order_by(contents.c.content, contents.c.pack)
                .limit(_PAGE)
            )
            rows: Sequence[Sequence[Any]] = self._all(statement)
            for content, size, stored in rows:
                if content != after:  # as in `location`: the copy in the pack that was added first
                    after = read_text(content)
                    yield after, read_count(size), read_count(stored)
            if len(rows) < _PAGE:
                return

    def record_kind(self, id: RecordId) -> str | None:
        """The kind of a record, None where there is none of that id. Operations are not among the records."""
        row = self._first(select(records.c.kind).where(records.c.id == id))
        return None if row is None else read_text(row.kind)

    def records(self, kind: str | None = None) -> Iterator[tuple[RecordId, str]]:
        """Records of a kind (None: all), with their kinds, in the order of their addition; read as they are taken."""
        after = -1
        while True:
            statement = select(records).where(records.c.position > after).order_by(records.c.position).limit(_PAGE)
            if kind is not None:
                statement = statement.where(records.c.kind == kind)
            rows = self._all(statement)
            for row in rows:
                after = read_count(row.position)
                yield read_id(row.id, RecordId), read_text(row.kind)
            if len(rows) < _PAGE:
                return

    def find_records(
        self, prefix: str, kinds: Sequence[str] | None = None, limit: int = 10
    ) -> list[tuple[RecordId, str]]:
        """Records whose ids begin with some digits, with their kinds, sorted by id.

        Args:
            prefix: 6 to 64 hexadecimal digits.
            kinds: Only these, or None for any.
            limit: The most to return.

        Raises:
            UsageError: The prefix is not one.
        """
        first, last = id_range(prefix)
        statement = select(records.c.id, records.c.kind).where(records.c.id.between(first, last))
        if kinds is not None:
            statement = statement.where(records.c.kind.in_(kinds))
        rows = self._all(statement.order_by(records.c.id).limit(limit))
        return [(read_id(row.id, RecordId), read_text(row.kind)) for row in rows]

    def all_evidence(self) -> Iterator[tuple[str, RecordId]]:
        """Every subject, and each record that points at it; read as they are taken."""
        subject, position = "", -1
        while True:
            statement = (
                select(evidence.c.subject, evidence.c.position, records.c.id)
                .join_from(evidence, records, records.c.position == evidence.c.position)
                .where(
                    or_(
                        evidence.c.subject > subject,
                        and_(evidence.c.subject == subject, evidence.c.position > position),
                    )
                )
                .order_by(evidence.c.subject, evidence.c.position)
                .limit(_PAGE)
            )
            rows = self._all(statement)
            for row in rows:
                subject, position = read_text(row.subject), read_count(row.position)
                yield subject, read_id(row.id, RecordId)
            if len(rows) < _PAGE:
                return

    def evidence(self, subject: RecordId, kind: str | None = None) -> list[RecordId]:
        """The records that point at a subject, in the order in which they were added.

        Args:
            subject: What they are about.
            kind: ``statement``, ``baseline``, ``verification``, ``training-state``, ``study``, ``signature``,
                ``tombstone``, ``tag``; None for all.
        """
        return self.evidence_for([subject], kind)[subject]

    def evidence_for(self, subjects: Iterable[RecordId], kind: str | None = None) -> dict[RecordId, list[RecordId]]:
        """The same for many subjects at once; each has a list, be it empty."""
        found: dict[RecordId, list[RecordId]] = {subject: [] for subject in subjects}
        for batch in batches(found):
            statement = (
                select(evidence.c.subject, records.c.id)
                .join_from(evidence, records, records.c.position == evidence.c.position)
                .where(evidence.c.subject.in_(batch))
                .order_by(evidence.c.position)
            )
            if kind is not None:
                statement = statement.where(records.c.kind == kind)
            for row in self._all(statement):
                found[read_id(row.subject, RecordId)].append(read_id(row.id, RecordId))
        return found
