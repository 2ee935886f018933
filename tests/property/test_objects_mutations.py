"""Hostile records: whatever is done to a valid one, reading it gives a record or an InputError, and nothing else."""

from __future__ import annotations

import copy
import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_strategies import RECORDS

from rblstore.errors import InputError
from rblstore.objects.canonical import record_body, record_bytes
from rblstore.objects.kinds import parse_record, record_class

# Values that code which trusts its input trips over.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 5, 2**53 - 1, 1 - 2**53, 0.5, -1e300, 1e17, "", "x", "\0", "a/../b", "..",
    "é" * 2000, "x" * 70_000, "0" * 64, "0" * 63, "A" * 64, "g" * 64, "ref: ", "ref: ../x", "ref: refs/heads/main",
    "2026-02-30T00:00:00Z", "0000-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "F32", "F4", "tensor", "file", "adds",
    "exact", [], {}, [[]], [{}], [None], [5], ["0" * 64], [0, 0], [-1], [1.5], ["x", "x"], {"": None},
    {"a": {"b": []}}, [2**53 - 1] * 3, [2**53 - 1] * 70, [True],
]  # fmt: skip


def read(data: bytes) -> None:
    try:
        record = parse_record(data)
    except InputError:
        return
    assert record.encode() == data, "two encodings of one record"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, member in value.items():
            found += places(member, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += places(item, (*path, index))
    return found


def mutated(body: Any, chance: random.Random) -> Any:
    """The body with one value replaced, dropped, repeated, renamed or moved."""
    body = copy.deepcopy(body)
    where = chance.choice(places(body)[1:] or [()])
    if not where:
        return chance.choice(ODD)
    parent = body
    for step in where[:-1]:
        parent = parent[step]
    last, deed = where[-1], chance.randrange(6)
    if deed <= 2:
        parent[last] = copy.deepcopy(chance.choice(ODD))
    elif deed == 3:
        del parent[last]
    elif isinstance(parent, list):
        if deed == 4:
            parent.insert(chance.randrange(len(parent) + 1), copy.deepcopy(parent[last]))
        else:
            chance.shuffle(parent)
    elif deed == 4:
        parent[chance.choice(["", "x", "name", "content", "é"])] = parent.pop(last)
    else:
        other = chance.choice(sorted(parent))
        parent[last], parent[other] = parent[other], parent[last]
    return body


@pytest.mark.parametrize("kind", sorted(RECORDS))
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_mutated_json(kind: str, data: st.DataObject, seed: int) -> None:
    record, chance = data.draw(RECORDS[kind]), random.Random(seed)
    body = record_body(record.encode(), kind)
    for _ in range(10):
        changed = body
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            changed = mutated(changed, chance)
        read(record_bytes(kind, changed))
        with suppress(InputError):
            record_class(kind).from_body(changed)


@pytest.mark.parametrize("kind", sorted(RECORDS))
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_mutated_bytes(kind: str, data: st.DataObject, seed: int) -> None:
    original, chance = data.draw(RECORDS[kind]).encode(), random.Random(seed)
    for _ in range(10):
        changed = bytearray(original)
        for _ in range(chance.choice([1, 1, 2, 8])):
            at, deed = chance.randrange(len(changed) + 1), chance.randrange(5)
            if deed == 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            elif deed == 1:
                del changed[at : at + chance.choice([1, 1, 5, 1000])]
            elif deed == 2:
                changed[at:at] = chance.choice(
                    [b"[", b"]", b"{", b"}", b'"', b",", b"\\", b"\0", b"\xff", b"\n", b"9" * 30, b"-", b"e9"]
                )
            elif deed == 3:
                end = at + chance.randrange(1, 80)
                changed[at:at] = changed[at:end]
            else:
                changed[at : at + 1] = bytes([(changed[at] if at < len(changed) else 0) ^ 1 << chance.randrange(8)])
        read(bytes(changed))


@given(data=st.binary(max_size=200), kind=st.sampled_from([*sorted(RECORDS), "study", "x", ""]))
def test_any_bytes(data: bytes, kind: str) -> None:
    read(data)
    read(b"rblstore/" + kind.encode() + b"/1\n" + data)
    read(b"rblstore/" + kind.encode() + b"/1\n{" + data + b"}")


OPTIONAL = {"statement": {"contents"}}


@pytest.mark.parametrize("value", [[], None, "0" * 64, ["0" * 63], [0], ["0" * 64] * 2, ["1" * 64, "0" * 64]])
def test_what_is_left_out_is_left_out(value: Any) -> None:
    """One set has one encoding: an empty list is no list, and a list is sorted."""
    claim = {"key": "k", "origin": "api", "value": "v"}
    body = {"author": "Ada", "claims": [claim], "subject": "0" * 64, "time": "2026-03-01T12:00:00Z"}
    assert record_class("statement").from_body({**body, "contents": ["0" * 64, "1" * 64]}).body()["contents"]
    with pytest.raises(InputError):
        record_class("statement").from_body({**body, "contents": value})


@pytest.mark.parametrize("kind", sorted(RECORDS))
@given(data=st.data())
def test_a_record_names_all_its_members_and_no_other(kind: str, data: st.DataObject) -> None:
    body = record_body(data.draw(RECORDS[kind]).encode(), kind)
    for member in body.keys() - OPTIONAL.get(kind, set()):
        short = {key: value for key, value in body.items() if key != member}
        with pytest.raises(InputError, match="is missing"):
            record_class(kind).from_body(short)
    with pytest.raises(InputError, match="'unknown' is not a known member"):
        record_class(kind).from_body({**body, "unknown": None})
