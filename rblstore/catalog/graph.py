"""The commit graph: order, ancestry and compositions.

Every walk goes down in windows of generations, two queries each: a commit's generation is larger than its parents', so
nothing below a window can lead back into it. What is read is bounded by what is asked for, not by the whole history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from sqlalchemy import CTE, Row, select

from rblstore.catalog.engine import CatalogDamagedError
from rblstore.catalog.rows import CommitRow, read_count, read_id, read_text, shown
from rblstore.catalog.snapshot import Snapshot, batches
from rblstore.catalog.tables import commit_parents, commits, compositions, slots
from rblstore.errors import NotFoundError
from rblstore.objects.history_records import Composition, Slot
from rblstore.objects.ids import BehaviorId, CommitId, CompositionId, IdentityId

_FIRST_WINDOW: Final = 64
_LARGEST_WINDOW: Final = 1024


class CommitNotFoundError(NotFoundError):
    """A commit that the request names is not in the catalog."""

    code = "commit_not_found"


def _walk(starts: Sequence[CommitId], lowest: int) -> CTE:
    """The ids of commits, and of their ancestors down to a generation."""
    walk = select(commits.c.id).where(commits.c.id.in_(starts)).cte("walk", recursive=True)
    parent = commits.alias("parent")
    step = (
        select(parent.c.id)
        .join_from(walk, commit_parents, commit_parents.c.commit == walk.c.id)
        .join(parent, parent.c.id == commit_parents.c.parent)
        .where(parent.c.generation >= lowest)
    )
    return walk.union(step)


def newest_first(rows: Iterable[CommitRow]) -> list[CommitRow]:
    """Commits before their parents: by generation, then the later time (compared as text), then the smaller id."""
    ordered = sorted(rows, key=lambda row: row.id)
    ordered.sort(key=lambda row: (row.generation, row.time), reverse=True)
    return ordered


class CommitGraph(Snapshot):
    """Commits and compositions."""

    def commit(self, id: CommitId) -> CommitRow | None:
        """A commit, or None where there is none of that id."""
        return next(iter(self._rows([id])), None)

    def commits(self, heads: Sequence[CommitId], limit: int | None = None) -> Iterator[CommitRow]:
        """Commits and all their ancestors, each once and before its parents; read as they are taken.

        Larger generations come first; among equals the later time (as text), then the smaller id. So order comes from
        the graph, and a clock only decides between commits neither of which descends from the other.

        Raises:
            CommitNotFoundError: A head is not in the catalog.
        """
        window = _FIRST_WINDOW if limit is None else min(limit, _FIRST_WINDOW)
        return islice((row for rows in self._windows(heads, window) for row in rows), limit)

    def is_ancestor(self, ancestor: CommitId, descendant: CommitId) -> bool:
        """Whether one commit is another or one of its ancestors.

        Raises:
            CommitNotFoundError: One of them is not in the catalog.
        """
        generations = self._generations([ancestor, descendant])
        if ancestor == descendant:
            return True
        if generations[ancestor] >= generations[descendant]:
            return False
        walk = _walk([descendant], generations[ancestor])
        return self._first(select(walk.c.id).where(walk.c.id == ancestor).limit(1)) is not None

    def merge_base(self, one: CommitId, other: CommitId) -> CommitId | None:
        """The common ancestor that comes first in the order of :meth:`commits`, None for unrelated histories.

        No other common ancestor descends from it. Where a criss-cross has several such, everybody gets the same one.

        Raises:
            CommitNotFoundError: One of them is not in the catalog.
        """
        sides = {one: 1}
        sides[other] = sides.get(other, 0) | 2
        for rows in self._windows([one, other], _FIRST_WINDOW):
            for row in rows:
                reached_from = sides.pop(row.id)
                if reached_from == 3:
                    return row.id
                for parent in row.parents:
                    sides[parent] = sides.get(parent, 0) | reached_from
        return None

    def commits_with_composition(self, composition: CompositionId, within: CommitId | None = None) -> list[CommitRow]:
        """The commits of a composition, in the order of :meth:`commits`.

        Args:
            composition: Which.
            within: Only this commit and its ancestors, or None for all.

        Raises:
            CommitNotFoundError: ``within`` is not in the catalog.
        """
        rows = self._all(select(commits.c.id, commits.c.generation).where(commits.c.composition == composition))
        found = {read_id(row.id, CommitId): read_count(row.generation) for row in rows}
        if within is not None:
            self._generations([within])
            if found:
                walk = _walk([within], min(found.values()))
                statement = select(commits.c.id).where(
                    commits.c.composition == composition, commits.c.id.in_(select(walk.c.id))
                )
                reached = {row.id for row in self._all(statement)}
                found = {id: generation for id, generation in found.items() if id in reached}
        return newest_first(self._rows(list(found)))

    def commit_rows(self, wanted: Iterable[CommitId]) -> Iterator[CommitRow]:
        """Those of many commits that are there, in no order; read as they are taken."""
        for batch in batches(wanted):
            yield from self._rows(batch)

    def composition(self, id: CompositionId) -> Composition | None:
        """A composition's record, or None where there is none of that id."""
        return self.compositions([id]).get(id)

    def compositions(self, wanted: Iterable[CompositionId]) -> dict[CompositionId, Composition]:
        """The same for many; those that are not there are left out."""
        found: dict[CompositionId, Composition] = {}
        for batch in batches(dict.fromkeys(wanted)):
            members: dict[str, list[Slot]] = {}
            statement = select(slots).where(slots.c.composition.in_(batch))
            for row in self._all(statement.order_by(slots.c.composition, slots.c.position)):
                members.setdefault(row.composition, []).append(_slot(row))
            for row in self._all(select(compositions).where(compositions.c.id.in_(batch))):
                identity = read_id(row.identity, IdentityId)
                found[read_id(row.id, CompositionId)] = Composition(identity, tuple(members.get(row.id, ())))
        return found

    def _generations(self, ids: Iterable[CommitId]) -> dict[CommitId, int]:
        wanted = dict.fromkeys(ids)
        found: dict[CommitId, int] = {}
        for batch in batches(wanted):
            for row in self._all(select(commits.c.id, commits.c.generation).where(commits.c.id.in_(batch))):
                found[read_id(row.id, CommitId)] = read_count(row.generation)
        for id in wanted:
            if id not in found:
                raise CommitNotFoundError(f"there is no commit {id.short} in this repository", object=id)
        return found

    def _rows(self, ids: Iterable[CommitId]) -> list[CommitRow]:
        """The commits of those ids that are there, in no order."""
        found: list[CommitRow] = []
        for batch in batches(ids):
            parents: dict[str, list[CommitId]] = {}
            statement = (
                select(commit_parents.c.commit, commit_parents.c.parent)
                .where(commit_parents.c.commit.in_(batch))
                .order_by(commit_parents.c.commit, commit_parents.c.position)
            )
            for row in self._all(statement):
                parents.setdefault(row.commit, []).append(read_id(row.parent, CommitId))
            for row in self._all(select(commits).where(commits.c.id.in_(batch))):
                found.append(_commit(row, tuple(parents.get(row.id, ()))))  # noqa: PERF401
        return found

    def _windows(self, heads: Sequence[CommitId], window: int) -> Iterator[list[CommitRow]]:
        """Commits and their ancestors, each window newest first.

        Args:
            heads: Where to begin.
            window: How many commits the first window should hold, roughly.
        """
        waiting = self._generations(heads)
        height = max(1, window // max(1, len(waiting)))
        while waiting:
            lowest = max(waiting.values()) - height + 1
            starts = [id for id, generation in waiting.items() if generation >= lowest]
            inside: dict[CommitId, CommitRow] = {}
            for batch in batches(starts):
                inside.update(self._window(batch, lowest, waiting))
            for id in starts:
                del waiting[id]
            yield newest_first(inside.values())
            height = min(2 * height, _LARGEST_WINDOW)

    def _window(self, starts: Sequence[CommitId], lowest: int, below: dict[CommitId, int]) -> dict[CommitId, CommitRow]:
        """Commits and ancestors down to a generation; parents that lie lower are put into ``below``."""
        # IN, not a join: joining, and asked for an order, SQLite reads every edge and looks it up among those reached.
        reached = select(_walk(starts, lowest).c.id)
        parent = commits.alias("parent")
        edges = (
            select(commit_parents.c.commit, commit_parents.c.parent, parent.c.generation)
            .join_from(commit_parents, parent, parent.c.id == commit_parents.c.parent)
            .where(commit_parents.c.commit.in_(reached))
            .order_by(commit_parents.c.commit, commit_parents.c.position)
        )
        parents: dict[str, dict[CommitId, int]] = {}
        for row in self._all(edges):
            id, generation = read_id(row.parent, CommitId), read_count(row.generation)
            parents.setdefault(row.commit, {})[id] = generation
            if generation < lowest:
                below[id] = generation
        inside: dict[CommitId, CommitRow] = {}
        for row in self._all(select(commits).where(commits.c.id.in_(reached))):
            above = parents.get(row.id, {})
            commit = _commit(row, tuple(above))
            # Order, ancestry and the end of every walk rest on this.
            if commit.generation != 1 + max(above.values(), default=0):
                raise CatalogDamagedError(f"the catalog gives commit {commit.id.short} a wrong place", object=commit.id)
            inside[commit.id] = commit
        return inside


def _commit(row: Row[Any], parents: tuple[CommitId, ...]) -> CommitRow:
    return CommitRow(
        read_id(row.id, CommitId),
        read_id(row.composition, CompositionId),
        parents,
        read_count(row.generation),
        read_text(row.author),
        read_text(row.time),
        read_text(row.message),
    )


def _slot(row: Row[Any]) -> Slot:
    if not isinstance(row.weight, float):
        raise CatalogDamagedError(f"the catalog holds {shown(row.weight)} in the place of a weight")
    return Slot(read_text(row.name), read_id(row.behavior, BehaviorId), row.weight)
