"""``config.toml``: settings of one repository. Data only; nothing in it is ever run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from rblstore.errors import InputError

MAX_BYTES = 64 << 10
Compression = Literal["fast", "max", "none"]


@dataclass(frozen=True)
class Configuration:
    """The settings.

    Attributes:
        author: Who commits where nobody else is named, or None.
        compression: ``fast``, ``max`` or ``none``; how frames written from now on are encoded.
    """

    author: str | None = None
    compression: Compression = "fast"


DEFAULT_TEXT = """\
# Settings of this repository. Data only: nothing in here is ever run.
# author = "Ada Lovelace <ada@example.org>"

[storage]
compression = "fast"   # fast | max | none
"""


def _text(table: dict[str, Any], key: str) -> str | None:
    value = table.pop(key, None)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise InputError(f"config.toml: {key!r} is not text", object="config.toml")
    return value


def parse_configuration(data: bytes) -> Configuration:
    """Reads the settings.

    Raises:
        InputError: Too large, not TOML, an unknown key, or a value that is not one of those allowed.
    """
    if len(data) > MAX_BYTES:
        raise InputError("config.toml is too large", object="config.toml")
    if data == DEFAULT_TEXT.encode():
        return Configuration()  # most repositories; no parser is loaded for them
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"config.toml: {error}", object="config.toml", hint="Mend or delete the file.") from error
    storage = table.pop("storage", {})
    if not isinstance(storage, dict):
        raise InputError("config.toml: 'storage' is not a table", object="config.toml")
    author = _text(table, "author")
    compression = _text(storage, "compression") or "fast"
    if compression not in get_args(Compression):
        raise InputError(
            f"config.toml: compression {compression!r} is none of {', '.join(get_args(Compression))}",
            object="config.toml",
        )
    if unknown := sorted([*table, *(f"storage.{key}" for key in storage)]):
        raise InputError(f"config.toml: {unknown[0]!r} is not a known setting", object="config.toml")
    return Configuration(author, cast("Compression", compression))
