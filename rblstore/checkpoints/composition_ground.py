"""What lies where in a composition, and whether every behavior in it stands on what it was bound to.

Pure functions of records. The logical state below a slot is the identity with everything that lower slots add, replace
or remove. What only modifies (a LoRA) leaves the state as it is: additive adapters stand on the tensor before any of
them, and so commute. Whoever writes a tensor that a lower behavior stands on pulls the ground from under it, since what
is written goes into the checkpoint before adapters are attached to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rblstore.errors import ConflictError, UsageError
from rblstore.objects.content_records import Behavior, Effect, Ground, StoredTensor
from rblstore.objects.ids import ContentId

_SHOWN = 5


class WrongBaseError(ConflictError):
    """A behavior does not stand on what it was made for."""

    code = "wrong_base"


class StandsOnError(ConflictError):
    """A change would take away what another behavior stands on."""

    code = "stands_on"


class OverlapError(ConflictError):
    """Two behaviors write the same tensor or file, and neither stands on the other."""

    code = "overlap"


class WeightRefusedError(UsageError):
    """A weight was given to a behavior that cannot be scaled."""

    code = "weight_refused"


def shown(names: Iterable[str]) -> str:
    """A few of the names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


@dataclass
class LogicalState:
    """What lies at every tensor name and file path.

    Attributes:
        tensors: By logical name.
        files: SHA-256 by path.
        writers: The behavior that wrote what lies there, by (domain, target); absent for the identity's own.
    """

    tensors: dict[str, StoredTensor]
    files: dict[str, ContentId]
    writers: dict[tuple[str, str], str] = field(default_factory=dict)

    def at(self, on: str, target: str) -> Ground | None:
        """What lies there, or None."""
        if on == "tensor":
            tensor = self.tensors.get(target)
            return None if tensor is None else Ground.tensor(target, tensor)
        content = self.files.get(target)
        return None if content is None else Ground("file", target, content)

    def apply(self, name: str, behavior: Behavior) -> None:
        """Adds, replaces and removes as a behavior does."""
        for effect in behavior.effects:
            if effect.action == "modifies":
                continue
            self.writers[effect.on, effect.target] = name
            value = effect.value
            if effect.on == "tensor":
                if value is None or value.dtype is None or value.shape is None:
                    self.tensors.pop(effect.target, None)
                else:
                    self.tensors[effect.target] = StoredTensor(value.dtype, value.shape, value.content)
            elif value is None:
                self.files.pop(effect.target, None)
            else:
                self.files[effect.target] = value.content


def logical_state(
    identity_tensors: Mapping[str, StoredTensor],
    identity_files: Mapping[str, ContentId],
    behaviors: Sequence[tuple[str, Behavior]],
) -> LogicalState:
    """The identity with everything that the behaviors add, replace and remove, in their order."""
    state = LogicalState(dict(identity_tensors), dict(identity_files))
    for name, behavior in behaviors:
        state.apply(name, behavior)
    return state


def _writes(behavior: Behavior) -> dict[tuple[str, str], Effect]:
    return {(effect.on, effect.target): effect for effect in behavior.effects if effect.action != "modifies"}


def _writer_of(ground: Ground, behaviors: Iterable[tuple[str, Behavior]]) -> str | None:
    for name, behavior in behaviors:
        effect = _writes(behavior).get((ground.on, ground.target))
        if effect is not None and effect.value == ground:
            return name
    return None


