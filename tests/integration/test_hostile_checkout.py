"""A checkout directory is as hostile as any other: it is parsed strictly before a library loads it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

import rblstore


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    tiny_models.save(tiny_models.llama(), tmp_path / "model")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "model")
        repo.checkout("HEAD", tmp_path / "out")
    return tmp_path / "out"


def _twice(weights: Path) -> None:
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    weights.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def _link(weights: Path) -> None:
    weights.rename(weights.with_name("elsewhere"))
    weights.symlink_to("/etc/hostname")


def _cut(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [_twice, _link, _cut], ids=lambda harm: harm.__name__)
def test_weights_that_lie_are_refused(checkout: Path, harm: Callable[[Path], None]) -> None:
    harm(checkout / "model.safetensors")
    with pytest.raises(rblstore.InputError) as caught:
        rblstore.load_checkout(checkout)
    assert "model.safetensors" in caught.value.message


def test_a_directory_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(rblstore.InputError, match="is not a checkout"):
        rblstore.load_checkout(tmp_path)
