"""The operation log ``refs.log`` (docs/format.md, refs.log): one line an operation, chained by hash, appended only.

A torn tail is what a crash leaves: a last line without its newline, or with a wrong checksum and nothing after it.
Readers pass over it and whoever next appends cuts it. Damage anywhere else is corruption.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from rblstore.errors import CorruptError, InputError, LockedError
from rblstore.objects import limits
from rblstore.objects.canonical import VERSION
from rblstore.objects.history_records import Operation
from rblstore.objects.ids import RecordId
from rblstore.storage.backend import ReadError
from rblstore.storage.durable import WriteError, append, fsync_directory
from rblstore.storage.locks import acquire
from rblstore.storage.pack_format import checksum

T = TypeVar("T")

_LINE_BEGINS: Final = re.compile(rb"[0-9a-f]{16} [0-9a-f]{64} [1-9][0-9]{0,15} \{")
_PREFIX: Final = f"rblstore/{Operation.KIND}/{VERSION}\n".encode()
_NO_LINE: Final = "0" * 64
_TAIL_BYTES: Final = 16 << 10
_CHUNK_BYTES: Final = 1 << 20
_LINE_BYTES: Final = limits.RECORD_BYTES + 128
_LOG_BYTES: Final = 1 << 30
_WAIT_SECONDS: Final = 60.0
_READ_WAIT_SECONDS: Final = 5.0


class CorruptLogError(CorruptError):
    """``refs.log`` is damaged before its end, or contradicts what is to be appended to it."""

    code = "corrupt_log"


class LogTooLargeError(InputError):
    """``refs.log`` is larger than any that is read whole."""

    code = "log_too_large"


def _corrupt(where: str, why: str) -> CorruptLogError:
    return CorruptLogError(f"refs.log, {where}: {why}", object="refs.log", hint="Run: rbl repair")


@dataclass(frozen=True)
class ParsedLog:
    """What a log says.

    Attributes:
        operations: All of them, in order.
        valid_bytes: Bytes of the whole lines that say so.
        torn: Whether something that is no whole line follows them.
    """

    operations: tuple[Operation, ...]
    valid_bytes: int
    torn: bool


class _Line(NamedTuple):
    previous: bytes
    sequence: int
    json: bytes


class _Tail(NamedTuple):
    """The last whole line, and where it ends; sequence 0 and None where there is none."""

    sequence: int
    line: bytes | None
    end: int


def encode_line(operation: Operation, previous_line: bytes | None) -> bytes:
    """An operation's line, its newline included.

    Args:
        operation: What to write.
        previous_line: The line before, with or without its newline; None in the first line.
    """
    previous = _NO_LINE if previous_line is None else hashlib.sha256(previous_line.removesuffix(b"\n")).hexdigest()
    json = operation.encode().removeprefix(_PREFIX)
    checked = f"{previous} {operation.sequence} ".encode() + json
    return f"{checksum(checked):016x} ".encode() + checked + b"\n"


def parse_log(data: bytes) -> ParsedLog:
    """Reads a whole log, which may be hostile.

    Raises:
        CorruptLogError: A line that is not a torn tail is damaged, out of sequence, or does not follow from the one
            before; the message names it.
    """
    parsed, damage = read_lines(data)
    if damage is not None:
        raise damage
    return parsed


def read_lines(data: bytes) -> tuple[ParsedLog, CorruptLogError | None]:
    """Reads a log, which may be hostile, as far as it is whole; and what is wrong with what follows, or None."""
    operations: list[Operation] = []
    previous_line: bytes | None = None
    previous_json = b""
    position = 0
    damage: CorruptLogError | None = None
    while damage is None and (end := data.find(b"\n", position)) >= 0:
        number = len(operations) + 1
        raw = data[position:end]
        if not _is_intact(raw):
            if end + 1 < len(data):
                damage = _corrupt(f"line {number}", "its checksum does not match")
            break
        try:
            line = _split(raw, f"line {number}")
            before = _NO_LINE if previous_line is None else hashlib.sha256(previous_line).hexdigest()
            if line.previous != before.encode() or line.sequence != number:
                raise _corrupt(f"line {number}", "it does not follow from the line before")
            operations.append(_parse_operation(line, previous_json, f"line {number}"))
        except CorruptLogError as error:
            damage = error
            break
        previous_line, previous_json = raw, line.json
        position = end + 1
    if damage is None and not _is_intact(data[position:]) and intact_operations(data[position:]):
        # A crash leaves the beginning of a line, at most all of it but its newline; never something behind a line.
        damage = _corrupt("its end", "it holds operations, but not as whole lines")
    return ParsedLog(tuple(operations), position, position < len(data)), damage


def intact_operations(data: bytes) -> tuple[Operation, ...]:
    """The operations of every line in some bytes whose checksum is right, wherever it begins and ends.

    Args:
        data: A part of a log.
    """
    starts = [match.start() for match in _LINE_BEGINS.finditer(data)]
    found: list[Operation] = []
    for start, following in pairwise([*starts, len(data)]):
        raw = data[start:following].split(b"\n", 1)[0]
        # The last byte may be a newline that is none any more.
        for line in (raw, raw[:-1]):
            if _is_intact(line):
                with suppress(InputError):
                    found.append(Operation.parse(_PREFIX + line.split(b" ", 3)[3]))
                break
    return tuple(found)


def _is_intact(raw: bytes) -> bool:
    return len(raw) > 17 and raw[:17] == f"{checksum(memoryview(raw)[17:]):016x} ".encode()


def _split(raw: bytes, where: str) -> _Line:
    parts = raw.split(b" ", 3)
    if len(parts) != 4 or not 0 < len(parts[2]) <= 16 or not parts[2].isdigit() or parts[2].startswith(b"0"):
        raise _corrupt(where, "it does not have the parts of a line")
    return _Line(parts[1], int(parts[2]), parts[3])


def _parse_operation(line: _Line, previous_json: bytes, where: str) -> Operation:
    try:
        operation = Operation.parse(_PREFIX + line.json)
    except InputError as error:
        raise _corrupt(where, error.message) from error
    previous = _operation_id(previous_json) if previous_json else None
    if operation.sequence != line.sequence or operation.previous != previous:
        raise _corrupt(where, "its operation does not follow from the one before")
    return operation


def _operation_id(json: bytes) -> RecordId:
    return Operation.id_of(_PREFIX + json)


def _find_tail(descriptor: int) -> _Tail:
    """The last whole line, from as little of the file's end as it takes."""
    size = os.fstat(descriptor).st_size
    window = _TAIL_BYTES
    while True:
        start = max(0, size - window)
        data = _pread(descriptor, start, size - start)
        first = 0 if start == 0 else data.find(b"\n") + 1
        if start == 0 or first:
            tail = _tail_of(data, first, start)
            if tail is not None:
                return tail
        if start == 0:
            return _Tail(0, None, 0)
        if window >= _CHUNK_BYTES and not _has_line(descriptor, size):
            raise _corrupt("last line", "it is longer than any line may be")
        if window > 2 * _LINE_BYTES:
            raise _corrupt("last lines", "they do not end")
        window = min(8 * window, 2 * _LINE_BYTES + 1)


