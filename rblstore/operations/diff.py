"""``diff``: what two commits compose differently, slot by slot and tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

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
    """One file of the identity that differs.

    Attributes:
        path: Relative.
        change: ``added``, ``removed`` or ``replaced``.
        before: SHA-256 in A, or None.
        after: SHA-256 in B, or None.
    """

    path: str
    change: str
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
        files: Files of the identity that differ.
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
    acting: dict[str, list[str]] = {}
    values: dict[str, list[ContentId | None]] = {}
    added: set[str] = set()
    for change in slots:
        for side, slot in enumerate((change.before, change.after)):
            if slot is None:
                continue
            for effect in store.record(slot.behavior, Behavior).effects:
                if effect.on == "tensor":
                    names = acting.setdefault(effect.target, [])
                    names += [change.name] if change.name not in names else []
                    if effect.action == "adds":
                        added.add(effect.target)
                    if effect.value is not None:
                        values.setdefault(effect.target, [None, None])[side] = effect.value.content
    tensors, files = _identity_changes(store, before.identity, after.identity)
    for target, names in acting.items():
        left, right = values.get(target, [None, None])
        known = tensors.get(target)
        if known is not None:
            kind = known.change
        elif target in added:
            kind = _kind(left, right)
        else:
            kind = "replaced" if target in values else "modified"
        tensors[target] = TensorChange(
            target,
            kind,
            tuple(names),
            left or (known.before if known else None),
            right or (known.after if known else None),
        )
    return DiffResult(
        first,
        second,
        before.identity,
        after.identity,
        slots,
        tuple(tensors[name] for name in sorted(tensors)),
        files,
    )


def _kind(before: object, after: object) -> str:
    return "added" if before is None else "removed" if after is None else "replaced"


def _identity_changes(
    store: Store, before: IdentityId, after: IdentityId
) -> tuple[dict[str, TensorChange], tuple[FileChange, ...]]:
    if before == after:
        return {}, ()
    old, new = (view_identity(store, store.record(one, Identity)) for one in (before, after))
    tensors = {}
    for name in sorted(old.tensors.keys() | new.tensors.keys()):
        left, right = old.tensors.get(name), new.tensors.get(name)
        if left != right:
            tensors[name] = TensorChange(
                name, _kind(left, right), (), left.content if left else None, right.content if right else None
            )
    files = tuple(
        FileChange(path, _kind(old.files.get(path), new.files.get(path)), old.files.get(path), new.files.get(path))
        for path in sorted(old.files.keys() | new.files.keys())
        if old.files.get(path) != new.files.get(path)
    )
    return tensors, files
