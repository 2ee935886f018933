"""Small faults, each of which the suite must notice: what to change where, and a test that goes red for it.

Every ``before`` stands exactly once in its file. A fault that no test notices is a hole in the tests, never a reason to
take the fault out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: What is broken, in words.
        file: Below ``rblstore/``.
        before: Text of the file.
        after: What a careless hand would make of it.
        tests: Tests below ``tests/`` of which at least one must fail; each as pytest takes it.
    """

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


FAULTS: Final = (
    Fault(
        "a ref moves without a look at where it is",
        "catalog/writer.py",
        "            if found.get(change.ref) != change.before:",
        "            if False:",
        ("unit/test_catalog_operations.py",),
    ),
    Fault(
        "writers take no lock",
        "storage/locks.py",
        '    with shared(folder / "lock", WRITER_WAIT_SECONDS):\n        yield',
        "    yield",
        ("unit/test_operations_repack.py::test_nobody_writes_meanwhile",),
    ),
    Fault(
        "maintenance takes no lock",
        "storage/locks.py",
        '    with exclusive(folder / "lock", MAINTENANCE_WAIT_SECONDS):\n        yield',
        "    yield",
        ("unit/test_operations_repack.py::test_nobody_writes_meanwhile",),
    ),
    Fault(
        "writers pass by the gate",
        "storage/locks.py",
        "            acquire(entrance, path, exclusive=exclusive, wait_seconds=wait_seconds)\n",
        "",
        ("unit/test_storage_locks.py",),
    ),
    Fault(
        "what refers to nothing is published",
        "transaction.py",
        "            self._require_whole(reader)\n",
        "            pass\n",
        ("unit/test_transaction.py",),
    ),
    Fault(
        "a pack is published without fsync",
        "storage/durable.py",
        "            if durable:\n                os.fsync(self._descriptor)\n",
        "",
        ("unit/test_storage_disk.py::test_publishing_makes_the_file_then_its_folders_durable",),
    ),
    Fault(
        "a new name is not made durable",
        "storage/durable.py",
        "        for folder in folders if durable else ():\n            fsync_directory(folder)\n",
        "",
        ("unit/test_storage_disk.py::test_publishing_makes_the_file_then_its_folders_durable",),
    ),
    Fault(
        "the log's line is acknowledged before it is durable",
        "storage/durable.py",
        "            view = view[os.write(descriptor, view) :]\n        os.fsync(descriptor)\n",
        "            view = view[os.write(descriptor, view) :]\n",
        ("unit/test_storage_refs_log.py::test_one_fsync_whatever_is_appended",),
    ),
    Fault(
        "SQLite does not wait for the disk",
        "catalog/engine.py",
        "PRAGMA synchronous=EXTRA",
        "PRAGMA synchronous=OFF",
        ("unit/test_catalog_transactions.py::test_connections_are_set_up_for_durability",),
    ),
    Fault(
        "the log is appended to without its lock",
        "storage/refs_log.py",
        "                acquire(descriptor, self._path, exclusive=True, wait_seconds=wait_seconds)\n",
        "",
        ("unit/test_storage_refs_log.py::test_the_lock_is_exclusive_and_ends_with_the_block",),
    ),
    Fault(
        "a line of the log is believed whatever its checksum",
        "storage/refs_log.py",
        '    return len(raw) > 17 and raw[:17] == f"{checksum(memoryview(raw)[17:]):016x} ".encode()',
        "    return len(raw) > 17",
        ("unit/test_storage_refs_log.py",),
    ),
    Fault(
        "a line of the log need not follow from the one before",
        "storage/refs_log.py",
        "        if line.previous != before.encode() or line.sequence != number:",
        "        if False:",
        ("unit/test_storage_refs_log.py",),
    ),
    Fault(
        "a content's digest is not compared",
        "storage/decoding.py",
        "self.digest.hexdigest() != self.wanted.content.content",
        "False",
        ("unit/test_storage_reading.py",),
    ),
    Fault(
        "a frame's checksum is not compared",
        "storage/pack_reader.py",
        "        if checksum(stored) != entry.checksum:",
        "        if False:",
        ("unit/test_storage_reading.py::test_every_frame_of_a_pack_that_rotted_is_found",),
    ),
    Fault(
        "an index is believed whatever the pack is called",
        "storage/pack_reader.py",
        '        if digest.hexdigest() != self._pack:\n            raise malformed(self._pack, "its index is damaged")',
        "        pass",
        ("unit/test_operations_durability.py::TestDamage",),
    ),
    Fault(
        "a file that is checked out may have any digest",
        "checkpoints/checkout_writer.py",
        "        if sha256 is not None and found != sha256:",
        "        if False:",
        ("unit/test_checkpoints_checkout_writer.py::test_other_bytes_than_recorded_are_refused",),
    ),
    Fault(
        "the last of two equal keys wins",
        "objects/canonical.py",
        "    if len(found) != len(pairs):",
        "    if False:",
        ("unit/test_objects_canonical.py",),
    ),
    Fault(
        "JSON may nest without end",
        "objects/canonical.py",
        "    if depth > limits.JSON_DEPTH:",
        "    if False:",
        ("unit/test_objects_canonical.py",),
    ),
    Fault(
        "a record may be spelled in many ways",
        "objects/canonical.py",
        "    if encode_json(body) != raw:",
        "    if False:",
        ("unit/test_objects_canonical.py",),
    ),
    Fault(
        "a frame may declare more than it should",
        "storage/compressors.py",
        "    if header.content_size != raw_length:",
        "    if False:",
        ("unit/test_storage_codecs.py",),
    ),
    Fault(
        "a header may be as long as it says",
        "checkpoints/safetensors_header.py",
        "    if length > cap:",
        "    if False:",
        ("unit/test_checkpoints_safetensors_header.py",),
    ),
    Fault(
        "tensors may overlap",
        "checkpoints/safetensors_header.py",
        "        if span.begin < position:",
        "        if False:",
        ("unit/test_checkpoints_safetensors_header.py",),
    ),
    Fault(
        "a path may climb",
        "objects/paths.py",
        '    if component in ("", ".", ".."):',
        '    if component in ("", "."):',
        ("unit/test_objects_paths.py",),
    ),
    Fault(
        "two names may be one where case is folded",
        "objects/paths.py",
        "        if key in seen:",
        "        if False:",
        ("unit/test_objects_paths.py",),
    ),
    Fault(
        "a pack is read through a symbolic link",
        "storage/disk.py",
        "os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_CLOEXEC | os.O_NONBLOCK",
        ("unit/test_storage_disk.py",),
    ),
    Fault(
        "a checkout follows symbolic links",
        "checkpoints/open_beneath.py",
        "os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
        "os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
        ("unit/test_checkpoints_checkout_writer.py",),
    ),
    Fault(
        "opening does not bring refs.log up to date",
        "repository.py",
        "        elif log_sequence < sequence:\n            self.append_operations()",
        "        elif log_sequence < sequence:\n            pass",
        ("unit/test_operations_durability.py::TestReconciling",),
    ),
    Fault(
        "the last copy of something is forgotten",
        "catalog/writer.py",
        "            if last is not None:",
        "            if False:",
        ("unit/test_operations_repack.py",),
    ),
    Fault(
        "a file that was read in the future counts as known",
        "operations/stat_cache_entries.py",
        "        return self.read_ns <= now_ns and self",
        "        return self",
        ("unit/test_stat_cache.py",),
    ),
    Fault(
        "another user's repository is opened",
        "opening.py",
        "    if owner not in (os.geteuid(), 0):",
        "    if False:",
        ("hostile/test_foreign_owner.py",),
    ),
)
