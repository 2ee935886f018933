"""Element types of tensors, by the names that the safetensors format gives them, with their widths in bits."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from rblstore.errors import InputError
from rblstore.objects import limits

BITS = MappingProxyType({
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
})  # fmt: skip

# What torch calls those that it has.
TORCH_NAMES = MappingProxyType({
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
})  # fmt: skip


def span_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this element type and shape takes, row-major and packed.

    Raises:
        InputError: An unknown element type, a negative or absurd extent, or a span that is not whole bytes.
    """
    if dtype not in BITS:
        raise InputError(f"the element type {dtype[:32]!r} is not known", object=dtype[:32])
    if len(shape) > limits.TENSOR_RANK:
        raise InputError(f"{len(shape)} dimensions, more than the {limits.TENSOR_RANK} allowed")
    bits = BITS[dtype]
    for extent in shape:
        if not 0 <= extent <= limits.JSON_INTEGER:
            raise InputError(f"the extent {extent} is out of range")
        bits *= extent
        if bits > limits.JSON_INTEGER * 8:
            raise InputError("the tensor is larger than 2^53 bytes")
    if bits % 8:
        raise InputError(f"{dtype} of shape {list(shape)} does not fill whole bytes")
    return bits // 8
