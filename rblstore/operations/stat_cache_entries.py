"""What the stat cache remembers about a file, when that may be believed, and how it is written down. No I/O.

An entry is believed where all of this holds:

- size, modification time, change time, inode and device of the file are those that it had when it was read;
- both times lay before the beginning of that reading by more than a margin. A file written within the tick of
  the clock in which it was read keeps its times; git calls such an entry racy;
- the reading lies in the past. So neither time is in the future, and no clock was set back since.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from rblstore.errors import InputError
from rblstore.objects.canonical import decode_json, encode_json
from rblstore.objects.content_records import FileManifest
from rblstore.objects.ids import ContentId, FileManifestId

# The coarsest clock of a file system that is about: FAT counts in two seconds. Where times have fractions of a second,
# the clock is that of the system, whose ticks are of ten milliseconds at most.
MARGIN_NS: Final = 2_000_000_000
FINE_MARGIN_NS: Final = 50_000_000
MAX_ENTRIES: Final = 20_000
MAX_BYTES: Final = 16 << 20
NOTES_BYTES: Final = 16 << 10

_FIRST: Final = b"rblstore stat-cache 1\n"
_DIGEST_LINE: Final = 65
_ID = rb"([0-9a-f]{64})"
_COUNT = rb"(0|[1-9][0-9]{0,19})"
_TIME = rb"(0|-?[1-9][0-9]{0,19})"
_LINE = re.compile(
    rb" ".join(
        (_ID, _ID, rb"([0-9a-f]{64}|-)", _COUNT, _TIME, _TIME, _COUNT, _COUNT, _COUNT, rb"(\[.{0,%d}\])" % NOTES_BYTES)
    )
)


@dataclass(frozen=True)
class FileStamp:
    """What the system says about a file without reading it, taken from an open descriptor.

    Attributes:
        size: Bytes.
        mtime_ns: When its bytes changed last, as far as programs do not say otherwise; nanoseconds of the Unix epoch.
        ctime_ns: When anything about it changed last, which no program can set.
        inode: Its number in its file system.
        device: The file system's.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """The stamp in what ``os.fstat`` returned."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    def settled_before(self, read_ns: int) -> bool:
        """Whether a change after a reading that began then would show in the stamp."""
        fine = self.ctime_ns % 1_000_000_000 != 0
        return max(self.mtime_ns, self.ctime_ns) + (FINE_MARGIN_NS if fine else MARGIN_NS) < read_ns


@dataclass(frozen=True)
class KnownFile:
    """What a file was when it was read last.

    Attributes:
        sha256: Of the whole file.
        size: Bytes.
        manifest: For a file that was taken in as safetensors, what it is put together from; None for one kept whole.
        notes: What a person should know about its values. The file's path is not in them: the same file may be
            committed under another one.
        record: The manifest itself where a lookup found it, so that nobody reads it twice; not remembered.
    """

    sha256: ContentId
    size: int
    manifest: FileManifestId | None = None
    notes: tuple[str, ...] = ()
    record: FileManifest | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Entry:
    """One file of the cache.

    Attributes:
        stamp: Its stamp when it was read.
        read_ns: When that reading began; nanoseconds of the Unix epoch.
        known: What it was.
    """

    stamp: FileStamp
    read_ns: int
    known: KnownFile

    def holds(self, stamp: FileStamp, now_ns: int) -> bool:
        """Whether a file that has a stamp now is still what it was."""
        return stamp == self.stamp and self.known.size == stamp.size and self.believable(now_ns)

    def believable(self, now_ns: int) -> bool:
        """Whether the stamp would show a change made after the reading."""
        return self.read_ns <= now_ns and self.stamp.settled_before(self.read_ns)

    def encode(self, key: str) -> bytes:
        """Its line, without the newline.

        Args:
            key: The file's; see :func:`path_key`.

        Raises:
            InputError: The cache has no room for such notes, or no way to write a number down.
        """
        known, stamp = self.known, self.stamp
        numbers = (known.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode, stamp.device, self.read_ns)
        words = (key, known.sha256, known.manifest or "-", *map(str, numbers))
        line = " ".join(words).encode() + b" " + encode_json(list(known.notes))
        if _LINE.fullmatch(line) is None:
            raise InputError("the stat cache cannot hold this entry", object=known.sha256)
        return line

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """Reads a line, which may be hostile.

        Raises:
            InputError: It is none.
        """
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError("stat-cache: a line is not an entry", object="stat-cache")
        sha256, manifest = match[2].decode(), match[3].decode()
        size, mtime_ns, ctime_ns, inode, device, read_ns = map(int, match.groups()[3:9])
        notes = decode_json(match[10], what="stat-cache", max_bytes=NOTES_BYTES + 2)
        if not all(isinstance(note, str) for note in notes):
            raise InputError("stat-cache: a note is not text", object="stat-cache")
        manifest_id = None if manifest == "-" else FileManifestId(manifest)
        known = KnownFile(ContentId(sha256), size, manifest_id, tuple(notes))
        return cls(FileStamp(size, mtime_ns, ctime_ns, inode, device), read_ns, known)


def path_key(resolved: str) -> str:
    """The name of a file in the cache: SHA-256 of its absolute path, whose bytes may be no text at all."""
    return hashlib.sha256(os.fsencode(resolved)).hexdigest()


def encode_entries(lines: Mapping[str, bytes]) -> bytes:
    """The cache's file.

    Args:
        lines: By key, the oldest first; the oldest are left out where there are too many.
    """
    kept: list[bytes] = []
    room = MAX_BYTES - len(_FIRST) - _DIGEST_LINE
    for line in list(lines.values())[: -MAX_ENTRIES - 1 : -1]:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line + b"\n")
    body = _FIRST + b"".join(reversed(kept))
    return body + hashlib.sha256(body).hexdigest().encode() + b"\n"


def parse_entries(data: bytes) -> dict[str, bytes]:
    """The lines of the cache's file by key, the oldest first; each is one that :meth:`Entry.parse` may read.

    Raises:
        InputError: Another version, too large, or damaged in any way.
    """
    body, digest = data[:-_DIGEST_LINE], data[-_DIGEST_LINE:]
    if len(data) > MAX_BYTES or not body.startswith(_FIRST) or not body.endswith(b"\n"):
        raise InputError("stat-cache: not a cache of this version", object="stat-cache")
    if hashlib.sha256(body).hexdigest().encode() + b"\n" != digest:
        raise InputError("stat-cache: damaged", object="stat-cache")
    found = body[len(_FIRST) : -1].split(b"\n") if len(body) > len(_FIRST) else []
    lines = {line[:64].decode("ascii", "replace"): line for line in found}
    if not len(found) == len(lines) <= MAX_ENTRIES or not all(map(_LINE.fullmatch, found)):
        raise InputError("stat-cache: something in it is no entry, or is there twice", object="stat-cache")
    return lines
