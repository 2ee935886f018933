"""Reading a directory's files into a transaction: one pass over each, digests on the way, none over what is known."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rblstore.checkpoints.not_a_number import NanCounter
from rblstore.checkpoints.safetensors_header import SafetensorsHeader, TensorSpan, read_header
from rblstore.checkpoints.source_directory import (
    BadDirectoryError,
    SourceDirectory,
    SourceFile,
    TruncatedFileError,
    read_exact,
    read_exactly_into,
)
from rblstore.objects.content_records import FileEntry, FileManifest, NamedTensor, StoredTensor
from rblstore.objects.dtypes import BITS
from rblstore.objects.ids import ContentId, FileManifestId
from rblstore.operations.progress import Meter
from rblstore.operations.stat_cache import FileStamp, KnownFile, StatCache
from rblstore.storage.encoding import SourceChangedError
from rblstore.storage.pack_writer import AddedContent
from rblstore.transaction import Transaction

_NOTES = 5


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


class _OpenFile:
    """Reads of one file by pread, hashing the whole file as its bytes come by for the first time."""

    def __init__(self, descriptor: int, stage: str, meter: Meter, *, whole: bool) -> None:
        self._descriptor = descriptor
        self._stage = stage
        self._meter = meter
        self._passed = 0
        # A file that is one content is hashed as that.
        self._digest = None if whole else hashlib.sha256()

    def at(self, offset: int, length: int) -> bytes:
        """Bytes of a range, not hashed."""
        return read_exact(self._descriptor, offset, length)

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fills ``out`` with the bytes at an offset."""
        read_exactly_into(self._descriptor, offset, out)
        self.pass_by(out, offset)

    def pass_by(self, data: memoryview | bytes, offset: int) -> None:
        """Hashes bytes that follow what was hashed last; what is read again was hashed before."""
        if offset == self._passed:
            if self._digest is not None:
                self._digest.update(data)
            self._passed += len(data)
            self._meter.add(self._stage, len(data))

    def digest(self) -> ContentId:
        """SHA-256 of a file of several contents, once all of it has come by."""
        if self._digest is None:
            raise ValueError("a file kept whole has the digest of its content")
        return ContentId(self._digest.hexdigest())


@dataclass(frozen=True)
class _Span:
    """A range of an open file: a tensor, or the whole of it."""

    file: _OpenFile
    begin: int
    size: int

    def read_into(self, out: memoryview, start: int) -> None:
        self.file.read_into(out, self.begin + start)


@dataclass(frozen=True)
class _Tensor:
    """A tensor on its way into the store."""

    span: TensorSpan
    added: AddedContent
    nans: NanCounter


@dataclass(frozen=True)
class _Tensors:
    """A safetensors file on its way into the store."""

    sha256: ContentId
    header: AddedContent
    tensors: tuple[_Tensor, ...]


@dataclass(frozen=True)
class _Read:
    """A file that was read, and whose contents may not be hashed yet."""

    source: Path
    path: str
    stamp: FileStamp
    read_ns: int
    found: AddedContent | _Tensors


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
    cache: StatCache,
    beneath: Mapping[str, StoredTensor] | None = None,
) -> StoredFiles:
    """Stores every file of a directory: safetensors tensor by tensor, anything else whole.

    Args:
        transaction: Where the contents and manifests go.
        source: The scanned directory.
        meter: Is told every byte read.
        cache: Knows files that have not changed since they were read last; those are not read.
        beneath: What lies under these files, by tensor name: what a tensor may be stored as a difference from.

    Raises:
        BadSafetensorsError: A header that lies.
        SourceChangedError: A file was written to meanwhile.
    """
    known: dict[str, KnownFile] = {}
    read: list[_Read] = []
    for file in source.files:
        found = _look_or_read(transaction, source, file, meter, cache, beneath or {})
        if isinstance(found, _Read):
            read.append(found)
        else:
            known[file.path] = found
    # Only now is anything waited for: the threads hash and encode one file while the next one is read.
    for one in read:
        known[one.path] = what = _settle(transaction, one)
        cache.remember(one.source, one.stamp, one.read_ns, what)
    entries = tuple(FileEntry(path, what.sha256, what.size, what.manifest) for path, what in sorted(known.items()))
    return StoredFiles(
        entries,
        {path: what.record for path, what in known.items() if what.record is not None},
        tuple(f"{path}: {note}" for path, what in known.items() for note in what.notes),
        sum(entry.size for entry in entries),
    )


