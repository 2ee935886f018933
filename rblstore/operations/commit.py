"""``commit``: import what is new, bind it to what it stands on, and record the composition."""

from __future__ import annotations

import math
from collections.abc import Set
from contextlib import ExitStack
from dataclasses import dataclass, replace

from rblstore.checkpoints.checkout_layout import plan_checkout
from rblstore.checkpoints.composed_layout import compose_layout
from rblstore.checkpoints.composition_ground import WrongBaseError
from rblstore.configuration import check_compression
from rblstore.errors import ConflictError, NotFoundError, NothingChangedError, UsageError
from rblstore.objects import limits
from rblstore.objects.content_records import Identity
from rblstore.objects.fields import check_text
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import CommitId, CompositionId, IdentityId
from rblstore.objects.paths import check_name, check_ref_name
from rblstore.operations.importing import Importer
from rblstore.operations.progress import Progress
from rblstore.operations.result import Result
from rblstore.operations.sources import CommitRequest, Sources
from rblstore.operations.stored_models import (
    IdentityView,
    Member,
    check_members,
    members,
    read_checkpoint,
    view_identity,
)
from rblstore.operations.switch import refuse_clash
from rblstore.repository import HEADS, Store, utc_now

__all__ = ["CommitRequest", "CommitResult", "NoIdentityError", "NoSuchBehaviorError", "commit"]


class NoIdentityError(UsageError):
    """A composition needs an identity, and the branch has none yet."""

    code = "no_identity"


class NoSuchBehaviorError(NotFoundError):
    """The composition has no slot of that name."""

    code = "no_such_behavior"


class SlotExistsError(ConflictError):
    """Two behaviors' names are one where case is folded."""

    code = "slot_exists"


@dataclass(frozen=True)
class CommitResult(Result):
    """A commit that was made.

    Attributes:
        commit: Its id.
        composition: What the model is made of now.
        parents: Its parents.
        branch: The branch that moved, without ``refs/heads/``.
        message: Its message.
        identity: The base checkpoint.
        slots: The behaviors in order.
        warnings: What a person should know.
        left_out: (path, reason) of files that were not taken.
        added_contents: How many contents were not stored before.
        added_bytes: Raw bytes of the files that were read.
        stored_bytes: What the new contents take in the pack.
        new_bytes: Raw bytes of the new contents.
    """

    commit: CommitId
    composition: CompositionId
    parents: tuple[CommitId, ...]
    branch: str
    message: str
    identity: IdentityId
    slots: tuple[Slot, ...]
    warnings: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    added_contents: int = 0
    added_bytes: int = 0
    stored_bytes: int = 0
    new_bytes: int = 0


def commit(store: Store, request: CommitRequest, progress: Progress | None = None) -> CommitResult:
    """Makes a commit on a branch.

    Args:
        store: The repository.
        request: What to commit.
        progress: Is told bytes read.

    Returns:
        The commit and what was added.

    Raises:
        NothingChangedError: The composition is the parent's.
        NoIdentityError: The first commit of a branch names no identity.
        WrongBaseError: A behavior does not fit what lies beneath it.
        StandsOnError: Something that another behavior stands on would be taken away.
        UnloadableError: peft cannot attach the composition.
        RefMovedError: The branch moved meanwhile.
        RefExistsError: A new branch whose name cannot stand beside another's.
        InputError: A file that breaks its format.
    """
    message = check_message(request.message)
    _check_request(request)
    ref = store.head_branch() if request.branch is None else HEADS + check_ref_name(request.branch, "branch")
    value = store.ref(ref)
    if value is None:
        refuse_clash(store, ref)
    parent = None if value is None else CommitId(value)
    before = None if parent is None else _composition_at(store, parent)
    with ExitStack() as stack:
        sources = Sources(stack, store, request, before)
        transaction = stack.enter_context(store.transaction(request.author, request.compression))
        importer = Importer(store, transaction, request, sources, progress)
        if sources.identity is not None:
            under = None if before is None else view_identity(store, store.record(before.identity, Identity)).tensors
            identity_id, view = importer.identity(sources.identity, under)
        elif before is not None:
            identity_id, view = before.identity, view_identity(store, store.record(before.identity, Identity))
        else:
            raise NoIdentityError(
                "the branch has no identity yet", hint="Commit one first: rbl commit -m base --identity DIR"
            )
        kept = [] if before is None else members(store, before)
        found, slots = _slots(request, importer, before, kept, view)
        if sources.identity is not None:
            staying = {member.name for member in kept} - set(request.behaviors or {})
            _refuse_left_behind(view, found, staying)
        check_members(view, found, kept, unloadable=request.unloadable)
        _check_layout(store, importer, view, found)
        composition = Composition(identity_id, slots)
        composition_id = CompositionId(transaction.add_record(composition))
        if before == composition and not request.allow_empty:
            importer.stat_cache.save()  # what was read again for nothing is not read a third time
            raise NothingChangedError(
                "nothing changed: the composition is the one already committed",
                object=parent,
                hint="Use --allow-empty to record a commit all the same.",
            )
        record = Commit(composition_id, () if parent is None else (parent,), request.author, utc_now(), message)
        commit_id = CommitId(transaction.add_record(record))
        transaction.set_ref(ref, value, commit_id)
        transaction.describe(f"commit: {record.subject}")
    importer.stat_cache.save()
    added = [location for pack in transaction.packs if pack.kind == "C" for location in pack.locations]
    return CommitResult(
        commit_id,
        composition_id,
        record.parents,
        ref.removeprefix(HEADS),
        message,
        identity_id,
        slots,
        tuple(importer.warnings),
        tuple(importer.left_out),
        len(added),
        importer.raw,
        sum(location.stored for location in added),
        sum(location.size for location in added),
    )


