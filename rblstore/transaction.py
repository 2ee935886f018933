"""What one command writes: gathered, then published together or not at all (docs/format.md, Write order)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType

from rblstore.catalog.operation_log import next_operation
from rblstore.catalog.reader import CatalogReader
from rblstore.configuration import Compression
from rblstore.errors import ConflictError, InputError, RblError
from rblstore.forgotten import ForgottenError, tombstones_of
from rblstore.objects.content_records import Behavior, Identity
from rblstore.objects.history_records import SYMBOLIC, Operation, RefChange
from rblstore.objects.ids import ContentId, OperationId, RecordId
from rblstore.objects.locations import PackSummary
from rblstore.objects.record import Record
from rblstore.objects.references import references
from rblstore.repository import AnyRecord, Store, utc_now
from rblstore.storage.encoding import Source
from rblstore.storage.pack_writer import AddedContent, PackWriter
from rblstore.storage.stored_content import StoredContent


class DanglingReferenceError(ConflictError):
    """What was to be published refers to something that is not stored: gc took it since somebody looked."""

    code = "dangling_reference"


class LogBehindError(RblError):
    """The change was made, and ``refs.log`` could not be told of it: the next command does that."""

    code = "log_behind"


def _require_readable(record: Record, data: bytes) -> None:
    """Refuses a record that could not be read back, before it is stored for ever.

    Raises:
        InputError: It is too large, or breaks its own kind's rules.
    """
    try:
        record.parse(data)
    except InputError as error:
        raise InputError(
            f"this cannot be recorded, since it could not be read back: {error.message}",
            object=error.object,
            hint=error.hint,
        ) from error


class Transaction:
    """What one command writes. Nothing of it is visible before :meth:`publish`; leaving without it leaves nothing."""

    def __init__(self, store: Store, author: str, compression: Compression | None = None) -> None:
        self._store = store
        self._author = author
        self._changes: dict[str, RefChange] = {}
        self._records: dict[RecordId, Record] = {}
        self._description = ""
        self._undoes: OperationId | None = None
        self.operation: Operation | None = None
        self.packs: list[PackSummary] = []
        settings = store.configuration
        self._contents = PackWriter(
            store.backend,
            "C",
            is_stored=store.has,
            compression=compression or settings.compression,
            workers=settings.workers,
        )
        self._record_pack = PackWriter(store.backend, "R", is_stored=self._record_is_stored, compression="fast")

    @property
    def store(self) -> Store:
        """The repository that it writes to."""
        return self._store

    def _record_is_stored(self, content: ContentId) -> bool:
        with self._store.catalog.read() as reader:
            return reader.record_kind(RecordId(content)) is not None

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contents.abandon()
        self._record_pack.abandon()

    def add_content(self, chunks: Iterable[bytes | memoryview], *, element_width: int = 0) -> AddedContent:
        """Stores a content, reading it once.

        Args:
            chunks: Its bytes in order, in pieces of any size.
            element_width: Bytes of one element of a tensor, 0 for anything else.
        """
        return self._contents.add(chunks, element_width=element_width)

    def add_source(
        self,
        source: Source,
        *,
        element_width: int = 0,
        beneath: StoredContent | None = None,
        inspect: Callable[[memoryview], None] | None = None,
    ) -> AddedContent:
        """Stores a content that can be read by ranges; it is read before this returns, and hashed and encoded after.

        Args:
            source: Its bytes.
            element_width: Bytes of one element of a tensor, 0 for anything else.
            beneath: A stored content that it may equal, or be stored as a difference from.
            inspect: Is shown every byte once, in order, in a thread; done once the content's id is known.
        """
        base = beneath
        if beneath is not None and beneath.bases:
            # A chain of differences has one link: what lies beneath is one itself, so this is one from the same base.
            roots = sorted(beneath.bases)
            base = self._store.contents.find(roots[0]) if len(roots) == 1 else None
            base = None if base is None or base.bases else base
        return self._contents.add_source(
            source, element_width=element_width, expected=beneath, base=base, inspect=inspect
        )

    def stored_of(self, contents: Iterable[ContentId]) -> dict[ContentId, StoredContent]:
        """Those of many contents that are stored already; see :meth:`add_source`."""
        return self._store.contents.stored_of(contents)

    def add_record(self, record: AnyRecord) -> RecordId:
        """Stores a record and returns its id, typed by its kind.

        Raises:
            InputError: It is too large, or breaks its own kind's rules.
            ForgottenError: It is an identity or behavior that was removed on purpose.
        """
        data = record.encode()
        record_id = type(record).id_of(data)
        if record_id not in self._records:
            self._require_remembered(record_id, record)
            _require_readable(record, data)
            self._records[record_id] = record
            self._record_pack.add([data])
        return record_id

    def _require_remembered(self, record_id: RecordId, record: Record) -> None:
        """Refuses to store again what was removed on purpose."""
        if isinstance(record, (Identity, Behavior)) and (found := tombstones_of(self._store, [record_id])):
            raise ForgottenError(found[record_id])

    def set_ref(self, name: str, before: str | None, after: str | None) -> None:
        """Moves a ref from a value to another when the transaction is published; None is absence."""
        if before != after:
            self._changes[name] = RefChange(name, before, after)

    def describe(self, description: str, undoes: OperationId | None = None) -> None:
        """Says what the operation is, in one line."""
        self._description = description.split("\n", 1)[0][:1000]
        self._undoes = undoes

    def _require_whole(self, reader: CatalogReader) -> None:
        """Refuses what refers to nothing: the last defence of everything that was ever acknowledged.

        What was looked up before this transaction took the lock may have been collected before it did. Records that
        were stored already have been through here.
        """
        here: set[str] = {location.content for summary in self.packs for location in summary.locations}
        here.update(self._records)
        wanted: dict[str, str] = {
            target: f"this {record.KIND}"
            for record_id, record in self._records.items()
            if reader.record_kind(record_id) is None
            for target, _ in references(record)
            if target not in here
        }
        for change in self._changes.values():
            if change.after is not None and not change.after.startswith(SYMBOLIC) and change.after not in here:
                wanted[change.after] = change.ref
        for missing in sorted(reader.missing_contents(map(ContentId, wanted))):
            raise DanglingReferenceError(
                f"{wanted[missing]} would refer to {missing[:12]}, which is not stored (any more)",
                object=missing,
                hint="If gc took it, 'rbl gc --restore' brings it back. Then run the command again.",
            )

    def _finish(self, writer: PackWriter) -> None:
        summary = writer.finish()
        if summary is not None:
            self.packs.append(summary)

    def publish(self) -> None:
        """Makes everything durable and visible: packs, then one catalog transaction, then the log's line.

        Raises:
            DanglingReferenceError: A record or ref would refer to something that is not stored; nothing was changed.
            LogBehindError: Everything is visible, and only the log's line could not be written.
        """
        self._finish(self._contents)
        catalog = self._store.catalog
        # Not in the transaction, which others wait for: under the repository's lock nothing that is there goes away.
        # And before the pack of records has its name: reindex lists every pack, also one that a refusal leaves behind.
        with catalog.read() as reader:
            self._require_whole(reader)
        self._finish(self._record_pack)
        with catalog.write() as index:
            for summary in self.packs:
                index.add_pack(summary)
            index.add_records(self._records.items())
            if self._changes:
                changes = list(self._changes.values())
                self.operation = next_operation(
                    index, self._description, changes, self._author, utc_now(), self._undoes
                )
                _require_readable(self.operation, self.operation.encode())
                index.apply(self.operation)
        if self.operation is not None:
            try:
                self._store.append_operations()
            except RblError as error:
                raise LogBehindError(
                    f"the change was made, but refs.log does not have it yet: {error.message}",
                    object="refs.log",
                    hint="Do not repeat the command. See to the disk; the next command writes the line.",
                ) from error
