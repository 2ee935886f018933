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
        tests: A file below ``tests/``.
        select: Which tests of it, as ``pytest -k`` takes it, all where it is empty; one of them must fail.
    """

    name: str
    file: str
    before: str
    after: str
    tests: str
    select: str = ""


FAULTS: Final = (
    Fault(
        "a ref moves without a look at where it is",
        "catalog/writer.py",
        "            if found.get(change.ref) != change.before:",
        "            if False:",
        "unit/test_catalog_operations.py",
        "",
    ),
    Fault(
        "writers take no lock",
        "storage/locks.py",
        '    with shared(folder / "lock", WRITER_WAIT_SECONDS):\n        yield',
        "    yield",
        "unit/test_operations_repack.py",
        "test_nobody_writes_meanwhile",
    ),
    Fault(
        "maintenance takes no lock",
        "storage/locks.py",
        '    with exclusive(folder / "lock", MAINTENANCE_WAIT_SECONDS):\n        yield',
        "    yield",
        "unit/test_operations_repack.py",
        "test_nobody_writes_meanwhile",
    ),
    Fault(
        "writers pass by the gate",
        "storage/locks.py",
        "            acquire(entrance, path, exclusive=exclusive, wait_seconds=wait_seconds)\n",
        "",
        "unit/test_storage_locks.py",
        "",
    ),
    Fault(
        "what refers to nothing is published",
        "transaction.py",
        "            self._require_whole(reader)\n",
        "            pass\n",
        "unit/test_transaction.py",
        "",
    ),
    Fault(
        "a pack is published without fsync",
        "storage/durable.py",
        "            if durable:\n                os.fsync(self._descriptor)\n",
        "",
        "unit/test_storage_disk.py",
        "test_publishing_makes_the_file_then_its_folders_durable",
    ),
    Fault(
        "a new name is not made durable",
        "storage/durable.py",
        "        for folder in folders if durable else ():\n            fsync_directory(folder)\n",
        "",
        "unit/test_storage_disk.py",
        "test_publishing_makes_the_file_then_its_folders_durable",
    ),
    Fault(
        "the log's line is acknowledged before it is durable",
        "storage/durable.py",
        "            view = view[os.write(descriptor, view) :]\n        os.fsync(descriptor)\n",
        "            view = view[os.write(descriptor, view) :]\n",
        "unit/test_storage_refs_log.py",
        "test_one_fsync_whatever_is_appended",
    ),
    Fault(
        "SQLite does not wait for the disk",
        "catalog/engine.py",
        "PRAGMA synchronous=EXTRA",
        "PRAGMA synchronous=OFF",
        "unit/test_catalog_transactions.py",
        "test_connections_are_set_up_for_durability",
    ),
    Fault(
        "the log is appended to without its lock",
        "storage/refs_log.py",
        "                acquire(descriptor, self._path, exclusive=True, wait_seconds=wait_seconds)\n",
        "",
        "unit/test_storage_refs_log.py",
        "test_the_lock_is_exclusive_and_ends_with_the_block",
    ),
    Fault(
        "a line of the log is believed whatever its checksum",
        "storage/refs_log.py",
        '    return len(raw) > 17 and raw[:17] == f"{checksum(memoryview(raw)[17:]):016x} ".encode()',
        "    return len(raw) > 17",
        "unit/test_storage_refs_log.py",
        "",
    ),
    Fault(
        "a line of the log need not follow from the one before",
        "storage/refs_log.py",
        "        if line.previous != before.encode() or line.sequence != number:",
        "        if False:",
        "unit/test_storage_refs_log.py",
        "",
    ),
    Fault(
        "a content's digest is not compared",
        "storage/decoding.py",
        "self.digest.hexdigest() != self.wanted.content.content",
        "False",
        "unit/test_storage_reading.py",
        "",
    ),
    Fault(
        "a frame's checksum is not compared",
        "storage/pack_reader.py",
        "        if checksum(stored) != entry.checksum:",
        "        if False:",
        "unit/test_storage_packs.py",
        "test_a_damaged_frame_names_content_and_pack_and_leaves_the_others",
    ),
    Fault(
        "an index is believed whatever the pack is called",
        "storage/pack_reader.py",
        '        if digest.hexdigest() != self._pack:\n            raise malformed(self._pack, "its index is damaged")',
        "        pass",
        "unit/test_storage_packs.py",
        "keeps_every_rule",
    ),
    Fault(
        "a file that is checked out may have any digest",
        "checkpoints/checkout_writer.py",
        "        if sha256 is not None and found != sha256:",
        "        if False:",
        "unit/test_checkpoints_checkout_writer.py",
        "test_other_bytes_than_recorded_are_refused",
    ),
    Fault(
        "the last of two equal keys wins",
        "objects/canonical.py",
        "    if len(found) != len(pairs):",
        "    if False:",
        "unit/test_objects_canonical.py",
        "",
    ),
    Fault(
        "JSON may nest without end",
        "objects/canonical.py",
        "    if depth > limits.JSON_DEPTH:",
        "    if False:",
        "unit/test_objects_canonical.py",
        "",
    ),
    Fault(
        "a record may be spelled in many ways",
        "objects/canonical.py",
        "    if encode_json(body) != raw:",
        "    if False:",
        "unit/test_objects_canonical.py",
        "",
    ),
    Fault(
        "a frame may declare more than it should",
        "storage/compressors.py",
        "    if header.content_size != raw_length:",
        "    if False:",
        "unit/test_storage_codecs.py",
        "",
    ),
    Fault(
        "a header may be as long as it says",
        "checkpoints/safetensors_header.py",
        "    if length > cap:",
        "    if False:",
        "unit/test_checkpoints_safetensors_header.py",
        "",
    ),
    Fault(
        "tensors may overlap",
        "checkpoints/safetensors_header.py",
        "        if span.begin < position:",
        "        if False:",
        "unit/test_checkpoints_safetensors_header.py",
        "",
    ),
    Fault(
        "two names may be one where case is folded",
        "objects/paths.py",
        'unicodedata.normalize("NFC", path).casefold()',
        'unicodedata.normalize("NFC", path)',
        "unit/test_objects_paths.py",
        "",
    ),
    Fault(
        "a pack is read through a symbolic link",
        "storage/disk.py",
        "os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_CLOEXEC | os.O_NONBLOCK",
        "unit/test_storage_disk.py",
        "",
    ),
    Fault(
        "a checkout follows symbolic links",
        "checkpoints/open_beneath.py",
        "os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
        "os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
        "unit/test_checkpoints_checkout_writer.py",
        "",
    ),
    Fault(
        "opening does not bring refs.log up to date",
        "repository.py",
        "        elif log_sequence < sequence:\n            self.append_operations()",
        "        elif log_sequence < sequence:\n            pass",
        "unit/test_operations_durability.py",
        "TestReconciling",
    ),
    Fault(
        "the last copy of something is forgotten",
        "catalog/forgetting.py",
        "                if last.content not in unneeded:",
        "                if False:",
        "unit/test_repack_bases.py",
        "",
    ),
    Fault(
        "a file that was read in the future counts as known",
        "operations/stat_cache_entries.py",
        "        return self.read_ns <= now_ns and self",
        "        return self",
        "unit/test_stat_cache.py",
        "",
    ),
    Fault(
        "another user's repository is opened",
        "opening.py",
        "    if owner not in (os.geteuid(), 0):",
        "    if False:",
        "hostile/test_foreign_owner.py",
        "",
    ),
    Fault(
        "a new pack's folder is not made durable",
        "storage/disk.py",
        "        fsync_directory(destination.parent.parent)\n",
        "",
        "crash/test_power_simulated.py",
        "joining",
    ),
    Fault(
        "a pack need not outlive a power cut",
        "storage/disk.py",
        "published = self._file.publish(destination)",
        "published = self._file.publish(destination, durable=False)",
        "crash/test_power_simulated.py",
        "writing",
    ),
    Fault(
        "a new log's name is not made durable",
        "storage/refs_log.py",
        "                if new:\n                    fsync_directory(self._path.parent)\n",
        "",
        "crash/test_power_simulated.py",
        "joining",
    ),
    Fault(
        "a repository's folder need not outlive a power cut",
        "repository.py",
        "dict.fromkeys((root, *changed))",
        "()",
        "crash/test_power_simulated.py",
        "beginning",
    ),
    Fault(
        "a command is done before its line is in the log",
        "transaction.py",
        "                self._store.append_operations()\n",
        "                pass\n",
        "crash/test_power_simulated.py",
        "writing",
    ),
    Fault(
        "what a living process writes is taken for left over",
        "storage/liveness.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "unit/test_leftovers.py",
        "living",
    ),
    Fault(
        "a note may have any folder removed",
        "operations/leftovers.py",
        "return directory if is_temporary_name(directory.name) else None",
        "return directory",
        "unit/test_leftovers.py",
        "another_name",
    ),
    Fault(
        "a second signal cuts the clean-up short",
        "cli/signals.py",
        "if _State.count != _IGNORED_WHILE_CLEANING:",
        "if True:",
        "crash/test_signals.py",
        "checkout_behind",
    ),
    Fault(
        "evidence goes by a clock that was set back",
        "operations/evidence_time.py",
        "if latest < now or not",
        "if True or not",
        "hostile/test_clocks.py",
        "statement",
    ),
    Fault(
        "the trash is emptied of what lies in the future",
        "operations/gc_plan.py",
        "    return now - trashed.since >= grace_seconds",
        "    return abs(now - trashed.since) >= grace_seconds",
        "hostile/test_clocks.py",
        "gc",
    ),
    Fault(
        "fsck does not compare a frame's checksum",
        "storage/pack_check.py",
        "if checksum(room[entry.offset - first : entry.offset - first + entry.stored_length]) != entry.checksum:",
        "if False:",
        "hostile/test_rot.py",
        "every_byte",
    ),
    Fault(
        "a whole copy does not serve for a damaged one",
        "contents.py",
        "return self.pack(location.pack).read_small(location, max_bytes, any_copy=True)",
        "return self.pack(location.pack).read_small(location, max_bytes)",
        "unit/test_contents.py",
        "whole_copy",
    ),
    Fault(
        "a source of repair is believed",
        "operations/repair.py",
        "if one.content != found.content:",
        "if False:",
        "unit/test_operations_repair.py",
        "source_that_changes",
    ),
    Fault(
        "a newline that rotted takes acknowledged lines with it",
        "storage/refs_log.py",
        "if damage is None and not _is_intact(data[position:]) and intact_operations",
        "if False and intact_operations",
        "unit/test_storage_refs_log.py",
        "newline",
    ),
    Fault(
        "what differences rest on is collected",
        "operations/gc_plan.py",
        "if beneath <= reached.contents:",
        "if True:",
        "unit/test_operations_gc.py",
        "taken_from_stays",
    ),
    Fault(
        "gc spares nothing that is young",
        "operations/gc_marking.py",
        "age < grace_seconds, shared",
        "False, shared",
        "unit/test_operations_gc.py",
        "young_pack",
    ),
    Fault(
        "gc goes by a plan that holds no more",
        "operations/gc.py",
        "if look(store) != plan.seen:",
        "if False:",
        "unit/test_operations_gc_cut_off.py",
        "between_plan",
    ),
    Fault(
        "gc does not wait for writers",
        "operations/gc.py",
        "with store.maintenance():",
        "if True:",
        "unit/test_operations_gc_cut_off.py",
        "writer_at_work",
    ),
)
