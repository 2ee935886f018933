from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from rblstore.checkpoints.not_a_number import NanCounter
from rblstore.errors import InputError


def count(dtype: str, data: bytes) -> int:
    counter = NanCounter(dtype)
    counter.update(memoryview(data))
    return counter.count


@pytest.mark.parametrize(
    ("dtype", "not_numbers", "numbers"),
    [
        ("F64", [0x7FF8 << 48, (0xFFF0 << 48) + 1, (1 << 63) - 1], [0x7FF0 << 48, 0xFFF0 << 48, 1 << 63]),
        ("F32", [0x7FC00000, 0xFF800001], [0x7F800000, 0xFF800000, 0x80000000, 0x7F7FFFFF]),
        ("BF16", [0x7FC0, 0xFF81], [0x7F80, 0xFF80, 0x8000, 0x7F7F]),
        ("F16", [0x7E00, 0xFC01], [0x7C00, 0xFC00, 0x8000, 0x7BFF]),
        ("F8_E4M3", [0x7F, 0xFF], [0x7E, 0xFE, 0x80, 0x78]),
        ("F8_E5M2", [0x7D, 0x7E, 0x7F, 0xFF], [0x7C, 0xFC, 0x80]),
        ("F8_E4M3FNUZ", [0x80], [0x7F, 0xFF, 0x00]),
        ("F8_E5M2FNUZ", [0x80], [0x7F, 0xFF, 0x7C]),
        ("F8_E8M0", [0xFF], [0x7F, 0x80, 0x00, 0xFE]),
        ("U8", [], [0x7F, 0xFF, 0x80]),
        ("I64", [], [0x7FF8000000000000]),
        ("BOOL", [], [0, 1]),
        ("F4", [], [0xFF]),
    ],
)  # fmt: skip
def test_counts_nan_and_nothing_else(dtype: str, not_numbers: list[int], numbers: list[int]) -> None:
    width = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2, "F16": 2}.get(dtype, 1)
    data = b"".join(value.to_bytes(width, "little") for value in not_numbers + numbers)
    assert count(dtype, data) == len(not_numbers)
    assert [count(dtype, value.to_bytes(width, "little")) for value in numbers] == [0] * len(numbers)


def test_a_complex_number_counts_once() -> None:
    nan, one = struct.pack("<f", float("nan")), struct.pack("<f", 1.0)
    assert count("C64", nan + nan + nan + one + one + nan + one + one) == 3


@pytest.mark.parametrize("step", [1, 3, 7, 1001])
def test_chunks_may_end_inside_an_element(step: int) -> None:
    generator = random.Random(5)
    data = generator.randbytes(8000)
    expected = int(np.isnan(np.frombuffer(data, "<f4")).sum())
    assert expected > 0
    counter = NanCounter("F32")
    for at in range(0, len(data), step):
        counter.update(memoryview(data)[at : at + step])
    assert counter.count == expected


def test_more_than_one_block() -> None:
    values = np.ones((3 << 20) // 2 + 5, dtype=np.float16)
    values[::1000] = np.nan
    assert count("F16", values.tobytes()) == len(values[::1000])


def test_an_unknown_element_type_is_refused() -> None:
    with pytest.raises(InputError, match="not known"):
        NanCounter("F7")
