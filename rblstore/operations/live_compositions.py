"""Which composition a change of a live model leads to, and whether it can be made; nothing here touches a model."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from rblstore.errors import ConflictError, NotFoundError, UsageError
from rblstore.objects.content_records import Identity
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import CommitId
from rblstore.operations.stored_models import Member, check_members, members, view_identity
from rblstore.repository import Store
from rblstore.revisions import resolve

_KEPT = 256


class AlreadyAttachedError(ConflictError):
    """The behavior is on the model already, with that weight."""

    code: ClassVar[str] = "already_attached"


class NotAttachedError(NotFoundError):
    """The live model has no behavior of that name."""

    code: ClassVar[str] = "not_attached"


class NoSuchBehaviorError(NotFoundError):
    """The commit has no behavior of that name."""

    code: ClassVar[str] = "no_such_behavior"


class BadWeightError(UsageError):
    """A weight that is no finite number."""

    code: ClassVar[str] = "bad_weight"


class OtherIdentityError(ConflictError):
    """A behavior was asked for from a commit over another identity."""

    code: ClassVar[str] = "wrong_base"


def check_weight(weight: float | None) -> float | None:
    """The weight, where it is a finite number or None.

    Raises:
        BadWeightError: It is neither.
    """
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise BadWeightError(f"a weight is a finite number, not {weight!r:.40}", hint="1.0 is a behavior as it is.")
    return float(weight)


def slot_of(composition: Composition, name: str, where: str) -> Slot:
    """The slot of that name.

    Raises:
        NoSuchBehaviorError: There is none; says which there are.
    """
    found = composition.slot(name)
    if found is None:
        names = ", ".join(slot.name for slot in composition.slots) or "none"
        raise NoSuchBehaviorError(f"{where} has no behavior {name!r}", object=name, hint=f"It has: {names}.")
    return found


def with_slot(live: Composition, source: Composition, slot: Slot) -> Composition:
    """A composition with one more behavior, or another one in the place of that of its name.

    The place of a new one follows from its source's order: after what lies before it there, at the end where the rest
    is not in it.

    Raises:
        AlreadyAttachedError: Nothing would change.
        OtherIdentityError: The source has another identity.
    """
    if source.identity != live.identity:
        raise OtherIdentityError(
            f"{slot.name!r} lies over another identity there than the live model has",
            object=slot.name,
            hint="Switch to that commit in place of attaching the behavior.",
        )
    if live.slot(slot.name) == slot:
        raise AlreadyAttachedError(f"{slot.name!r} is on the model already", object=slot.name)
    if live.slot(slot.name) is not None:
        slots = tuple(slot if one.name == slot.name else one for one in live.slots)
        return Composition(live.identity, slots)
    order = [one.name for one in source.slots]
    after = set(order[order.index(slot.name) + 1 :])
    at = next((place for place, one in enumerate(live.slots) if one.name in after), len(live.slots))
    return Composition(live.identity, (*live.slots[:at], slot, *live.slots[at:]))


def without_slot(live: Composition, name: str) -> Composition:
    """A composition without a behavior.

    Raises:
        NotAttachedError: It is not there.
    """
    if live.slot(name) is None:
        names = ", ".join(slot.name for slot in live.slots) or "none"
        raise NotAttachedError(f"no behavior {name!r} is on the model", object=name, hint=f"On it: {names}.")
    return Composition(live.identity, tuple(slot for slot in live.slots if slot.name != name))


class Compositions:
    """The compositions that a live model was asked to become, each read and checked once: records never change.

    Args:
        store: The repository.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._at: dict[CommitId, Composition] = {}
        self._checked: dict[Composition, tuple[Member, ...]] = {}

    def at(self, revision: str) -> tuple[CommitId, Composition]:
        """A commit and its composition.

        Raises:
            UnknownRevisionError: No commit of that name.
        """
        # A whole id names one commit for ever, where a branch has to be looked up.
        commit = CommitId(revision) if revision in self._at else resolve(self._store, revision).commit
        found = self._at.get(commit)
        if found is None:
            _make_room(self._at)
            found = self._store.record(self._store.record(commit, Commit).composition, Composition)
            self._at[commit] = found
        return commit, found

    def checked(self, target: Composition, before: Composition | None = None) -> tuple[Member, ...]:
        """The behaviors of a composition that holds together and that peft can attach, before anything is loaded.

        Args:
            target: The composition.
            before: What the model is, which may explain what is missing.

        Returns:
            Its behaviors, in order.

        Raises:
            ConflictError: Wrong ground, an overlap, or no way to attach.
            WeightRefusedError: A weight that the behavior's form does not take.
            CorruptError: A record is missing or damaged.
        """
        found = self._checked.get(target)
        if found is None:
            _make_room(self._checked)
            found = tuple(members(self._store, target))
            view = view_identity(self._store, self._store.record(target.identity, Identity))
            check_members(view, found, members(self._store, before) if before is not None else (), unloadable=False)
            self._checked[target] = found
        return found

    def adapters(self, composition: Composition) -> tuple[Slot, ...]:
        """The slots of a checked composition that peft attaches, in order."""
        found = zip(composition.slots, self.checked(composition), strict=True)
        return tuple(slot for slot, one in found if one.config is not None)


def _make_room(kept: dict[Any, Any]) -> None:
    while len(kept) >= _KEPT:
        kept.pop(next(iter(kept)))
