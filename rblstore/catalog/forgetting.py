"""Taking out of the catalog what is kept elsewhere, or no more; nothing that is needed goes, whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, select

from rblstore.catalog.reader import CatalogReader
from rblstore.catalog.rows import read_count, read_pack_kind, read_text
from rblstore.catalog.snapshot import batches
from rblstore.catalog.tables import (
    commit_parents,
    commits,
    compositions,
    contents,
    evidence,
    packs,
    records,
    refs,
    slots,
)
from rblstore.errors import ConflictError
from rblstore.objects.ids import PackId, RecordId
from rblstore.objects.locations import PackKind

_AGAIN = "Nothing was changed; run the command again."


class LastCopyError(ConflictError):
    """A pack was to be forgotten that has something that no other has: it is not what it was taken for."""

    code = "last_copy"


class StillNeededError(ConflictError):
    """A record was to be forgotten that a ref or another record names."""

    code = "still_needed"


class Forgetting(CatalogReader):
    """The part of a writer that forgets."""

    def forget_packs(self, forgotten: Iterable[PackId]) -> None:
        """Forgets packs whose contents are in others of the same kind, too.

        Raises:
            LastCopyError: One of them has a content that no other pack has, or is not known; nothing was written.
        """
        self._forget_packs(forgotten, {"C": frozenset(), "R": frozenset()})

    def forget_dead(self, forgotten: Iterable[PackId], dead: Iterable[RecordId], unneeded: Set[str]) -> None:
        """Forgets packs, and with them what nothing reaches any more.

        Whether contents are needed is for the caller to know, as no catalog does. Of records it is looked up.

        Args:
            forgotten: The packs.
            dead: Records that go; none but these may be in these packs alone.
            unneeded: Contents whose last copies may go.

        Raises:
            LastCopyError: The only copy of something else would go, or a copy of one of these records stay.
            StillNeededError: A ref, or a record that stays, names one of these records.
        """
        gone = sorted(set(dead))
        self._forget_packs(forgotten, {"C": unneeded, "R": frozenset(gone)})
        for batch in batches(gone):
            stays = (
                select(contents.c.content, packs.c.id.label("pack"))
                .join_from(contents, packs, packs.c.number == contents.c.pack)
                .where(packs.c.kind == "R", contents.c.content.in_(batch))
                .limit(1)
            )
            if (row := self._first(stays)) is not None:
                raise LastCopyError(
                    f"record {read_text(row.content)} was to be forgotten, and pack {row.pack[:12]} still has it",
                    object=row.content,
                    hint=_AGAIN,
                )
        self._forget_rows(gone)
        for batch in batches(gone):
            self._require_unnamed(batch)

    def _forget_packs(self, forgotten: Iterable[PackId], may_go: Mapping[PackKind, Set[str]]) -> None:
        for pack in forgotten:
            row = self._first(select(packs.c.number, packs.c.kind).where(packs.c.id == pack))
            if row is None:
                raise LastCopyError(f"pack {pack.short} is not in the catalog any more", object=pack, hint=_AGAIN)
            number, unneeded = read_count(row.number), may_go[read_pack_kind(row.kind)]
            copy, other = contents.alias("copy"), packs.alias("other")
            elsewhere = (
                select(copy.c.pack)
                .join_from(copy, other, other.c.number == copy.c.pack)
                .where(copy.c.content == contents.c.content, copy.c.pack != number, other.c.kind == row.kind)
            )
            only = select(contents.c.content).where(contents.c.pack == number, ~elsewhere.exists())
            for last in self._all(only if unneeded else only.limit(1)):
                if last.content not in unneeded:
                    raise LastCopyError(
                        f"pack {pack.short} has the only copy of {read_text(last.content)}", object=pack, hint=_AGAIN
                    )
            self._run(delete(contents).where(contents.c.pack == number))
            self._run(delete(packs).where(packs.c.number == number))

    def _forget_rows(self, gone: Sequence[RecordId]) -> None:
        # The graph's edges first, for all of them: the parents of one commit are rows of others.
        for batch in batches(gone):
            self._run(delete(commit_parents).where(commit_parents.c.commit.in_(batch)))
        for batch in batches(gone):
            self._require_none(select(commit_parents.c.parent).where(commit_parents.c.parent.in_(batch)))
            positions = select(records.c.position).where(records.c.id.in_(batch))
            self._run(delete(evidence).where(evidence.c.position.in_(positions)))
            for table, column in (
                (slots, slots.c.composition),
                (commits, commits.c.id),
                (compositions, compositions.c.id),
                (records, records.c.id),
            ):
                self._run(delete(table).where(column.in_(batch)))

    def _require_unnamed(self, batch: Sequence[RecordId]) -> None:
        named: tuple[ColumnElement[Any], ...] = (
            refs.c.value,
            commits.c.composition,
            compositions.c.identity,
            slots.c.behavior,
            evidence.c.subject,
        )
        for column in named:
            self._require_none(select(column).where(column.in_(batch)))

    def _require_none(self, statement: Select[Any]) -> None:
        if (row := self._first(statement.limit(1))) is not None:
            raise StillNeededError(
                f"{read_text(row[0])} was to be forgotten, and something that stays names it",
                object=str(row[0]),
                hint=_AGAIN,
            )
