"""Where ``repair`` finds bytes again: packs of other repositories, trash and quarantine, checkpoints, any files.

Nothing that is found is believed: a content is what its SHA-256 says, a record likewise, and an operation of another
repository counts only where one of this repository's own names it as its predecessor. Nothing is written to a source.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from rblstore.checkpoints.open_beneath import open_directory, open_regular
from rblstore.checkpoints.safetensors_header import SafetensorsHeader, read_header
from rblstore.checkpoints.source_directory import hub_blob, read_exact, read_exactly_into
from rblstore.errors import InputError, NotFoundError, RblError, UsageError
from rblstore.objects import limits
from rblstore.objects.history_records import Operation
from rblstore.objects.ids import ContentId, FileManifestId, IdentityId, OperationId, RecordId
from rblstore.opening import FOLDER
from rblstore.operations.progress import Meter, Progress
from rblstore.storage.backend import ReadError, Room
from rblstore.storage.disk import DiskBackend
from rblstore.storage.log_salvage import read_log_file, salvage_log
from rblstore.storage.pack_salvage import PackPile
from rblstore.storage.stored_content import Find

EMPTY: Final = ContentId(hashlib.sha256(b"").hexdigest())
_CHUNK: Final = 4 << 20
_MAX_FILES: Final = 1_000_000
_MAX_DEPTH: Final = 64


class NoSuchSourceError(NotFoundError):
    """There is nothing where bytes were to be taken from."""

    code = "no_such_source"


@dataclass(frozen=True)
class Found:
    """A content outside of the repository's own packs; its SHA-256 was compared once, and is again when it is stored.

    Attributes:
        content: Its id.
        size: Bytes.
        source: Where it is, for people.
    """

    content: ContentId
    size: int
    source: str
    _read: Callable[[memoryview, int], None] = field(repr=False)

    @property
    def bases(self) -> frozenset[ContentId]:
        """None: it is given out as raw bytes, however it is kept."""
        return frozenset()

    def read_into(self, out: memoryview, start: int) -> None:
        """Fills ``out`` with the bytes from ``start`` on.

        Raises:
            RblError: They cannot be read any more.
        """
        self._read(out, start)


def empty_content() -> Found:
    """The content of no bytes, which needs no source."""
    return Found(EMPTY, 0, "nothing: it has no bytes", lambda out, start: None)


class Source(Protocol):
    """Something that may have what is missing."""

    @property
    def name(self) -> str:
        """What people call it."""

    def contents(self, wanted: Mapping[ContentId, int | None]) -> Iterator[Found]:
        """Those of some contents (with their sizes, as far as known) that it has."""

    def record(self, record_id: RecordId) -> bytes | None:
        """A record's bytes, or None. The id's own class says what kind it is of."""

    def operations(self) -> Mapping[OperationId, Operation]:
        """Operations that it knows of."""


class PackSource:
    """The packs of a repository, whatever state it is in. Its catalog is not asked and nothing of it is written.

    Args:
        folder: Its ``.rbl``.
        name: What people call it.
        rooms: Where its packs are looked for.
        workers: Threads that decode.
    """

    def __init__(self, folder: Path, name: str, rooms: Iterable[Room], workers: int) -> None:
        self.name = name
        self._folder = folder
        self._rooms = tuple(rooms)
        self._workers = workers
        self._read: PackPile | None = None

    @property
    def pile(self) -> PackPile:
        """Its packs; they are listed the first time anybody asks."""
        if self._read is None:
            self._read = PackPile(DiskBackend(self._folder), self._rooms, self._workers)
        return self._read

    def contents(self, wanted: Mapping[ContentId, int | None]) -> Iterator[Found]:
        """See :class:`Source`."""
        for content in wanted:
            stored = self.pile.whole(content)
            if stored is not None:
                yield Found(content, stored.size, self.name, stored.read_into)

    def bases(self, contents: Iterable[ContentId]) -> set[ContentId]:
        """What its copies of some contents are differences from."""
        return {base for content in contents for copy in self.pile.copies(content) for base in copy.bases}

    def contents_on(self, contents: Iterable[ContentId], find: Find) -> Iterator[Found]:
        """Contents that can be read where what lies beneath them is found elsewhere."""
        for content in contents:
            stored = self.pile.whole(content, find)
            if stored is not None:
                yield Found(content, stored.size, self.name, stored.read_into)

    def record(self, record_id: RecordId) -> bytes | None:
        """See :class:`Source`."""
        return self.pile.record(ContentId(record_id))

    def operations(self) -> Mapping[OperationId, Operation]:
        """See :class:`Source`."""
        try:
            log = salvage_log(read_log_file(self._folder / "refs.log"))
        except RblError:
            return {}
        return {OperationId(Operation.id_of(one.encode())): one for one in (*log.operations, *log.later)}


@dataclass(frozen=True)
class LooseFile:
    """A regular file beneath a directory.

    Attributes:
        path: From there, with forward slashes, for people.
        size: Bytes when it was listed.
        root: What it is opened beneath.
        location: Components from there.
    """

    path: str
    size: int
    root: Path
    location: tuple[str, ...]

    def open(self) -> int:
        """A descriptor for reading, through no link. The caller closes it.

        Raises:
            OSError: It is gone, or no regular file.
        """
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_regular(root, self.location)
        finally:
            os.close(root)

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fills ``out`` with the bytes at an offset.

        Raises:
            ReadError: It is gone.
            InputError: It is shorter than it was.
        """
        try:
            descriptor = self.open()
        except OSError as error:
            raise ReadError(f"{self.path} cannot be read any more: {error.strerror}", object=self.path) from error
        try:
            read_exactly_into(descriptor, offset, out)
        finally:
            os.close(descriptor)