def check_message(message: str) -> str:
    """A commit's message, returned as it is.

    Raises:
        UsageError: It is empty.
        InputError: No record could hold it.
    """
    if not check_text(message, "the message", limits.MESSAGE_BYTES).strip():
        raise UsageError("the commit message is empty", hint="Say what changed: -m MESSAGE")
    return message


def _check_request(request: CommitRequest) -> None:
    if request.compression is not None:
        check_compression(request.compression)
    if isinstance(request.remove, str):
        raise UsageError("'remove' is a list of names, and text was given", object=request.remove)
    for name in request.behaviors or {}:
        check_name(name, "behavior")
        if name in request.remove:
            raise UsageError(f"the behavior {name!r} is both removed and committed", object=name)
    for name, weight in (request.weights or {}).items():
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not abs(weight) < math.inf:
            raise UsageError(f"the weight {weight!r} of {name!r} is not a finite number", object=name)
    if request.told and request.identity is None and not request.behaviors:
        raise UsageError(
            "a licence, a source, data or metadata is said about what is imported, and nothing is",
            hint="Give it together with --identity or --behavior, or state it now: rbl state NAME",
        )


def _refuse_left_behind(view: IdentityView, found: list[Member], staying: Set[str]) -> None:
    """Names every behavior that stays although the new identity is not what it stands on, and not only the first.

    Raises:
        WrongBaseError: There are some.
    """
    refused: list[str] = []
    causes: list[str] = []
    while True:
        standing = [member for member in found if member.name not in refused]
        try:
            check_members(view, standing, unloadable=True)
        except WrongBaseError as error:
            if error.object is None or error.object not in staying:
                raise
            refused.append(error.object)
            causes.append(error.message)
        else:
            break
    if refused:
        raise WrongBaseError(
            "; ".join(causes),
            object=refused[0],
            hint="Take them out in the same commit: " + " ".join(f"--remove {name}" for name in refused),
        )


def _check_layout(store: Store, importer: Importer, view: IdentityView, found: list[Member]) -> None:
    """Refuses overlays whose checkout would have no place for some file, while that can still be helped.

    Raises:
        LayoutCollisionError: A file would stand in for weights, or lie where a checkout keeps its own.
        InputError: Two paths would collide on a system that folds case.
    """
    overlays = [(member.name, member.behavior) for member in found if member.behavior.form == "overlay"]
    if not overlays:
        return
    name, behavior = overlays[-1]
    topmost = importer.checkpoints.get(name) or read_checkpoint(store, behavior.files)
    files = compose_layout(view.checkpoint, overlays, topmost, lambda manifest: None).files
    plan_checkout(files, [(member.name, member.weight, member.behavior) for member in found], "adapters")


def _composition_at(store: Store, commit_id: CommitId) -> Composition:
    return store.record(store.record(commit_id, Commit).composition, Composition)


def _slots(
    request: CommitRequest,
    importer: Importer,
    before: Composition | None,
    kept: list[Member],
    view: IdentityView,
) -> tuple[list[Member], tuple[Slot, ...]]:
    """The new composition's slots: those that stay keep their places, new ones come last."""
    old = {} if before is None else {slot.name: slot for slot in before.slots}
    stored = {member.name: member for member in kept}
    given = request.behaviors or {}
    weights = dict(request.weights or {})
    order = [name for name in [*old, *(name for name in given if name not in old)] if name not in request.remove]
    for what, names in (("remove", request.remove), ("weigh", weights)):
        for name in names:
            if name not in (old if what == "remove" else order):
                raise NoSuchBehaviorError(
                    f"the composition has no behavior {name[:80]!r} to {what}",
                    object=name[:80],
                    hint=f"It has: {', '.join(old) or 'none'}.",
                )
    spelled: dict[str, str] = {}
    for name in order:
        if (other := spelled.setdefault(name.casefold(), name)) != name:
            raise SlotExistsError(
                f"{name!r} and {other!r} differ only in case, and their folders could not both exist everywhere",
                object=name,
                hint="Choose another name.",
            )
    found: list[Member] = []
    slots: list[Slot] = []
    for name in order:
        weight = weights.get(name, old[name].weight if name in old else 1.0)
        if name in given:
            member, behavior_id = importer.behavior(name, weight, found, view)
        else:
            member, behavior_id = replace(stored[name], weight=weight), old[name].behavior
        found.append(member)
        slots.append(Slot(name, behavior_id, weight))
    return found, tuple(slots)
