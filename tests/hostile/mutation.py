"""Making hostile inputs out of valid ones: bytes changed blindly, and JSON changed where it hurts.

Everything is drawn from one :class:`random.Random`, so a seed gives the same inputs again.
"""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

LARGEST = 96 << 10
"""Bytes of the longest input that a mutation makes of a shorter one."""

INTEGERS = (
    0, 1, -1, 2, 7, 8, 16, 31, 32, 63, 64, 79, 80, 127, 128, 255, 256, 4095, 4096, 65535, 65536,
    (1 << 20) - 1, 1 << 20, 4 << 20, (4 << 20) + 1, 64 << 20, (64 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, 1 << 40, (1 << 53) - 1, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 31), -(1 << 63),
)  # fmt: skip
"""Numbers at which code that counts, allocates or compares goes wrong."""

# Values that code which trusts its input trips over.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 5, 2**53 - 1, 1 - 2**53, 2**53, 2**64, -(2**63), 10**30, 10**5000, 0.5, -0.0, -1e300,
    1e17, 5e-324, float("nan"), float("inf"), float("-inf"), "", "x", "\0", "a/../b", "..", "../../x", "/etc/passwd",
    "é" * 2000, "x" * 70_000, "0" * 64, "0" * 63, "A" * 64, "g" * 64, "\ud800", "\udc80x", "a\ud83d", "\u202e",
    "ref: ", "ref: ../x", "ref: refs/heads/main", "2026-02-30T00:00:00Z", "0000-01-01T00:00:00Z",
    "2026-01-01T00:00:00Z", "F32", "F4", "tensor", "file", "adds", "exact", "__metadata__", "(a+)+$", "behaviors/x",
    [], {}, [[]], [{}], [None], [5], ["0" * 64], [0, 0], [-1], [1.5], ["x", "x"], {"": None}, {"a": {"b": []}},
    [2**53 - 1] * 3, [2**53 - 1] * 70, [True], [0] * 5000,
)  # fmt: skip

JSON_WORDS = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"\\u0000", b"\\ud800", b"\\udc00\\ud800", b"NaN", b"Infinity",
    b"-Infinity", b"null", b"true", b"-", b"-0", b"1e999", b"1E+5", b"0.1", b"9" * 30, b"9" * 5000, b"[" * 100,
    b'{"a":' * 100, b"//", b"/*", b"\xef\xbb\xbf", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\n", b'"":{},' * 50,
)  # fmt: skip

_UNWRITABLE = 10**4000
_DIGITS = re.compile(rb"[0-9]+")


class Pairs(list[tuple[str, Any]]):
    """The members of an object, among which a name may come twice."""


def parse_pairs(text: bytes) -> Any:
    """JSON with objects as :class:`Pairs`; a ValueError where it is none."""
    return json.loads(text, object_pairs_hook=Pairs)


def write_pairs(value: Any, *, compact: bool = True) -> bytes:
    """What :func:`parse_pairs` gives, as JSON again, or as something very like it (NaN, lone surrogates escaped)."""
    comma, colon = (",", ":") if compact else (", ", ": ")

    def text(value: Any) -> str:
        if isinstance(value, (Pairs, dict)):
            pairs = value.items() if isinstance(value, dict) else value
            return "{" + comma.join(json.dumps(key) + colon + text(member) for key, member in pairs) + "}"
        if isinstance(value, list):
            return "[" + comma.join(map(text, value)) + "]"
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _UNWRITABLE:
            return ("-" if value < 0 else "") + "9" * 5001  # Python refuses to write such numbers
        if isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value):
            return json.dumps(value, ensure_ascii=False)
        return json.dumps(value)

    return text(value).encode("utf-8")


def _containers(value: Any) -> list[Any]:
    found: list[Any] = []
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list) and value:
            found.append(value)
            waiting.extend(child[1] if isinstance(value, Pairs) else child for child in value)
    return found


