"""Importing identities and behaviors into a transaction: files stored, behaviors bound to what they stand on."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.adapter_config import parse_adapter_config
from rblstore.checkpoints.adapter_effects import adapter_effects
from rblstore.checkpoints.checkout_layout import (
    BEHAVIORS_FOLDER,
    MANIFEST_FILE,
    behavior_folder,
    refuse_reserved_paths,
)
from rblstore.checkpoints.composition_ground import logical_state, shown
from rblstore.checkpoints.source_directory import (
    BadDirectoryError,
    LeftOut,
    SourceDirectory,
    SourceFile,
    scan_directory,
)
from rblstore.errors import ConflictError
from rblstore.objects import limits
from rblstore.objects.content_records import Behavior, Identity, tensor_root
from rblstore.objects.evidence_records import Claim
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import BehaviorId, IdentityId
from rblstore.objects.paths import check_paths
from rblstore.operations.adapter_base import check_named_base
from rblstore.operations.claims import card_claims, said_claims, state
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.scratch import scratch
from rblstore.operations.stat_cache import StatCache
from rblstore.operations.store_files import StoredFiles, changed_meanwhile, store_files
from rblstore.operations.stored_models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    IdentityView,
    Member,
    file_named,
    logical,
)
from rblstore.repository import Store
from rblstore.transaction import Transaction

if TYPE_CHECKING:
    from rblstore.checkpoints.saving import ModelSource


class LiveBaseError(ConflictError):
    """A live model carries an adapter over another base than the one committed."""

    code = "wrong_base"


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
        rehash: Whether files are read although their time stamps say that they are unchanged.
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
    rehash: bool = False


class Sources:
    """The directories to read, scanned; what is in memory is written to a temporary folder first.

    Args:
        stack: Keeps the temporary folders until it is closed.
        store: The repository.
        request: What is committed.
        before: What the branch has.
    """

    def __init__(self, stack: ExitStack, store: Store, request: CommitRequest, before: Composition | None) -> None:
        self._stack = stack
        self._store = store
        self._before = before
        given = request.identity
        self.identity = None if given is None else self._scan(given, request, None)
        self.behaviors = {name: self._scan(source, request, name) for name, source in (request.behaviors or {}).items()}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        every = [*self.behaviors.values(), *([] if self.identity is None else [self.identity])]
        return sum(file.size for source in every for file in source.files)

    def _scan(self, source: Any, request: CommitRequest, slot: str | None) -> SourceDirectory:
        if isinstance(source, (str, Path)):
            return _without_checkout_parts(scan_directory(Path(source), include_opaque=request.include_opaque))
        from rblstore.checkpoints.saving import save_source

        folder = self._stack.enter_context(scratch(self._store, "save"))
        several = len(getattr(source, "peft_config", ())) > 1
        save_source(source, folder, identity=slot is None, adapter_name=slot if several else None)
        return scan_directory(folder if slot is None else self._as_stored(folder, slot))

    def _as_stored(self, folder: Path, slot: str) -> Path:
        """The form in which the slot's adapter was stored before, as far as its values are equal.

        Loading widens a stored adapter to fp32: without this, committing one that nobody trained would change it.
        """
        stored = None if self._before is None else self._before.slot(slot)
        if self._before is None or stored is None:
            return folder
        from rblstore.checkpoints.saving import keep_stored_form
        from rblstore.operations.load import laid_out_behaviors

        alone = Composition(self._before.identity, (stored,))
        _, ((_, before, _),) = self._stack.enter_context(laid_out_behaviors(self._store, alone))
        keep_stored_form(folder, before)
        unchanged = all(_same_file(folder / name, before / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
        return before if unchanged else folder


def _same_file(left: Path, right: Path) -> bool:
    return filecmp.cmp(left, right, shallow=False)


def _without_checkout_parts(source: SourceDirectory) -> SourceDirectory:
    """A checkout's own files are not part of the model that was checked out."""
    if not any(file.path == MANIFEST_FILE for file in source.files):
        return source
    kept = tuple(file for file in source.files if file.path.split("/")[0] not in (MANIFEST_FILE, BEHAVIORS_FOLDER))
    left_out = source.left_out
    if len(kept) < len(source.files) - 1:
        left_out += (LeftOut(BEHAVIORS_FOLDER, "the checkout's behaviors, which are no part of its identity"),)
    return replace(source, files=kept, left_out=left_out)


def _read_as_stored(file: SourceFile, files: StoredFiles) -> bytes:
    """A small file's bytes, once more.

    Raises:
        SourceChangedError: They are not those that were stored.
    """
    data = file.read(limits.RECORD_BYTES)
    stored = file_named(files.entries, file.path)
    if stored is None or (stored.size <= len(data) and hashlib.sha256(data).hexdigest() != stored.sha256):
        raise changed_meanwhile(file.root / file.path)
    return data


