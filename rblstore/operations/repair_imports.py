"""The records that importing a directory would make, without storing anything."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rblstore.checkpoints.checkout_layout import BEHAVIORS_FOLDER, MANIFEST_FILE
from rblstore.checkpoints.source_directory import SourceDirectory, SourceFile, scan_directory
from rblstore.checkpoints.stored_checkpoint import StoredCheckpoint
from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.content_records import FileEntry, FileManifest, Identity, NamedTensor, StoredTensor, tensor_root
from rblstore.objects.ids import ContentId, FileManifestId, RecordId
from rblstore.objects.record import Record
from rblstore.operations.progress import Meter
from rblstore.operations.stored_models import INDEX

if TYPE_CHECKING:
    from rblstore.operations.repair_sources import FileSource

_Known = dict[tuple[Path, tuple[str, ...]], tuple[FileEntry, FileManifest | None]]


def records_of_checkpoints(source: FileSource) -> dict[RecordId, bytes]:
    """File manifests of all safetensors files in a directory, and the identities that it and its folders would become.

    Args:
        source: The directory; a single file has a manifest alone.

    Returns:
        Records by id. What cannot be read, or would be refused by a commit, is left out.
    """
    files = list(source.files())
    meter = Meter(source.progress, sum(file.size for file in files))
    records: dict[RecordId, bytes] = {}
    known: _Known = {}
    folders = [source.path] if source.path.is_dir() else []
    folders += [
        source.path.joinpath(*parts)
        for parts in sorted({file.location[:-1] for file in files if file.path.endswith(".safetensors")})
        if parts and source.path.is_dir()
    ]
    for folder in folders:
        for opaque in (False, True):
            try:
                scanned = scan_directory(folder, include_opaque=opaque)
            except InputError:
                continue
            if opaque and not any(file.kind == "opaque" for file in scanned.files):
                continue
            _add_identity(_without_behaviors(scanned), known, records, meter)
    for file in files:
        loose = SourceFile(file.path, "safetensors", file.size, file.root, file.location)
        try:
            read = _read(loose, known, meter) if _has_header(loose) else None
        except InputError:
            continue
        if read is not None and read[1] is not None:
            _add(records, read[1])
    return records


def _has_header(file: SourceFile) -> bool:
    from rblstore.operations.repair_sources import header_of

    descriptor = file.open()
    try:
        return header_of(descriptor, os.fstat(descriptor).st_size) is not None
    finally:
        os.close(descriptor)


def _add(records: dict[RecordId, bytes], record: Record) -> RecordId:
    data = record.encode()
    record_id = record.id_of(data)
    records[record_id] = data
    return record_id


def _without_behaviors(scanned: SourceDirectory) -> tuple[SourceFile, ...]:
    """A checkout's own files are no part of the identity that it shows."""
    if not any(file.path == MANIFEST_FILE for file in scanned.files):
        return scanned.files
    return tuple(file for file in scanned.files if file.path.split("/")[0] not in (MANIFEST_FILE, BEHAVIORS_FOLDER))


def _add_identity(files: tuple[SourceFile, ...], known: _Known, records: dict[RecordId, bytes], meter: Meter) -> None:
    entries: list[FileEntry] = []
    manifests: dict[str, FileManifest] = {}
    index: bytes | None = None
    try:
        for file in files:
            entry, manifest = _read(file, known, meter)
            entries.append(FileEntry(file.path, entry.sha256, entry.size, entry.manifest))
            if manifest is not None:
                manifests[file.path] = manifest
            if file.path == INDEX:
                index = file.read(limits.RECORD_BYTES)
        checkpoint = StoredCheckpoint(tuple(entries), manifests, index)
        if checkpoint.tensors:
            _add(records, Identity(checkpoint.files, tensor_root(checkpoint.tensors.items())))
    except InputError:
        return  # a commit would refuse it, so no identity was ever made of it


def _read(file: SourceFile, known: _Known, meter: Meter) -> tuple[FileEntry, FileManifest | None]:
    from rblstore.operations.repair_sources import digest_of, header_of

    key = (file.root, file.location)
    kept = known.get(key)
    # A safetensors file under another name is kept whole by a commit.
    if kept is not None and (kept[1] is None or file.kind == "safetensors"):
        return kept
    descriptor = file.open()
    try:
        size = os.fstat(descriptor).st_size
        header = header_of(descriptor, size) if file.kind == "safetensors" else None
        if header is None:
            found: tuple[FileEntry, FileManifest | None] = (
                FileEntry(file.path, digest_of(descriptor, 0, size), size),
                None,
            )
        else:
            whole = hashlib.sha256(header.raw)
            tensors = tuple(
                NamedTensor(
                    span.name,
                    StoredTensor(
                        span.dtype,
                        span.shape,
                        digest_of(descriptor, header.data_offset + span.begin, span.size, whole.update),
                    ),
                )
                for span in header.tensors
            )
            manifest = FileManifest(ContentId(hashlib.sha256(header.raw).hexdigest()), tensors)
            manifest_id = FileManifestId(manifest.id_of(manifest.encode()))
            found = FileEntry(file.path, ContentId(whole.hexdigest()), size, manifest_id), manifest
    finally:
        os.close(descriptor)
    meter.add("reading checkpoints", size)
    known[key] = found
    return found
