from __future__ import annotations

import json

import pytest

from rblstore.checkpoints.safetensors_header import (
    BadSafetensorsError,
    SafetensorsHeader,
    encode_header,
    lay_out,
    read_header,
)
from rblstore.errors import InputError


def parse(data: bytes, **options: int) -> SafetensorsHeader:
    return read_header(
        lambda offset, length: data[offset : offset + length], len(data), name="x.safetensors", **options
    )


def file_of(header: str | bytes, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else header.encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'


def test_reads_what_it_says() -> None:
    body = {"b": entry("F32", [2], 0, 8), "a": entry("U8", [3], 8, 11), "__metadata__": {"format": "pt"}}
    data = file_of(json.dumps(body) + "   ", bytes(11))
    header = parse(data)
    assert [(span.name, span.dtype, span.shape, span.begin, span.end) for span in header.tensors] == [
        ("b", "F32", (2,), 0, 8),
        ("a", "U8", (3,), 8, 11),
    ]
    assert header.metadata == {"format": "pt"}
    assert header.raw == data[:-11]
    assert header.data_offset == len(data) - 11


def test_empty_and_scalar_tensors_stand_at_one_offset() -> None:
    body = {"z": entry("F32", [0, 4], 4, 4), "s": entry("F32", [], 0, 4), "e": entry("F64", [0], 0, 0)}
    header = parse(file_of(json.dumps(body), bytes(4)))
    assert [span.name for span in header.tensors] == ["e", "s", "z"]


def test_four_bit_elements_fill_bytes() -> None:
    header = parse(file_of(json.dumps({"f4": entry("F4", [2, 4], 0, 4)}), bytes(4)))
    assert header.tensors[0].size == 4
    with pytest.raises(BadSafetensorsError, match="whole bytes"):
        parse(file_of(json.dumps({"f4": entry("F4", [3], 0, 2)}), bytes(2)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "too few"),
        (b"\0" * 7, "too few"),
        (file_of("{}")[:-1], "cut short"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "more than"),
        ((16 << 20).to_bytes(8, "little") + b"{}", "cut short"),
        (file_of(""), "begin with"),
        (file_of(" {}"), "begin with"),
        (file_of("[]"), "begin with"),
        (file_of("{} x"), "not valid JSON"),
        (file_of('{"a":'), "not valid JSON"),
        (file_of(b'{"\xff":1}'), "not valid JSON"),
        (file_of('{"a":' + "[" * 100_000), "not valid JSON"),
        (file_of(ONE[:-1] + "," + ONE[1:], bytes(2)), "'a' appears twice"),
        (file_of('{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}'), "'dtype' appears twice"),
        (file_of('{"__metadata__":{"k":"1","k":"2"}}'), "'k' appears twice"),
        (file_of('{"__metadata__":{"k":1}}'), "not text"),
        (file_of('{"__metadata__":{"k":null}}'), "not text"),
        (file_of('{"__metadata__":"pt"}'), "not a JSON object"),
        (file_of('{"__metadata__":null}'), "not a JSON object"),
        (file_of('{"__metadata__":{"k":"\\ud800"}}'), "not valid Unicode"),
        (file_of('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,2]}}'), "not an integer"),
        (file_of('{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}'), "not an integer"),
        (file_of('{"a":{"dtype":"U8","shape":[-2],"data_offsets":[0,2]}}'), "out of range"),
        (file_of('{"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,2]}}'), "out of range"),
        (file_of('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', bytes(1)), "list of integers"),
        (file_of('{"a":{"dtype":"U8","shape":2,"data_offsets":[0,2]}}', bytes(2)), "list of integers"),
        (file_of('{"a":{"dtype":8,"shape":[2],"data_offsets":[0,2]}}', bytes(2)), "dtype is not text"),
        (file_of('{"a":{"dtype":"Q8","shape":[2],"data_offsets":[0,2]}}', bytes(2)), "'Q8' is not known"),
        (file_of('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,3]}}', bytes(2)), "begin and an end"),
        (file_of('{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}', bytes(2)), "begin and an end"),
        (file_of('{"a":{"dtype":"U8","shape":[2]}}', bytes(2)), "only those"),
        (file_of('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}}', bytes(2)), "only those"),
        (file_of('{"a":[]}'), "only those"),
        (file_of('{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}', bytes(2)), "takes 3 bytes"),
        (file_of('{"a":{"dtype":"U8","shape":[' + "1," * 64 + '2],"data_offsets":[0,2]}}', bytes(2)), "dimensions"),
        (file_of(ONE, bytes(1)), "cut short"),
        (file_of(ONE, bytes(3)), "1 bytes after the last tensor"),
        (file_of("{}", bytes(3)), "3 bytes after the last tensor"),
        (file_of(json.dumps({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}), bytes(3)), "overlaps"),
        (file_of(json.dumps({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 0, 2)}), bytes(2)), "overlaps"),
        (file_of(json.dumps({"a": entry("U8", [4], 0, 4), "b": entry("U8", [0], 2, 2)}), bytes(4)), "overlaps"),
        (file_of(json.dumps({"a": entry("U8", [2], 1, 3)}), bytes(3)), "belong to no tensor"),
        (file_of(json.dumps({"a": entry("U8", [2], 0, 2), "b": entry("U8", [1], 3, 4)}), bytes(4)), "to no tensor"),
        (file_of(json.dumps({"a\0": entry("U8", [0], 0, 0)})), "control character"),
        (file_of(json.dumps({"a\x1b[2J": entry("U8", [0], 0, 0)})), "control character"),
        (file_of(json.dumps({"a\ud800": entry("U8", [0], 0, 0)})), "not valid Unicode"),
        (file_of(json.dumps({"é" * 600: entry("U8", [0], 0, 0)})), "longer than 1024"),
    ],
)  # fmt: skip
def test_refuses_and_names_the_file(data: bytes, why: str) -> None:
    with pytest.raises(BadSafetensorsError, match=why) as caught:
        parse(data)
    assert caught.value.code == "bad_safetensors"
    assert caught.value.object == "x.safetensors"
    assert caught.value.message.startswith("x.safetensors: ")