def _nested(value: Any, chance: random.Random) -> Any:
    for _ in range(chance.choice((1, 5, 31, 32, 33, 200, 3000))):
        value = [value] if chance.random() < 0.7 else Pairs([("a", value)])
    return value


def mutate_json(value: Any, chance: random.Random) -> Any:
    """The value with one place changed: replaced, dropped, repeated, renamed, moved, or buried."""
    where = _containers(value)
    if not where or chance.random() < 0.01:
        return copy.deepcopy(chance.choice(ODD))
    parent = chance.choice(where)
    at = chance.randrange(len(parent))
    is_object = isinstance(parent, Pairs)
    key, child = parent[at] if is_object else ("", parent[at])
    new: Any = child
    deed = chance.randrange(10)
    if deed <= 3:
        new = copy.deepcopy(chance.choice(ODD))
    elif deed == 4:
        del parent[at]
        return value
    elif deed == 5:
        times = chance.choice((1, 1, 1, 2, 100))
        if len(parent) + times < 5000:
            parent[at:at] = [copy.deepcopy(parent[at]) for _ in range(times)]
        return value
    elif deed == 6:
        new = _nested(child, chance)
    elif deed == 7 and is_object:
        key = chance.choice(("", "x", "name", "content", "é", "\ud800", "__metadata__", key + " ", key.upper()))
    elif deed == 8:
        chance.shuffle(parent)
        return value
    else:
        other = chance.choice(chance.choice(where))
        new = other[1] if isinstance(other, tuple) else other
        if isinstance(new, list):  # no cycles
            try:
                new = parse_pairs(write_pairs(new)) if len(new) < 100 else []
            except (ValueError, RecursionError):  # it was made too deep, or too large a number, before
                new = []
    parent[at] = (key, new) if is_object else new
    return value


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] = chance.randrange(256)


def _number(data: bytearray, chance: random.Random) -> None:
    code = chance.choice("BHIQ")
    order = chance.choice("<>")
    width = struct.calcsize(code)
    at = chance.randrange(max(1, len(data) - width))
    data[at : at + width] = struct.pack(order + code, chance.choice(INTEGERS) & ((1 << 8 * width) - 1))


def _digits(data: bytearray, chance: random.Random) -> None:
    found = list(_DIGITS.finditer(bytes(data)))
    if found:
        match = chance.choice(found)
        data[match.start() : match.end()] = str(chance.choice(INTEGERS)).encode()


def _cut(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 1, 2, 8, 64, 1000))]


def _truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _duplicate(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.choice((1, 4, 16, 128, 4096))] * chance.choice((1, 1, 1, 3, 50))


def _swap(data: bytearray, chance: random.Random) -> None:
    width = chance.choice((1, 8, 32, 128))
    one, other = chance.randrange(len(data)), chance.randrange(len(data))
    data[one : one + width], data[other : other + width] = data[other : other + width], data[one : one + width]


_DEEDS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _set, _set, _number, _number, _digits, _cut, _truncate, _duplicate, _swap,
)  # fmt: skip


def mutate_bytes(data: bytes, chance: random.Random, words: Sequence[bytes] = (), other: bytes = b"") -> bytes:
    """The bytes with a few changes: flips, numbers, cuts, repeats, words of the format, a part of another input."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if not changed:
            changed[:] = chance.randbytes(chance.choice((0, 1, 8, 100)))
        choice = chance.random()
        at = chance.randrange(len(changed) + 1)
        if choice < 0.25 and words:
            word = chance.choice(words)
            changed[at : at + (len(word) if chance.random() < 0.5 else 0)] = word
        elif choice < 0.32 and other:
            start = chance.randrange(len(other))
            changed[at:] = other[start : start + chance.choice((8, 200, LARGEST))]
        elif changed:
            chance.choice(_DEEDS)(changed, chance)
    return bytes(changed[:LARGEST])
