"""What a whole checkpoint does to what lies beneath it, from digests alone: only what differs is an effect.

An overlay keeps every file that it came in, but claims only what it changes. What it leaves alone is no ground either:
a fine-tune of one layer does not stand on the others, so it stays where the identity beneath it is replaced by one that
differs elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rblstore.checkpoints.composition_ground import LogicalState, WrongBaseError, shown
from rblstore.errors import NothingChangedError
from rblstore.objects.content_records import Behavior, Domain, Effect, Ground, StoredTensor
from rblstore.objects.ids import ContentId


def overlay_effects(
    name: str, tensors: Mapping[str, StoredTensor], files: Mapping[str, ContentId], beneath: LogicalState
) -> tuple[Effect, ...]:
    """What a checkpoint adds, replaces and removes.

    Args:
        name: Its slot, for messages.
        tensors: Its logical tensors.
        files: SHA-256 by path of its files beside the weights.
        beneath: The composition without it.

    Returns:
        Sorted as a behavior record demands.

    Raises:
        NothingChangedError: It differs in nothing.
        WrongBaseError: None of its tensors lies beneath under its name: it is another model.
    """
    require_kin(name, tensors, beneath)
    own = LogicalState(dict(tensors), dict(files))
    domains: tuple[tuple[Domain, set[str]], ...] = (
        ("file", own.files.keys() | beneath.files.keys()),
        ("tensor", own.tensors.keys() | beneath.tensors.keys()),
    )
    effects = [
        _effect(on, target, beneath.at(on, target), own.at(on, target))
        for on, targets in domains
        for target in sorted(targets)
        if beneath.at(on, target) != own.at(on, target)
    ]
    if not effects:
        raise NothingChangedError(
            f"{name!r} differs in nothing from what lies beneath it",
            object=name,
            hint="Give the fine-tuned checkpoint, or leave it out.",
        )
    return tuple(effects)


def _effect(on: Domain, target: str, before: Ground | None, after: Ground | None) -> Effect:
    return Effect(on, target, "adds" if before is None else "removes" if after is None else "replaces", before, after)


def require_kin(name: str, tensors: Iterable[str], beneath: LogicalState) -> None:
    """Refuses a checkpoint of another model.

    Args:
        name: Its slot, for messages.
        tensors: Names of its logical tensors.
        beneath: The composition without it.

    Raises:
        WrongBaseError: None of its tensors lies beneath under its name.
    """
    names = sorted(tensors)
    if not any(_lies_beneath(tensor, beneath.tensors) for tensor in names):
        raise WrongBaseError(
            f"{name!r} shares no tensor's name with what lies beneath it: {shown(names)}",
            object=name,
            hint="It is another model: commit it as an identity, on a branch of its own (rbl switch --orphan).",
        )


def _lies_beneath(name: str, beneath: Mapping[str, StoredTensor]) -> bool:
    """Whether a tensor of that name lies there, a model's prefix (``bert.``) before either name or not."""
    return name in beneath or name.partition(".")[2] in beneath or any(other.endswith(f".{name}") for other in beneath)


def put_back(
    behavior: Behavior, beneath: LogicalState, identity: Mapping[str, StoredTensor]
) -> dict[str, tuple[str, ...]]:
    """What an overlay takes back of lower ones: it gives tensors the value that the identity has.

    A checkpoint that was made from the identity and is committed on another overlay does this, and nobody may have
    meant it.

    Args:
        behavior: The overlay.
        beneath: What it was taken against.
        identity: The identity's logical tensors.

    Returns:
        Names of tensors by the lower slot that wrote them.
    """
    found: dict[str, list[str]] = {}
    for effect in behavior.effects:
        writer = beneath.writers.get((effect.on, effect.target))
        if effect.on == "tensor" and writer is not None:
            base = identity.get(effect.target)
            if effect.value == (None if base is None else Ground.tensor(effect.target, base)):
                found.setdefault(writer, []).append(effect.target)
    return {writer: tuple(names) for writer, names in found.items()}


def contradictions(
    behavior: Behavior, tensors: Mapping[str, StoredTensor], files: Mapping[str, ContentId]
) -> tuple[str, ...]:
    """Targets of effects that an overlay's own files do not bear out: what a checkout would write is not what it holds.

    Args:
        behavior: The overlay.
        tensors: The logical tensors of its files.
        files: SHA-256 by path of its files beside the weights.
    """
    own = LogicalState(dict(tensors), dict(files))
    return tuple(
        effect.target
        for effect in behavior.effects
        if effect.action == "modifies" or own.at(effect.on, effect.target) != effect.value
    )


def removed_files(effects: Sequence[Effect]) -> tuple[str, ...]:
    """Paths of the files that a checkpoint lacks and that lie beneath it."""
    return tuple(effect.target for effect in effects if effect.on == "file" and effect.action == "removes")