class Importer:
    """Reads sources into a transaction, and gathers what a person should know.

    Args:
        store: The repository.
        transaction: Where everything goes.
        request: What is committed.
        sources: Scanned.
        progress: Is told bytes read.
    """

    def __init__(
        self,
        store: Store,
        transaction: Transaction,
        request: CommitRequest,
        sources: Sources,
        progress: Progress | None,
    ) -> None:
        self._store = store
        self._transaction = transaction
        self._request = request
        self._sources = sources
        self._meter = Meter(progress, sources.size)
        self._stat_cache = StatCache(store, trust=not request.rehash)
        self._said = said_claims(request.license, request.meta or {}, request.origin)
        self.warnings: list[str] = []
        self.left_out: list[tuple[str, str]] = []
        self.raw = 0

    @property
    def stat_cache(self) -> StatCache:
        """What files were when they were read last; to be saved once the transaction is published."""
        return self._stat_cache

    def _store_files(self, source: SourceDirectory, prefix: str) -> StoredFiles:
        files = store_files(self._transaction, source, self._meter)
        self.warnings += [prefix + warning for warning in files.warnings]
        self.left_out += [(prefix + left.path, left.reason) for left in source.left_out]
        self.raw += files.raw
        return files

    def _state(self, source: SourceDirectory, subject: IdentityId | BehaviorId, prefix: str, *more: Claim) -> None:
        claims, warnings = card_claims(source)
        self.warnings += [prefix + warning for warning in warnings]
        state(self._store, self._transaction, subject, (*claims, *more, *self._said), self._request.author)

    def identity(self, source: SourceDirectory) -> tuple[IdentityId, IdentityView]:
        """Imports a base checkpoint.

        Raises:
            InputError: A file that breaks its format, or no tensors at all.
            LayoutCollisionError: A file lies where a checkout keeps its own.
        """
        refuse_reserved_paths(file.path for file in source.files)
        files = self._store_files(source, "")
        index = next((file for file in source.files if file.path == INDEX), None)
        tensors = logical(files.manifests, None if index is None else _read_as_stored(index, files))
        if not tensors:
            raise BadDirectoryError(
                f"{source.path} holds no tensors", object=str(source.path), hint="Give a directory with safetensors."
            )
        record = Identity(files.entries, tensor_root(tensors.items()))
        identity_id = IdentityId(self._transaction.add_record(record))
        from_path = isinstance(self._request.identity, (str, Path))
        name = (Claim("name", source.path.resolve().name, "path"),) if from_path else ()
        self._state(source, identity_id, "", *name)
        return identity_id, IdentityView(tensors, {entry.path: entry.sha256 for entry in files.entries})

    def behavior(
        self, name: str, weight: float, below: Sequence[Member], view: IdentityView
    ) -> tuple[Member, BehaviorId]:
        """Imports an adapter and binds it to what it stands on.

        Args:
            name: Its slot.
            weight: The slot's weight.
            below: The behaviors beneath it, in order.
            view: The identity.

        Raises:
            WrongBaseError: It does not fit what lies beneath it.
            InputError: A file that breaks its format, or no adapter.
        """
        source = self._sources.behaviors[name]
        paths = {file.path: file for file in source.files}
        for needed in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if needed not in paths:
                raise BadDirectoryError(
                    f"{source.path} is not a PEFT adapter: it has no {needed}",
                    object=str(source.path),
                    hint="Give the directory that save_pretrained of a PeftModel wrote.",
                )
        check_paths(f"{behavior_folder(name)}/{path}" for path in paths)
        files = self._store_files(source, f"{name}: ")
        config = parse_adapter_config(_read_as_stored(paths[ADAPTER_CONFIG], files))
        tensors = {entry.name: entry.tensor for entry in files.manifests[ADAPTER_WEIGHTS].tensors}
        beneath = logical_state(view.tensors, view.files, [(member.name, member.behavior) for member in below])
        effects, ground = adapter_effects(config, tensors, beneath.tensors, beneath.files)
        behavior = Behavior("adapter", files.entries, effects, ground)
        if not self._request.rebind:
            given = (self._request.behaviors or {})[name]
            if isinstance(given, (str, Path)):
                check_named_base(self._store, name, config, Path(given), behavior, self._stat_cache)
            else:
                _check_live_base(given, behavior, name)
        behavior_id = BehaviorId(self._transaction.add_record(behavior))
        self._state(source, behavior_id, f"{name}: ")
        return Member(name, behavior, weight, config), behavior_id


def _check_live_base(source: Any, behavior: Behavior, name: str) -> None:
    from rblstore.live.binding import differing_ground

    if differing := differing_ground(source, behavior.grounds):
        raise LiveBaseError(
            f"the live model that carries {name!r} has another base than the one committed: {shown(differing)} differ",
            object=name,
            hint="Commit it on the branch of its own base, or pass rebind=True.",
        )