def test_a_bad_tensor_is_named() -> None:
    with pytest.raises(BadSafetensorsError, match=r"tensor 'model\.w'"):
        parse(file_of(json.dumps({"model.w": entry("F32", [2], 0, 4)}), bytes(4)))


def test_the_header_cap_is_checked_before_reading() -> None:
    read: list[int] = []

    def reader(offset: int, length: int) -> bytes:
        read.append(length)
        return (1000).to_bytes(8, "little")[:length]

    with pytest.raises(BadSafetensorsError, match="more than the 999 allowed"):
        read_header(reader, 10_000, max_bytes=999)
    assert read == [8]


def test_more_elements_than_any_real_header_are_not_parsed() -> None:
    with pytest.raises(BadSafetensorsError, match="elements"):
        parse(file_of(b'{"a":[' + b"0," * 2_000_001 + b"0]}"))


def test_a_short_read_is_a_typed_error() -> None:
    data = file_of(ONE, bytes(2))
    with pytest.raises(BadSafetensorsError, match="ended while"):
        read_header(lambda offset, length: data[offset : offset + length - 1], len(data))


def test_layout_is_widest_first_then_by_name() -> None:
    spans = lay_out({"b": ("U8", (3,)), "a": ("BOOL", (1,)), "d": ("F32", (1,)), "c": ("F32", ())})
    assert [(span.name, span.begin, span.end) for span in spans] == [
        ("c", 0, 4),
        ("d", 4, 8),
        ("b", 8, 11),
        ("a", 11, 12),
    ]


def test_what_cannot_be_written_is_refused() -> None:
    for tensors, metadata in (
        ({"a\n": ("U8", (1,))}, None),
        ({"a": ("U9", (1,))}, None),
        ({"__metadata__": ("U8", (1,))}, None),
        ({}, {"k": "\ud800"}),
    ):
        with pytest.raises(InputError):
            encode_header(tensors, metadata)


def test_encoding_equals_the_library_for_every_element_type() -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    dtypes = [
        *(
            "bool",
            "uint8",
            "int8",
            "float8_e5m2",
            "float8_e4m3fn",
            "float8_e8m0fnu",
            "float8_e4m3fnuz",
            "float8_e5m2fnuz",
        ),
        *("int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32"),
        *("complex64", "float64", "int64", "uint64"),
    ]
    if not hasattr(torch, "float8_e8m0fnu"):  # since 2.7
        dtypes.remove("float8_e8m0fnu")
    tensors = {}
    for number, name in enumerate(dtypes):
        dtype = getattr(torch, name)
        raw = torch.arange(24, dtype=torch.uint8).reshape(3, 8)
        tensors[f"t{number % 7}.{name}"] = raw.view(dtype).clone()
        tensors[f"é.{number}"] = raw.view(dtype).flatten()[0].clone()
        tensors[f"empty.{number}"] = torch.empty(0, 5, dtype=dtype)
    if hasattr(torch, "float4_e2m1fn_x2"):
        tensors["f4"] = torch.arange(4, dtype=torch.uint8).reshape(2, 2).view(torch.float4_e2m1fn_x2)
    for metadata in (None, {"format": "pt"}, {"a": 'quote " \\ \n\x7f é'}):
        saved = library.save(tensors, metadata)
        header = parse(saved)
        assert len(header.tensors) == len(tensors)
        described = {span.name: (span.dtype, span.shape) for span in header.tensors}
        assert encode_header(described, metadata) == header.raw
        assert lay_out(described) == header.tensors
    assert encode_header({}, None) == library.save({})
