"""State trees: every value comes back exactly and has one spelling, and nothing else is taken or read."""

from __future__ import annotations

import collections
import math
import random
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rblstore.checkpoints.state_tree import (
    TREE_DEPTH,
    BadStateError,
    UnstorableStateError,
    copied_tree,
    decode_tree,
    encode_tree,
    tensors_of,
)
from rblstore.objects.canonical import encode_json

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)


def same(left: Any, right: Any) -> bool:
    """Whether two trees are equal in every bit and type."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, np.generic):
        return bool(left.dtype == right.dtype) and left.tobytes() == right.tobytes()
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, dict):
        return (
            list(left) == list(right)
            and [*map(type, left)] == [*map(type, right)]
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return (torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat).view(torch.uint8).numpy().tobytes()


def back(tree: Any) -> Any:
    encoded = encode_tree(tree)
    return decode_tree(encoded.text, dict(encoded.tensors))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    width = torch.empty(0, dtype=dtype).element_size()
    count = math.prod(shape) * width
    data = bytearray(draw(st.binary(min_size=count, max_size=count)))
    if dtype is torch.bool:
        data = bytearray(byte & 1 for byte in data)
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


doubles = st.binary(min_size=8, max_size=8).map(lambda data: struct.unpack(">d", data)[0]) | st.floats()
arrays = st.sampled_from([
    np.arange(624, dtype=np.uint32), np.array([1.5, np.nan]), np.zeros((0, 2), np.int8), np.array(True), np.array(7),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(9)[::-2], np.float64(0.1), np.uint64(2**64 - 1),
    np.bool_(False), np.float16(-0.0), np.array([1 + 2j], np.complex64),
])  # fmt: skip
leaves = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**200), 2**200) | doubles | st.text(max_size=20)
    | st.binary(max_size=20) | tensors() | arrays
)  # fmt: skip
keys = st.text(max_size=8) | st.integers(-(2**70), 2**70)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict)
    ),
    max_leaves=25,
)  # fmt: skip


@given(trees)
def test_round_trip(tree: Any) -> None:
    assert same(back(tree), tree)
    assert encode_tree(back(tree)).text == encode_tree(tree).text


@given(trees)
def test_copies_are_equal_and_share_no_memory(tree: Any) -> None:
    copy = copied_tree(tree)
    assert same(copy, tree)
    pairs = zip(tensors_of(tree), tensors_of(copy), strict=True)
    assert all(one.data_ptr() != other.data_ptr() for (_, one), (_, other) in pairs if one.numel())


def test_random_generators_round_trip() -> None:
    generator = np.random.Generator(np.random.PCG64(5))
    tree = {"python": random.getstate(), "numpy": np.random.get_state(), "pcg": generator.bit_generator.state}
    assert same(back(tree), tree)
    assert same(back(np.random.MT19937(3).state), np.random.MT19937(3).state)


def test_names_of_tensors_say_where_they_stand() -> None:
    tree = {
        "a": {"b": torch.zeros(1)},
        "a.b": torch.ones(1),
        "": torch.ones(2),
        "\n": torch.ones(3),
        0: [torch.ones(4)],
    }
    encoded = encode_tree(tree)
    assert set(encoded.tensors) == {"a.b", "tensor-1", "tensor-2", "tensor-3", "0.0"}
    assert same(back(tree), tree)
    assert list(encode_tree(torch.zeros(1)).tensors) == ["tensor-0"]


def test_parameters_and_views_come_back_as_plain_tensors() -> None:
    view = torch.arange(12.0).reshape(3, 4).t()[::2]
    found = back([torch.nn.Parameter(torch.ones(2)), view, view.conj()])
    assert type(found[0]) is torch.Tensor
    assert torch.equal(found[1], view)
    assert back(collections.Counter([3, 3, 5])) == collections.Counter({3: 2, 5: 1})
    assert type(back(collections.Counter())) is collections.Counter


class Odd(dict):  # type: ignore[type-arg]
    """A dict that is more than that."""


def deep(levels: int) -> Any:
    tree: Any = 0
    for _ in range(levels):
        tree = [tree]
    return tree


LOOP: list[Any] = []
LOOP.append(LOOP)
UNSTORABLE = {
    "object": object(), "function": len, "set": {1}, "subclass": Odd(), "numpy-object": np.array([None]),
    "numpy-text": np.array(["a"]), "big-endian": np.array([1], ">i4"), "structured": np.zeros(1, [("a", "i4")]),
    "complex": 1j, "complex128": torch.zeros(1, dtype=torch.complex128), "meta": torch.zeros(1, device="meta"),
    "sparse": torch.eye(2).to_sparse(), "dtype": torch.float32, "device": torch.device("cpu"), "size": torch.Size([1]),
    "surrogate": "\ud800", "long-text": "x" * (1 << 20 | 1), "long-bytes": bytes(1 << 20 | 1), "huge": 1 << (1 << 15),
    "deep": deep(TREE_DEPTH), "loop": LOOP, "float-key": {1.5: 0}, "bool-key": {True: 0}, "none-key": {None: 0},
    "longdouble": np.longdouble(1),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSTORABLE)
def test_what_cannot_be_stored_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(UnstorableStateError, match=r"^state\.3\.x") as caught:
        encode_tree({"state": {3: {"x": UNSTORABLE[name]}}})
    assert caught.value.object is not None
    assert len(caught.value.message) < 600


def test_the_deepest_tree() -> None:
    assert back(deep(TREE_DEPTH)) == deep(TREE_DEPTH)
    assert back([{"a": deep(TREE_DEPTH - 3)}, (1.5, 2**60)]) == [{"a": deep(TREE_DEPTH - 3)}, (1.5, 2**60)]


def text_of(node: Any, version: Any = 1) -> bytes:
    return encode_json({"rblstore_state": version, "tree": node})


BAD = {
    "not-json": b"{", "other-members": b'{"rblstore_state":1}', "list": b"[]", "version": text_of(None, 2),
    "true-version": text_of(None, True), "spaces": b'{"rblstore_state":1, "tree":null}', "bare-float": text_of(1.5),
    "object": text_of({}), "empty": text_of([]), "tag": text_of(["pickle", "x"]), "tag-alone": text_of(["float"]),
    "tag-number": text_of(["float", 1]), "float-long": text_of(["float", "1.00"]), "float-int": text_of(["float", "1"]),
    "float-nan": text_of(["float", "nan"]), "nan-bits": text_of(["float", "nan:3ff0000000000000"]),
    "nan-case": text_of(["float", "nan:7FF8000000000000"]), "infinity": text_of(["float", "infinity"]),
    "underscore": text_of(["float", "1_0.0"]), "small-int": text_of(["int", "5"]), "int-zero": text_of(["int", "0"]),
    "int-plus": text_of(["int", "+ffffffffffffffffff"]), "int-long": text_of(["int", "f" * 4097]),
    "bytes-odd": text_of(["bytes", "f"]), "bytes-case": text_of(["bytes", "FF"]), "key-alone": text_of(["dict", "a"]),
    "key-twice": text_of(["dict", "a", 1, "a", 2]), "key-float": text_of(["dict", 1.5, 1]),
    "key-bool": text_of(["dict", True, 1]), "key-list": text_of(["dict", ["float", "1.0"], 1]),
    "missing": text_of(["tensor", "b"]), "twice": text_of(["list", ["tensor", "a"], ["tensor", "a"]]),
    "unnamed": text_of(None), "scalar-shape": text_of(["scalar", "a"]),
    "deep": b'{"rblstore_state":1,"tree":' + b'["list",' * 29 + b"0" + b"]" * 29 + b"}",
    "long": text_of("x" * (1 << 20 | 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_format_is_refused(name: str) -> None:
    with pytest.raises(BadStateError) as caught:
        decode_tree(BAD[name], {"a": torch.zeros(2)})
    assert len(caught.value.message) < 600


def test_an_array_of_what_numpy_lacks_is_refused() -> None:
    with pytest.raises(BadStateError, match="no array has elements"):
        decode_tree(text_of(["array", "a"]), {"a": torch.zeros(2, dtype=torch.bfloat16)})
