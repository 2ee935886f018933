"""The ``merged`` form of a checkout: one plain checkpoint, sums in fp32 in the composition's order, rounded once.

Plain LoRA is merged in blocks of rows without torch, anything else by peft in fp32. Either way a tensor that no
behavior acts on comes from the store as it is, and the stored layout of files and element types is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rblstore.checkpoints.checkout_layout import (
    CheckoutFile,
    CheckoutManifest,
    CheckoutSlot,
    ComposedWeights,
    FileSource,
    PlannedFile,
    plan_checkout,
)
from rblstore.checkpoints.checkout_writer import DirectoryWriter, mismatch
from rblstore.checkpoints.composed_layout import ComposedCheckpoint
from rblstore.objects.content_records import FileEntry, FileManifest, StoredTensor
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import CommitId, CompositionId, ContentId
from rblstore.operations.checkout import metered, write_manifest
from rblstore.operations.commit_files import stored_digest
from rblstore.operations.merged_tensors import MergePlan, PeftMerge, merged_rows, plan_merge
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.scratch import checkout_note, scratch
from rblstore.operations.stored_models import (
    CONFIG,
    INDEX,
    composed,
    members,
    source_size,
)
from rblstore.operations.writing import write_files
from rblstore.repository import Store

Merged = Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class _Weights:
    """What takes the place of stored tensors.

    Attributes:
        merged: The new bytes of each changed logical tensor, in its stored element type and shape.
        folder: Where a whole checkpoint, config included, was saved instead, because tensors were added; or None.
    """

    merged: Mapping[str, Merged]
    folder: Path | None = None


def write_merged(
    store: Store,
    composition: Composition,
    commit_id: CommitId,
    composition_id: CompositionId,
    target: Path,
    progress: Progress | None,
) -> tuple[CheckoutFile, ...]:
    """Writes a composition as one plain checkpoint.

    Returns:
        The files written, the manifest aside.

    Raises:
        TargetNotEmptyError: The directory has something in it.
        CannotMergeError: A behavior that is no change of weights (prompt tuning), or that peft cannot merge.
        CorruptError: Stored bytes are damaged; nothing is left behind.
    """
    beneath, merging = _planned(store, composition)
    with (
        checkout_note(store) as announce,
        DirectoryWriter(target, announce=announce) as writer,
        scratch(store, "merge") as folder,
    ):
        writer.require_space(sum(source_size(file.source) for file in beneath.files))
        weights = _weights(store, composition, beneath, merging, folder)
        files = _write_files(store, beneath, weights, writer, progress)
        slots = merged_slots(composition)
        manifest = CheckoutManifest("merged", commit_id, composition_id, composition.identity, slots, files)
        write_manifest(writer, manifest)
        writer.commit()
    return files


def merged_slots(composition: Composition) -> tuple[CheckoutSlot, ...]:
    """What ``rbl-composition.json`` says of the slots of a merged composition: none has a folder."""
    return tuple(CheckoutSlot(slot.name, slot.behavior, slot.weight, None) for slot in composition.slots)


def merged_files(store: Store, composition: Composition) -> tuple[CheckoutFile, ...]:
    """The files that :func:`write_merged` writes, with their digests; weights are read and summed, and not written.

    Raises:
        CannotMergeError: A behavior that is no change of weights (prompt tuning), or that peft cannot merge.
        CorruptError: Stored bytes are damaged.
    """
    beneath, merging = _planned(store, composition)
    files = []
    with scratch(store, "merge") as folder:
        weights = _weights(store, composition, beneath, merging, folder)
        for file in _kept(beneath, weights):
            if file.path in beneath.weights and weights.merged:
                digest, size = _hashed(_merged_file(store, file.source, weights.merged))
                if size != file.size:
                    raise mismatch(file.path)
            else:
                digest = stored_digest(store, file)
            files.append(CheckoutFile(file.path, digest, file.size))
        files += [CheckoutFile(path.name, *_hashed(_read(path))) for path in _saved(weights)]
    return tuple(sorted(files, key=lambda file: file.path))


def is_summed_by_peft(store: Store, composition: Composition) -> bool:
    """Whether PEFT computes what a merged composition holds: its last bits may depend on the machine then.

    Raises:
        CannotMergeError: A behavior that is no change of weights (prompt tuning), or that peft cannot merge.
        CorruptError: Stored bytes are damaged.
    """
    return bool(_planned(store, composition)[1].by_peft)


def _hashed(chunks: Iterable[bytes | memoryview]) -> tuple[ContentId, int]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return ContentId(digest.hexdigest()), size


def _planned(store: Store, composition: Composition) -> tuple[ComposedCheckpoint, MergePlan]:
    """What lies beneath the adapters, and how these are merged into it; overlays are in it already."""
    beneath = composed(store, composition)
    found = [member for member in members(store, composition) if member.config is not None]
    return beneath, plan_merge(store, found, beneath.state.tensors)


def _weights(
    store: Store, composition: Composition, beneath: ComposedCheckpoint, merging: MergePlan, folder: Path
) -> _Weights:
    if merging.by_peft:
        return _by_peft(store, composition, merging, beneath.state.tensors, folder)
    return _Weights(plain_merged(store, merging, beneath.state.tensors))


def _kept(beneath: ComposedCheckpoint, weights: _Weights) -> tuple[PlannedFile, ...]:
    """The files beneath the adapters but for those that were saved anew."""
    planned = plan_checkout(beneath.files, [], "merged")
    if weights.folder is None:
        return planned
    return tuple(file for file in planned if file.path not in beneath.weights and file.path not in (INDEX, CONFIG))


def _saved(weights: _Weights) -> list[Path]:
    """The files that were saved anew; the config is among them: a head that was added has another class of model."""
    return [] if weights.folder is None else [weights.folder / CONFIG, *sorted(weights.folder.glob("model*"))]


def _write_files(
    store: Store, beneath: ComposedCheckpoint, weights: _Weights, writer: DirectoryWriter, progress: Progress | None
) -> tuple[CheckoutFile, ...]:
    planned = _kept(beneath, weights)
    meter = Meter(progress, sum(file.size for file in planned))
    files = []
    for file in planned:
        if file.path in beneath.weights and weights.merged:
            chunks: Iterator[bytes | memoryview] = _merged_file(store, file.source, weights.merged)
            digest = writer.write_file(file.path, metered(chunks, f"writing {file.path}", meter), None, file.size)
        else:
            (digest,) = write_files(store, writer, [file], meter, "writing")
        files.append(CheckoutFile(file.path, digest, file.size))
    for path in _saved(weights):
        size = path.stat().st_size
        files.append(CheckoutFile(path.name, writer.write_file(path.name, _read(path), None, size), size))
    return tuple(sorted(files, key=lambda file: file.path))


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def _merged_file(store: Store, source: FileSource, merged: Mapping[str, Merged]) -> Iterator[bytes | memoryview]:
    """A safetensors file with some tensors' bytes replaced: same header, same layout."""
    if isinstance(source, FileEntry):
        assert source.manifest is not None, "primary weights have a manifest"
        manifest = store.record(source.manifest, FileManifest)
        source = ComposedWeights(manifest.header, manifest.tensors, source.size)
    assert isinstance(source, ComposedWeights), "weights are tensors under a header"
    yield from store.content(source.header) if isinstance(source.header, ContentId) else [source.header]
    for tensor in source.tensors:
        make = merged.get(tensor.name)
        if make is None:
            yield from store.content(tensor.tensor.content)
        else:
            yield from make()


