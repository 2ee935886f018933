"""``commit``: import what is new, bind it to what it stands on, and record the composition."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.adapter_config import parse_adapter_config
from rblstore.checkpoints.adapter_effects import adapter_effects
from rblstore.checkpoints.composition_ground import logical_state
from rblstore.checkpoints.source_directory import BadDirectoryError, SourceDirectory, scan_directory
from rblstore.errors import ConflictError, NotFoundError, NothingChangedError, UsageError
from rblstore.objects import limits
from rblstore.objects.content_records import Behavior, Identity, tensor_root
from rblstore.objects.evidence_records import Claim
from rblstore.objects.fields import check_text
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import BehaviorId, CommitId, CompositionId, IdentityId
from rblstore.objects.paths import check_name, check_ref_name
from rblstore.operations.adapter_base import check_named_base
from rblstore.operations.claims import card_claims, said_claims, state
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.result import Result
from rblstore.operations.store_files import StoredFiles, store_files
from rblstore.operations.stored_models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    IdentityView,
    Member,
    check_members,
    logical,
    members,
    view_identity,
)
from rblstore.repository import HEADS, Store, Transaction, utc_now

if TYPE_CHECKING:
    from rblstore.checkpoints.saving import ModelSource


class NoIdentityError(UsageError):
    """A composition needs an identity, and the branch has none yet."""

    code = "no_identity"


class NoSuchBehaviorError(NotFoundError):
    """The composition has no slot of that name."""

    code = "no_such_behavior"


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


@dataclass(frozen=True)
class CommitRequest:
    """What to commit.

    Attributes:
        message: At least one character that is not white space.
        identity: A directory, a live model or a mapping of tensors; None keeps the parent's.
        behaviors: By slot name: a directory, a live PEFT model, or adapter tensors with their configuration.
        remove: Names of slots to leave out.
        weights: By slot name.
        branch: Where to commit; None for HEAD's branch.
        license: Said about everything imported here.
        author: Who commits.
        meta: Said about everything imported here.
        origin: Where licence and meta come from: ``command line`` or ``api``.
        allow_empty: Whether a commit may repeat its parent's composition.
        unloadable: Whether a composition may be one that peft cannot attach.
        rebind: Whether to bind an adapter to this base although it names another.
        include_opaque: Whether pickles beside safetensors are kept as bytes that are never loaded.
    """

    message: str
    author: str
    identity: str | Path | ModelSource | None = None
    behaviors: Mapping[str, str | Path | ModelSource] | None = None
    remove: Sequence[str] = ()
    weights: Mapping[str, float] | None = None
    branch: str | None = None
    license: str | None = None
    meta: Mapping[str, str] | None = None
    origin: str = "api"
    allow_empty: bool = False
    unloadable: bool = False
    rebind: bool = False
    include_opaque: bool = False


@dataclass
class _Import:
    """What this commit reads: gathered first, frozen into the result last."""

    warnings: list[str]
    left_out: list[tuple[str, str]]
    raw: int = 0

    def count(self, source: SourceDirectory, files: StoredFiles, prefix: str) -> None:
        self.warnings += [prefix + warning for warning in files.warnings]
        self.left_out += [(prefix + left.path, left.reason) for left in source.left_out]
        self.raw += files.raw


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
        InputError: A file that breaks its format.
    """
    message = check_text(request.message, "the message", limits.MESSAGE_BYTES)
    if not message.strip():
        raise UsageError("the commit message is empty", hint="Say what changed: -m MESSAGE")
    for name in request.behaviors or {}:
        check_name(name, "behavior")
    said = said_claims(request.license, request.meta or {}, request.origin)
    if said and request.identity is None and not request.behaviors:
        raise UsageError(
            "a licence or metadata is said about what is imported, and nothing is",
            hint="Give it together with --identity or --behavior.",
        )
    ref = store.head_branch() if request.branch is None else HEADS + check_ref_name(request.branch, "branch")
    value = store.ref(ref)
    parent = None if value is None else CommitId(value)
    before = None if parent is None else _composition_at(store, parent)
    imported = _Import([], [])
    with ExitStack() as stack:
        sources = _Sources(stack, store, request)
        meter = Meter(progress, sources.total)
        transaction = stack.enter_context(store.transaction(request.author))
        identity_id, view = _identity(store, transaction, request, sources, before, meter, imported, said)
        found, slots = _slots(store, transaction, request, sources, before, view, meter, imported, said)
        check_members(view, found, unloadable=request.unloadable)
        composition = Composition(identity_id, tuple(slots))
        composition_id = CompositionId(transaction.add_record(composition))
        if parent is not None and before == composition and not request.allow_empty:
            raise NothingChangedError(
                "nothing changed: the composition is the one already committed",
                object=parent,
                hint="Use --allow-empty to record a commit all the same.",
            )
        record = Commit(composition_id, () if parent is None else (parent,), request.author, utc_now(), message)
        commit_id = CommitId(transaction.add_record(record))
        transaction.set_ref(ref, value, commit_id)
        transaction.describe(f"commit: {record.subject}")
    added = [location for pack in transaction.packs if pack.kind == "C" for location in pack.locations]
    return CommitResult(
        commit_id,
        composition_id,
        record.parents,
        ref.removeprefix(HEADS),
        message,
        identity_id,
        tuple(slots),
        tuple(imported.warnings),
        tuple(imported.left_out),
        len(added),
        imported.raw,
        sum(location.stored for location in added),
    )


