from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_tiers import law

from rblstore.checkpoints.checkout_layout import CheckoutManifest
from rblstore.checkpoints.model_card import claims_from_files
from rblstore.checkpoints.not_a_number import NanCounter
from rblstore.checkpoints.pickles import looks_like_pickle
from rblstore.checkpoints.safetensors_header import SafetensorsHeader, encode_header, lay_out, read_header
from rblstore.errors import RblError
from rblstore.objects.dtypes import BITS, span_bytes

steady = law(300)

NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40).filter(lambda name: name != "__metadata__")
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.sampled_from([0, 1, 2, 4, 8]), max_size=4).map(tuple)),
    max_size=8,
).map(lambda tensors: {name: value for name, value in tensors.items() if _fills_bytes(*value)})
METADATA = st.none() | st.dictionaries(st.text(max_size=10), st.text(max_size=30), max_size=3)


def _fills_bytes(dtype: str, shape: tuple[int, ...]) -> bool:
    try:
        span_bytes(dtype, shape)
    except RblError:
        return False
    return True


def _parse(data: bytes) -> SafetensorsHeader:
    return read_header(lambda offset, length: data[offset : offset + length], len(data))


@steady
@given(TENSORS, METADATA)
def test_decoding_gives_what_was_encoded(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: Any) -> None:
    raw = encode_header(tensors, metadata)
    spans = lay_out(tensors)
    header = _parse(raw + bytes(sum(span.size for span in spans)))
    assert header.raw == raw
    assert {span.name: (span.dtype, span.shape) for span in header.tensors} == tensors
    assert header.metadata == (metadata or {})
    assert sorted(header.tensors, key=lambda span: span.name) == sorted(spans, key=lambda span: span.name)


@steady
@given(TENSORS, METADATA, st.data())
def test_a_mutated_file_gives_a_header_that_holds_or_a_typed_error(tensors: Any, metadata: Any, data: Any) -> None:
    file = bytearray(encode_header(tensors, metadata) + bytes(sum(span.size for span in lay_out(tensors))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "number"])):
            case "flip" if at < len(file):
                file[at] = data.draw(st.integers(0, 255))
            case "cut":
                del file[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                file[at:at] = data.draw(
                    st.sampled_from([b"{", b"[", b'"', b"NaN", b"-1", b"9" * 30, b"\\ud800", b",", b"\0"])
                )
            case "number":
                file[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
            case _:
                pass
    try:
        header = _parse(bytes(file))
    except RblError:
        return
    position = 0
    for span in header.tensors:
        assert span.begin == position
        assert span.size == span_bytes(span.dtype, span.shape)
        position = span.end
    assert header.data_offset + position == len(file)


@steady
@given(TENSORS, METADATA)
def test_the_library_reads_what_is_accepted(tensors: Any, metadata: Any) -> None:
    deserialize = pytest.importorskip("safetensors").deserialize
    data = encode_header(tensors, metadata)
    data += bytes(sum(span.size for span in lay_out(tensors)))
    if metadata == {} and not tensors:
        return
    assert {name for name, _ in deserialize(data)} == set(tensors)


KEYS = st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w"]) | st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@steady
@given(JSON)
def test_any_json_as_a_header_only_raises_typed_errors(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        _parse(len(text).to_bytes(8, "little") + text)
    except RblError:
        pass


@steady
@given(JSON | st.fixed_dictionaries({"rblstore_checkout": st.just(1), "form": JSON, "slots": JSON, "files": JSON}))
def test_any_json_as_a_checkout_manifest_only_raises_typed_errors(value: Any) -> None:
    with pytest.raises(RblError):
        CheckoutManifest.parse(json.dumps(value).encode())


@steady
@given(
    st.binary(max_size=400),
    st.sampled_from(["README.md", "config.json", "adapter_config.json", "LICENSE"]),
    st.booleans(),
)
def test_any_bytes_as_a_card_never_raise(data: bytes, path: str, fenced: bool) -> None:
    claims, warnings = claims_from_files({path: lambda: b"---\n" + data + b"\n---\n" if fenced else data})
    assert list(claims) == sorted(set(claims))
    assert all(isinstance(warning, str) for warning in warnings)


YAML_PIECES = [
    *(
        "license",
        "base_model",
        "datasets",
        "mit",
        ": ",
        "- ",
        "\n",
        "[",
        "]",
        "{",
        "}",
        ", ",
        '"',
        "'",
        "#",
        "? ",
        "\t",
    ),
    *("&a ", "*a", "!!python/name:os.system ", "| ", "> ", "<<: ", "---", "%TAG ! x\n", "\x00", "\x85"),
]
YAML = st.lists(st.sampled_from(YAML_PIECES), max_size=30).map("".join)


@steady
@given(YAML)
def test_any_yaml_as_front_matter_never_raises(text: str) -> None:
    claims, _ = claims_from_files({"README.md": lambda: f"---\n{text}\n---\n".encode()})
    assert all(claim.origin == "README.md" for claim in claims)


@steady
@given(st.binary(max_size=600))
def test_any_bytes_can_be_asked_about(data: bytes) -> None:
    assert looks_like_pickle(data, "weights.pkl")
    assert looks_like_pickle(b"\x80\x04\x95" + data[:8].ljust(6, b"\0")[:6] + b"\0\0" + data, "tokenizer.json")
    for prefix in (b"", b"PK\x03\x04", b"\x1f\x8b\x08\0", b"\x78\x9c", b"\x93NUMPY", b"(", b"c", b"\x80\x02"):
        looks_like_pickle(prefix + data, "tokenizer.json")


@steady
@given(
    st.sampled_from(["BF16", "F16", "F32", "F64", "C64", "F8_E4M3", "F8_E5M2FNUZ"]), st.binary(max_size=256), st.data()
)
def test_chunks_do_not_change_a_count(dtype: str, raw: bytes, data: Any) -> None:
    whole = NanCounter(dtype)
    whole.update(memoryview(raw))
    parts = NanCounter(dtype)
    at = 0
    while at < len(raw):
        step = data.draw(st.integers(0, 9))
        parts.update(memoryview(raw)[at : at + step])
        at += step
    assert parts.count == whole.count
