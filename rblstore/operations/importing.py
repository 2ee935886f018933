"""Importing identities and behaviors into a transaction: files stored, behaviors bound to what they stand on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rblstore.checkpoints.adapter_config import parse_adapter_config
from rblstore.checkpoints.adapter_effects import adapter_effects
from rblstore.checkpoints.checkout_layout import behavior_folder, refuse_reserved_paths
from rblstore.checkpoints.composed_layout import held_files
from rblstore.checkpoints.composition_ground import logical_state, shown
from rblstore.checkpoints.overlay_effects import overlay_effects, put_back, removed_files
from rblstore.checkpoints.source_directory import BadDirectoryError, SourceDirectory, SourceFile, resolved_path
from rblstore.checkpoints.stored_checkpoint import StoredCheckpoint
from rblstore.errors import ConflictError
from rblstore.objects import limits
from rblstore.objects.content_records import Behavior, Identity, StoredTensor, tensor_root
from rblstore.objects.evidence_records import Claim
from rblstore.objects.ids import BehaviorId, IdentityId
from rblstore.objects.paths import check_paths
from rblstore.operations.adapter_base import check_named_base
from rblstore.operations.claims import captured_claims, not_said_yet, state
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.sources import CommitRequest, Sources
from rblstore.operations.stat_cache import StatCache
from rblstore.operations.store_files import StoredFiles, changed_meanwhile, store_files
from rblstore.operations.stored_models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    IdentityView,
    Member,
    file_named,
)
from rblstore.repository import Store
from rblstore.transaction import Transaction


class LiveBaseError(ConflictError):
    """A live model carries an adapter over another base than the one committed."""

    code = "wrong_base"


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
        self._told, self._texts = request.told.statement(request.origin)
        self.warnings: list[str] = []
        self.left_out: list[tuple[str, str]] = []
        self.raw = 0
        self.checkpoints: dict[str, StoredCheckpoint] = {}
        """What each overlay imported here holds, by slot."""

    @property
    def stat_cache(self) -> StatCache:
        """What files were when they were read last; to be saved once the transaction is published."""
        return self._stat_cache

    def _store_files(
        self, source: SourceDirectory, prefix: str, beneath: Mapping[str, StoredTensor] | None = None
    ) -> StoredFiles:
        files = store_files(self._transaction, source, self._meter, self._stat_cache, beneath)
        self.warnings += [prefix + warning for warning in files.warnings]
        self.left_out += [(prefix + left.path, left.reason) for left in source.left_out]
        self.raw += files.raw
        return files

    def _state(
        self,
        source: SourceDirectory,
        files: StoredFiles,
        subject: IdentityId | BehaviorId,
        prefix: str,
        told: Sequence[Claim],
    ) -> None:
        """States what files and people say; of a file that changed since the hub's client noted it, nothing is said."""
        claims, warnings = captured_claims(source, {entry.path: str(entry.sha256) for entry in files.entries})
        self.warnings += [prefix + warning for warning in warnings]
        claims = not_said_yet(self._store, subject, claims)
        state(self._store, self._transaction, subject, (*claims, *told), self._request.author, self._texts)

    def identity(
        self, source: SourceDirectory, before: Mapping[str, StoredTensor] | None = None
    ) -> tuple[IdentityId, IdentityView]:
        """Imports a base checkpoint.

        Args:
            source: Its directory.
            before: The tensors of the identity that it takes the place of.

        Raises:
            InputError: A file that breaks its format, or no tensors at all.
            LayoutCollisionError: A file lies where a checkout keeps its own.
        """
        refuse_reserved_paths(file.path for file in source.files)
        files = self._store_files(source, "", before)
        checkpoint = self._checkpoint(source, files)
        if not checkpoint.tensors:
            raise BadDirectoryError(
                f"{source.path} holds no tensors", object=str(source.path), hint="Give a directory with safetensors."
            )
        record = Identity(files.entries, tensor_root(checkpoint.tensors.items()))
        identity_id = IdentityId(self._transaction.add_record(record))
        from_path = isinstance(self._request.identity, (str, Path))
        name = (Claim("name", resolved_path(source.path).name, "path"),) if from_path else ()
        told = [one for one in self._told if one.key != "base_revision" or not self._request.behaviors]
        self._state(source, files, identity_id, "", [*name, *told])
        return identity_id, IdentityView(checkpoint)

    @staticmethod
    def _checkpoint(source: SourceDirectory, files: StoredFiles) -> StoredCheckpoint:
        index = next((file for file in source.files if file.path == INDEX), None)
        return StoredCheckpoint(
            files.entries, files.manifests, None if index is None else _read_as_stored(index, files)
        )

    def behavior(
        self, name: str, weight: float, below: Sequence[Member], view: IdentityView
    ) -> tuple[Member, BehaviorId]:
        """Imports a behavior and binds it to what it stands on: an adapter, or a whole checkpoint as an overlay.

        Args:
            name: Its slot.
            weight: The slot's weight.
            below: The behaviors beneath it, in order.
            view: The identity.

        Raises:
            WrongBaseError: It does not fit what lies beneath it.
            NothingChangedError: A checkpoint that differs in nothing from what lies beneath it.
            InputError: A file that breaks its format, or neither an adapter nor a checkpoint.
        """
        source = self._sources.behaviors[name]
        paths = {file.path: file for file in source.files}
        if ADAPTER_CONFIG not in paths:
            return self._overlay(name, weight, below, view)
        if ADAPTER_WEIGHTS not in paths:
            raise BadDirectoryError(
                f"{source.path} is not a whole PEFT adapter: it has no {ADAPTER_WEIGHTS}",
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
        self._state(source, files, behavior_id, f"{name}: ", self._told)
        return Member(name, behavior, weight, config), behavior_id

    def _overlay(
        self, name: str, weight: float, below: Sequence[Member], view: IdentityView
    ) -> tuple[Member, BehaviorId]:
        """Imports a checkpoint as what it changes of the checkpoint beneath it, which adapters are no part of."""
        source, prefix = self._sources.behaviors[name], f"{name}: "
        overlays = [(member.name, member.behavior) for member in below if member.behavior.form == "overlay"]
        beneath = logical_state(view.tensors, view.files, overlays)
        given = (self._request.behaviors or {})[name]
        live = not isinstance(given, (str, Path))
        if live:
            from rblstore.checkpoints.saving_module import tensors_given
            from rblstore.operations.live_overlay import completed, in_stored_form

            source = in_stored_form(self._store, source, beneath, tensors_given(given))
        refuse_reserved_paths(file.path for file in source.files)
        files = self._store_files(source, prefix, beneath.tensors)
        if live:
            held = held_files(view.checkpoint.files, [behavior for _, behavior in overlays])
            files = replace(files, entries=completed(files.entries, beneath, held))
        checkpoint = self._checkpoint(source, files)
        if not checkpoint.tensors:
            raise BadDirectoryError(
                f"{source.path} is neither a PEFT adapter nor a checkpoint: it has no {ADAPTER_CONFIG}, and no weights",
                object=str(source.path),
                hint="Give the directory that save_pretrained of a PeftModel or of a whole model wrote.",
            )
        effects = overlay_effects(name, checkpoint.tensors, checkpoint.beside, beneath)
        behavior = Behavior("overlay", files.entries, effects)
        for lower, targets in put_back(behavior, beneath, view.tensors).items():
            self.warnings.append(f"{prefix}it takes back what {lower!r} changed: {shown(targets)}")
        if lacking := removed_files(effects):
            self.warnings.append(f"{prefix}it lacks files that lie beneath it, and so removes them: {shown(lacking)}")
        self.checkpoints[name] = checkpoint
        behavior_id = BehaviorId(self._transaction.add_record(behavior))
        self._state(source, files, behavior_id, prefix, self._told)
        return Member(name, behavior, weight, None), behavior_id


def _check_live_base(source: Any, behavior: Behavior, name: str) -> None:
    from rblstore.live.binding import differing_ground

    if differing := differing_ground(source, behavior.grounds):
        raise LiveBaseError(
            f"the live model that carries {name!r} has another base than the one committed: {shown(differing)} differ",
            object=name,
            hint="Commit it on the branch of its own base, or pass rebind=True.",
        )
