"""Laws of codecs: every policy, element width, base and kind of bytes comes back, and takes no more than it had."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_tiers import law

from rblstore.errors import RblError
from rblstore.objects.dtypes import BITS
from rblstore.storage.codecs import DELTA, PLANES, RAW, ZSTD, BadFrameError, decode_frame, encode_frame, raw_checksum

WIDTHS = (0, 1, 2, 3, 4, 8, 16)
COMPRESSIONS = ("none", "fast", "max")
SAMPLE = 16 * 1024
BLOCK = 1 << 18

# Bit patterns of floats that arithmetic would change: NaN payloads (quiet, signalling, negative), zeros of both signs,
# denormals, infinities, the largest, one.
SPECIAL = {
    1: (0x7F, 0xFF, 0x80, 0x00, 0x01, 0x81, 0x7E, 0x38),
    2: (0x7FC1, 0x7F81, 0xFFFF, 0x8000, 0x0000, 0x0001, 0x807F, 0x7F80, 0xFF80, 0x7C01, 0x3F80, 0xFBFF),
    4: (0x7FC00001, 0x7F800001, 0xFFFFFFFF, 1 << 31, 0, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x3F800000),
    8: (0x7FF8 << 48 | 1, 0x7FF0 << 48 | 1, (1 << 64) - 1, 1 << 63, 0, 1, 0x7FF0 << 48, 0xFFF0 << 48, 0x3FF0 << 48),
}
KINDS = ("random", "constant", "zeros", "ramp", "normal", "special", "alternating")


def elements(kind: str, width: int, count: int, seed: int) -> bytes:
    """Bytes of ``count`` elements of ``width`` bytes."""
    drawn = np.random.default_rng(seed)
    size = max(width, 1)
    unsigned = size if size in SPECIAL else 1
    items = count * size // unsigned
    if kind == "random":
        return drawn.bytes(items * unsigned)
    if kind == "constant":
        return drawn.bytes(size) * count
    if kind == "zeros":
        return bytes(count * size)
    if kind == "ramp":
        return (np.arange(items, dtype=np.uint64) * 3 + seed).astype(f"<u{unsigned}").tobytes()
    if kind == "special":
        return drawn.choice(np.array(SPECIAL[unsigned], dtype=f"<u{unsigned}"), items).tobytes()
    if kind == "alternating":
        values = np.array([0, (1 << 8 * unsigned) - 1], dtype=f"<u{unsigned}")
        return values[np.arange(items) % 2].tobytes()
    normal = drawn.normal(0, 0.02, items).astype("<f4")
    if unsigned == 2:
        return (normal.view("<u4") >> 16).astype("<u2").tobytes()  # bf16
    return normal.astype({1: "<i1", 4: "<f4", 8: "<f8"}[unsigned]).tobytes()


BASES = ("none", "equal", "shorter", "longer", "empty", "unrelated", "one changed", "nudged", "rows", "negated")


def base_of(kind: str, data: bytes, width: int, cut: int, seed: int) -> bytes | None:
    """What lies beneath the data; ``rows``: the data has some rows more than it."""
    drawn = np.random.default_rng(seed + 1)
    size = max(width, 1)
    at = cut % (len(data) + 1)
    if kind == "none":
        return None
    if kind == "shorter":
        return data[:at]
    if kind == "rows":
        return data[: at - at % (4 * size)]
    if kind == "longer":
        return data + drawn.bytes(cut % 50 + 1)
    if kind == "empty":
        return b""
    if kind == "unrelated":
        return drawn.bytes(len(data))
    if kind == "equal" or not data:
        return data
    changed = bytearray(data)
    if kind == "one changed":
        changed[at % len(data)] ^= 1 + cut % 255
        return bytes(changed)
    if kind == "negated":
        return bytes(byte ^ 0xFF for byte in data)
    unsigned = size if size in SPECIAL else 1
    values = np.frombuffer(data[: len(data) - len(data) % unsigned], dtype=f"<u{unsigned}")
    with np.errstate(over="ignore"):
        moved = values + drawn.integers(-2, 3, len(values)).astype(values.dtype)
    return moved.tobytes() + data[len(values) * unsigned :]


def require_law(data: bytes, compression: str, width: int, base: bytes | None) -> int:
    """Checks everything that holds for any frame; gives its codec."""
    frame = encode_frame(data, compression, element_width=width, base=base)
    stored = bytes(frame.data)
    assert len(stored) <= len(data)
    assert (len(stored) == len(data)) == (frame.codec == RAW)
    assert len(frame.parameters) == 16
    again = encode_frame(bytearray(data), compression, element_width=width, base=base)
    assert (again.codec, again.parameters, bytes(again.data)) == (frame.codec, frame.parameters, stored)
    assert frame.codec == RAW or compression != "none"
    assert frame.codec != DELTA or base is not None
    if width in (1, 2, 4, 8) and len(data) % width == 0:
        assert frame.codec != ZSTD
    else:
        assert frame.codec in (RAW, ZSTD)
    known = raw_checksum(frame.codec, frame.parameters, xxhash.xxh3_64_intdigest(stored))
    assert known == (None if frame.codec == ZSTD else xxhash.xxh3_64_intdigest(data))
    needed = base if frame.codec == DELTA else None
    assert bytes(decode_frame(frame.codec, frame.parameters, stored, len(data), base=needed)) == data
    room = bytearray(b"?" * (len(data) + 8))
    out = memoryview(room)[3 : 3 + len(data)]  # at no element's boundary
    got = decode_frame(frame.codec, frame.parameters, memoryview(stored), len(data), base=needed, out=out)
    assert got is out
    assert bytes(room) == b"???" + data + b"?????"
    if needed is not None:
        # Only the bytes beneath the frame count.
        longer = needed + b"more"
        if len(needed) >= len(data):
            same = encode_frame(data, compression, element_width=width, base=longer)
            assert (same.parameters, bytes(same.data)) == (frame.parameters, stored)
            assert bytes(decode_frame(DELTA, frame.parameters, stored, len(data), base=longer)) == data
        with pytest.raises(BadFrameError, match="base"):
            decode_frame(DELTA, frame.parameters, stored, len(data))
        if needed:
            wrong = bytearray(needed)
            wrong[min(len(data), len(needed)) // 2 - 1] ^= 0x40
            with pytest.raises(BadFrameError, match="checksum"):
                decode_frame(DELTA, frame.parameters, stored, len(data), base=wrong)
    return frame.codec


counts = st.one_of(
    st.integers(0, 40), st.integers(0, 700), st.sampled_from([SAMPLE - 1, SAMPLE, SAMPLE + 1, SAMPLE + 17])
)


@law(300)
@given(
    compression=st.sampled_from(COMPRESSIONS[1:]),
    width=st.sampled_from(WIDTHS),
    kind=st.sampled_from(KINDS),
    base=st.sampled_from(BASES),
    count=counts,
    odd=st.sampled_from([0, 0, 0, 1, 2, 5]),
    cut=st.integers(0, 1 << 20),
    seed=st.integers(0, 1 << 16),
)
def test_what_is_encoded_comes_back_in_no_more_bytes(
    compression: str, width: int, kind: str, base: str, count: int, odd: int, cut: int, seed: int
) -> None:
    data = elements(kind, width, count, seed) + bytes(range(odd))
    require_law(data, compression, width, base_of(base, data, width, cut, seed))


@law(150)
@given(
    st.sampled_from(COMPRESSIONS), st.sampled_from(WIDTHS), st.binary(max_size=90), st.none() | st.binary(max_size=90)
)
def test_any_bytes_come_back(compression: str, width: int, data: bytes, base: bytes | None) -> None:
    require_law(data, compression, width, base)


@law(60)
@given(st.sampled_from(COMPRESSIONS[1:]), st.sampled_from((1, 2, 4, 8)), st.integers(0, 300), st.data())
def test_any_elements_of_few_values_come_back(compression: str, width: int, count: int, draw: st.DataObject) -> None:
    """Values drawn by Hypothesis, few enough that they are worth encoding."""
    value = st.integers(0, (1 << 8 * width) - 1)
    values = draw.draw(st.lists(value, min_size=1, max_size=4))
    beneath = draw.draw(st.lists(value, min_size=1, max_size=4))

    def spelled(few: list[int], items: int) -> bytes:
        return b"".join(few[at % len(few)].to_bytes(width, "little") for at in range(items))

    data = spelled(values, count + 30)
    base = draw.draw(st.sampled_from([None, spelled(beneath, count + 30), spelled(beneath, count)]))
    assert require_law(data, compression, width, base) in (PLANES, DELTA, RAW)


@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize(
    ("width", "kind", "base", "codec"),
    [
        (1, "normal", "none", {PLANES}),
        (2, "normal", "none", {PLANES}),
        (2, "normal", "nudged", {DELTA}),
        (2, "normal", "shorter", {DELTA, PLANES}),
        (4, "special", "one changed", {DELTA}),
        (8, "normal", "none", {PLANES}),
        (4, "random", "nudged", {DELTA}),
    ],
)
def test_the_edge_of_a_block(width: int, kind: str, base: str, codec: set[int], count: int, compression: str) -> None:
    data = elements(kind, width, count, 5)
    assert require_law(data, compression, width, base_of(base, data, width, count // 2 * width, 5)) in codec


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", sorted(BITS))
def test_every_element_type_comes_back(dtype: str, compression: str) -> None:
    width = BITS[dtype] // 8
    for kind in KINDS:
        for count in (0, 1, 7, 600):
            data = elements(kind, width, count, count)
            for base in ("none", "equal", "nudged", "rows"):
                require_law(data, compression, width, base_of(base, data, width, len(data) // 2, 3))


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
def test_what_equals_its_base_takes_next_to_nothing(compression: str, width: int) -> None:
    data = elements("random", width, 100_000, 1)
    frame = encode_frame(data, compression, element_width=width, base=data)
    assert frame.codec == DELTA
    assert len(frame.data) < 40 * width
    assert encode_frame(data, compression, element_width=width).codec == RAW


@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
def test_a_base_is_used_only_where_it_helps(compression: str) -> None:
    data = elements("normal", 2, 50_000, 1)
    alone = encode_frame(data, compression, element_width=2)
    with_unrelated = encode_frame(data, compression, element_width=2, base=elements("random", 2, 50_000, 2))
    assert alone.codec == PLANES
    assert with_unrelated == alone
    near = encode_frame(data, compression, element_width=2, base=base_of("nudged", data, 2, 0, 1))
    assert near.codec == DELTA
    assert len(near.data) < len(alone.data) / 2


def test_a_trained_weight_takes_what_its_exponents_and_signs_leave() -> None:
    """Two thirds of bf16 of one scale: the fraction is noise, sign and exponent take about three bits."""
    data = elements("normal", 2, 200_000, 1)
    frame = encode_frame(data, "fast", element_width=2)
    assert 0.6 < len(frame.data) / len(data) < 0.7


def test_trying_harder_never_takes_more_where_it_matters() -> None:
    for kind in KINDS:
        data = elements(kind, 4, 3000, 1)
        fast, hard = (len(encode_frame(data, effort, element_width=4).data) for effort in COMPRESSIONS[1:])
        assert hard <= fast * 1.01


hostile_parameters = st.builds(
    lambda width, transform, zero, checksum: bytes([width, transform]) + zero + checksum,
    st.integers(0, 9),
    st.integers(0, 5),
    st.just(bytes(6)) | st.binary(min_size=6, max_size=6),
    st.sampled_from([xxhash.xxh3_64_digest(bytes(24))[::-1], bytes(8)]),
)


@law(300)
@given(
    st.sampled_from([PLANES, DELTA]),
    hostile_parameters,
    st.integers(0, 60),
    st.lists(st.integers(0, 30), max_size=8),
    st.binary(max_size=60),
    st.none() | st.binary(max_size=30),
)
def test_hostile_planes_decode_to_their_length_or_are_refused(
    codec: int, parameters: bytes, raw_length: int, lengths: list[int], tail: bytes, base: bytes | None
) -> None:
    stored = b"".join(length.to_bytes(4, "little") for length in lengths) + tail
    digest = hashlib.sha256(stored).digest()
    try:
        data = decode_frame(codec, parameters, stored, raw_length, base=base)
    except RblError:
        assert hashlib.sha256(stored).digest() == digest
        return
    assert len(data) == raw_length
    assert xxhash.xxh3_64_intdigest(bytes(data)) == int.from_bytes(parameters[8:], "little")
