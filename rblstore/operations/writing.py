"""Writing the files of a composition: decoded and written side by side, hashed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from rblstore.checkpoints.checkout_layout import ComposedWeights, FileSource, PlannedFile
from rblstore.checkpoints.checkout_writer import DirectoryWriter
from rblstore.checkpoints.new_file import NewFile
from rblstore.errors import CorruptError
from rblstore.objects.content_records import FileEntry
from rblstore.objects.ids import ContentId
from rblstore.operations.progress import Meter
from rblstore.repository import Store
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.stored_content import StoredContent


def source_parts(store: Store, source: FileSource) -> tuple[ContentId | bytes, ...]:
    """What a composed file is put together from, in order: contents, and bytes that are nowhere stored.

    Raises:
        CorruptError: A manifest is missing or damaged.
    """
    if isinstance(source, FileEntry):
        return store.contents_of(source)
    if isinstance(source, ComposedWeights):
        return (source.header, *(one.tensor.content for one in source.tensors))
    return (source,)


@dataclass
class _Output:
    """One file on its way to the disk."""

    planned: PlannedFile
    parts: tuple[ContentId | bytes, ...]
    digest: Any = field(default_factory=hashlib.sha256)
    file: NewFile | None = None

    def sink(self, offset: int) -> Callable[[memoryview, int], None]:
        """Writes frames of the content that begins at an offset."""

        def write(data: memoryview, start: int) -> None:
            if self.file is None:
                raise ValueError("the file was not begun")
            self.file.write_at(data, offset + start)

        return write


def write_files(
    store: Store, writer: DirectoryWriter, planned: Sequence[PlannedFile], meter: Meter, doing: str
) -> list[ContentId]:
    """Writes files of a composition; every content's digest is checked, and every file's.

    Args:
        store: The repository.
        writer: The directory.
        planned: Which files.
        meter: Is told bytes written.
        doing: What to tell it: a verb.

    Returns:
        The SHA-256 of each file.

    Raises:
        CorruptError: Stored bytes are missing, damaged, or not as many as their tensor has.
        NoSpaceError, CheckoutWriteError: The system refused.
    """
    outputs = [_Output(file, source_parts(store, file.source)) for file in planned]
    wanted = {part: None for output in outputs for part in output.parts if isinstance(part, ContentId)}
    stored = dict(zip(wanted, store.contents.stored(wanted), strict=True))
    for file in planned:
        _check_sizes(file, stored)
    digests = []
    with closing(
        read_contents(_wanted(writer, outputs, stored), workers=store.configuration.workers, reuse=True)
    ) as pieces:
        for output in outputs:
            stage = f"{doing} {output.planned.path}"
            offset = 0
            for part in output.parts:
                if isinstance(part, bytes):
                    _begun(writer, output).write_at(memoryview(part), offset)
                    output.digest.update(part)
                    offset += len(part)
                    meter.add(stage, len(part))
                    continue
                offset += stored[part].size
                for piece in pieces:
                    if len(output.parts) > 1:
                        output.digest.update(piece.data)
                    meter.add(stage, len(piece.data))
                    if piece.last:
                        break
            # A file kept whole is one content, whose digest was compared.
            alone = output.parts[0] if len(output.parts) == 1 else None
            digest = alone if isinstance(alone, ContentId) else ContentId(output.digest.hexdigest())
            writer.finish_file(_begun(writer, output), digest, output.planned.sha256)
            digests.append(digest)
    return digests


def _check_sizes(file: PlannedFile, stored: dict[ContentId, StoredContent]) -> None:
    """Refuses tensors of other sizes than their headers will say; a file kept as it was has a digest that shows it."""
    if not isinstance(file.source, ComposedWeights):
        return
    for one in file.source.tensors:
        if stored[one.tensor.content].size != one.tensor.size:
            raise wrong_size(one.name, stored[one.tensor.content].size, one.tensor.size)


def wrong_size(name: str, found: int, expected: int) -> CorruptError:
    """The error for a tensor whose content is not as large as its element type and shape say."""
    return CorruptError(
        f"the tensor {name} has {found} bytes where its shape says {expected}",
        object=name,
        hint="Run: rbl fsck --full",
    )


def _wanted(
    writer: DirectoryWriter, outputs: Sequence[_Output], stored: dict[ContentId, StoredContent]
) -> Iterator[Wanted]:
    for output in outputs:
        offset = 0
        for part in output.parts:
            if isinstance(part, bytes):
                offset += len(part)
                continue
            _begun(writer, output)
            yield Wanted(stored[part], sink=output.sink(offset))
            offset += stored[part].size


def _begun(writer: DirectoryWriter, output: _Output) -> NewFile:
    if output.file is None:
        output.file = writer.new_file(output.planned.path, output.planned.size)
    return output.file