def digest_of(descriptor: int, offset: int, length: int, *more: Callable[[bytes], None]) -> ContentId:
    """SHA-256 of a range of a file, read in pieces.

    Args:
        descriptor: The open file.
        offset: Where it begins.
        length: Its bytes.
        more: Who else is shown them.

    Raises:
        InputError: The file ends before.
    """
    digest = hashlib.sha256()
    for start in range(0, length, _CHUNK):
        data = read_exact(descriptor, offset + start, min(_CHUNK, length - start))
        digest.update(data)
        for show in more:
            show(data)
    return ContentId(digest.hexdigest())


def header_of(descriptor: int, size: int) -> SafetensorsHeader | None:
    """A file's safetensors header, whatever the file is called; None where it has none that is sound."""
    try:
        if size < 10 or read_exact(descriptor, 8, 1) != b"{":
            return None
        return read_header(
            lambda offset, length: read_exact(descriptor, offset, length),
            size,
            max_bytes=limits.SAFETENSORS_HEADER_BYTES_CEILING,
        )
    except InputError:
        return None


class FileSource:
    """A directory of files, or one file: contents by their digests, whatever the files are called.

    Nothing is loaded: a pickle is bytes with a digest. Links are followed within a model hub's cache only.

    Args:
        path: The directory or file.
        progress: Is told bytes read.
    """

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self.name = str(path)
        self.path = path
        self.progress = progress
        self._records: dict[RecordId, bytes] | None = None

    def files(self) -> Iterator[LooseFile]:
        """Every regular file, in the order of names.

        Raises:
            InputError: There are too many, or too deep.
        """
        if not self.path.is_dir():
            yield LooseFile(self.path.name, self.path.stat().st_size, self.path.parent, (self.path.name,))
            return
        count = 0
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            found, folders = self._folder(waiting.pop())
            waiting += reversed(folders)
            for file in found:
                count += 1
                if count > _MAX_FILES:
                    raise InputError(f"{self.path} holds more than {_MAX_FILES} files", object=self.name)
                yield file

    def _folder(self, location: tuple[str, ...]) -> tuple[list[LooseFile], list[tuple[str, ...]]]:
        files: list[LooseFile] = []
        folders: list[tuple[str, ...]] = []
        try:
            root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                descriptor = open_directory(root, location)
            finally:
                os.close(root)
        except OSError:
            return [], []  # what cannot be read is no source
        try:
            for name in sorted(os.listdir(descriptor)):  # noqa: PTH208 - of a descriptor
                at = (*location, name)
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and name != FOLDER and len(at) <= _MAX_DEPTH:
                    folders.append(at)
                elif stat.S_ISREG(status.st_mode):
                    files.append(LooseFile("/".join(at), status.st_size, self.path, at))
                elif stat.S_ISLNK(status.st_mode):
                    files += self._linked(at, os.readlink(name, dir_fd=descriptor))
        except OSError:
            pass  # something is changing the directory; what was listed is looked at all the same
        finally:
            os.close(descriptor)
        return files, folders

    def _linked(self, location: tuple[str, ...], target: str) -> list[LooseFile]:
        try:
            root, blob = hub_blob(self.path, "/".join(location), target)
            file = LooseFile("/".join(location), 0, root, blob)
            descriptor = file.open()
        except (InputError, OSError):
            return []
        try:
            return [LooseFile(file.path, os.fstat(descriptor).st_size, root, blob)]
        finally:
            os.close(descriptor)

    def contents(self, wanted: Mapping[ContentId, int | None]) -> Iterator[Found]:
        """See :class:`Source`. Only what has the size of something wanted is read."""
        sizes = {size for size in wanted.values() if size is not None}
        unknown = len(sizes) < len(set(wanted.values()))
        if not wanted:
            return
        files = list(self.files())
        meter = Meter(self.progress, sum(file.size for file in files))
        for file in files:
            try:
                descriptor = file.open()
            except OSError:
                continue
            try:
                yield from self._matches(file, descriptor, wanted, sizes, unknown=unknown)
            except InputError:
                pass  # it became shorter while it was read
            finally:
                os.close(descriptor)
            meter.add("looking for contents", file.size)

    def _matches(
        self,
        file: LooseFile,
        descriptor: int,
        wanted: Mapping[ContentId, int | None],
        sizes: set[int],
        *,
        unknown: bool,
    ) -> Iterator[Found]:
        spans = [(0, file.size)] if file.size in sizes else []
        header = header_of(descriptor, file.size)
        if header is not None:
            if unknown or len(header.raw) in sizes:
                spans.append((0, len(header.raw)))
            spans += [(header.data_offset + one.begin, one.size) for one in header.tensors if one.size in sizes]
        for offset, size in spans:
            content = digest_of(descriptor, offset, size)
            if content in wanted:
                yield Found(content, size, f"{self.name}/{file.path}", _range_of(file, offset))

    def record(self, record_id: RecordId) -> bytes | None:
        """See :class:`Source`: what importing its checkpoints would record. Reads all of them, once."""
        if not isinstance(record_id, (FileManifestId, IdentityId)):
            return None  # nothing else is made of files alone
        if self._records is None:
            from rblstore.operations.repair_imports import records_of_checkpoints

            self._records = records_of_checkpoints(self)
        return self._records.get(record_id)

    def operations(self) -> Mapping[OperationId, Operation]:
        """See :class:`Source`: none."""
        return {}


