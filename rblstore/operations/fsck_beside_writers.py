"""``fsck`` while others write: what is between two places of a commit under way is no damage."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

from rblstore.errors import RblError
from rblstore.operations.fsck import FsckDamage, FsckResult, fsck
from rblstore.operations.progress import Progress
from rblstore.operations.steady_packs import packs_now, while_packs_stay
from rblstore.repository import Store


def fsck_beside_writers(store: Store, *, full: bool = False, progress: Progress | None = None) -> FsckResult:
    """What a check of the storage finds; damage counts where it is found again, if anybody wrote meanwhile.

    Args:
        store: The repository.
        full: As for :func:`rblstore.operations.fsck.fsck`.
        progress: Is told bytes of packs read.
    """

    def look() -> FsckResult:
        return while_packs_stay(store, lambda: fsck(store, full=full, progress=progress))

    before = _moment(store)
    first = look()
    between = _moment(store)
    if first.ok or _steady(before, between):
        return first
    again = look()
    if _steady(between, _moment(store)):
        return again
    found = {_what(damage) for damage in first.damages}
    twice = tuple(damage for damage in again.damages if _what(damage) in found)
    if not twice:
        return replace(again, ok=True, damages=())
    try:
        # A busy branch can be on its way at both looks. Nobody is, while the lock is held.
        with store.maintenance():
            return fsck(store, full=full, progress=progress)
    except RblError:
        return replace(again, ok=False, damages=twice)


def _what(damage: FsckDamage) -> tuple[str, str, str]:
    return damage.object, damage.kind, damage.problem


class _Moment(NamedTuple):
    """What changes whenever somebody writes: operations of the catalog and of the log, and packs."""

    recorded: int
    logged: int
    packs: Collection[object]


def _moment(store: Store) -> _Moment | None:
    """None where it cannot be read, which the look says."""
    try:
        with store.catalog.read() as reader:
            newest = reader.last_operation()
        last = store.log.last()
        return _Moment(newest.sequence if newest else 0, last[0] if last else 0, packs_now(store))
    except RblError:
        return None


def _steady(before: _Moment | None, after: _Moment | None) -> bool:
    """Whether nobody wrote between two moments, nor was about to: the log's line comes after the catalog's."""
    return before == after and (before is None or before.recorded == before.logged)
