"""A fine-tuned model that is in memory, brought into the form of what lies beneath it as far as its values are equal.

Loading may widen a model, and saving writes a config anew: without this, committing a model of which one tensor was
trained would change all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rblstore.checkpoints.composition_ground import LogicalState, shown
from rblstore.checkpoints.saving import UnsavableError
from rblstore.checkpoints.saving_overlay import keep_stored_settings, keep_stored_values
from rblstore.checkpoints.source_directory import SourceDirectory, scan_directory
from rblstore.objects import limits
from rblstore.objects.content_records import FileEntry
from rblstore.operations.scratch import scratch
from rblstore.repository import Store

_SETTINGS = ("config.json", "generation_config.json")


def in_stored_form(
    store: Store, source: SourceDirectory, beneath: LogicalState, tensors: Mapping[str, Any] | None
) -> SourceDirectory:
    """The saved model again, its unchanged tensors in their stored element types and its unchanged settings as stored.

    Args:
        store: The repository.
        source: What was saved from memory; its directory is changed in place.
        beneath: What the overlay is taken against.
        tensors: The mapping of tensors that was given in the place of a model; it has to hold every one that lies
            beneath. A second name of a tied tensor is left out.

    Raises:
        UnsavableError: A mapping lacks tensors.
    """
    import torch

    from rblstore.live.binding import DTYPES

    stored = {
        name: getattr(torch, DTYPES[tensor.dtype]) for name, tensor in beneath.tensors.items() if tensor.dtype in DTYPES
    }
    second = frozenset() if tensors is None else _second_names(tensors, beneath)
    names, kept = keep_stored_values(source.path, stored, left_out=second)
    if tensors is not None and (lacking := sorted(beneath.tensors.keys() - names)):
        raise UnsavableError(
            f"the tensors are not a whole model: {shown(lacking)} lie beneath and are not among them",
            object=lacking[0],
            hint="Give every tensor of the model, or the model itself. An adapter is rblstore.AdapterTensors.",
        )
    with scratch(store, "settings") as folder:
        for path in _SETTINGS:
            if (sha256 := beneath.files.get(path)) is not None:
                (folder / path).write_bytes(store.content_bytes(sha256, limits.RECORD_BYTES))
        keep_stored_settings(source.path, folder, dtypes_kept=kept)
    return scan_directory(source.path)


def _second_names(tensors: Mapping[str, Any], beneath: LogicalState) -> frozenset[str]:
    """Names that nothing lies beneath and whose tensor is, in memory, that of another name."""
    places = {_place(tensor) for name, tensor in tensors.items() if name in beneath.tensors}
    return frozenset(name for name in tensors.keys() - beneath.tensors.keys() if _place(tensors[name]) in places)


def _place(tensor: Any) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def completed(
    entries: tuple[FileEntry, ...], beneath: LogicalState, held: Mapping[tuple[str, str], FileEntry]
) -> tuple[FileEntry, ...]:
    """A saved model's files and those that a model in memory has no say in: tokenizer, model card and the like.

    Args:
        entries: The files that were saved, stored.
        beneath: What lies beneath.
        held: Every file that is stored for what lies beneath, by (path, SHA-256).
    """
    paths = {entry.path for entry in entries}
    others = [held[path, sha256] for path, sha256 in beneath.files.items() if path not in paths]
    return tuple(sorted((*entries, *others), key=lambda entry: entry.path))
