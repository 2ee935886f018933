"""The kernel: one open repository, its records, contents and refs, and the one transaction that publishes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rblstore.catalog.database import Catalog
from rblstore.catalog.reader import CatalogReader
from rblstore.catalog.rows import PackRow
from rblstore.configuration import DEFAULT_TEXT, Compression, Configuration
from rblstore.contents import Contents
from rblstore.errors import ConflictError, CorruptError, InputError, NotFoundError, RblError
from rblstore.objects import limits
from rblstore.objects.history_records import SYMBOLIC
from rblstore.objects.ids import CommitId, ContentId, PackId, RecordId
from rblstore.objects.kinds import parse_record
from rblstore.objects.locations import ContentLocation, PackSummary
from rblstore.objects.record import Record
from rblstore.opening import FOLDER, FORMAT, check_format, check_owner, read_configuration
from rblstore.storage.backend import Backend
from rblstore.storage.disk import DiskBackend
from rblstore.storage.durable import WriteError, fsync_directory, make_folders, write_file
from rblstore.storage.locks import maintaining, writing
from rblstore.storage.refs_log import RefsLog
from rblstore.storage.status import is_there

if TYPE_CHECKING:
    from rblstore.objects.content_records import FileEntry
    from rblstore.storage.pack_reader import PackReader
    from rblstore.transaction import Transaction

HEADS, TAGS, PROBES = "refs/heads/", "refs/tags/", "refs/probes/"

AnyRecord = TypeVar("AnyRecord", bound=Record)


class RepositoryExistsError(ConflictError):
    """There is a repository already."""

    code = "exists"


class UnfinishedInitError(RblError):
    """A repository was made whose durability is not known, and that could not be taken back."""

    code = "init_unfinished"


def utc_now() -> str:
    """The time as records write it: RFC 3339, UTC, milliseconds, so that evidence has an order."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def oldest_first(records: Iterable[tuple[RecordId, Record]]) -> list[tuple[RecordId, Record]]:
    """Records in the order in which they were made, as far as they say: names of packs are digests, not dates."""
    return sorted(records, key=lambda found: str(getattr(found[1], "time", "")))


def _histories_differ(sequence: int) -> CorruptError:
    return CorruptError(
        f"refs.log and the catalog tell different histories at operation {sequence}",
        object="refs.log",
        hint="Rebuild the catalog from refs.log: rbl reindex",
    )