def _range_of(file: LooseFile, offset: int) -> Callable[[memoryview, int], None]:
    return lambda out, start: file.read_into(out, offset + start)


def _require(path: Path) -> None:
    """Refuses a source that is not there.

    Raises:
        NoSuchSourceError: It is not.
    """
    try:
        there = path.is_dir() or path.is_file()
    except (OSError, ValueError):  # a name that is too long, or none
        there = False
    if not there:
        raise NoSuchSourceError(
            f"there is no directory or file {path!s:.200}",
            object=str(path)[:200],
            hint="Check the path given with --from.",
        )


def open_sources(
    paths: Iterable[str | Path], own: Path, workers: int, progress: Progress | None = None
) -> tuple[Source, ...]:
    """What to look in, in this order: this repository's own trash and quarantine, then the paths as given.

    Args:
        paths: Repositories, directories, files.
        own: This repository's ``.rbl``.
        workers: Threads that decode.
        progress: Is told bytes read from files.

    Raises:
        NoSuchSourceError: Nothing is there.
        UsageError: It is this repository itself.
    """
    found: list[Source] = [
        PackSource(own, "the quarantine", ("quarantine",), workers),
        PackSource(own, "the trash", ("trash",), workers),
    ]
    for path in map(Path, paths):
        _require(path)
        folder = path if path.name == FOLDER else path / FOLDER
        if (folder / "packs").is_dir():
            if os.path.samestat(folder.stat(), own.stat()):
                raise UsageError(
                    f"{path} is the repository that is to be repaired",
                    object=str(path),
                    hint="Give another copy of it, or a directory that its files came from.",
                )
            found.append(PackSource(folder, str(path), ("packs", "trash", "quarantine"), workers))
        if path != folder:
            found.append(FileSource(path, progress))
    return tuple(found)