def _composition_at(store: Store, commit_id: CommitId) -> Composition:
    return store.record(store.record(commit_id, Commit).composition, Composition)


class _Sources:
    """The directories to read, scanned; live models are written to a temporary folder first."""

    def __init__(self, stack: ExitStack, store: Store, request: CommitRequest) -> None:
        self._stack = stack
        self._store = store
        self.identity = None if request.identity is None else self._scan("identity", request.identity, request)
        self.behaviors = {name: self._scan(name, source, request) for name, source in (request.behaviors or {}).items()}
        every = [*self.behaviors.values(), *([] if self.identity is None else [self.identity])]
        self.total = sum(file.size for source in every for file in source.files)

    def _scan(self, name: str, source: Any, request: CommitRequest) -> SourceDirectory:
        if isinstance(source, (str, Path)):
            scanned = scan_directory(Path(source), include_opaque=request.include_opaque)
            return _without_checkout_parts(scanned)
        from rblstore.checkpoints.saving import save_source

        folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rbl-", dir=self._store.folder / "tmp"))
        )
        save_source(source, folder, identity=name == "identity" and source is request.identity)
        return scan_directory(folder)


def _without_checkout_parts(source: SourceDirectory) -> SourceDirectory:
    """A checkout's own files are not part of the model that was checked out."""
    if not any(file.path == "rbl-composition.json" for file in source.files):
        return source
    kept = tuple(
        file for file in source.files if file.path != "rbl-composition.json" and not file.path.startswith("behaviors/")
    )
    return replace(source, files=kept)


def _identity(
    store: Store,
    transaction: Transaction,
    request: CommitRequest,
    sources: _Sources,
    before: Composition | None,
    meter: Meter,
    imported: _Import,
    said: tuple[Claim, ...],
) -> tuple[IdentityId, IdentityView]:
    if sources.identity is None:
        if before is None:
            raise NoIdentityError(
                "the branch has no identity yet",
                hint="Commit one first: rbl commit -m base --identity DIR",
            )
        return before.identity, view_identity(store, store.record(before.identity, Identity))
    source = sources.identity
    files = store_files(transaction, source, meter)
    imported.count(source, files, "")
    index = next((file for file in source.files if file.path == INDEX), None)
    tensors = logical(files.manifests, None if index is None else _read_whole(index))
    if not tensors:
        raise BadDirectoryError(
            f"{source.path} holds no tensors", object=str(source.path), hint="Give a directory with safetensors."
        )
    identity_id = IdentityId(transaction.add_record(Identity(files.entries, tensor_root(tensors.items()))))
    claims, warnings = card_claims(source)
    imported.warnings += warnings
    named = (Claim("name", source.path.resolve().name, "path"),) if isinstance(request.identity, (str, Path)) else ()
    state(store, transaction, identity_id, (*claims, *named, *said), request.author)
    return identity_id, IdentityView(tensors, {entry.path: entry.sha256 for entry in files.entries})


