"""``diff``: what two commits compose differently, slot by slot and tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rblstore.checkpoints.composition_ground import LogicalState, logical_state
from rblstore.objects.content_records import Behavior, Identity
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import CommitId, ContentId, IdentityId
from rblstore.operations.result import Result
from rblstore.operations.stored_models import view_identity
from rblstore.repository import Store
from rblstore.revisions import resolve


@dataclass(frozen=True)
class SlotChange:
    """One slot that differs.

    Attributes:
        name: The slot.
        change: ``added``, ``removed``, ``replaced``, ``reweighted`` or ``moved``.
        before: The slot in A, or None.
        after: The slot in B, or None.
    """

    name: str
    change: str
    before: Slot | None
    after: Slot | None


@dataclass(frozen=True)
class TensorChange:
    """One logical tensor on which the two act differently.

    Attributes:
        target: Its logical name.
        change: ``added``, ``removed``, ``replaced`` (its stored value) or ``modified`` (by other behaviors).
        behaviors: Names of the changed slots that act on it.
        before: Content of the stored value in A, or None.
        after: Content of the stored value in B, or None.
    """

    target: str
    change: str
    behaviors: tuple[str, ...]
    before: ContentId | None
    after: ContentId | None


@dataclass(frozen=True)
class FileChange:
    """One file of the identity, or that an overlay changes, that differs. An overlay's weights are tensors, no files.

    Attributes:
        path: Relative.
        change: ``added``, ``removed`` or ``replaced``.
        behaviors: Names of the changed slots that act on it.
        before: SHA-256 in A, or None.
        after: SHA-256 in B, or None.
    """

    path: str
    change: str
    behaviors: tuple[str, ...]
    before: ContentId | None
    after: ContentId | None


@dataclass(frozen=True)
class DiffResult(Result):
    """How commit B differs from commit A.

    Attributes:
        a: The first commit.
        b: The second commit.
        identity_before: A's identity.
        identity_after: B's identity.
        slots: Slots that differ.
        tensors: Logical tensors on which they act differently, sorted by name.
        files: Files that differ, sorted by path.
    """

    a: CommitId
    b: CommitId
    identity_before: IdentityId
    identity_after: IdentityId
    slots: tuple[SlotChange, ...]
    tensors: tuple[TensorChange, ...]
    files: tuple[FileChange, ...]


def slot_changes(before: Composition, after: Composition) -> tuple[SlotChange, ...]:
    """Slots that differ between two compositions; one that only changed its place relative to others has moved."""
    old, new = ({slot.name: slot for slot in one.slots} for one in (before, after))
    changes = []
    for name in [*old, *(name for name in new if name not in old)]:
        left, right = old.get(name), new.get(name)
        if left is None:
            changes.append(SlotChange(name, "added", None, right))
        elif right is None:
            changes.append(SlotChange(name, "removed", left, None))
        elif left.behavior != right.behavior:
            changes.append(SlotChange(name, "replaced", left, right))
        elif left.weight != right.weight:
            changes.append(SlotChange(name, "reweighted", left, right))
    shared_before = [slot.name for slot in before.slots if slot.name in new]
    shared_after = [slot.name for slot in after.slots if slot.name in old]
    touched = {change.name for change in changes}
    changes += [
        SlotChange(name, "moved", old[name], new[name])
        for name, other in zip(shared_after, shared_before, strict=True)
        if name != other and name not in touched
    ]
    return tuple(changes)


def diff(store: Store, a: str, b: str = "HEAD") -> DiffResult:
    """Compares two commits.

    Raises:
        UnknownRevisionError: One of them does not exist.
    """
    first, second = resolve(store, a).commit, resolve(store, b).commit
    before, after = (store.record(store.record(commit, Commit).composition, Composition) for commit in (first, second))
    slots = slot_changes(before, after)
    tensors: tuple[TensorChange, ...] = ()
    files: tuple[FileChange, ...] = ()
    if slots or before.identity != after.identity:
        old, new = _Side.of(store, before), _Side.of(store, after)
        tensors, files = _tensor_changes(old, new, slots), _file_changes(old, new, slots)
    return DiffResult(first, second, before.identity, after.identity, slots, tensors, files)


@dataclass(frozen=True)
class _Side:
    """One composition, read.

    Attributes:
        state: Tensors and files with everything that its behaviors write.
        weights: SHA-256 by path of the identity's weight files and their index.
        behaviors: By slot.
    """

    state: LogicalState
    weights: Mapping[str, ContentId]
    behaviors: Mapping[str, Behavior]

    @classmethod
    def of(cls, store: Store, composition: Composition) -> _Side:
        view = view_identity(store, store.record(composition.identity, Identity))
        behaviors = {slot.name: store.record(slot.behavior, Behavior) for slot in composition.slots}
        weights = {entry.path: entry.sha256 for entry in view.checkpoint.files if entry.path not in view.files}
        return cls(logical_state(view.tensors, view.files, list(behaviors.items())), weights, behaviors)


def _acting(old: _Side, new: _Side, slots: Sequence[SlotChange], on: str) -> dict[str, dict[str, bool]]:
    """The changed slots that act on each target, and whether they compute it from what lies beneath."""
    acting: dict[str, dict[str, bool]] = {}
    for change in slots:
        for side in (old, new):
            behavior = side.behaviors.get(change.name)
            for effect in () if behavior is None else behavior.effects:
                if effect.on == on:
                    names = acting.setdefault(effect.target, {})
                    names[change.name] = names.get(change.name, False) or effect.action == "modifies"
    return acting


def _tensor_changes(old: _Side, new: _Side, slots: Sequence[SlotChange]) -> tuple[TensorChange, ...]:
    before, after = old.state.tensors, new.state.tensors
    acting = _acting(old, new, slots, "tensor")
    changes = []
    for name in sorted(before.keys() | after.keys()):
        left, right, names = before.get(name), after.get(name), acting.get(name, {})
        if left != right:
            change = _kind(left, right)
        elif any(names.values()):
            change = "modified"
        else:
            continue
        # What only modifies has no values of its own to show.
        values = [one.content if one and left != right else None for one in (left, right)]
        changes.append(TensorChange(name, change, tuple(names), values[0], values[1]))
    return tuple(changes)


def _file_changes(old: _Side, new: _Side, slots: Sequence[SlotChange]) -> tuple[FileChange, ...]:
    before, after = ({**side.weights, **side.state.files} for side in (old, new))
    acting = _acting(old, new, slots, "file")
    return tuple(
        FileChange(
            path,
            _kind(before.get(path), after.get(path)),
            tuple(acting.get(path, {})),
            before.get(path),
            after.get(path),
        )
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    )


def _kind(before: object, after: object) -> str:
    return "added" if before is None else "removed" if after is None else "replaced"
