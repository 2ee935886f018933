"""The safetensors header, read strictly and written as the safetensors library writes it.

A file is eight little-endian bytes with the header's length, that many bytes of JSON, and the tensors' bytes back to
back. The library accepts more than the format allows (a repeated name, last one wins), and whatever reads differently
elsewhere is how a file comes to mean two things; so everything is checked here before any library sees the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.dtypes import span_bytes

METADATA_KEY: Final = "__metadata__"

# The library sorts by this order, descending, then by name, so that wide elements come first and stay aligned.
_DTYPE_ORDER: Final = {
    dtype: rank
    for rank, dtype in enumerate((
        "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
        "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
    ))
}  # fmt: skip

# Brackets and commas in the JSON: bounds what parsing it allocates. A 16 MiB header of real tensors stays below.
_MAX_TOKENS: Final = 2_000_000
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}


class BadSafetensorsError(InputError):
    """A safetensors file does not hold what its header says, or its header breaks the format's rules."""

    code = "bad_safetensors"


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor as a header describes it.

    Attributes:
        name: As stored.
        dtype: Element type, as safetensors names it.
        shape: Extents, outermost first; () for a scalar.
        begin: Offset of its first byte, from the end of the header.
        end: Offset after its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


@dataclass(frozen=True)
class SafetensorsHeader:
    """A whole header.

    Attributes:
        raw: The eight length bytes and the JSON, padding included: the file's bytes before the first tensor.
        tensors: Sorted by (begin, end, name); together they cover the rest of the file without gap or overlap.
        metadata: The free text under ``__metadata__``, in the header's order.
    """

    raw: bytes
    tensors: tuple[TensorSpan, ...]
    metadata: dict[str, str]

    @property
    def data_offset(self) -> int:
        """Where in the file the tensors' bytes begin."""
        return len(self.raw)


def _refuse(name: str, why: str) -> NoReturn:
    raise BadSafetensorsError(
        f"{name}: {why}", object=name, hint="The file is damaged or was not written by safetensors; fetch it again."
    )


def _shown(text: str) -> str:
    return text[:80].encode("unicode_escape").decode("ascii")


class _Members(list[tuple[str, Any]]):
    """The members of one JSON object, in order and known to be distinct. Lighter than a dict; there may be many."""

    __slots__ = ()


def _distinct(pairs: list[tuple[str, Any]]) -> _Members:
    if len({key for key, _ in pairs}) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InputError(f"the key '{_shown(key)}' appears twice")
            seen.add(key)
    return _Members(pairs)


def _integer(text: str) -> int:
    if len(text) > 16 or (value := int(text)) > limits.JSON_INTEGER or value < 0:
        raise InputError(f"the number {text[:24]} is out of range")
    return value


def _no_number(text: str) -> NoReturn:
    raise InputError(f"the number {text[:24]} is not an integer")


def _parse_json(data: bytes) -> _Members:
    if not data.startswith(b"{"):
        raise InputError("the header does not begin with '{'")
    if sum(data.count(token) for token in (b"{", b"[", b",")) > _MAX_TOKENS:
        raise InputError(f"the header has more than {_MAX_TOKENS} elements")
    try:
        text = data.decode("utf-8", "strict")
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_int=_integer, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"the header is not valid JSON ({error})") from error
    if not isinstance(value, _Members):
        raise InputError("the header is not a JSON object")
    return value


def _checked_name(name: str) -> str:
    if _CONTROL.search(name) or _SURROGATE.search(name):
        raise InputError(f"the tensor name '{_shown(name)}' has a control character or is not valid Unicode")
    if len(name) > limits.TENSOR_NAME_BYTES or len(name.encode("utf-8")) > limits.TENSOR_NAME_BYTES:
        raise InputError(f"the tensor name '{_shown(name)}...' is longer than {limits.TENSOR_NAME_BYTES} bytes")
    return name


def _integers(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise InputError(f"its {what} is not a list of integers")
    return tuple(value)


def _span(name: str, value: Any) -> TensorSpan:
    if not isinstance(value, _Members) or {key for key, _ in value} != _ENTRY_KEYS:
        raise InputError("its entry does not hold dtype, shape and data_offsets, and only those")
    members = dict(value)
    dtype, shape = members["dtype"], _integers(members["shape"], "shape")
    offsets = _integers(members["data_offsets"], "data_offsets")
    if not isinstance(dtype, str):
        raise InputError("its dtype is not text")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError("its data_offsets are not a begin and an end")
    begin, end = offsets
    if (size := span_bytes(dtype, shape)) != end - begin:
        raise InputError(f"{dtype} of shape {list(shape)} takes {size} bytes, but its offsets span {end - begin}")
    return TensorSpan(name, dtype, shape, begin, end)


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, _Members):
        raise InputError(f"{METADATA_KEY} is not a JSON object")
    for key, text in value:
        if not isinstance(text, str):
            raise InputError(f"{METADATA_KEY}: '{_shown(key)}' is not text")
        if _SURROGATE.search(key) or _SURROGATE.search(text):
            raise InputError(f"{METADATA_KEY}: '{_shown(key)}' is not valid Unicode")
    return dict(value)


