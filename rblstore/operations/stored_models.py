"""Reading identities, behaviors and compositions back in the terms of the checkpoints room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rblstore.checkpoints.adapter_config import AdapterConfig, parse_adapter_config
from rblstore.checkpoints.composition_ground import check_composition
from rblstore.checkpoints.composition_rules import check_attachable
from rblstore.checkpoints.logical_tensors import logical_tensors, primary_weight_files
from rblstore.errors import CorruptError
from rblstore.objects import limits
from rblstore.objects.content_records import Behavior, FileEntry, FileManifest, Identity, StoredTensor
from rblstore.objects.history_records import Composition
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
        tensors: By logical name.
        files: SHA-256 by path.
    """

    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, ContentId]


def file_named(entries: Sequence[FileEntry], path: str) -> FileEntry | None:
    """The entry of that path, or None."""
    return next((entry for entry in entries if entry.path == path), None)


def logical(manifests: Mapping[str, FileManifest], index: bytes | None) -> dict[str, StoredTensor]:
    """The logical tensors of a checkpoint's safetensors files.

    Args:
        manifests: By path.
        index: Bytes of the shard index, or None.

    Raises:
        InputError: The files and the index contradict each other.
    """
    return logical_tensors(manifests, primary_weight_files(sorted(manifests), index), index)


def view_identity(store: Store, identity: Identity) -> IdentityView:
    """Reads what a stored identity holds.

    Raises:
        CorruptError: A record or its content is missing or damaged.
    """
    manifests = {
        entry.path: store.record(entry.manifest, FileManifest) for entry in identity.files if entry.manifest is not None
    }
    index = file_named(identity.files, INDEX)
    index_bytes = None if index is None else store.content_bytes(index.sha256, limits.RECORD_BYTES)
    return IdentityView(logical(manifests, index_bytes), {entry.path: entry.sha256 for entry in identity.files})


def adapter_config(store: Store, behavior: Behavior) -> AdapterConfig:
    """The parsed ``adapter_config.json`` of a stored adapter.

    Raises:
        CorruptError: It is missing or damaged.
    """
    entry = file_named(behavior.files, ADAPTER_CONFIG)
    if entry is None:
        raise CorruptError(f"a stored adapter has no {ADAPTER_CONFIG}", object=ADAPTER_CONFIG)
    return parse_adapter_config(store.content_bytes(entry.sha256, limits.ADAPTER_CONFIG_BYTES))


@dataclass(frozen=True)
class Member:
    """One behavior in a composition, with what decides whether it fits.

    Attributes:
        name: The slot's name.
        behavior: The record.
        weight: The slot's weight.
        config: For adapters, the parsed configuration.
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
    found = []
    for slot in composition.slots:
        behavior = store.record(slot.behavior, Behavior)
        config = adapter_config(store, behavior) if behavior.form == "adapter" else None
        found.append(Member(slot.name, behavior, slot.weight, config))
    return found


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
