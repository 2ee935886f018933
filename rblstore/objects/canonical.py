r"""Canonical bytes: RFC 8785 JSON out, strict JSON in, and the hashing rule of records.

A record's bytes are ``rblstore/<kind>/<version>\n`` followed by its RFC 8785 canonical JSON; its id is the SHA-256
of those bytes. So a record is a content like any other, and ``sha256sum`` of its stored bytes gives its id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeAlias

import rfc8785

from rblstore.errors import InputError
from rblstore.objects import limits

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

VERSION = 1


def encode_json(value: Json) -> bytes:
    """The RFC 8785 bytes of a value.

    Raises:
        InputError: The value has no canonical form (NaN, an integer beyond 2^53 - 1, a lone surrogate).
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise InputError(f"a value has no canonical JSON form: {error}") from error


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InputError(f"the JSON key {key[:80]!r} appears twice", object=key[:80])
            seen.add(key)
    return found


def _reject_constant(text: str) -> Any:
    raise InputError(f"{text} is not JSON", object=text)


def _parse_integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > limits.JSON_INTEGER:
        raise InputError(f"the JSON integer {text[:24]} is beyond 2^53 - 1", object=text[:24])
    return int(text)


def _parse_record_integer(text: str) -> int | float:
    # RFC 8785 writes doubles from 2^53 to 10^21 without a point; the canonical form then admits only those.
    if len(text) <= 22 and abs(int(text)) > limits.JSON_INTEGER:
        return float(text)
    return _parse_integer(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InputError(f"the JSON number {text[:24]} is not finite", object=text[:24])
    return value


def _check_shape(value: Any, depth: int, entries: list[int]) -> None:
    if depth > limits.JSON_DEPTH:
        raise InputError(f"JSON nested deeper than {limits.JSON_DEPTH}")
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError("a JSON string holds a lone surrogate")
        return
    if not isinstance(value, (dict, list)):
        return
    entries[0] += len(value)
    if isinstance(value, dict):
        for key in value:
            _check_shape(key, depth, entries)
        children: Any = value.values()
    else:
        children = value
    for child in children:
        _check_shape(child, depth + 1, entries)


def _surely_exceeds(data: bytes, max_entries: int) -> bool:
    # Counts marks instead of parsing: 64 MiB of empty containers would take gigabytes before anybody could count them.
    # Valid JSON of E entries has at most 2 E + 1 commas and openings outside its strings, and 4 E + 2 quotes.
    marks = (b",", b"[", b"{")
    if sum(map(data.count, marks)) <= max_entries:
        return False
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 4 * max_entries + 2:
        return True
    outside = b"".join(unescaped.split(b'"')[::2])
    return sum(map(outside.count, marks)) > 2 * max_entries + 1


def decode_json(
    data: bytes,
    *,
    what: str,
    max_bytes: int,
    max_entries: int | None = None,
    parse_integer: Callable[[str], int | float] = _parse_integer,
) -> Any:
    """Parses JSON that may be hostile: size, depth and integers capped, duplicate keys and non-finite numbers refused.

    Args:
        data: The UTF-8 bytes.
        what: What is being read, for messages ("adapter_config.json").
        max_bytes: Size above which nothing is parsed.
        max_entries: The most members and elements in all, or None for no such cap.
        parse_integer: Reads a number written without point and exponent.

    Raises:
        InputError: The bytes break a rule; the message names ``what``.
    """
    if len(data) > max_bytes:
        raise InputError(f"{what}: {len(data)} bytes, more than the {max_bytes} allowed", object=what)
    if max_entries is not None and _surely_exceeds(data, max_entries):
        raise InputError(f"{what}: more than the {max_entries} entries allowed", object=what)
    try:
        value = json.loads(
            data.decode("utf-8", "strict"),
            object_pairs_hook=_reject_duplicates,
            parse_constant=_reject_constant,
            parse_int=parse_integer,
            parse_float=_parse_float,
        )
        entries = [0]
        _check_shape(value, 0, entries)
    except InputError as error:
        raise InputError(f"{what}: {error.message}", object=what) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: not valid JSON ({error})", object=what) from error
    if max_entries is not None and entries[0] > max_entries:
        raise InputError(f"{what}: {entries[0]} entries, more than the {max_entries} allowed", object=what)
    return value


def record_bytes(kind: str, body: Json) -> bytes:
    """The bytes that are stored and hashed for a record of a kind."""
    return f"rblstore/{kind}/{VERSION}\n".encode() + encode_json(body)


def record_kind(data: bytes) -> str:
    """The kind that the prefix line of a record's bytes names.

    Raises:
        InputError: There is no such line, or its version is not one this code reads.
    """
    line, separator, _ = data[:80].partition(b"\n")
    parts = line.split(b"/")
    if not separator or len(parts) != 3 or parts[0] != b"rblstore":
        raise InputError("these bytes are not an rblstore record")
    if parts[2] != str(VERSION).encode():
        raise InputError(
            f"record version {parts[2].decode('ascii', 'replace')} is not known",
            hint="A newer rblstore wrote it; upgrade.",
        )
    return parts[1].decode("ascii", "replace")


def record_body(data: bytes, kind: str) -> dict[str, Any]:
    """The parsed body of a record's bytes, checked to be of the kind and in canonical form.

    Raises:
        InputError: Another kind, malformed, or not the canonical form of what it says.
    """
    if (found := record_kind(data)) != kind:
        raise InputError(f"a {kind} record was expected, found {found}", object=found)
    raw = data[data.index(b"\n") + 1 :]
    body = decode_json(
        raw,
        what=f"{kind} record",
        max_bytes=limits.RECORD_BYTES,
        max_entries=limits.RECORD_ENTRIES,
        parse_integer=_parse_record_integer,
    )
    if not isinstance(body, dict):
        raise InputError(f"{kind} record: not a JSON object", object=kind)
    if encode_json(body) != raw:
        raise InputError(f"{kind} record: not in canonical form", object=kind)
    return body


def sha256_hex(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