class Store:
    """One open repository, safe for several threads to read and for one transaction at a time to write.

    Args:
        root: The folder that holds ``.rbl``.
        catalog: Its open catalog.
        configuration: Its settings.
    """

    def __init__(self, root: Path, catalog: Catalog, configuration: Configuration) -> None:
        self.root = root
        self.folder = root / FOLDER
        self.catalog = catalog
        self.configuration = configuration
        self.backend: Backend = DiskBackend(self.folder)
        self.log = RefsLog(self.folder / "refs.log")
        self.contents = Contents(self.backend, catalog, configuration.workers, self._why_missing)

    # -- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def init(cls, root: Path, *, branch: str = "main") -> Store:
        """Makes a repository in a folder, which is made where it does not exist.

        Raises:
            RepositoryExistsError: There is one already.
            WriteError: The system refused; there is no repository.
            UnfinishedInitError: The system refused at the very end, and to take it back, too.
        """
        folder = root / FOLDER
        try:
            if (folder / "format").exists():
                raise RepositoryExistsError(
                    f"{root.absolute()} is a repository already",
                    object=str(root),
                    hint="Use it as it is (rbl status), or choose another directory.",
                )
            changed = make_folders(folder)
            for name in ("packs", "tmp", "quarantine"):
                (folder / name).mkdir(exist_ok=True)
            (folder / "lock").touch()
            # Without a format file it is no repository yet: what an init that was cut short left is started over.
            # Packs are another matter: those were somebody's commits.
            if any((folder / "packs").iterdir()):
                raise RepositoryExistsError(
                    f"{folder} holds packs, but its format file is missing",
                    object=str(folder),
                    hint="To have it written anew: rbl repair",
                )
            for name in ("catalog.db", "catalog.db-journal", "refs.log"):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise RblError(
                f"cannot make a repository in {root}: {error.strerror}", object=str(root), hint="Check its permissions."
            ) from error
        write_file(folder / "config.toml", DEFAULT_TEXT.encode(), folder / "tmp")
        store = cls(root, Catalog.create(folder / "catalog.db"), Configuration())
        try:
            with store.transaction("rblstore") as transaction:
                transaction.set_ref("HEAD", None, SYMBOLIC + HEADS + branch)
                transaction.describe("init")
            # A folder that we made has a name of its own, which is in its parent.
            for above in dict.fromkeys((root, *changed)):
                fsync_directory(above)
            # Last: from here on it is a repository.
            write_file(folder / "format", FORMAT, folder / "tmp")
        except BaseException as error:
            store.close()
            with suppress(OSError):  # its name may be there, and only not be durable
                (folder / "format").unlink(missing_ok=True)
            if isinstance(error, WriteError) and os.path.lexists(folder / "format"):
                raise UnfinishedInitError(
                    f"the repository is there, but may not outlive a power cut: {error.message}",
                    object=str(root),
                    hint="See to the disk, then look at it: rbl fsck",
                ) from error
            raise
        return store

    @classmethod
    def open(cls, root: Path, *, allow_foreign: bool = False) -> Store:
        """Opens the repository in ``root`` and reconciles its operation log with its catalog.

        Raises:
            NoRepositoryError: None there, of another format, or another user's.
            CorruptError: The catalog or the log is damaged; the hint says what to run.
        """
        folder = root / FOLDER
        check_format(folder)
        check_owner(folder, allow_foreign=allow_foreign)
        configuration = read_configuration(folder)
        if not is_there(folder / "catalog.db"):
            raise CorruptError(
                f"{folder} has no catalog", object=str(folder / "catalog.db"), hint="Rebuild it with: rbl reindex"
            )
        store = cls(root, Catalog.open(folder / "catalog.db"), configuration)
        try:
            store.reconcile()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Closes the catalog and forgets open packs."""
        self.contents.close()
        self.catalog.close()

    def reconcile(self) -> None:
        """Brings ``refs.log`` and the catalog to one history: the longer of the two wins.

        Raises:
            CorruptError: They contradict each other.
        """
        last = self.log.last()
        with self.catalog.read() as reader:
            newest = reader.last_operation()
        log_sequence = 0 if last is None else last[0]
        sequence = 0 if newest is None else newest.sequence
        if log_sequence > sequence:
            self._replay()
        elif log_sequence < sequence:
            self.append_operations()
        elif last is not None and newest is not None:
            _, _, text = newest.encode().partition(b"\n")
            if not last[1].endswith(b" " + text):
                raise _histories_differ(sequence)

    def append_operations(self) -> None:
        with self.log.locked() as log:
            with self.catalog.read() as reader:
                missing = reader.operations_after(log.last_sequence)
            log.append(missing)

    def _replay(self) -> None:
        known = {row.pack for row in self._catalog_packs()}
        with self.log.locked(), self.catalog.write() as index:
            operations = self.log.read().operations
            newest = index.last_operation()
            sequence = 0 if newest is None else newest.sequence
            if 0 < sequence <= len(operations) and operations[sequence - 1] != newest:
                raise _histories_differ(sequence)
            found: list[tuple[RecordId, Record]] = []
            for pack in self.packs():
                if pack not in known:
                    reader = self.pack(pack)
                    index.add_pack(summary := reader.summary())
                    if summary.kind == "R":
                        found += self.records_of(summary, reader)
            index.add_records(oldest_first(found))
            for operation in operations[sequence:]:
                index.replay(operation)

    def _catalog_packs(self) -> list[PackRow]:
        with self.catalog.read() as reader:
            return reader.packs()

    # -- packs and contents -------------------------------------------------------------------------------------

    def packs(self) -> list[PackId]:
        """Every pack that the backend holds, sorted."""
        from rblstore.storage.pack_format import pack_of_key

        return sorted(pack_of_key(key) for key in self.backend.list("packs/"))

    def pack_size(self, pack: PackId) -> int:
        """Bytes of a pack's file.

        Raises:
            CorruptError: There is none.
        """
        from rblstore.storage.pack_format import pack_key

        return self.backend.size(pack_key(pack))

    def pack(self, pack: PackId) -> PackReader:
        """A reader of one pack, kept open."""
        return self.contents.pack(pack)

    def records_of(self, summary: PackSummary, reader: PackReader) -> Iterator[tuple[RecordId, Record]]:
        """Every record of a record pack, parsed.

        Raises:
            CorruptError: A record's bytes are not a record.
        """
        for location in summary.locations:
            data = reader.read_small(location, limits.RECORD_BYTES + 128)
            yield self.parse(RecordId(location.content), data)

    @staticmethod
    def parse(record_id: RecordId, data: bytes) -> tuple[RecordId, Record]:
        try:
            record = parse_record(data)
        except InputError as error:
            raise CorruptError(
                f"the stored record {record_id.short} is not a record: {error.message}",
                object=record_id,
                hint="Run: rbl fsck --full",
            ) from error
        return type(record).ID(record_id), record

    def _why_missing(self, content: ContentId | RecordId) -> RblError | None:
        from rblstore.forgotten import why_missing

        return why_missing(self, content)

    def location(self, content: ContentId | RecordId) -> ContentLocation:
        """Where a content is.

        Raises:
            MissingContentError: In no pack.
        """
        return self.contents.location(content)

    def has(self, content: ContentId) -> bool:
        """Whether a content is stored."""
        return self.contents.has(content)

    def content(self, content: ContentId) -> Iterator[memoryview]:
        """A content's bytes in order; the digest is checked by the time the iterator is exhausted.

        Raises:
            CorruptError: Missing, damaged, or not what its id says.
        """
        yield from self.contents.read(self.contents.stored((content,)))

    def content_bytes(self, content: ContentId | RecordId, max_bytes: int) -> bytes:
        """A small content whole.

        Raises:
            CorruptError: Missing or damaged.
            InputError: Larger than ``max_bytes``.
        """
        return self.contents.read_small(content, max_bytes)

    def contents_of(self, entry: FileEntry) -> tuple[ContentId, ...]:
        """The contents that a stored file is put together from, in order.

        Raises:
            CorruptError: Its manifest is missing or damaged.
        """
        from rblstore.objects.content_records import FileManifest

        return (entry.sha256,) if entry.manifest is None else self.record(entry.manifest, FileManifest).contents()

    def file(self, entry: FileEntry) -> Iterator[memoryview]:
        """A stored file's bytes in order. Whoever writes them checks the whole file's digest.

        Raises:
            CorruptError: Something of it is missing or damaged.
        """
        yield from self.contents.read(self.contents.stored(self.contents_of(entry)))

    # -- records ------------------------------------------------------------------------------------------------

    def record(self, record_id: RecordId, of: type[AnyRecord]) -> AnyRecord:
        """Reads a record of a known kind.

        Raises:
            CorruptError: Missing or damaged.
            NotFoundError: It is of another kind.
        """
        _, record = self.parse(record_id, self.content_bytes(record_id, limits.RECORD_BYTES + 128))
        if not isinstance(record, of):
            raise NotFoundError(f"{record_id.short} is a {record.KIND}, not a {of.KIND}", object=record_id)
        return record

    def any_record(self, record_id: RecordId) -> Record:
        """Reads a record whatever its kind.

        Raises:
            CorruptError: Missing or damaged.
        """
        return self.parse(record_id, self.content_bytes(record_id, limits.RECORD_BYTES + 128))[1]

    # -- refs ---------------------------------------------------------------------------------------------------

    def ref(self, name: str) -> str | None:
        """A ref's value: an id, a symbolic target, or None."""
        with self.catalog.read() as reader:
            return reader.ref(name)

    def head_branch(self) -> str:
        """The full name of the branch that HEAD stands for, which may not have a commit yet."""
        with self.catalog.read() as reader:
            return head_branch(reader)

    def head(self) -> CommitId | None:
        """The commit at HEAD, or None on a branch without commits."""
        with self.catalog.read() as reader:
            value = reader.ref(head_branch(reader))
        return None if value is None else CommitId(value)

    # -- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, author: str, compression: Compression | None = None) -> Iterator[Transaction]:
        """Gathers contents, records and ref changes and publishes them together, or nothing at all.

        Args:
            author: Who does it, for the operation log.
            compression: How frames are encoded; None for what the settings say.

        Raises:
            RefMovedError: A ref is no longer what the change says it was.
            DanglingReferenceError: Something that is referred to was collected meanwhile.
            LockedError: Maintenance takes too long.
            WriteError: The system refused to store something.
        """
        from rblstore.transaction import Transaction  # not for the commands that only look

        with ExitStack() as stack:
            stack.enter_context(writing(self.folder))
            self.contents.look_anew()  # what had no base may be a difference itself since another process repacked
            transaction = stack.enter_context(Transaction(self, author, compression))
            yield transaction
            transaction.publish()

    @contextmanager
    def maintenance(self) -> Iterator[None]:
        """Keeps everybody else from writing: packs stay where they are, and what is stored stays stored.

        Raises:
            LockedError: Somebody is writing, and took too long.
        """
        with maintaining(self.folder):
            self.contents.look_anew()
            yield


def head_branch(reader: CatalogReader) -> str:
    """The full name of the branch that HEAD stands for.

    Raises:
        CorruptError: HEAD is missing or is not symbolic.
    """
    value = reader.ref("HEAD")
    if value is None or not value.startswith(SYMBOLIC):
        raise CorruptError("HEAD does not name a branch", object="HEAD", hint="Rebuild the catalog: rbl reindex")
    return value.removeprefix(SYMBOLIC)
