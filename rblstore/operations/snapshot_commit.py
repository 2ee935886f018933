"""Committing snapshots one after the other: what does not change during a run is read and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rblstore.checkpoints.adapter_config import AdapterConfig, parse_adapter_config
from rblstore.checkpoints.adapter_effects import adapter_effects
from rblstore.checkpoints.checkout_layout import behavior_folder, plan_checkout, refuse_reserved_paths
from rblstore.checkpoints.composed_layout import compose_layout, held_files
from rblstore.checkpoints.composition_ground import logical_state, shown
from rblstore.checkpoints.model_card import claims_from_files
from rblstore.checkpoints.overlay_effects import overlay_effects, put_back
from rblstore.checkpoints.saving import UnsavableError, live_tensor_digest
from rblstore.checkpoints.stored_checkpoint import StoredCheckpoint
from rblstore.configuration import Compression
from rblstore.errors import NothingChangedError
from rblstore.live.snapshot import Snapshot, described
from rblstore.objects.content_records import Behavior, Effect, FileManifest, Ground, Identity, StoredTensor
from rblstore.objects.evidence_records import Claim
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import BehaviorId, CommitId, CompositionId, ContentId
from rblstore.objects.paths import check_paths
from rblstore.operations.claims import state
from rblstore.operations.commit import CommitResult
from rblstore.operations.live_overlay import completed
from rblstore.operations.snapshot_storing import store_snapshot
from rblstore.operations.store_files import StoredFiles
from rblstore.operations.stored_models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    Member,
    check_members,
    file_named,
    member,
    view_identity,
)
from rblstore.provenance.license_texts import recognise
from rblstore.repository import HEADS, Store, utc_now
from rblstore.transaction import Transaction


@dataclass(frozen=True)
class Settled:
    """The files of a snapshot that hold no tensors, in the form in which they are stored.

    Attributes:
        files: Where every tensor has the element type that lies beneath.
        widened: Where one has not: a config that names the element type says so then.
        claims: What the files say about the behavior.
        warnings: About those that could not be read.
    """

    files: Mapping[str, bytes]
    widened: Mapping[str, bytes]
    claims: tuple[Claim, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, files: Mapping[str, bytes], widened: Mapping[str, bytes] | None = None) -> Settled:
        """Reads what the files say."""
        readers = {path: lambda data=data: data for path, data in files.items()}
        claims, warnings = claims_from_files(readers, recognise)
        return cls(files, files if widened is None else widened, claims, warnings)


class _Taken(NamedTuple):
    """An adapter as it was taken in last."""

    behavior: Behavior
    manifest: FileManifest

    def tensors(self) -> dict[str, StoredTensor]:
        return {one.name: one.tensor for one in self.manifest.tensors}


class SnapshotCommitter:
    """Commits one behavior again and again on one branch that nobody else moves.

    Args:
        store: A repository of its own, closed with this.
        ref: The branch's full name.
        parent: Its commit.
        name: The behavior's slot.
        author: Who commits.
        compression: How what is new is stored; None for what the settings say.
    """

    def __init__(
        self,
        store: Store,
        ref: str,
        parent: CommitId,
        name: str,
        author: str,
        compression: Compression | None = None,
    ) -> None:
        self.store = store
        self.name = name
        self.parent = parent
        self._ref = ref
        self._author = author
        self._compression = compression
        self._before = store.record(store.record(parent, Commit).composition, Composition)
        self._view = view_identity(store, store.record(self._before.identity, Identity))
        names = [slot.name for slot in self._before.slots]
        self._kept = [member(store, slot) for slot in self._before.slots]
        at = names.index(name) if name in names else len(names)
        self._below, self._above = self._kept[:at], self._kept[at + 1 :]
        overlays = [(one.name, one.behavior) for one in self._below if one.behavior.form == "overlay"]
        every = [(one.name, one.behavior) for one in self._below]
        self.beneath_adapter = logical_state(self._view.tensors, self._view.files, every)
        self.beneath_overlay = logical_state(self._view.tensors, self._view.files, overlays)
        self._held = held_files(self._view.checkpoint.files, [behavior for _, behavior in overlays])
        self._checked: tuple[Any, ...] | None = None
        self._parsed: tuple[bytes, AdapterConfig] | None = None
        self._taken_in = self._adapter_before()

    def close(self) -> None:
        """Closes the repository."""
        self.store.close()

    @property
    def slot(self) -> Slot | None:
        """The behavior as it was committed last."""
        return self._before.slot(self.name)

    @property
    def tensor_root(self) -> str:
        """The digest of the identity's tensors."""
        return str(self.store.record(self._before.identity, Identity).tensor_root)

    def stored_file(self, path: str) -> bytes | None:
        """A small file of the adapter that the slot held when this was made, or None."""
        slot = self.slot
        entry = None if slot is None else file_named(self.store.record(slot.behavior, Behavior).files, path)
        return None if entry is None else self.store.content_bytes(entry.sha256, 1 << 26)

    def _adapter_before(self) -> _Taken | None:
        """The adapter that the slot holds, or None where it holds none."""
        slot = self.slot
        if slot is None or (behavior := self.store.record(slot.behavior, Behavior)).form != "adapter":
            return None
        entry = file_named(behavior.files, ADAPTER_WEIGHTS)
        if entry is None or entry.manifest is None:
            return None
        return _Taken(behavior, self.store.record(entry.manifest, FileManifest))

    # -- one commit ---------------------------------------------------------------------------------------------

    def commit(
        self, snapshot: Snapshot, settled: Settled, message: str, claims: tuple[Claim, ...], tree: Any, step: int
    ) -> CommitResult | None:
        """Commits a snapshot; None where it is what the branch has already.

        Args:
            snapshot: What the behavior is now.
            settled: Its files without tensors.
            message: The commit's.
            claims: What is said about the behavior.
            tree: The state of optimizer, scheduler and random generators, or None.
            step: Steps done.

        Raises:
            RefMovedError: Somebody else moved the branch.
            WrongBaseError: The behavior does not fit what lies beneath it.
            WriteError: The system refused; nothing was committed.
        """
        try:
            return self._commit(snapshot, settled, message, claims, tree, step)
        except NothingChangedError:
            return None

    def add_claims(self, claims: tuple[Claim, ...]) -> None:
        """States something of the behavior that was committed last, which nothing new is committed of."""
        if claims and self.slot is not None:
            with self.store.transaction(self._author) as transaction:
                state(self.store, transaction, self.slot.behavior, claims, self._author)

    def _commit(
        self, snapshot: Snapshot, settled: Settled, message: str, claims: tuple[Claim, ...], tree: Any, step: int
    ) -> CommitResult:
        with self.store.transaction(self._author, self._compression) as transaction:
            one, behavior_id, files, warnings = self._import(transaction, snapshot, settled)
            self._check(one)
            slots = tuple(
                Slot(name, behavior, weight) for name, behavior, weight in self._slots(behavior_id, one.weight)
            )
            composition = Composition(self._before.identity, slots)
            if composition == self._before:
                raise NothingChangedError("nothing changed since the last commit", object=self.parent)
            said = (*settled.claims, *claims)
            state(self.store, transaction, behavior_id, said, self._author)
            composition_id = CompositionId(transaction.add_record(composition))
            record = Commit(composition_id, (self.parent,), self._author, utc_now(), message)
            commit_id = CommitId(transaction.add_record(record))
            if tree is not None:
                from rblstore.operations.training_state import store_state

                store_state(transaction, commit_id, tree, step=step, author=self._author)
            transaction.set_ref(self._ref, self.parent, commit_id)
            transaction.describe(f"commit: {record.subject}")
        added = [location for pack in transaction.packs if pack.kind == "C" for location in pack.locations]
        parent, self.parent, self._before = self.parent, commit_id, composition
        if one.behavior.form == "adapter":
            self._taken_in = _Taken(one.behavior, files.manifests[ADAPTER_WEIGHTS])
        return CommitResult(
            commit_id,
            composition_id,
            (parent,),
            self._ref.removeprefix(HEADS),
            message,
            composition.identity,
            slots,
            tuple(f"{self.name}: {warning}" for warning in (*files.warnings, *settled.warnings, *warnings)),
            (),
            len(added),
            files.raw,
            sum(location.stored for location in added),
            sum(location.size for location in added),
        )

    def _slots(self, behavior: BehaviorId, weight: float) -> list[tuple[str, BehaviorId, float]]:
        found = [(slot.name, slot.behavior, slot.weight) for slot in self._before.slots]
        mine = (self.name, behavior, weight)
        at = next((number for number, slot in enumerate(found) if slot[0] == self.name), len(found))
        return [*found[:at], mine, *found[at + 1 :]]

    def _import(
        self, transaction: Transaction, snapshot: Snapshot, settled: Settled
    ) -> tuple[Member, BehaviorId, StoredFiles, list[str]]:
        weight = 1.0 if self.slot is None else self.slot.weight
        if snapshot.adapter:
            tensors = {path: self._as_taken_in(held.tensors) for path, held in snapshot.weights.items()}
            files = store_snapshot(transaction, snapshot, settled.files, tensors)
            config = self._config(settled.files[ADAPTER_CONFIG])
            stored = {entry.name: entry.tensor for entry in files.manifests[ADAPTER_WEIGHTS].tensors}
            if self._taken_in is not None and self._taken_in.tensors() == stored:
                files = self._as_before(files, self._taken_in.behavior)
            behavior = self._adapter(files, config, stored)
            return Member(self.name, behavior, weight, config), _added(transaction, behavior), files, []
        tensors, kept = self._as_beneath(snapshot)
        named = settled.files if kept else settled.widened
        files = store_snapshot(transaction, snapshot, named, tensors, self.beneath_overlay.tensors)
        refuse_reserved_paths(entry.path for entry in files.entries)
        files = replace(files, entries=completed(files.entries, self.beneath_overlay, self._held))
        checkpoint = StoredCheckpoint(files.entries, files.manifests, named.get(INDEX))
        effects = overlay_effects(self.name, checkpoint.tensors, checkpoint.beside, self.beneath_overlay)
        behavior = Behavior("overlay", files.entries, effects)
        back = put_back(behavior, self.beneath_overlay, self._view.tensors).items()
        warnings = [f"it takes back what {lower!r} changed: {shown(targets)}" for lower, targets in back]
        if not self._above or self._above[-1].behavior.form != "overlay":
            self._check_layout(behavior, checkpoint)
        return Member(self.name, behavior, weight, None), _added(transaction, behavior), files, warnings

    def _adapter(self, files: StoredFiles, config: AdapterConfig, stored: Mapping[str, StoredTensor]) -> Behavior:
        effects, ground = adapter_effects(config, stored, self.beneath_adapter.tensors, self.beneath_adapter.files)
        return Behavior("adapter", files.entries, effects, ground)

    @staticmethod
    def _as_before(files: StoredFiles, before: Behavior) -> StoredFiles:
        """An adapter of which no tensor changed: that file as it was stored, and all files where nothing changed."""
        entries = {entry.path: entry for entry in before.files}
        new = {entry.path: entry for entry in files.entries}
        new[ADAPTER_WEIGHTS] = entries[ADAPTER_WEIGHTS]
        if new[ADAPTER_CONFIG] == entries[ADAPTER_CONFIG]:
            new = entries
        return replace(files, entries=tuple(new[path] for path in sorted(new)))

    def _config(self, data: bytes) -> AdapterConfig:
        if self._parsed is None or self._parsed[0] != data:
            self._parsed = data, parse_adapter_config(data)
        return self._parsed[1]

    def _check(self, one: Member) -> None:
        """Whether the composition holds together; what it depends on is compared, and mostly the same as last time."""
        depends: tuple[tuple[Effect, ...], tuple[Ground, ...], Any] = (
            one.behavior.effects,
            one.behavior.ground,
            one.config,
        )
        if self._checked != depends:
            check_members(self._view, [*self._below, one, *self._above], self._kept, unloadable=False)
            self._checked = depends

    def _check_layout(self, behavior: Behavior, checkpoint: StoredCheckpoint) -> None:
        found = [*self._below, Member(self.name, behavior, 1.0, None), *self._above]
        overlays = [(one.name, one.behavior) for one in found if one.behavior.form == "overlay"]
        files = compose_layout(self._view.checkpoint, overlays, checkpoint, lambda manifest: None).files
        plan_checkout(files, [(one.name, one.weight, one.behavior) for one in found], "adapters")

    # -- the form in which tensors are stored -------------------------------------------------------------------

    def _as_taken_in(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """An adapter's tensors in the element types that they had before, where nothing is lost by it."""
        before = {} if self._taken_in is None else self._taken_in.tensors()
        return {
            name: _narrow(tensor, before[name].dtype if name in before else None) for name, tensor in tensors.items()
        }

    def _as_beneath(self, snapshot: Snapshot) -> tuple[dict[str, dict[str, Any]], bool]:
        """A checkpoint's tensors in the element types that lie beneath, and whether all of them have those."""
        beneath = self.beneath_overlay.tensors
        second: set[str] = set()
        if snapshot.places is not None:
            places = {place for name, place in snapshot.places.items() if name in beneath}
            second = {name for name, place in snapshot.places.items() if name not in beneath and place in places}
            if lacking := sorted(beneath.keys() - snapshot.places.keys()):
                raise UnsavableError(
                    f"the tensors are not a whole model: {shown(lacking)} lie beneath and are not among them",
                    object=lacking[0],
                )
        found: dict[str, dict[str, Any]] = {}
        kept = True
        for path, held in snapshot.weights.items():
            found[path] = {}
            for name, tensor in held.tensors.items():
                if name in second:
                    continue
                lies = beneath.get(name)
                found[path][name] = narrow = _narrow(tensor, None if lies is None else lies.dtype)
                kept = kept and (lies is None or narrow.dtype == _torch_dtype(lies.dtype, narrow.dtype))
        return found, kept

    def rehearse(self, snapshot: Snapshot, settled: Settled) -> Behavior:
        """Checks that an adapter could be committed; nothing is written.

        Raises:
            WrongBaseError: It does not fit what lies beneath it.
            UnloadableError: peft cannot attach the composition.
        """
        check_paths(f"{behavior_folder(self.name)}/{path}" for path in (*snapshot.files, *snapshot.weights))
        tensors = snapshot.weights[ADAPTER_WEIGHTS].tensors
        shapes = described(tensors)
        stored = {
            name: StoredTensor(*shapes[name], ContentId(live_tensor_digest(tensor))) for name, tensor in tensors.items()
        }
        config = self._config(settled.files[ADAPTER_CONFIG])
        behavior = self._adapter(StoredFiles((), {}, (), 0), config, stored)
        weight = 1.0 if self.slot is None else self.slot.weight
        self._check(Member(self.name, behavior, weight, config))
        return behavior


def _added(transaction: Transaction, behavior: Behavior) -> BehaviorId:
    return BehaviorId(transaction.add_record(behavior))


def _torch_dtype(stored: str, otherwise: Any) -> Any:
    import torch

    from rblstore.live.binding import DTYPES

    return getattr(torch, DTYPES[stored]) if stored in DTYPES else otherwise


def _narrow(tensor: Any, stored: str | None) -> Any:
    """A tensor in an element type, where casting it back gives the same bits; else as it is."""
    dtype = tensor.dtype if stored is None else _torch_dtype(stored, tensor.dtype)
    if dtype == tensor.dtype:
        return tensor
    from rblstore.live.binding import same_bits

    # What was trained shows in its first elements, mostly.
    head = tensor.reshape(-1)[:1024]
    if not same_bits(head.to(dtype).to(head.dtype), head):
        return tensor
    narrow = tensor.to(dtype)
    return narrow if same_bits(narrow.to(tensor.dtype), tensor) else tensor
