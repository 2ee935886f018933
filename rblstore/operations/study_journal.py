"""Points of a study that is under way, kept so that one that was interrupted goes on where it was.

A journal is no evidence: a study becomes that as a whole, in one transaction, and then its journal goes. Its name is a
digest of everything that decides a point (study, commits, probes, parameters, environment), so other parameters or
another machine never take its points. A line is a digest and a point; what is torn, damaged or another journal's is
skipped, and measured again.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import Json, decode_json, encode_json, sha256_hex
from rblstore.objects.study_records import Scalar, StudyPoint
from rblstore.operations.gc_marking import DAY_SECONDS
from rblstore.operations.leftovers import Leftover
from rblstore.storage.durable import WriteError, append
from rblstore.storage.liveness import take_dead
from rblstore.storage.locks import acquire

FOLDER: Final = "studies"
SUFFIX: Final = ".jsonl"

_OPEN: Final = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME: Final = re.compile(r"[0-9a-f]{64}\.jsonl")
_DIGEST: Final = 64
_ATTEMPTS: Final = 16
_WAIT_SECONDS: Final = 10.0


class StudyJournal:
    """The points of one study, as far as they are measured.

    Args:
        folder: The ``.rbl`` directory.
        about: Everything that decides what a point is.

    Raises:
        WriteError: The system does not let it be read.
    """

    def __init__(self, folder: Path, about: dict[str, Json]) -> None:
        self.name = sha256_hex(encode_json(about))
        self.path = folder / FOLDER / f"{self.name}{SUFFIX}"
        self._points = self._read()

    def __len__(self) -> int:
        return len(self._points)

    def find(self, key: bytes) -> StudyPoint | None:
        """The point that was measured under a key (:func:`point_key`), or None."""
        return self._points.get(key)

    def add(self, key: bytes, point: StudyPoint) -> StudyPoint:
        """Keeps a point, durably.

        Returns:
            The point as it will be read again: numbers as JSON has them.

        Raises:
            InputError: It holds what no record can (NaN).
            WriteError: The system refused.
        """
        body = encode_json(point.body())
        kept = _point(body)
        with self._locked() as descriptor:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            # A torn line must not spoil this one.
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            append(descriptor, b"%s%s %s\n" % (b"\n" if torn else b"", self._digest(body), body), self.path)
        self._points[key] = kept
        return kept

    def remove(self) -> None:
        """Removes the journal: the study is recorded."""
        with suppress(OSError):  # what stays means nothing to anybody, and gc removes it
            self.path.unlink(missing_ok=True)

    def _digest(self, body: bytes) -> bytes:
        # The journal's own name is in it: a line that was copied from another one is not one of this.
        return sha256_hex(self.name.encode() + b"\n" + body).encode()

    @contextmanager
    def _locked(self) -> Iterator[int]:
        for _ in range(_ATTEMPTS):
            try:
                self.path.parent.mkdir(exist_ok=True)
                descriptor = os.open(self.path, _OPEN | os.O_CREAT, 0o644)
            except OSError as error:
                raise _refused("opened", self.path, error) from error
            try:
                acquire(descriptor, self.path, exclusive=True, wait_seconds=_WAIT_SECONDS)
                if self._is_there(descriptor):  # gc may have removed it between the two
                    yield descriptor
                    return
            finally:
                os.close(descriptor)
        raise _refused("opened", self.path, OSError("it goes away again and again"))

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _read(self) -> dict[bytes, StudyPoint]:
        try:
            descriptor = os.open(self.path, _OPEN)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _refused("opened", self.path, error) from error
        data = b""
        try:
            while len(data) <= limits.RECORD_BYTES and (piece := os.read(descriptor, 1 << 20)):
                data += piece
        except OSError as error:
            raise _refused("read", self.path, error) from error
        finally:
            os.close(descriptor)
        found: dict[bytes, StudyPoint] = {}
        for line in data[: limits.RECORD_BYTES].split(b"\n"):
            digest, space, body = line.partition(b" ")
            if space and len(digest) == _DIGEST and digest == self._digest(body):
                with suppress(InputError):
                    point = _point(body)
                    found[point_key(point.condition, point.seed)] = point
        return found


def journals(folder: Path) -> list[tuple[str, int]]:
    """Name and bytes of every journal in a ``.rbl`` directory; none where it cannot be listed."""
    try:
        with os.scandir(folder / FOLDER) as entries:
            named = [entry for entry in entries if _NAME.fullmatch(entry.name)]
        files = [entry for entry in named if entry.is_file(follow_symlinks=False)]
        return sorted((entry.name, entry.stat(follow_symlinks=False).st_size) for entry in files)
    except OSError:
        return []


def stale_journals(folder: Path, grace_days: int, now: float, *, remove: bool = False) -> tuple[Leftover, ...]:
    """Journals of studies that nobody went on with, by name.

    Args:
        folder: The ``.rbl`` directory.
        grace_days: Days since a point was added to them; 0 for all that nobody writes to now.
        now: By the clock of the folder's file system, in seconds of the Unix epoch. A journal of later than that stays.
        remove: Whether they go. What the system does not let go stays, and is not returned.
    """
    found = []
    try:
        studies = os.open(folder / FOLDER, _FOLDER)
    except OSError:
        return ()
    try:
        with os.scandir(studies) as entries:
            names = sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))
        for name in names:
            with take_dead(name, studies) as descriptor:
                status = None if descriptor is None else os.fstat(descriptor)
                if status is None or not stat.S_ISREG(status.st_mode):
                    continue
                if not now - status.st_mtime >= 0 or now - status.st_mtime < grace_days * DAY_SECONDS:
                    continue
                try:
                    if remove:
                        os.unlink(name, dir_fd=studies)
                except OSError:
                    continue
                path = folder / FOLDER / name
                found.append(Leftover(path, status.st_size, "points of a study that was not finished"))
    finally:
        os.close(studies)
    return tuple(found)


def point_key(condition: Mapping[str, Scalar], seed: int | None) -> bytes:
    """What tells one point of a study from its others."""
    return encode_json({"condition": dict(condition), "seed": seed})


def _point(body: bytes) -> StudyPoint:
    return StudyPoint.read(decode_json(body, what="study point", max_bytes=limits.RECORD_BYTES))


def _refused(what: str, path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"the journal of the study cannot be {what}: {error.strerror or error}",
        object=str(path),
        hint="Check free space and permissions, and that it is a regular file.",
    )
