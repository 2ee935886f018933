"""The files of a composition's checkpoint, overlays laid on: as committed where they can be, by rule elsewhere.

Where what the identity and all overlays come to is exactly what the topmost overlay's own files hold, those files are
written as they are. Any other mixture takes the identity's layout:

1. Every weight file keeps its tensors in their order. One that was replaced by another of the same element type and
   shape takes its place, and the header stays. Where a tensor goes, comes, or changes element type or shape, the
   file's header is written anew, its metadata kept, and its tensors follow as the safetensors library orders them.
2. New tensors go into the last weight file. A weight file that nothing is left in is left out, unless it is the only
   one.
3. A shard index is written anew where a file's names or sizes changed; its other members stay.
4. Every other file comes from whoever wrote it last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rblstore.checkpoints.checkout_layout import ComposedWeights, FileSource, LayoutCollisionError
from rblstore.checkpoints.composition_ground import LogicalState
from rblstore.checkpoints.logical_tensors import INDEX_FILE, primary_weight_files
from rblstore.checkpoints.safetensors_header import encode_header, lay_out
from rblstore.checkpoints.stored_checkpoint import StoredCheckpoint
from rblstore.errors import CorruptError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.content_records import Behavior, FileEntry, FileManifest, NamedTensor, StoredTensor
from rblstore.objects.ids import ContentId

Metadata = Callable[[FileManifest], "Mapping[str, str] | None"]
"""Reads the free text in the header of a stored safetensors file."""


class ComposedFile(NamedTuple):
    """One file of a composed checkpoint.

    Attributes:
        path: Relative, with forward slashes.
        source: What it comes from.
    """

    path: str
    source: FileSource


@dataclass(frozen=True)
class ComposedCheckpoint:
    """What lies beneath a composition's adapters.

    Attributes:
        state: Tensors, and the files beside the weights.
        files: Every file to write, sorted by path.
        weights: Paths of the primary weight files.
    """

    state: LogicalState
    files: tuple[ComposedFile, ...]
    weights: frozenset[str]


def compose_layout(
    identity: StoredCheckpoint,
    overlays: Sequence[tuple[str, Behavior]],
    topmost: StoredCheckpoint | None,
    metadata: Metadata,
) -> ComposedCheckpoint:
    """What files an identity with overlays on it becomes.

    Args:
        identity: The base.
        overlays: (slot, behavior) in order.
        topmost: The files of the last overlay, or None where there is none.
        metadata: Reads a stored header's free text, for one that is written anew.

    Raises:
        CorruptError: An overlay writes a file that it does not hold.
        LayoutCollisionError: A file would stand in for weights, or the other way round.
    """
    state = LogicalState(dict(identity.tensors), dict(identity.beside))
    for name, behavior in overlays:
        state.apply(name, behavior)
    verbatim = topmost if overlays else identity
    if verbatim is not None and verbatim.tensors == state.tensors and verbatim.beside == state.files:
        files = tuple(ComposedFile(entry.path, entry) for entry in verbatim.files)
        return ComposedCheckpoint(state, files, frozenset(verbatim.weights))
    held = held_files(identity.files, [behavior for _, behavior in overlays])
    found = {path: _file(held, path, sha256) for path, sha256 in state.files.items()}
    weights = _weight_files(identity, state.tensors, metadata)
    index = _index(identity, weights)
    for path, source in (*weights.items(), *([] if index is None else [(INDEX_FILE, index)])):
        if path in found:
            raise _collision(path)
        found[path] = source
    _check_weights(found, weights, index)
    files = tuple(ComposedFile(path, found[path]) for path in sorted(found))
    return ComposedCheckpoint(state, files, frozenset(weights))


def held_files(files: Sequence[FileEntry], overlays: Sequence[Behavior]) -> dict[tuple[str, str], FileEntry]:
    """Every file that an identity and overlays on it hold, by (path, SHA-256)."""
    entries = [entry for behavior in overlays for entry in behavior.files]
    return {(entry.path, entry.sha256): entry for entry in (*files, *entries)}


def _file(held: Mapping[tuple[str, str], FileEntry], path: str, sha256: ContentId) -> FileSource:
    entry = held.get((path, sha256))
    if entry is None:
        raise CorruptError(
            f"an overlay writes the file {path} and does not hold it", object=path, hint="Run: rbl fsck --full"
        )
    return entry


def _weight_files(
    identity: StoredCheckpoint, tensors: Mapping[str, StoredTensor], metadata: Metadata
) -> dict[str, FileSource]:
    entries = {entry.path: entry for entry in identity.files}
    seen = {entry.name for path in identity.weights for entry in identity.manifests[path].tensors}
    added = [NamedTensor(name, tensors[name]) for name in sorted(tensors.keys() - seen)]
    found: dict[str, FileSource] = {}
    for path in identity.weights:
        manifest = identity.manifests[path]
        kept = [NamedTensor(one.name, tensors[one.name]) for one in manifest.tensors if one.name in tensors]
        if path == identity.weights[-1]:
            kept += added
        if kept == list(manifest.tensors):
            found[path] = entries[path]
        elif [_described(one) for one in kept] == [_described(one) for one in manifest.tensors]:
            found[path] = ComposedWeights(manifest.header, tuple(kept), entries[path].size)
        elif kept or len(identity.weights) == 1:
            found[path] = written_anew(kept, metadata(manifest))
    return found


def _described(one: NamedTensor) -> tuple[str, str, tuple[int, ...]]:
    return one.name, one.tensor.dtype, one.tensor.shape


def written_anew(kept: Sequence[NamedTensor], metadata: Mapping[str, str] | None = None) -> ComposedWeights:
    """A weight file of these tensors, whose names differ, laid out as the safetensors library would.

    Raises:
        InputError: A name that no file can hold.
    """
    by_name = {one.name: one for one in kept}
    described = {one.name: (one.tensor.dtype, one.tensor.shape) for one in kept}
    header = encode_header(described, metadata)
    ordered = tuple(by_name[span.name] for span in lay_out(described))
    return ComposedWeights(header, ordered, len(header) + sum(one.tensor.size for one in ordered))


def _index(identity: StoredCheckpoint, weights: Mapping[str, FileSource]) -> FileSource | None:
    """The shard index: the stored one where it still tells the truth."""
    entry = next((entry for entry in identity.files if entry.path == INDEX_FILE), None)
    if entry is None or identity.index is None:
        return None
    written = [source for source in weights.values() if isinstance(source, ComposedWeights)]
    anew = any(isinstance(source.header, bytes) for source in written)
    if not identity.sharded or (not anew and weights.keys() == set(identity.weights)):
        return entry
    body = decode_json(identity.index, what=INDEX_FILE, max_bytes=limits.RECORD_BYTES, max_entries=limits.JSON_ENTRIES)
    assert isinstance(body, dict), "an index that decided which files are read is an object"
    tensors = {one.name: (path, one.tensor) for path in weights for one in _tensors(identity, path, weights[path])}
    totals: dict[str, Any] = {"total_size": sum(tensor.size for _, tensor in tensors.values())}
    told = body.get("metadata")
    if isinstance(told, dict):
        if "total_parameters" in told:
            totals["total_parameters"] = sum(_elements(tensor.shape) for _, tensor in tensors.values())
        totals = {**told, **totals}
    body = {**body, "metadata": totals, "weight_map": {name: path for name, (path, _) in tensors.items()}}
    # As transformers writes it, so that loading and saving again would give the same text.
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode("utf-8")


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _tensors(identity: StoredCheckpoint, path: str, source: FileSource) -> tuple[NamedTensor, ...]:
    return source.tensors if isinstance(source, ComposedWeights) else identity.manifests[path].tensors


def _check_weights(
    found: Mapping[str, FileSource], weights: Mapping[str, FileSource], index: FileSource | None
) -> None:
    """Refuses a layout in which loading would read other files than those that hold the weights."""
    if isinstance(index, FileEntry):
        return
    safetensors = [
        path for path, source in found.items() if path in weights or (isinstance(source, FileEntry) and source.manifest)
    ]
    read = primary_weight_files(safetensors, index if isinstance(index, bytes) else None)
    if strange := sorted(set(read) ^ set(weights)):
        raise _collision(strange[0])


def _collision(path: str) -> LayoutCollisionError:
    return LayoutCollisionError(
        f"the file {path} of one part of the composition lies where loading looks for the weights of another",
        object=path,
        hint="Commit the overlay again without that file.",
    )
