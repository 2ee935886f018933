"""Reading identities, behaviors and compositions back in the terms of the checkpoints room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rblstore.checkpoints.adapter_config import AdapterConfig, parse_adapter_config
from rblstore.checkpoints.checkout_layout import FileSource
from rblstore.checkpoints.composed_layout import ComposedCheckpoint, compose_layout
from rblstore.checkpoints.composition_ground import LogicalState, check_composition
from rblstore.checkpoints.composition_rules import check_attachable
from rblstore.checkpoints.safetensors_header import read_header
from rblstore.checkpoints.stored_checkpoint import StoredCheckpoint
from rblstore.errors import CorruptError
from rblstore.forgotten import is_kept
from rblstore.objects import limits
from rblstore.objects.content_records import Behavior, FileEntry, FileManifest, Identity, StoredTensor
from rblstore.objects.history_records import Composition, Slot
from rblstore.objects.ids import ContentId
from rblstore.repository import Store

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class IdentityView:
    """An identity's logical tensors and files.

    Attributes:
        checkpoint: All of it.
    """

    checkpoint: StoredCheckpoint

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By logical name."""
        return self.checkpoint.tensors

    @property
    def files(self) -> Mapping[str, ContentId]:
        """SHA-256 by path of the files beside the weights."""
        return self.checkpoint.beside


def file_named(entries: Sequence[FileEntry], path: str) -> FileEntry | None:
    """The entry of that path, or None."""
    return next((entry for entry in entries if entry.path == path), None)


def read_checkpoint(store: Store, files: tuple[FileEntry, ...]) -> StoredCheckpoint:
    """Reads what the files of an identity or an overlay hold.

    Raises:
        CorruptError: A record or its content is missing or damaged.
    """
    manifests = {entry.path: store.record(entry.manifest, FileManifest) for entry in files if entry.manifest}
    index = file_named(files, INDEX)
    # Which tensors there were is known without it: where it is gone on purpose, the weight files are all there are.
    kept = index is not None and is_kept(store, index.sha256)
    index_bytes = store.content_bytes(index.sha256, limits.RECORD_BYTES) if index is not None and kept else None
    return StoredCheckpoint(files, manifests, index_bytes)


def view_identity(store: Store, identity: Identity) -> IdentityView:
    """Reads what a stored identity holds.

    Raises:
        CorruptError: A record or its content is missing or damaged.
    """
    return IdentityView(read_checkpoint(store, identity.files))


def composed(store: Store, composition: Composition) -> ComposedCheckpoint:
    """The checkpoint beneath a composition's adapters: the identity with every overlay laid on.

    Raises:
        CorruptError: A record or its content is missing or damaged.
    """
    identity = read_checkpoint(store, store.record(composition.identity, Identity).files)
    behaviors = [(slot.name, store.record(slot.behavior, Behavior)) for slot in composition.slots]
    return compose(store, identity, behaviors)


def compose(store: Store, identity: StoredCheckpoint, behaviors: Sequence[tuple[str, Behavior]]) -> ComposedCheckpoint:
    """Like :func:`composed`, of records that were read already; adapters among them are passed over."""
    overlays = [(name, behavior) for name, behavior in behaviors if behavior.form == "overlay"]
    topmost = read_checkpoint(store, overlays[-1][1].files) if overlays else None

    def metadata(manifest: FileManifest) -> Mapping[str, str] | None:
        header = store.content_bytes(manifest.header, limits.SAFETENSORS_HEADER_BYTES_CEILING + 8)
        size = len(header) + sum(one.tensor.size for one in manifest.tensors)
        return (
            read_header(
                lambda offset, length: header[offset : offset + length],
                size,
                max_bytes=limits.SAFETENSORS_HEADER_BYTES_CEILING,
            ).metadata
            or None
        )

    return compose_layout(identity, overlays, topmost, metadata)


def composed_state(store: Store, composition: Composition) -> LogicalState:
    """The tensors and files beneath a composition's adapters.

    Raises:
        CorruptError: A record or its content is missing or damaged.
    """
    return composed(store, composition).state


def source_size(source: FileSource) -> int:
    """Bytes of a composed file."""
    return len(source) if isinstance(source, bytes) else source.size


def adapter_config(store: Store, behavior: Behavior) -> AdapterConfig:
    """The parsed ``adapter_config.json`` of a stored adapter.

    Raises:
        CorruptError: It is missing or damaged.
    """
    entry = file_named(behavior.files, ADAPTER_CONFIG)
    if entry is None:
        raise CorruptError(f"a stored adapter has no {ADAPTER_CONFIG}", object=ADAPTER_CONFIG)
    return parse_adapter_config(store.content_bytes(entry.sha256, limits.ADAPTER_CONFIG_BYTES))


def kept_adapter_config(store: Store, behavior: Behavior) -> AdapterConfig | None:
    """The same; None where it is gone because the adapter was removed on purpose.

    Raises:
        CorruptError: It is missing for another reason, or damaged.
    """
    entry = file_named(behavior.files, ADAPTER_CONFIG)
    return None if entry is not None and not is_kept(store, entry.sha256) else adapter_config(store, behavior)


@dataclass(frozen=True)
class Member:
    """One behavior in a composition, with what decides whether it fits.

    Attributes:
        name: The slot's name.
        behavior: The record.
        weight: The slot's weight.
        config: For adapters, the parsed configuration; None where it was removed on purpose.
    """

    name: str
    behavior: Behavior
    weight: float
    config: AdapterConfig | None


def members(store: Store, composition: Composition) -> list[Member]:
    """Every behavior of a stored composition, in order.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    return [member(store, slot) for slot in composition.slots]


def member(store: Store, slot: Slot) -> Member:
    """One behavior of a stored composition.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    behavior = store.record(slot.behavior, Behavior)
    config = kept_adapter_config(store, behavior) if behavior.form == "adapter" else None
    return Member(slot.name, behavior, slot.weight, config)


def check_members(
    identity: IdentityView, found: Sequence[Member], before: Sequence[Member] = (), *, unloadable: bool
) -> None:
    """Refuses a composition in which a behavior does not stand on what it was bound to, or that peft cannot attach.

    Args:
        identity: What lies beneath everything.
        found: The behaviors, in order.
        before: Those of the composition before, which may explain a ground that is missing.
        unloadable: Whether to let through what peft cannot attach.

    Raises:
        ConflictError: Wrong ground, an overlap, or no way to attach.
        UsageError: A weight that the behavior's form does not take.
    """
    gone = [(one.name, one.behavior) for one in before if not any(one.behavior == other.behavior for other in found)]
    check_composition(
        identity.tensors,
        identity.files,
        [(member.name, member.behavior, member.weight) for member in found],
        removed=gone,
    )
    if not unloadable:
        check_attachable(
            [
                (member.name, member.config, member.behavior, member.weight)
                for member in found
                if member.config is not None
            ]
        )
