"""The full check: every content decoded and hashed, each once where that is enough, and every file put together.

Files come first: one pass over a file compares the digests of its contents and its own. What is in no file follows,
pack by pack. So a copy is decoded again only where another file holds the same content.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from rblstore.catalog.reader import CatalogReader
from rblstore.errors import CorruptError, RblError
from rblstore.objects.content_records import Behavior, FileEntry, FileManifest, Identity
from rblstore.objects.ids import ContentId, PackId, RecordId
from rblstore.objects.locations import ContentLocation
from rblstore.objects.references import files_of
from rblstore.operations.fsck_findings import REPAIR, Findings
from rblstore.operations.fsck_records import Records
from rblstore.operations.progress import Meter, Progress
from rblstore.storage.backend import ReadError
from rblstore.storage.codecs import UnknownCodecError
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.pack_check import problem_of
from rblstore.storage.stored_content import StoredContent


@dataclass
class _File:
    """A file on its way through."""

    record: RecordId
    entry: FileEntry
    size: int = 0
    broken: bool = False
    digest: Any = field(default_factory=hashlib.sha256)


@dataclass(frozen=True)
class _Step:
    """One content to be read, where it is, the file that it is read for, and whether the file ends with it."""

    content: StoredContent
    location: ContentLocation
    file: _File | None
    ends: bool


class ContentCheck:
    """Decodes and hashes everything that listed and other packs hold.

    Args:
        found: What is known so far; damage is added to it.
        records: Every record.
        progress: Is told raw bytes.
    """

    def __init__(self, found: Findings, records: Records, progress: Progress | None) -> None:
        self._found = found
        self._records = records
        self._progress = progress
        self._read: dict[PackId, bytearray] = {}
        self._bytes_read = 0

    def run(self) -> None:
        """Checks files, then what is in none."""
        files = self._files()
        put_together = sum(file.entry.size for file in files if file.entry.manifest is not None)
        self._verify(self._steps_of_files(files), Meter(self._progress, put_together), "hashing files")
        read_already = {location.pack for location in self._found.records}
        rest = [pack for pack in sorted(self._found.raw) if pack not in read_already]
        left = sum(self._found.raw[pack] for pack in rest) - self._bytes_read
        self._verify(self._steps_of_packs(rest), Meter(self._progress, max(left, 0)), "hashing contents")

    def _files(self) -> list[_File]:
        """Every file once, whoever names it."""
        files: dict[tuple[str, int, str | None], _File] = {}
        for record_id, record in self._records.of_kinds(Identity.KIND, Behavior.KIND, "training-state"):
            for entry in files_of(record):
                files.setdefault((entry.sha256, entry.size, entry.manifest), _File(record_id, entry))
        return list(files.values())

    def _steps_of_files(self, files: Iterable[_File]) -> Iterator[_Step]:
        for file in files:
            contents = self._contents_of(file)
            locations = self._found.ask(partial(CatalogReader.locations, wanted=contents)) or {}
            for number, content in enumerate(contents, 1):
                location = self._undamaged(locations.get(content))
                stored = None if location is None else self._stored(location)
                if location is None or stored is None:
                    file.broken = True
                elif file.entry.manifest is None:
                    # Its digest is that of its one content, which is read with those that are in no file.
                    self._compare(file, file.entry.sha256, location.size)
                elif not file.broken or not self._is_read(location):
                    yield _Step(stored, location, file, number == len(contents))

    def _contents_of(self, file: _File) -> tuple[ContentId, ...]:
        if file.entry.manifest is None:
            return (file.entry.sha256,)
        try:
            manifest = self._records.load(file.entry.manifest)
        except (KeyError, RblError):  # what is missing or damaged has been named
            return ()
        return manifest.contents() if isinstance(manifest, FileManifest) else ()

    def _undamaged(self, location: ContentLocation | None) -> ContentLocation | None:
        """Another place where the content is, if it is damaged here."""
        if location is None or not self._found.is_damaged_in(location):
            return location
        copies = self._found.ask(partial(CatalogReader.all_locations, content=location.content)) or []
        return next((at for at in copies if not self._found.is_damaged_in(at)), None)

    def _stored(self, location: ContentLocation) -> StoredContent | None:
        """This very copy; None where the catalog misplaces it, which has been named."""
        try:
            return self._found.store.pack(location.pack).stored(location)
        except (CorruptError, ReadError):
            return None

    def _steps_of_packs(self, packs: Iterable[PackId]) -> Iterator[_Step]:
        for pack in packs:
            try:
                locations = self._found.store.pack(pack).summary().locations
            except (CorruptError, ReadError) as error:
                self._found.add(pack, "pack", error.message, REPAIR)
                continue
            for location in locations:
                if not self._is_read(location) and not self._found.is_damaged_in(location):
                    stored = self._stored(location)
                    if stored is not None:
                        yield _Step(stored, location, None, ends=False)

    def _verify(self, steps: Iterator[_Step], meter: Meter, stage: str) -> None:
        """Reads contents one after the other, and goes on after those that are damaged."""
        handed_out: deque[_Step] = deque()
        again: list[_Step] = []

        def wanted() -> Iterator[Wanted]:
            for step in chain(again, steps):
                handed_out.append(step)
                yield Wanted(step.content)

        while True:
            try:
                workers = self._found.store.configuration.workers
                with closing(read_contents(wanted(), workers=workers, reuse=True)) as pieces:
                    for piece in pieces:
                        step = handed_out[0]
                        if step.file is not None and not step.file.broken:
                            step.file.digest.update(piece.data)
                            step.file.size += len(piece.data)
                        meter.add(stage, len(piece.data))
                        if piece.last:
                            self._through(handed_out.popleft())
                return
            except (CorruptError, ReadError, UnknownCodecError) as error:
                # Pieces come in order, so the one that failed is of the first content that is not through. What was
                # decoded ahead of it is decoded again.
                step = handed_out.popleft()
                self._mark(step.location)
                self._found.add_content(
                    step.content.content, step.location.pack, problem_of(error, step.content.content)
                )
                if step.file is not None:
                    step.file.broken = True
                again = list(handed_out)
                handed_out.clear()

    def _through(self, step: _Step) -> None:
        self._mark(step.location)
        if step.file is not None and step.ends and not step.file.broken:
            self._compare(step.file, step.file.digest.hexdigest(), step.file.size)

    def _compare(self, file: _File, digest: str, size: int) -> None:
        if (digest, size) != (file.entry.sha256, file.entry.size):
            problem = f"its file {file.entry.path} does not compose to the recorded digest"
            self._found.add(file.record, "record", problem, REPAIR)

    def _is_read(self, location: ContentLocation) -> bool:
        marks = self._read.get(location.pack)
        return marks is not None and bool(marks[location.first_entry])

    def _mark(self, location: ContentLocation) -> None:
        if not self._is_read(location):
            if location.pack not in self._read:
                self._read[location.pack] = bytearray(self._found.store.pack(location.pack).footer().entries)
            self._read[location.pack][location.first_entry] = 1
            self._bytes_read += location.size