class _Rows:
    """A stored tensor's rows in order, out of one verified pass over its content."""

    def __init__(self, store: Store, tensor: StoredTensor) -> None:
        self._chunks = store.content(tensor.content)
        self._row = tensor.size // max(1, tensor.shape[0])
        self._rows = tensor.shape[0]
        self._buffer = bytearray()

    def read(self, start: int, count: int) -> bytes:
        """The next ``count`` rows; ``start`` only ever goes forward."""
        wanted = count * self._row
        last = start + count >= self._rows
        # The content's digest is checked at its very end: the last rows are not given out before.
        while (last or len(self._buffer) < wanted) and (chunk := next(self._chunks, None)) is not None:
            self._buffer += chunk
        rows = bytes(self._buffer[:wanted])
        del self._buffer[:wanted]
        return rows


def plain_merged(store: Store, plan: MergePlan, beneath: Mapping[str, StoredTensor]) -> dict[str, Merged]:
    """What plain LoRA makes of the tensors that it changes, by name; each is read and summed when its bytes are taken.

    Args:
        store: The repository.
        plan: One with ``terms``.
        beneath: Every tensor beneath the adapters.
    """

    def merged(name: str) -> Merged:
        def make() -> Iterator[bytes]:
            tensor = beneath[name]
            return merged_rows(store, tensor, plan.terms[name], _Rows(store, tensor).read)

        return make

    return {name: merged(name) for name in plan.terms}


def _by_peft(
    store: Store, composition: Composition, plan: MergePlan, beneath: Mapping[str, StoredTensor], folder: Path
) -> _Weights:
    """Merges through peft in fp32 and casts once, tensor by tensor, to the stored element type."""
    merge = PeftMerge(store, composition)
    if plan.added:
        merge.save(folder, beneath)
        return _Weights({}, folder)
    value = merge.reader(beneath)

    def merged(name: str) -> Merged:
        def make() -> Iterator[bytes]:
            import torch

            yield value(name).reshape(-1).view(torch.uint8).numpy().tobytes()

        return make

    return _Weights({name: merged(name) for name in plan.by_peft})