def _raise_for(
    name: str,
    behavior: Behavior,
    missing: Sequence[Ground],
    occupied: Sequence[Effect],
    state: LogicalState,
    others: Sequence[tuple[str, Behavior]],
    removed: Sequence[tuple[str, Behavior]],
) -> None:
    """Raises for a behavior whose ground is not beneath it, with the explanation that helps most."""
    targets = shown([ground.target for ground in missing] + [effect.target for effect in occupied])
    for ground in missing:
        if (gone := _writer_of(ground, removed)) is not None:
            raise StandsOnError(
                f"{name!r} stands on what {gone!r} wrote: {targets}",
                object=gone,
                hint=f"Take {name!r} out as well, or first.",
            )
    for ground in missing:
        if (later := _writer_of(ground, others)) is not None:
            raise WrongBaseError(
                f"{name!r} stands on what {later!r} writes, which comes after it: {targets}",
                object=name,
                hint=f"Put {later!r} before {name!r}.",
            )
    writes = _writes(behavior)
    for on, target in [(ground.on, ground.target) for ground in missing] + [(one.on, one.target) for one in occupied]:
        lower = state.writers.get((on, target))
        if lower is None:
            continue
        if (on, target) in writes:
            raise OverlapError(
                f"{lower!r} and {name!r} both write {targets}, and neither stands on the other",
                object=name,
                hint="Keep one of them, or make one on top of the other.",
            )
        raise WrongBaseError(
            f"{name!r} does not stand on what {lower!r} writes: {targets}",
            object=name,
            hint=f"Use it without {lower!r}, or make it on top of it.",
        )
    raise WrongBaseError(
        f"what {name!r} was made for does not lie beneath it: {targets}",
        object=name,
        hint="Use the base that it was made for.",
    )


def check_composition(
    identity_tensors: Mapping[str, StoredTensor],
    identity_files: Mapping[str, ContentId],
    behaviors: Sequence[tuple[str, Behavior, float]],
    *,
    removed: Sequence[tuple[str, Behavior]] = (),
) -> None:
    """Refuses a composition in which a behavior does not stand on what it was bound to.

    Args:
        identity_tensors: The base's logical tensors.
        identity_files: The base's files, SHA-256 by path.
        behaviors: (name, behavior, weight) in the composition's order.
        removed: Behaviors that the composition before this one had and this one has not (those that were replaced
            included); they explain a ground that is missing.

    Raises:
        WrongBaseError: Something else lies beneath a behavior; names the tensors.
        StandsOnError: A behavior was removed, or writes over what another stands on; names both.
        OverlapError: Two behaviors write one target, and neither stands on the other.
        WeightRefusedError: A weight other than 1.0 on a behavior that does not only modify.
    """
    state = LogicalState(dict(identity_tensors), dict(identity_files))
    standing: dict[tuple[str, str], str] = {}
    for at, (name, behavior, weight) in enumerate(behaviors):
        check_scalable(name, behavior, weight)
        missing = [ground for ground in behavior.grounds if state.at(ground.on, ground.target) != ground]
        occupied = [
            effect
            for effect in behavior.effects
            if effect.action == "adds" and state.at(effect.on, effect.target) is not None
        ]
        if missing or occupied:
            later = [(other, record) for other, record, _ in behaviors[at + 1 :]]
            _raise_for(name, behavior, missing, occupied, state, later, removed)
        pulled = [key for key in _writes(behavior) if key in standing]
        if pulled:
            below = standing[pulled[0]]
            raise StandsOnError(
                f"{name!r} writes what {below!r} stands on: {shown(target for _, target in pulled)}",
                object=below,
                hint=f"Take {below!r} out first, or make it again on top of {name!r}.",
            )
        for effect in behavior.effects:
            if effect.action == "modifies":
                standing[effect.on, effect.target] = name
        for ground in behavior.ground:
            standing[ground.on, ground.target] = name
        state.apply(name, behavior)


def check_scalable(name: str, behavior: Behavior, weight: float) -> None:
    """Refuses a weight other than 1.0 on a behavior that replaces, adds or removes, or changes no tensor.

    Raises:
        WeightRefusedError: It is one.
    """
    if weight != 1.0 and not behavior.additive:
        raise WeightRefusedError(
            f"{name!r} does not only add to weights, so a weight of {weight} means nothing for it",
            object=name,
            hint="Only the weight 1.0 is accepted.",
        )
