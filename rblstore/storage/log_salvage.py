"""Reading what is left of ``refs.log``: each line says by itself whether it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rblstore.objects.history_records import Operation
from rblstore.storage.backend import ReadError
from rblstore.storage.refs_log import encode_line, intact_operations, read_lines, read_whole


@dataclass(frozen=True)
class SalvagedLog:
    """What can be read of a log.

    Attributes:
        operations: Those at its beginning that follow from each other.
        later: Readable ones after the first damage, in their order.
        damage: What is wrong, or None; a torn tail, as a crash leaves it, is nothing.
    """

    operations: tuple[Operation, ...]
    later: tuple[Operation, ...]
    damage: str | None


def salvage_log(data: bytes) -> SalvagedLog:
    """Reads whatever is whole in a log that may be damaged anywhere, or be no log at all.

    Args:
        data: Its bytes.
    """
    parsed, damage = read_lines(data)
    later = intact_operations(data[parsed.valid_bytes :])
    return SalvagedLog(parsed.operations, later, None if damage is None else damage.message)


def read_log_file(path: Path) -> bytes:
    """The bytes of a log; none where there is no file.

    Raises:
        LogTooLargeError: More than any log is read.
        ReadError: The system refused, or it is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ReadError(f"reading the log failed: {error.strerror or error}", object=str(path)) from error
    try:
        return read_whole(descriptor)
    except OSError as error:
        raise ReadError(f"reading the log failed: {error.strerror or error}", object=str(path)) from error
    finally:
        os.close(descriptor)


def encode_log(operations: Iterable[Operation]) -> bytes:
    """The bytes of a whole log.

    Args:
        operations: From the first one on, each following from the one before.
    """
    lines = bytearray()
    line: bytes | None = None
    for operation in operations:
        line = encode_line(operation, line)
        lines += line
    return bytes(lines)
