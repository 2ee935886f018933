"""Element types and the bytes that a tensor spans."""

from __future__ import annotations

import pytest

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.dtypes import BITS, span_bytes


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", (), 4),
        ("BOOL", (), 1),
        ("BF16", (3, 5), 30),
        ("F64", (2, 0, 7), 0),
        ("I64", (0,), 0),
        ("F8_E4M3", (7,), 7),
        ("F4", (2,), 1),
        ("F4", (3, 2), 3),
        ("F6_E2M3", (4,), 3),
        ("C64", (2, 2), 32),
        ("U8", (limits.JSON_INTEGER,), limits.JSON_INTEGER),
        ("F32", (1,) * limits.TENSOR_RANK, 4),
    ],
)
def test_span(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert span_bytes(dtype, shape) == size


@pytest.mark.parametrize(
    ("dtype", "shape", "why"),
    [
        ("float32", (1,), "not known"),
        ("f32", (1,), "not known"),
        ("", (), "not known"),
        ("X" * 1000, (), "not known"),
        ("F32", (-1,), "out of range"),
        ("F32", (0, -1), "out of range"),
        ("U8", (limits.JSON_INTEGER + 1,), "out of range"),
        ("F32", (2**30, 2**30, 2**30), "larger than 2"),
        ("F64", (2**51,), "larger than 2"),
        ("F32", (1,) * (limits.TENSOR_RANK + 1), "65 dimensions"),
        ("F4", (3,), "whole bytes"),
        ("F6_E3M2", (2,), "whole bytes"),
    ],
)
def test_refused(dtype: str, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        span_bytes(dtype, shape)
    assert len(caught.value.message) < 200


def test_the_table_is_frozen_and_knows_what_safetensors_knows() -> None:
    with pytest.raises(TypeError):
        BITS["F32"] = 8  # type: ignore[index]
    named = {
        "BOOL",
        "U8",
        "I8",
        "I16",
        "U16",
        "I32",
        "U32",
        "I64",
        "U64",
        "F16",
        "BF16",
        "F32",
        "F64",
        "F8_E4M3",
        "F8_E5M2",
    }
    assert named <= set(BITS)
