"""What a directory on disk offers to be committed: regular files, each looked at before it is trusted.

Links are followed in one case only, the Hugging Face hub cache, whose snapshots are links to the blobs beside them.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from rblstore.checkpoints.open_beneath import NotRegularError, open_directory, open_regular
from rblstore.checkpoints.pickle_conversion import PickleOnlyError, conversion_hint
from rblstore.checkpoints.pickles import HEAD_BYTES, looks_like_pickle, zip_names_pickle
from rblstore.errors import InputError
from rblstore.objects.paths import check_path, check_paths

FileKind = Literal["opaque", "plain", "safetensors"]

EXCLUDED: Final = {
    ".git": "version control",
    ".hg": "version control",
    ".svn": "version control",
    ".dvc": "version control",
    ".rbl": "an rblstore repository",
    ".cache": "a cache",
    "__pycache__": "a cache",
    ".ipynb_checkpoints": "a cache",
    ".DS_Store": "a file manager's notes",
}
PICKLE_REASON: Final = "a pickle, which can run code when loaded"
_POINTER_REASON: Final = "a git-lfs pointer, not the file itself"
_POINTER_HEAD: Final = b"version https://git-lfs.github.com/spec/"
# Without these a checkpoint does not load, so a pointer in their place is never stored.
_NEEDED: Final = (".safetensors", ".json", ".model", ".txt", ".jinja", ".spm", ".py", ".vocab")
_BLOB: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_FILES: Final = 100_000
_ZIP_TAIL: Final = 256 << 10
_SPECIAL: Final = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class BadDirectoryError(InputError):
    """A directory, or something in it, cannot be taken in."""

    code = "bad_directory"


class TruncatedFileError(InputError):
    """A file ended before the bytes that it should hold."""

    code = "truncated_file"


@dataclass(frozen=True)
class LeftOut:
    """Something in a directory that is not taken in.

    Attributes:
        path: Relative, with forward slashes; a folder stands for everything in it.
        reason: Why, in a few words.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class SourceFile:
    """One regular file of a directory.

    Attributes:
        path: Relative, with forward slashes.
        kind: ``safetensors`` by its name, ``opaque`` for a pickle kept as bytes that are never loaded, else ``plain``.
        size: Bytes when the directory was scanned.
        root: The directory that :meth:`open` starts from.
        location: The components from there; in a hub cache they lead to the blob.
    """

    path: str
    kind: FileKind
    size: int
    root: Path = field(repr=False)
    location: tuple[str, ...] = field(repr=False)

    def open(self) -> int:
        """A descriptor for reading, opened through no link and checked to be a regular file. The caller closes it.

        Raises:
            BadDirectoryError: It is gone, or is no longer a regular file.
        """
        with _naming(self.path), _root(self.root) as root:
            return open_regular(root, self.location)

    def read(self, max_bytes: int) -> bytes:
        """The file's bytes as it was scanned, the first ``max_bytes`` of them where there are more.

        Raises:
            BadDirectoryError: It is gone, is no longer a regular file, or could not be read.
            TruncatedFileError: It is shorter than it was.
        """
        descriptor = self.open()
        try:
            with _naming(self.path):
                return read_exact(descriptor, 0, min(self.size, max_bytes))
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class SourceDirectory:
    """A directory as scanned.

    Attributes:
        path: As it was given.
        files: Sorted by path.
        left_out: What is not among them and why, sorted by path.
    """

    path: Path
    files: tuple[SourceFile, ...]
    left_out: tuple[LeftOut, ...]


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Says in every error which file it was."""
    try:
        yield
    except (BadDirectoryError, TruncatedFileError) as error:
        if error.object is not None:
            raise
        raise type(error)(f"{path}: {error.message}", object=path, hint=error.hint) from error
    except NotRegularError as error:
        raise BadDirectoryError(
            f"{path} is not a regular file", object=path, hint="Remove it and try again."
        ) from error
    except OSError as error:
        raise BadDirectoryError(
            f"{path} could not be read: {error.strerror or error}",
            object=path,
            hint="Check that it exists, that it may be read, and that nothing is changing the directory.",
        ) from error


@contextmanager
def _root(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_exact(descriptor: int, offset: int, length: int) -> bytes:
    """Bytes of a file at an offset, without moving its position.

    Raises:
        TruncatedFileError: The file ends before.
        BadDirectoryError: The system failed to read.
    """
    data = bytearray(length)
    read_exactly_into(descriptor, offset, memoryview(data))
    return bytes(data)


def read_exactly_into(descriptor: int, offset: int, out: memoryview) -> None:
    """Fills ``out`` with the bytes of a file at an offset, without moving its position.

    Raises:
        TruncatedFileError: The file ends before.
        BadDirectoryError: The system failed to read.
    """
    while out:
        try:
            count = os.preadv(descriptor, [out], offset)
        except OSError as error:
            raise BadDirectoryError(
                f"reading {len(out)} bytes at {offset} failed: {error.strerror or error}", hint="Check the disk."
            ) from error
        if not count:
            raise TruncatedFileError(
                f"the file ends {len(out)} bytes before the end of what it should hold",
                hint="Make sure that it was copied or downloaded whole and that nothing is writing to it.",
            )
        offset += count
        out = out[count:]


def resolved_path(path: Path) -> Path:
    """A path with its links followed.

    Raises:
        BadDirectoryError: One of them became something else meanwhile.
    """
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise BadDirectoryError(
            f"{path} could not be resolved: {error.strerror or error}",
            object=str(path),
            hint="Make sure that nothing is changing the directory.",
        ) from error


def hub_snapshot(root: Path) -> Path | None:
    """The hub cache's snapshot, ``models--ORG--NAME/snapshots/REVISION``, that this or a folder above is; else None."""
    resolved = resolved_path(root)
    for folder in (resolved, *resolved.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            return folder
    return None


def hub_blob(root: Path, path: str, target: str) -> tuple[Path, tuple[str, ...]]:
    """Where a hub cache keeps what a snapshot's link points at.

    Raises:
        BadDirectoryError: The link is no such link.
    """
    refused = BadDirectoryError(
        f"{path} is a symbolic link", object=path, hint="Put the file itself there: cp --dereference, or cp -rL."
    )
    snapshot = hub_snapshot(root)
    if snapshot is None:
        raise refused
    cache = snapshot.parent.parent
    pointed = Path(os.path.normpath((resolved_path(root) / path).parent / target))
    if pointed.parent != cache / "blobs" or not _BLOB.fullmatch(pointed.name):
        raise refused
    return cache, ("blobs", pointed.name)


class _Scan:
    """One walk over one directory."""

    def __init__(self, path: Path, include_opaque: bool) -> None:
        self._path = path
        self._include_opaque = include_opaque
        self.files: list[SourceFile] = []
        self.left_out: list[LeftOut] = []
        self.pickles: list[str] = []

    def run(self) -> None:
        with _naming(str(self._path)), _root(self._path) as root:
            waiting: list[tuple[str, ...]] = [()]
            while waiting:
                waiting.extend(self._folder(root, waiting.pop()))

    def _folder(self, root: int, components: tuple[str, ...]) -> list[tuple[str, ...]]:
        folders = []
        with _naming("/".join(components) or str(self._path)):
            descriptor = open_directory(root, components)
        try:
            with _naming("/".join(components) or str(self._path)), os.scandir(descriptor) as entries:
                names = sorted(entry.name for entry in entries)
            for name in names:
                location = (*components, name)
                path = "/".join(location)
                if name in EXCLUDED:
                    self.left_out.append(LeftOut(path, EXCLUDED[name]))
                    continue
                check_path(path)
                with _naming(path):
                    mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    folders.append(location)
                elif stat.S_ISLNK(mode):
                    with _naming(path):
                        target = os.readlink(name, dir_fd=descriptor)
                    self._file(path, *hub_blob(self._path, path, target))
                elif stat.S_ISREG(mode):
                    self._file(path, self._path, location)
                else:
                    what = _SPECIAL.get(stat.S_IFMT(mode), "no regular file")
                    raise BadDirectoryError(f"{path} is {what}", object=path, hint="Remove it and try again.")
        finally:
            os.close(descriptor)
        return folders

    def _file(self, path: str, root: Path, location: tuple[str, ...]) -> None:
        if len(self.files) + len(self.left_out) >= _MAX_FILES:
            raise BadDirectoryError(f"{self._path} holds more than {_MAX_FILES} files", object=str(self._path))
        file = SourceFile(path, "plain", 0, root, location)
        descriptor = file.open()
        is_safetensors = path.lower().endswith(".safetensors")
        try:
            with _naming(path):
                size = os.fstat(descriptor).st_size
                head = read_exact(descriptor, 0, min(size, HEAD_BYTES))
                # A header's length may read as a pickle's first opcodes; behind a '{' the header's own parser decides.
                has_header = is_safetensors and head[8:9] == b"{"
                pickled = not has_header and (
                    looks_like_pickle(head, path) or self._zip_holds_pickle(descriptor, head, size)
                )
        finally:
            os.close(descriptor)
        if head.startswith(_POINTER_HEAD):
            self._pointer(path)
        elif pickled and is_safetensors:
            raise PickleOnlyError(
                f"{path} is a pickle, whatever its name says", object=path, hint=conversion_hint(self._path, [path])
            )
        elif pickled:
            self.pickles.append(path)
            if self._include_opaque:
                self.files.append(SourceFile(path, "opaque", size, root, location))
            else:
                self.left_out.append(LeftOut(path, PICKLE_REASON))
        else:
            kind: FileKind = "safetensors" if is_safetensors else "plain"
            self.files.append(SourceFile(path, kind, size, root, location))

    def _zip_holds_pickle(self, descriptor: int, head: bytes, size: int) -> bool:
        if head[:4] != b"PK\x03\x04":
            return False
        tail = min(size, _ZIP_TAIL)
        return zip_names_pickle(read_exact(descriptor, size - tail, tail))

    def _pointer(self, path: str) -> None:
        if path.lower().endswith(_NEEDED):
            raise BadDirectoryError(
                f"{path} is a git-lfs pointer, not the file itself",
                object=path,
                hint=_pull_hint(self._path),
            )
        self.left_out.append(LeftOut(path, _POINTER_REASON))

    def require_weights(self) -> None:
        """Refuses a directory in which there is nothing to version."""
        if any(file.kind == "safetensors" for file in self.files):
            return
        where = str(self._path)
        if self.pickles:
            named = ", ".join(self.pickles[:5]) + (" ..." if len(self.pickles) > 5 else "")
            raise PickleOnlyError(
                f"{where} has its weights only as pickles ({named}), which can run code when loaded",
                object=where,
                hint=conversion_hint(self._path, self.pickles),
            )
        pointers = [entry.path for entry in self.left_out if entry.reason == _POINTER_REASON]
        if pointers:
            raise BadDirectoryError(
                f"{where} has git-lfs pointers in place of weights ({', '.join(pointers[:5])})",
                object=where,
                hint=_pull_hint(self._path),
            )
        raise BadDirectoryError(f"{where} has no safetensors weights", object=where, hint=_weights_hint(self._path))


def _pull_hint(path: Path) -> str:
    return f"Fetch the real files first: cd {shlex.quote(str(path))} && git lfs pull"


def _weights_hint(path: Path) -> str:
    snapshots = path / "snapshots"
    if path.name.startswith("models--") and snapshots.is_dir():
        return f"It is a hub cache; give one of the folders in {snapshots}."
    return "Give the folder that holds model.safetensors or adapter_model.safetensors."


def scan_directory(path: Path, *, include_opaque: bool = False, require_weights: bool = True) -> SourceDirectory:
    """Lists what a directory holds, without reading more than the beginning of each file.

    Version control and cache folders are left out, and so are pickles beside safetensors; both are named.

    Args:
        path: The directory; the one place where a link may stand.
        include_opaque: Whether pickles are kept, as bytes that are never loaded.
        require_weights: Whether a directory without any safetensors file is refused.

    Raises:
        BadDirectoryError: No directory, unreadable, without weights, or with a link, special file or git-lfs pointer.
        PickleOnlyError: Its only weights are pickles.
        InputError: A file's name could not be written everywhere, or two names collide.
    """
    try:
        is_directory = path.is_dir()
        exists = is_directory or path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:  # a name that is too long, a folder above it that may not be looked into
        raise BadDirectoryError(
            f"{path!s:.200} could not be read: {getattr(error, 'strerror', None) or error}",
            object=str(path)[:200],
            hint="Give the folder that holds the model's files.",
        ) from error
    if not is_directory:
        raise BadDirectoryError(
            f"{path} is not a directory" if exists else f"there is no directory {path}",
            object=str(path),
            hint="Give the folder that holds the model's files.",
        )
    scan = _Scan(path, include_opaque)
    scan.run()
    files = sorted(scan.files, key=lambda file: file.path)
    check_paths(file.path for file in files)
    if require_weights:
        scan.require_weights()
    return SourceDirectory(path, tuple(files), tuple(sorted(scan.left_out, key=lambda entry: entry.path)))


def is_excluded(path: str) -> bool:
    """Whether a relative path lies in a folder, or is a file, that no directory's scan takes in."""
    return any(part in EXCLUDED for part in PurePosixPath(path).parts)
