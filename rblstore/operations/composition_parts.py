"""Compositions of some of the behaviors of another one, and which of them can stand without the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from rblstore.checkpoints.composition_ground import LogicalState
from rblstore.errors import ConflictError, UsageError
from rblstore.objects.content_records import Identity
from rblstore.objects.history_records import Composition
from rblstore.operations.live_compositions import Compositions, slot_of
from rblstore.operations.stored_models import members, view_identity
from rblstore.repository import Store


class TooFewBehaviorsError(UsageError):
    """A study of several behaviors was asked for where there are not as many."""

    code: ClassVar[str] = "too_few_behaviors"


class Parts:
    """The parts of one composition: each with whatever its behaviors stand on, in the composition's order.

    Args:
        store: The repository.
        composition: The whole; it has to be one that can be loaded.

    Raises:
        ConflictError: It does not hold together, or peft cannot attach it.
        CorruptError: A record is missing or damaged.
    """

    def __init__(self, store: Store, composition: Composition) -> None:
        self._compositions = Compositions(store)
        self._compositions.checked(composition)
        self.whole = composition
        self.names = tuple(slot.name for slot in composition.slots)
        self._needs = _needs(store, composition)

    def needed(self, names: Collection[str]) -> frozenset[str]:
        """What some behaviors stand on, and that on its part, without themselves."""
        found = {one for name in names for one in self._needs[name]}
        return frozenset(found.difference(names))

    def of(self, names: Collection[str], order: Sequence[str] = ()) -> Composition:
        """The composition of some behaviors.

        Args:
            names: Which.
            order: Behaviors among them that come in this order, each in the place of another one of these.
        """
        slots = {slot.name: slot for slot in self.whole.slots}
        chosen = [name for name in self.names if name in names]
        turned = iter(order)
        chosen = [next(turned) if name in order else name for name in chosen]
        return Composition(self.whole.identity, tuple(slots[name] for name in chosen))

    def require(self, names: Collection[str]) -> Composition:
        """The composition of some behaviors, where it can be made.

        Raises:
            ConflictError: It cannot; says why.
        """
        found = self.of(names)
        self._compositions.checked(found, self.whole)
        return found

    def refused(self, composition: Composition) -> str | None:
        """Why a composition cannot be made, or None where it can."""
        try:
            self._compositions.checked(composition, self.whole)
        except (ConflictError, UsageError) as error:
            return error.message
        return None


def _needs(store: Store, composition: Composition) -> Mapping[str, frozenset[str]]:
    """Which lower behaviors each one stands on, those that they stand on included."""
    view = view_identity(store, store.record(composition.identity, Identity))
    state = LogicalState(dict(view.tensors), dict(view.files))
    found: dict[str, frozenset[str]] = {}
    for member in members(store, composition):
        direct = {state.writers.get((ground.on, ground.target)) for ground in member.behavior.grounds}
        lower = {name for name in direct if name is not None}
        found[member.name] = frozenset(lower).union(*(found[name] for name in lower))
        state.apply(member.name, member.behavior)
    return found


def chosen_behaviors(composition: Composition, names: Sequence[str] | None, least: int) -> tuple[str, ...]:
    """The behaviors that a study is about, in the composition's order.

    Args:
        composition: What has them.
        names: Those that were asked for; None for all.
        least: How many there have to be.

    Raises:
        NoSuchBehaviorError: The composition has none of a name.
        TooFewBehaviorsError: There are fewer.
    """
    asked = [slot.name for slot in composition.slots] if names is None else [names] if isinstance(names, str) else names
    for name in asked:
        slot_of(composition, name, "the composition")
    found = tuple(slot.name for slot in composition.slots if slot.name in asked)
    if not found:
        raise TooFewBehaviorsError(
            "the composition has no behavior to study" if not composition.slots else "no behavior is named",
            hint="Name a commit that has one: rbl log",
        )
    if len(found) < least:
        held = ", ".join(slot.name for slot in composition.slots)
        raise TooFewBehaviorsError(
            f"{len(found)} behavior{'' if len(found) == 1 else 's'} to study, where at least {least} are needed",
            object=found[0] if found else None,
            hint=f"The composition has: {held}. Commit another one beside it, or name more of them.",
        )
    return found
