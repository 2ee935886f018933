"""``config.toml``: settings of one repository. Data only; nothing in it is ever run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from rblstore.errors import InputError, UsageError
from rblstore.objects import limits

MAX_BYTES = 64 << 10
# The parser takes time and memory by the square of the parts of a key.
_MAX_DOTS = 1000
MAX_THREADS = 64
MAX_DAYS = 36_500
Compression = Literal["fast", "max", "none"]


@dataclass(frozen=True)
class Configuration:
    """The settings.

    Attributes:
        author: Who commits where nobody else is named, or None.
        compression: ``fast``, ``max`` or ``none``; how frames written from now on are encoded.
        threads: How many threads encode and decode; 0 for as many as there are cores. No byte depends on it.
        grace_days: How long gc lets be what nothing refers to, and then how long it stays in the trash.
        operation_days: How far back the operation log keeps what its operations moved away from.
    """

    author: str | None = None
    compression: Compression = "fast"
    threads: int = 0
    grace_days: int = 14
    operation_days: int = 90

    @property
    def workers(self) -> int:
        """Threads that encode and decode."""
        return self.threads or min(max(len(os.sched_getaffinity(0)), 2), MAX_THREADS)


DEFAULT_TEXT = """\
# Settings of this repository. Data only: nothing in here is ever run.
# author = "Ada Lovelace <ada@example.org>"

[storage]
compression = "fast"   # fast | max | none
threads = 0            # that encode and decode; 0 for one a core

[gc]
grace = 14             # days for which what nothing refers to stays, and then stays in the trash
operations = 90        # days for which the operation log keeps what it could bring back
"""


def check_author(author: str) -> str:
    """Who does something, returned as it is.

    Raises:
        UsageError: It is not one line of text.
    """
    if (
        not isinstance(author, str)
        or not author.isprintable()
        or not author.strip()
        or len(author.encode()) > limits.TEXT_BYTES
    ):
        raise UsageError(
            "the author is not one short line of text", object=str(author)[:80], hint="Give a name: --author NAME"
        )
    return author


def check_compression(value: object) -> Compression:
    """A compression policy, returned as it is.

    Raises:
        UsageError: There is none of that name.
    """
    if value not in get_args(Compression):
        raise UsageError(
            f"the compression {str(value)[:80]!r} is none of {', '.join(get_args(Compression))}",
            object=str(value)[:80],
            hint="Say fast, max or none.",
        )
    return cast("Compression", value)


def _bad(why: str) -> InputError:
    return InputError(f"config.toml: {why}", object="config.toml", hint="Mend or delete .rbl/config.toml.")


def _text(table: dict[str, Any], key: str) -> str | None:
    value = table.pop(key, None)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise _bad(f"{key!r} is not text")
    return value


def _table(table: dict[str, Any], key: str) -> dict[str, Any]:
    value = table.pop(key, {})
    if not isinstance(value, dict):
        raise _bad(f"{key!r} is not a table")
    return value


def _shown(value: object) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # Python writes no number of thousands of digits
        return "of thousands of digits"


def _number(table: dict[str, Any], key: str, default: int, largest: int) -> int:
    value = table.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise _bad(f"{key} {_shown(value)} is no number from 0 to {largest}")
    return value


def parse_configuration(data: bytes) -> Configuration:
    """Reads the settings.

    Raises:
        InputError: Too large, not TOML, an unknown key, or a value that is not one of those allowed.
    """
    if len(data) > MAX_BYTES:
        raise _bad(f"it has more than {MAX_BYTES} bytes")
    if data.count(b".") > _MAX_DOTS:
        raise _bad(f"it has more than {_MAX_DOTS} dots")
    if data == DEFAULT_TEXT.encode():
        return Configuration()  # most repositories; no parser is loaded for them
    import tomllib

    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad(str(error)[:200]) from error
    storage, gc = _table(table, "storage"), _table(table, "gc")
    author = _text(table, "author")
    compression = _text(storage, "compression") or "fast"
    if compression not in get_args(Compression):
        raise _bad(f"compression {_shown(compression)} is none of {', '.join(get_args(Compression))}")
    threads = _number(storage, "threads", 0, MAX_THREADS)
    grace = _number(gc, "grace", Configuration.grace_days, MAX_DAYS)
    operations = _number(gc, "operations", Configuration.operation_days, MAX_DAYS)
    unknown = [*table, *(f"storage.{key}" for key in storage), *(f"gc.{key}" for key in gc)]
    if unknown:
        raise _bad(f"{_shown(min(unknown))} is not a known setting")
    return Configuration(author, cast("Compression", compression), threads, grace, operations)