def _has_line(descriptor: int, size: int) -> bool:
    """Whether a line begins in that part of the file's end in which one must; nothing of it is kept in memory."""
    position = size - 1  # a newline there ends the line that is looked for
    while position > max(0, size - 1 - _LINE_BYTES):
        length = min(_CHUNK_BYTES, position)
        position -= length
        if b"\n" in _pread(descriptor, position, length):
            return True
    return position == 0


def _tail_of(data: bytes, first: int, start: int) -> _Tail | None:
    """The last whole line of what begins at ``first``; None where more of the file is needed to find it."""
    end = data.rfind(b"\n") + 1
    torn = end < len(data)
    while end > first:
        begin = data.rfind(b"\n", first, end - 1) + 1 or first
        raw = data[begin : end - 1]
        if _is_intact(raw):
            return _Tail(_split(raw, "last line").sequence, raw, start + end)
        if torn:
            raise _corrupt("last lines", "a checksum does not match")
        torn = True
        end = begin
    return None


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(descriptor, length, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


class LogWriter:
    """The log in the hands of whoever holds its lock.

    Attributes:
        last_sequence: Of the last whole line; 0 in an empty log.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        tail = _find_tail(descriptor)
        self.last_sequence, self._line, self._end = tail
        self._failed = False

    def append(self, operations: Sequence[Operation]) -> None:
        """Appends the operations above the last sequence, with one fsync, after cutting a torn tail.

        Args:
            operations: In order, without gaps. Those that the log has already are passed over.

        Raises:
            CorruptLogError: They do not follow from the log's last operation, or the last one there is another.
            WriteError: The system refused; nothing more is appended through this object.
        """
        if self._failed:
            raise WriteError("an earlier write to the log failed", object=str(self._path), hint="Open it again.")
        line, sequence = self._line, self.last_sequence
        lines = bytearray()
        for operation in operations:
            json = None if line is None else _split(line, "last line").json
            if operation.sequence < sequence:
                continue
            if operation.sequence == sequence:
                if operation.encode() != _PREFIX + (json or b""):
                    raise _corrupt(f"line {sequence}", f"it is not operation {sequence} of the catalog")
                continue
            follows = operation.previous == (None if json is None else _operation_id(json))
            if operation.sequence != sequence + 1 or not follows:
                raise _corrupt("its end", f"operation {operation.sequence} does not follow from operation {sequence}")
            line = encode_line(operation, line).removesuffix(b"\n")
            if len(line) > _LINE_BYTES:
                raise LogTooLargeError(f"operation {operation.sequence} takes {len(line)} bytes")
            lines += line + b"\n"
            sequence += 1
        if not lines:
            return
        self._require_no_more_than(sequence)
        self._failed = True
        append(self._descriptor, bytes(lines), self._path, keep=self._end)
        self._failed = False
        self.last_sequence, self._line, self._end = sequence, line, self._end + len(lines)

    def _require_no_more_than(self, sequence: int) -> None:
        """Refuses to cut a tail that holds an operation which nobody else has.

        Raises:
            CorruptLogError: It does.
        """
        try:
            tail = _pread(self._descriptor, self._end, os.fstat(self._descriptor).st_size - self._end)
        except OSError as error:
            raise ReadError(f"reading the log failed: {error.strerror or error}", object=str(self._path)) from error
        if any(operation.sequence > sequence for operation in intact_operations(tail)):
            raise _corrupt("its end", "it holds operations, but not as whole lines, that the catalog does not have")


class RefsLog:
    """The log of one repository.

    Args:
        path: Its file; a missing one is an empty log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder: int | None = None  # a thread

    def last(self) -> tuple[int, bytes] | None:
        """The last whole line's sequence and the line without its newline, from the file's end; None in an empty log.

        Raises:
            CorruptLogError: The end of the log is damaged, and not as a crash would leave it.
            ReadError: The system refused.
        """
        tail = self._read(_find_tail, _Tail(0, None, 0))
        return None if tail.line is None else (tail.sequence, tail.line)

    def read(self) -> ParsedLog:
        """The whole log, checked line by line. While another process appends, what was there before it or after.

        Raises:
            CorruptLogError: It is damaged; the message names the line.
            LogTooLargeError: It has more than 1 GiB.
            ReadError: The system refused.
        """
        return self._read(_parse_file, ParsedLog((), 0, False))

    @contextmanager
    def locked(self, wait_seconds: float = _WAIT_SECONDS) -> Iterator[LogWriter]:
        """Holds the log's exclusive lock while the block runs.

        Args:
            wait_seconds: How long to wait for whoever holds it.

        Raises:
            LockedError: Another process still holds it.
            CorruptLogError: The end of the log is damaged, and not as a crash would leave it.
            ReadError, WriteError: The system refused.
        """
        descriptor = self._open_locked(wait_seconds)
        self._holder = threading.get_ident()
        try:
            try:
                writer = LogWriter(descriptor, self._path)
            except OSError as error:
                raise self._unreadable(error) from error
            yield writer
        finally:
            self._holder = None
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a child inherited the descriptor
            os.close(descriptor)

    def _open_locked(self, wait_seconds: float) -> int:
        while True:
            new = not os.path.lexists(self._path)
            try:
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(self._path, flags, 0o644)
            except OSError as error:
                raise WriteError(
                    f"opening the log failed: {error.strerror or error}", object=str(self._path)
                ) from error
            try:
                if new:
                    fsync_directory(self._path.parent)
                acquire(descriptor, self._path, exclusive=True, wait_seconds=wait_seconds)
                if self._is_current(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # somebody put another file in its place while we waited

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unreadable(error) from error

    def _read(self, read: Callable[[int], T], empty: T) -> T:
        """What a function makes of the open log. One that looks damaged is looked at again while nobody writes."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return empty
            raise self._unreadable(error) from error
        try:
            try:
                return read(descriptor)
            except CorruptLogError:
                # The cut and the append of a writer at work can look like this, but not to one who holds the lock.
                if self._holder == threading.get_ident():
                    raise
                try:
                    acquire(descriptor, self._path, exclusive=False, wait_seconds=_READ_WAIT_SECONDS)
                except LockedError:
                    pass
                return read(descriptor)
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            os.close(descriptor)

    def _unreadable(self, error: OSError) -> ReadError:
        hint = "Check the disk and permissions, and that it is a regular file; nothing was changed."
        return ReadError(f"reading the log failed: {error.strerror or error}", object=str(self._path), hint=hint)


def _parse_file(descriptor: int) -> ParsedLog:
    return parse_log(read_whole(descriptor))


def read_whole(descriptor: int) -> bytes:
    """All bytes of an open log.

    Raises:
        LogTooLargeError: It has more than 1 GiB.
        OSError: The system refused.
    """
    size = os.fstat(descriptor).st_size
    if size > _LOG_BYTES:
        raise LogTooLargeError(f"refs.log has {size} bytes, more than the {_LOG_BYTES} allowed", object="refs.log")
    return _pread(descriptor, 0, size)
