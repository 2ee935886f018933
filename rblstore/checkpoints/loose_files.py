"""Files that somebody points at, wherever they come from: listed, and hashed in one pass. Nothing is loaded or run."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rblstore.checkpoints.safetensors_header import BadSafetensorsError, read_header
from rblstore.checkpoints.source_directory import EXCLUDED, LeftOut, is_excluded, read_exactly_into
from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.content_records import StoredTensor
from rblstore.objects.ids import ContentId

Told = Callable[[int], None]

_CHUNK: Final = 4 << 20
_MAX_FILES: Final = 100_000
_SUFFIX: Final = ".safetensors"


class ChangedFileError(InputError):
    """A file became another while it was looked at."""

    code = "changed_file"


@dataclass(frozen=True)
class LooseFile:
    """One regular file.

    Attributes:
        path: Relative to the directory that was given; of a file that was given itself, as it was given.
        location: Where it is.
        size: Bytes.
        stamp: Device, inode, size and time of change, by which the same file is known again.
    """

    path: str
    location: Path
    size: int
    stamp: tuple[int, ...]

    @contextmanager
    def open(self) -> Iterator[int]:
        """A descriptor of it.

        Raises:
            ChangedFileError: Another file is there now.
            InputError: The system refuses.
        """
        with _naming(self.location):
            descriptor = os.open(self.location, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if _stamp(os.fstat(descriptor)) != self.stamp:
                raise ChangedFileError(
                    f"{self.location} changed while it was looked at",
                    object=str(self.location),
                    hint="Wait until nothing writes to it, and try again.",
                )
            yield descriptor
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class LooseTensor:
    """A tensor in a file.

    Attributes:
        tensor: Element type, shape and SHA-256 of its bytes.
        file: Where.
        offset: Of its first byte in the file.
    """

    tensor: StoredTensor
    file: LooseFile
    offset: int


@dataclass(frozen=True)
class HashedFile:
    """What a file is, by its digests.

    Attributes:
        file: Which.
        sha256: Of all of it.
        tensors: The tensors of a safetensors file by name; None for any other file.
    """

    file: LooseFile
    sha256: ContentId
    tensors: Mapping[str, LooseTensor] | None = None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError for a name that no system has
        raise InputError(
            f"{path!s:.200} could not be read: {getattr(error, 'strerror', None) or error}",
            object=str(path)[:200],
            hint="Check that it exists and may be read.",
        ) from error


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def loose_files(path: Path) -> tuple[list[LooseFile], list[LeftOut]]:
    """The regular files of a directory, sorted by path, or the one file that was given; and what cannot be read there.

    Links to files are followed: what they point at is only read. Folders that a commit leaves out are passed over here.

    Args:
        path: A directory or file.

    Raises:
        InputError: It cannot be read, is neither, or holds more than 100,000 files.
    """
    with _naming(path):
        if not path.is_dir():
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise InputError(
                    f"{path} is not a regular file", object=str(path), hint="Give a file, or the model's folder."
                )
            return [LooseFile(str(path), path, status.st_size, _stamp(status))], []
        entries = sorted((_looked_at(relative, file) for relative, file in _walk(path)), key=lambda one: one.path)
        return (
            [one for one in entries if isinstance(one, LooseFile)],
            [one for one in entries if isinstance(one, LeftOut)],
        )


def _looked_at(relative: str, file: Path) -> LooseFile | LeftOut:
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return LeftOut(relative, "a link that leads nowhere")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return LeftOut(relative, "a link that leads to itself")
    if stat.S_ISREG(status.st_mode):
        return LooseFile(relative, file, status.st_size, _stamp(status))
    return LeftOut(relative, "a link to a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")


def _walk(path: Path) -> Iterator[tuple[str, Path]]:
    count = 0
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = sorted(name for name in folders if name not in EXCLUDED)
        links = (name for name in folders if (Path(folder) / name).is_symlink())  # these are not walked into
        for name in sorted((*names, *links)):
            file = Path(folder) / name
            relative = file.relative_to(path).as_posix()
            if is_excluded(relative):
                continue
            count += 1
            if count > _MAX_FILES:
                raise InputError(
                    f"{path} holds more than {_MAX_FILES} files",
                    object=str(path),
                    hint="Name the directory of the model itself.",
                )
            yield relative, file


def _raise(error: OSError) -> None:
    raise error


def hash_file(file: LooseFile, told: Told = lambda _: None, *, tensors: bool = True) -> HashedFile:
    """Reads a file once, in 4 MiB at a time; its digest and its tensors' are taken side by side by two threads.

    Args:
        file: Which.
        told: Is told how many more bytes are done.
        tensors: Whether the tensors' digests are asked for.

    Raises:
        BadSafetensorsError: A file named ``*.safetensors`` whose header breaks the format's rules.
        ChangedFileError: Another file is there now, or this one is not as long any more.
        InputError: The system refuses.
    """
    with file.open() as descriptor, _naming(file.location):
        header = None
        if tensors and _may_be_safetensors(descriptor, file):
            try:
                header = read_header(
                    lambda at, length: _read(descriptor, file, at, length),
                    file.size,
                    max_bytes=limits.SAFETENSORS_HEADER_BYTES_CEILING,
                    name=file.path,
                )
            except BadSafetensorsError:
                if file.path.lower().endswith(_SUFFIX):
                    raise
        whole = hashlib.sha256()
        if header is None:
            for data in _blocks(descriptor, file, 0, file.size):
                whole.update(data)
                told(len(data))
            return HashedFile(file, ContentId(whole.hexdigest()))
        whole.update(header.raw)
        told(len(header.raw))
        found: dict[str, LooseTensor] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="rbl-hash") as beside:
            waiting: Future[None] | None = None
            for span in header.tensors:
                own, start = hashlib.sha256(), header.data_offset + span.begin
                for data in _blocks(descriptor, file, start, span.size):
                    if waiting is not None:
                        waiting.result()  # one block ahead at most: memory stays bounded
                    waiting = beside.submit(whole.update, data)
                    own.update(data)
                    told(len(data))
                stored = StoredTensor(span.dtype, span.shape, ContentId(own.hexdigest()))
                found[span.name] = LooseTensor(stored, file, start)
        return HashedFile(file, ContentId(whole.hexdigest()), found)


def _may_be_safetensors(descriptor: int, file: LooseFile) -> bool:
    """By its name, or by how it begins: a hub's blobs have digests for names."""
    if file.path.lower().endswith(_SUFFIX):
        return True
    head = _read(descriptor, file, 0, 9) if file.size > 9 else b""
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= file.size - 8


def _read(descriptor: int, file: LooseFile, offset: int, length: int) -> bytes:
    return b"".join(_blocks(descriptor, file, offset, length))


def _blocks(descriptor: int, file: LooseFile, offset: int, length: int) -> Iterator[bytearray]:
    end = offset + length
    while offset < end:
        data = bytearray(min(_CHUNK, end - offset))
        read_exactly_into(descriptor, offset, memoryview(data))
        yield data
        offset += len(data)
