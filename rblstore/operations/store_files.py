"""Reading a directory's files into a transaction: one pass over each, digests on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rblstore.checkpoints.not_a_number import NanCounter
from rblstore.checkpoints.safetensors_header import SafetensorsHeader, read_header
from rblstore.checkpoints.source_directory import SourceDirectory, SourceFile, read_exact
from rblstore.errors import ConflictError
from rblstore.objects.content_records import FileEntry, FileManifest, NamedTensor, StoredTensor
from rblstore.objects.dtypes import BITS
from rblstore.objects.ids import ContentId, FileManifestId
from rblstore.operations.progress import Meter
from rblstore.transaction import Transaction

CHUNK = 1 << 20


class SourceChangedError(ConflictError):
    """A file was written to while it was being read."""

    code = "source_changed"


@dataclass(frozen=True)
class StoredFiles:
    """What a directory became.

    Attributes:
        entries: One a file, sorted by path.
        manifests: The manifest of each safetensors file, by path.
        warnings: What a person should know about the values.
        raw: Bytes of all files.
    """

    entries: tuple[FileEntry, ...]
    manifests: dict[str, FileManifest]
    warnings: tuple[str, ...]
    raw: int


class _FileReader:
    """Sequential reads of one file by pread, hashing the whole file as they pass."""

    def __init__(self, descriptor: int, stage: str, meter: Meter) -> None:
        self._descriptor = descriptor
        self._stage = stage
        self._meter = meter
        self._digest = hashlib.sha256()

    def at(self, offset: int, length: int) -> bytes:
        """Bytes of a range, not hashed."""
        return read_exact(self._descriptor, offset, length)

    def pass_through(self, data: bytes) -> None:
        self._digest.update(data)
        self._meter.add(self._stage, len(data))

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        """The bytes of the range that follows what was hashed last."""
        end = start + length
        while start < end:
            data = self.at(start, min(CHUNK, end - start))
            self.pass_through(data)
            yield data
            start += len(data)

    def digest(self) -> ContentId:
        return ContentId(self._digest.hexdigest())


def _stamp(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def changed_meanwhile(path: Path) -> SourceChangedError:
    """What is raised where a file that was read is no longer what it was."""
    return SourceChangedError(
        f"{path} was written to while it was read",
        object=str(path),
        hint="Run the command again once nothing writes to it.",
    )


def store_files(
    transaction: Transaction,
    source: SourceDirectory,
    meter: Meter,
    beneath: Mapping[str, StoredTensor] | None = None,
) -> StoredFiles:
    """Stores every file of a directory: safetensors tensor by tensor, anything else whole.

    Args:
        transaction: Where the contents and manifests go.
        source: The scanned directory.
        meter: Is told every byte read.
        beneath: What lies under these files, by tensor name: what a tensor may be stored as a difference from.

    Raises:
        BadSafetensorsError: A header that lies.
        SourceChangedError: A file was written to meanwhile.
    """
    entries, manifests, warnings = [], {}, []
    for file in source.files:
        descriptor = file.open()
        try:
            before = _stamp(descriptor)
            reader = _FileReader(descriptor, f"reading {file.path}", meter)
            if file.kind == "safetensors":
                manifest, notes = _store_safetensors(transaction, reader, file, before[0])
                manifest_id = FileManifestId(transaction.add_record(manifest))
                manifests[file.path] = manifest
                warnings += notes
                entry = FileEntry(file.path, reader.digest(), before[0], manifest_id)
            else:
                added = transaction.add_content(reader.chunks(0, before[0]))
                entry = FileEntry(file.path, added.content, before[0])
            if _stamp(descriptor) != before:
                raise changed_meanwhile(source.path / file.path)
        finally:
            os.close(descriptor)
        entries.append(entry)
    entries.sort(key=lambda entry: entry.path)
    raw = sum(entry.size for entry in entries)
    return StoredFiles(tuple(entries), manifests, tuple(warnings), raw)


def _store_safetensors(
    transaction: Transaction, reader: _FileReader, file: SourceFile, size: int
) -> tuple[FileManifest, list[str]]:
    header: SafetensorsHeader = read_header(reader.at, size, name=file.path)
    reader.pass_through(header.raw)
    added = transaction.add_content([header.raw])
    header_content = added.content
    tensors, with_nan = [], []
    for span in header.tensors:
        counter = NanCounter(span.dtype)
        chunks = reader.chunks(len(header.raw) + span.begin, span.end - span.begin)
        added = transaction.add_content(_counted(chunks, counter), element_width=BITS[span.dtype] // 8)
        tensors.append(NamedTensor(span.name, StoredTensor(span.dtype, span.shape, added.content)))
        if counter.count:
            with_nan.append((span.name, counter.count))
    notes = [f"{file.path}: {name} holds {count} NaN" for name, count in with_nan[:5]]
    if len(with_nan) > len(notes):
        notes.append(f"{file.path}: {len(with_nan) - len(notes)} more tensors hold NaN")
    return FileManifest(header_content, tuple(tensors)), notes


def _counted(chunks: Iterator[bytes], counter: NanCounter) -> Iterator[bytes]:
    for chunk in chunks:
        counter.update(memoryview(chunk))
        yield chunk