def _look_or_read(
    transaction: Transaction,
    source: SourceDirectory,
    file: SourceFile,
    meter: Meter,
    cache: StatCache,
    beneath: Mapping[str, StoredTensor],
) -> KnownFile | _Read:
    path = source.path / file.path
    safetensors = file.kind == "safetensors"
    descriptor = file.open()
    try:
        read_ns = time.time_ns()
        stamp = FileStamp.of(os.fstat(descriptor))
        known = cache.lookup(path, stamp)
        if known is not None and (known.record is not None) == safetensors:
            meter.add(f"known {file.path}", stamp.size)
            return known
        opened = _OpenFile(descriptor, f"reading {file.path}", meter, whole=not safetensors)
        found: AddedContent | _Tensors
        if safetensors:
            header = read_header(opened.at, stamp.size, name=file.path)
            found = _read_tensors(transaction, opened, header, beneath)
        else:
            found = transaction.add_source(_Span(opened, 0, stamp.size))
        if FileStamp.of(os.fstat(descriptor)) != stamp:
            raise changed_meanwhile(path)
        return _Read(path, file.path, stamp, read_ns, found)
    except (SourceChangedError, TruncatedFileError) as error:
        raise changed_meanwhile(path) from error  # one that is cut off was longer when it was opened
    except BadDirectoryError as error:
        raise BadDirectoryError(f"{file.path}: {error.message}", object=str(path), hint=error.hint) from error
    finally:
        os.close(descriptor)


def _read_tensors(
    transaction: Transaction, opened: _OpenFile, header: SafetensorsHeader, beneath: Mapping[str, StoredTensor]
) -> _Tensors:
    opened.pass_by(header.raw, 0)
    added = transaction.add_content([header.raw])
    tensors = []
    below = ((span, beneath.get(span.name)) for span in header.tensors)
    under = {span.name: one.content for span, one in below if one is not None and one.is_like(span)}
    stored = transaction.stored_of(under.values())
    for span in header.tensors:
        nans = NanCounter(span.dtype)
        tensor = transaction.add_source(
            _Span(opened, len(header.raw) + span.begin, span.end - span.begin),
            element_width=BITS[span.dtype] // 8,
            beneath=stored.get(under[span.name]) if span.name in under else None,
            inspect=nans.update,
        )
        tensors.append(_Tensor(span, tensor, nans))
    return _Tensors(opened.digest(), added, tuple(tensors))


def _settle(transaction: Transaction, read: _Read) -> KnownFile:
    """What a file is, once everything in it has been hashed."""
    found = read.found
    if isinstance(found, AddedContent):
        return KnownFile(found.content, read.stamp.size)
    tensors = tuple(
        NamedTensor(tensor.span.name, StoredTensor(tensor.span.dtype, tensor.span.shape, tensor.added.content))
        for tensor in found.tensors
    )
    manifest = FileManifest(found.header.content, tensors)
    notes = nan_notes([(tensor.span.name, tensor.nans.count) for tensor in found.tensors if tensor.nans.count])
    manifest_id = FileManifestId(transaction.add_record(manifest))
    return KnownFile(found.sha256, read.stamp.size, manifest_id, tuple(notes), manifest)


def nan_notes(with_nan: Sequence[tuple[str, int]]) -> list[str]:
    """What a person should know about tensors that hold NaN, given their names and how many."""
    notes = [f"{name} holds {count} NaN" for name, count in with_nan[:_NOTES]]
    if len(with_nan) > _NOTES:
        notes.append(f"{len(with_nan) - _NOTES} more tensors hold NaN")
    return notes