def _read_whole(file: Any) -> bytes:
    import os

    from rblstore.checkpoints.source_directory import read_exact

    descriptor = file.open()
    try:
        return read_exact(descriptor, 0, min(file.size, limits.RECORD_BYTES))
    finally:
        os.close(descriptor)


def _slots(
    store: Store,
    transaction: Transaction,
    request: CommitRequest,
    sources: _Sources,
    before: Composition | None,
    view: IdentityView,
    meter: Meter,
    imported: _Import,
    said: tuple[Claim, ...],
) -> tuple[list[Member], list[Slot]]:
    kept = [] if before is None else members(store, before)
    old = {} if before is None else {slot.name: slot for slot in before.slots}
    weights = dict(request.weights or {})
    for name in request.remove:
        if name not in old or name in sources.behaviors:
            raise NoSuchBehaviorError(
                f"the composition has no behavior {name!r} to remove"
                if name not in old
                else f"{name!r} is both removed and committed",
                object=name,
                hint=f"It has: {', '.join(old) or 'none'}.",
            )
    found: list[Member] = []
    slots: list[Slot] = []
    order = [*old, *(name for name in sources.behaviors if name not in old)]
    for name in order:
        if name in request.remove:
            continue
        weight = weights.pop(name, old[name].weight if name in old else 1.0)
        if name in sources.behaviors:
            member, behavior_id = _behavior(
                store, transaction, request, name, sources.behaviors[name], weight, found, view, meter, imported, said
            )
        else:
            member = replace(next(one for one in kept if one.name == name), weight=weight)
            behavior_id = old[name].behavior
        found.append(member)
        slots.append(Slot(name, behavior_id, weight))
    if weights:
        missing = next(iter(weights))
        raise NoSuchBehaviorError(
            f"the composition has no behavior {missing!r} to weigh",
            object=missing,
            hint=f"It has: {', '.join(slot.name for slot in slots) or 'none'}.",
        )
    return found, slots


def _behavior(
    store: Store,
    transaction: Transaction,
    request: CommitRequest,
    name: str,
    source: SourceDirectory,
    weight: float,
    below: Sequence[Member],
    view: IdentityView,
    meter: Meter,
    imported: _Import,
    said: tuple[Claim, ...],
) -> tuple[Member, BehaviorId]:
    paths = {file.path: file for file in source.files}
    if ADAPTER_CONFIG not in paths or ADAPTER_WEIGHTS not in paths:
        missing = ADAPTER_CONFIG if ADAPTER_CONFIG not in paths else ADAPTER_WEIGHTS
        raise BadDirectoryError(
            f"{source.path} is not a PEFT adapter: it has no {missing}",
            object=str(source.path),
            hint="Give the directory that save_pretrained of a PeftModel wrote.",
        )
    config = parse_adapter_config(_read_whole(paths[ADAPTER_CONFIG]))
    files = store_files(transaction, source, meter)
    imported.count(source, files, f"{name}: ")
    tensors = {entry.name: entry.tensor for entry in files.manifests[ADAPTER_WEIGHTS].tensors}
    beneath = logical_state(view.tensors, view.files, [(member.name, member.behavior) for member in below])
    effects, ground = adapter_effects(config, tensors, beneath.tensors, beneath.files)
    behavior = Behavior("adapter", files.entries, effects, ground)
    given = (request.behaviors or {})[name]
    directory = Path(given) if isinstance(given, (str, Path)) else None
    if not request.rebind:
        imported.warnings += check_named_base(store, name, config, directory, behavior, view)
        if directory is None:
            _check_live_base(given, behavior, name)
    behavior_id = BehaviorId(transaction.add_record(behavior))
    claims, warnings = card_claims(source)
    imported.warnings += [f"{name}: {warning}" for warning in warnings]
    state(store, transaction, behavior_id, (*claims, *said), request.author)
    return Member(name, behavior, weight, config), behavior_id


def _check_live_base(source: Any, behavior: Behavior, name: str) -> None:
    from rblstore.live.binding import differing_ground

    differing = differing_ground(source, behavior.grounds)
    if differing:
        shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise ConflictError(
            f"the live model that carries {name!r} has another base than the one committed: {shown} differ",
            object=name,
            hint="Commit it on the branch of its own base, or pass rebind=True.",
        )