def _read_members(members: _Members) -> tuple[list[TensorSpan], dict[str, str]]:
    spans: list[TensorSpan] = []
    metadata: dict[str, str] = {}
    for name, value in members:
        if name == METADATA_KEY:
            metadata = _metadata(value)
            continue
        _checked_name(name)
        try:
            spans.append(_span(name, value))
        except InputError as error:
            raise InputError(f"tensor '{_shown(name)}': {error.message}") from error
    return spans, metadata


def _check_cover(spans: Iterable[TensorSpan], available: int) -> None:
    position = 0
    for span in spans:
        if span.end > available:
            raise InputError(
                f"tensor '{_shown(span.name)}' ends at byte {span.end} of the data, but there are {available}: "
                "the file is cut short or its header lies"
            )
        if span.begin < position:
            raise InputError(f"tensor '{_shown(span.name)}' overlaps the one before it at byte {span.begin}")
        if span.begin > position:
            raise InputError(f"bytes {position} to {span.begin} of the data belong to no tensor")
        position = span.end
    if position != available:
        raise InputError(f"{available - position} bytes after the last tensor belong to no tensor")


def read_header(
    read: Callable[[int, int], bytes],
    file_size: int,
    *,
    max_bytes: int = limits.SAFETENSORS_HEADER_BYTES,
    name: str = "the safetensors file",
) -> SafetensorsHeader:
    """Reads and checks a file's header; no tensor is read.

    Args:
        read: Gives exactly ``length`` bytes at ``offset``: ``read(offset, length)``.
        file_size: Bytes of the whole file.
        max_bytes: The longest header to take, never above the format's own 100 MB.
        name: The file's name, for messages.

    Raises:
        BadSafetensorsError: Anything in the header is malformed, repeated, out of range or not what the file holds.
    """
    if file_size < 8:
        _refuse(name, f"{file_size} bytes are too few for a safetensors file")
    prefix = read(0, 8)
    length = int.from_bytes(prefix, "little")
    cap = min(max_bytes, limits.SAFETENSORS_HEADER_BYTES_CEILING)
    if length > cap:
        _refuse(name, f"its header would be {length} bytes long, more than the {cap} allowed")
    if length > file_size - 8:
        _refuse(
            name, f"its header would be {length} bytes long, but only {file_size - 8} follow: the file is cut short"
        )
    data = read(8, length)
    if len(prefix) != 8 or len(data) != length:
        _refuse(name, "it ended while its header was read")
    try:
        spans, metadata = _read_members(_parse_json(data))
        spans.sort(key=lambda span: (span.begin, span.end, span.name))
        _check_cover(spans, file_size - 8 - length)
    except InputError as error:
        raise BadSafetensorsError(
            f"{name}: {error.message}",
            object=name,
            hint="The file is damaged or was not written by safetensors; fetch it again.",
        ) from error
    return SafetensorsHeader(prefix + data, tuple(spans), metadata)


def lay_out(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[TensorSpan, ...]:
    """Where the safetensors library would put these tensors: widest element type first, then by name.

    Args:
        tensors: Name to (element type, shape).

    Returns:
        One span a tensor, in file order, back to back from 0.

    Raises:
        InputError: A name, element type or shape that no file can hold.
    """
    spans: list[TensorSpan] = []
    position = 0
    sizes = {_checked_name(name): span_bytes(dtype, shape) for name, (dtype, shape) in tensors.items()}
    if METADATA_KEY in sizes:
        raise InputError(f"a tensor cannot be named {METADATA_KEY}", object=METADATA_KEY)
    for name in sorted(sizes, key=lambda name: (-_DTYPE_ORDER[tensors[name][0]], name)):
        dtype, shape = tensors[name]
        spans.append(TensorSpan(name, dtype, tuple(shape), position, position + sizes[name]))
        position += sizes[name]
    return tuple(spans)


def encode_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The bytes before the first tensor, as the safetensors library writes them for these tensors.

    Args:
        tensors: Name to (element type, shape); :func:`lay_out` gives the order in which their bytes must follow.
        metadata: Free text, written in the mapping's own order (the library's order is random), or None for none.

    Raises:
        InputError: A name, element type or shape that no file can hold.
    """
    body: dict[str, Any] = {}
    if metadata is not None:
        body[METADATA_KEY] = dict(metadata)
    for span in lay_out(tensors):
        body[span.name] = {"dtype": span.dtype, "shape": list(span.shape), "data_offsets": [span.begin, span.end]}
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError("the metadata is not valid Unicode", object=METADATA_KEY) from error
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
