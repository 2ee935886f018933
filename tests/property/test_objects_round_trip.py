"""Laws of records: what is encoded is read back equal, under one id, whatever the order of members."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_strategies import RECORDS, named_tensors, numbers, paths, records, stored_tensors, texts, times

from rblstore.errors import InputError
from rblstore.objects.canonical import decode_json, encode_json, record_body, record_kind
from rblstore.objects.content_records import StoredTensor, tensor_root
from rblstore.objects.fields import check_time
from rblstore.objects.kinds import KINDS, parse_record, record_class
from rblstore.objects.paths import check_path, check_paths
from rblstore.objects.record import Record

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=20,
)


def test_every_kind_has_a_strategy() -> None:
    assert set(RECORDS) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(RECORDS))
@given(data=st.data())
def test_decode_of_encode(kind: str, data: st.DataObject) -> None:
    record = data.draw(RECORDS[kind])
    encoded = record.encode()
    assert record_kind(encoded) == kind
    found = parse_record(encoded)
    assert type(found) is type(record)
    assert found == record
    assert found.encode() == encoded
    assert record.id_of(encoded) == hashlib.sha256(encoded).hexdigest()


@given(record=records, seed=st.integers(0, 2**32))
def test_the_order_of_members_is_not_part_of_a_record(record: Record, seed: int) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            members = list(value.items())
            random.Random(seed).shuffle(members)
            return {key: shuffled(member) for key, member in members}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    body = shuffled(record_body(record.encode(), record.KIND))
    assert type(record).from_body(body).encode() == record.encode()


@given(record=records)
def test_no_other_kind_reads_it(record: Record) -> None:
    data = record.encode()
    for kind in sorted(KINDS):
        if kind != record.KIND:
            with pytest.raises(InputError):
                record_class(kind).parse(data)


@given(value=json_values)
def test_canonical_json_is_json(value: Any) -> None:
    data = encode_json(value)
    assert decode_json(data, what="a value", max_bytes=len(data)) == value
    assert encode_json(json.loads(data)) == data


@given(value=numbers)
def test_every_double_is_spelled_so_that_it_comes_back(value: float) -> None:
    assert float(encode_json(value)) == value


@given(text=times)
def test_times(text: str) -> None:
    assert check_time(text) == text


@given(path=paths)
def test_paths(path: str) -> None:
    assert check_path(path) == path


@given(found=st.lists(st.text(max_size=6), max_size=6))
def test_any_list_of_texts_is_taken_or_refused(found: list[str]) -> None:
    try:
        check_paths(found)
    except InputError as error:
        message = error.message
    else:
        message = ""
        assert len({path.casefold() for path in found}) == len(found)
    assert message.isprintable()


@given(tensors=st.lists(st.tuples(texts, stored_tensors), max_size=6), seed=st.integers(0, 2**32))
def test_tensor_root_is_free_of_order(tensors: list[tuple[str, StoredTensor]], seed: int) -> None:
    mixed = list(tensors)
    random.Random(seed).shuffle(mixed)
    assert tensor_root(mixed) == tensor_root(tensors)


@given(first=named_tensors, second=named_tensors)
def test_tensor_root_tells_tensors_apart(first: Any, second: Any) -> None:
    roots = {tensor_root([(entry.name, entry.tensor)]) for entry in (first, second)}
    assert len(roots) == (1 if first == second else 2)
