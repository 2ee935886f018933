from __future__ import annotations

import hashlib
import json

import pytest

from rblstore.checkpoints.logical_tensors import (
    BadIndexError,
    DuplicateTensorError,
    logical_tensors,
    primary_weight_files,
)
from rblstore.errors import InputError
from rblstore.objects.content_records import FileManifest, NamedTensor, StoredTensor
from rblstore.objects.ids import ContentId


def content(text: str) -> ContentId:
    return ContentId(hashlib.sha256(text.encode()).hexdigest())


def manifest(*names: str) -> FileManifest:
    return FileManifest(
        content("header"), tuple(NamedTensor(name, StoredTensor("U8", (1,), content(name))) for name in names)
    )


def index_of(weight_map: object, **other: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 2}, "weight_map": weight_map, **other}).encode()


INDEX = index_of({"a": "s1.safetensors", "b": "s2.safetensors"})


def test_one_file_wins_over_everything() -> None:
    paths = ["adapter_model.safetensors", "model.safetensors", "other.safetensors", "s1.safetensors"]
    assert primary_weight_files(paths, b"not even JSON") == ("model.safetensors",)


def test_shards_come_from_the_index() -> None:
    assert primary_weight_files(["s2.safetensors", "s1.safetensors", "x.safetensors"], INDEX) == (
        "s1.safetensors",
        "s2.safetensors",
    )


def test_without_index_the_safetensors_at_the_root_count() -> None:
    paths = ["b.safetensors", "a.safetensors", "config.json", "adapter_model.safetensors", "onnx/c.safetensors"]
    assert primary_weight_files(paths, None) == ("a.safetensors", "b.safetensors")
    assert primary_weight_files(["adapter_model.safetensors"], None) == ()


def test_resharding_gives_the_same_tensors() -> None:
    one = logical_tensors({"model.safetensors": manifest("a", "b")}, ("model.safetensors",), None)
    two = logical_tensors(
        {"s1.safetensors": manifest("a"), "s2.safetensors": manifest("b")}, ("s1.safetensors", "s2.safetensors"), INDEX
    )
    assert one == two
    assert one["a"] == StoredTensor("U8", (1,), content("a"))


def test_a_missing_shard_is_named_with_a_tensor() -> None:
    with pytest.raises(BadIndexError, match=r"'b' should be in 's2\.safetensors'") as caught:
        primary_weight_files(["s1.safetensors"], INDEX)
    assert caught.value.object == "s2.safetensors"


def test_an_index_that_lies_about_a_tensor_is_refused() -> None:
    files = {"s1.safetensors": manifest("a", "b"), "s2.safetensors": manifest("c")}
    with pytest.raises(BadIndexError, match=r"'b' should be in 's2\.safetensors', which does not hold it"):
        logical_tensors(files, ("s1.safetensors", "s2.safetensors"), INDEX)


def test_tensors_that_the_index_does_not_name_are_kept() -> None:
    files = {"s1.safetensors": manifest("a", "extra"), "s2.safetensors": manifest("b")}
    assert set(logical_tensors(files, ("s1.safetensors", "s2.safetensors"), INDEX)) == {"a", "b", "extra"}


def test_one_name_in_two_shards_is_refused() -> None:
    files = {"s1.safetensors": manifest("a"), "s2.safetensors": manifest("a")}
    with pytest.raises(DuplicateTensorError, match=r"'a' is in s1\.safetensors and in s2\.safetensors"):
        logical_tensors(files, tuple(files), None)


@pytest.mark.parametrize(
    "index",
    [
        b"", b"{}", b"[]", b"\xff", b'{"weight_map":{}}', b'{"weight_map":[]}', b'{"weight_map":{"a":1}}',
        b'{"weight_map":{"a":"s1.bin"}}', b'{"weight_map":{"a":"s1.safetensors","a":"s2.safetensors"}}',
        b'{"weight_map":{"a":"../s1.safetensors"}}', b'{"weight_map":{"a":"s1.safetensors"},"x":NaN}',
    ],
)  # fmt: skip
def test_a_malformed_index_is_refused(index: bytes) -> None:
    with pytest.raises(BadIndexError):
        primary_weight_files(["s1.safetensors", "s2.safetensors"], index)


def test_a_primary_file_without_manifest_is_refused() -> None:
    with pytest.raises(InputError, match=r"x\.safetensors is not among"):
        logical_tensors({}, ("x.safetensors",), None)
