"""Storing a snapshot's files: as store_files does it for a directory, but from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from rblstore.checkpoints.not_a_number import NanCounter
from rblstore.checkpoints.safetensors_header import encode_header, lay_out
from rblstore.live.snapshot import Snapshot, described
from rblstore.objects.content_records import FileEntry, FileManifest, NamedTensor, StoredTensor
from rblstore.objects.dtypes import BITS
from rblstore.objects.ids import ContentId, FileManifestId
from rblstore.operations.store_files import StoredFiles, nan_notes
from rblstore.transaction import Transaction


class _FileDigest:
    """SHA-256 over a file whose bytes come by in order, some of them perhaps twice."""

    def __init__(self, header: bytes) -> None:
        self._digest = hashlib.sha256(header)
        self._passed = len(header)

    def pass_by(self, data: memoryview, offset: int) -> None:
        if offset == self._passed:
            self._digest.update(data)
            self._passed += len(data)

    def digest(self) -> ContentId:
        return ContentId(self._digest.hexdigest())


class _TensorSource:
    """A tensor's bytes, read by ranges."""

    def __init__(self, tensor: Any, file: _FileDigest, offset: int) -> None:
        import torch

        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        self._bytes = tensor.reshape(-1).view(torch.uint8).numpy()
        self._file = file
        self._offset = offset
        self.size = int(self._bytes.nbytes)

    def read_into(self, out: memoryview, start: int) -> None:
        import numpy as np

        # NumPy copies without the interpreter's lock, which training waits for.
        np.copyto(np.frombuffer(out, np.uint8), self._bytes[start : start + len(out)])
        self._file.pass_by(out, self._offset + start)


def store_snapshot(
    transaction: Transaction,
    snapshot: Snapshot,
    files: Mapping[str, bytes],
    tensors: Mapping[str, Mapping[str, Any]],
    beneath: Mapping[str, StoredTensor] | None = None,
) -> StoredFiles:
    """Stores every file of a snapshot.

    Args:
        transaction: Where the contents and manifests go.
        snapshot: For the metadata of its weight files.
        files: The bytes of each file without tensors, by path.
        tensors: The tensors of each weight file, by path and name, in the form in which they are to be stored.
        beneath: What a tensor may be stored as a difference from, by its name.

    Raises:
        WriteError: The system refused.
    """
    entries, manifests, notes = [], {}, []
    for path, data in files.items():
        transaction.add_content([data])
        entries.append(FileEntry(path, ContentId(hashlib.sha256(data).hexdigest()), len(data), None))
    for path, held in tensors.items():
        entry, manifest, nans = _store_weights(transaction, path, held, snapshot.weights[path].metadata, beneath or {})
        entries.append(entry)
        manifests[path] = manifest
        notes += [f"{path}: {note}" for note in nan_notes(nans)]
    entries.sort(key=lambda entry: entry.path)
    return StoredFiles(tuple(entries), manifests, tuple(notes), sum(entry.size for entry in entries))


def _store_weights(
    transaction: Transaction,
    path: str,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None,
    beneath: Mapping[str, StoredTensor],
) -> tuple[FileEntry, FileManifest, list[tuple[str, int]]]:
    shapes = described(tensors)
    header = encode_header(shapes, metadata)
    spans = lay_out(shapes)
    digest = _FileDigest(header)
    added = transaction.add_content([header])
    below = ((span, beneath.get(span.name)) for span in spans)
    under = {span.name: one.content for span, one in below if one is not None and one.is_like(span)}
    stored = transaction.stored_of(under.values())
    read = []
    for span in spans:
        nans = NanCounter(span.dtype)
        content = transaction.add_source(
            _TensorSource(tensors[span.name], digest, len(header) + span.begin),
            element_width=BITS[span.dtype] // 8,
            beneath=stored.get(under[span.name]) if span.name in under else None,
            inspect=nans.update,
        )
        read.append((span, content, nans))
    # Only now is anything waited for: the threads hash and encode one tensor while the next one is copied.
    manifest = FileManifest(
        added.content,
        tuple(NamedTensor(span.name, StoredTensor(span.dtype, span.shape, one.content)) for span, one, _ in read),
    )
    size = len(header) + sum(span.size for span in spans)
    entry = FileEntry(path, digest.digest(), size, FileManifestId(transaction.add_record(manifest)))
    return entry, manifest, [(span.name, nans.count) for span, _, nans in read if nans.count]
