"""Merging plain LoRA into checkpoint tensors without torch: sums in fp32, in the composition's order, rounded once.

The arithmetic is that of peft's own merge, ``base + (B @ A) * scale``; but peft rounds each adapter's product and each
sum to the base's type, and here only the result is rounded to it. A tensor is read, summed and written in blocks of
rows, so memory is bounded by a block and the (small) factors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.adapter_config import AdapterConfig
from rblstore.checkpoints.adapter_effects import bind_updates
from rblstore.checkpoints.adapter_shapes import Misfit, pair_is_swapped
from rblstore.checkpoints.tensor_names import TensorNames
from rblstore.errors import ConflictError, InputError
from rblstore.objects.content_records import Behavior, StoredTensor
from rblstore.objects.dtypes import span_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32] | NDArray[np.float64]
    Delta = tuple[Floats, Floats, float]

MERGEABLE = ("BF16", "F16", "F32", "F64")
BLOCK_BYTES = 8 << 20
# What is summed at a time stays in the processor's own cache.
_TILE_ELEMENTS = 1 << 16
# Patterns come from outside and are regular expressions; one repetition and no group cannot be made to run for ever.
_PATTERN = re.compile(r"[\w.\\^$|\[\]*+?-]{1,256}", re.ASCII)
_REPEATED = re.compile(r"[*+?]")


class CannotMergeError(ConflictError):
    """An adapter cannot be merged by adding products of its factors to stored tensors."""

    code = "cannot_merge"


@dataclass(frozen=True)
class PlainDelta:
    """One low-rank update of a stored tensor: it adds ``scale * second @ first``, rows by columns.

    Attributes:
        target: The stored tensor's logical name.
        module: The module as peft spells it, for :func:`lora_scaling`.
        first: The adapter's tensor that gives the columns' factor, (rank, columns) once oriented.
        second: The adapter's tensor that gives the rows' factor, (rows, rank) once oriented.
        swapped: Whether the factors have to be transposed and exchanged (Conv1D, embeddings): see :func:`oriented`.
        scale: peft's scaling, without any weight.
    """

    target: str
    module: str
    first: str
    second: str
    swapped: bool
    scale: float


def _plain_pattern(pattern: str) -> bool:
    # Within a set, these mean other things in other versions of Python, which warns of them.
    doubtful = "[" in pattern and any(word in pattern for word in ("[[", "--", "||"))
    return _PATTERN.fullmatch(pattern) is not None and len(_REPEATED.findall(pattern)) < 2 and not doubtful


@lru_cache(maxsize=16_384)
def _compiled(pattern: str) -> re.Pattern[str]:
    if not _plain_pattern(pattern):
        raise CannotMergeError(f"the pattern {pattern[:80]!r} is not one that is run here", object=pattern[:80])
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise InputError(f"adapter_config.json: {pattern[:80]!r} is not a pattern ({error})") from error


def _pattern_key(patterns: Mapping[str, Any], module: str) -> str:
    """The pattern that applies to a module, by peft's rule (get_pattern_key): the first that matches its end."""
    return next((pattern for pattern in patterns if _compiled(pattern).match(module)), module)


def lora_scaling(config: AdapterConfig, module: str, weight: float = 1.0) -> float:
    """The scale that peft gives one module's LoRA product, times the composition's weight.

    Args:
        config: Of the LoRA adapter.
        module: The module as peft spells it, without ``base_model.model.``.
        weight: Of the composition's slot.

    Raises:
        CannotMergeError: No rank or alpha, or a pattern too involved to run on outside input.
    """
    rank = config.rank_pattern.get(_pattern_key(config.rank_pattern, module), config.r)
    alpha = config.alpha_pattern.get(_pattern_key(config.alpha_pattern, module), config.lora_alpha)
    if rank is None or alpha is None:
        raise CannotMergeError("the adapter's config gives no rank or no alpha", object="adapter_config.json")
    return (alpha / math.sqrt(rank) if config.use_rslora else alpha / rank) * weight


def can_merge_plain(config: AdapterConfig, behavior: Behavior) -> bool:
    """Whether an adapter only adds scaled products to tensors of float types, so that it can be merged here.

    :func:`plan_plain_merge` has the last word: it sees shapes and names as well.
    """
    return (
        behavior.form == "adapter"
        and config.is_plain_lora
        and behavior.additive
        and all(effect.beneath is not None and effect.beneath.dtype in MERGEABLE for effect in behavior.effects)
        and all(_plain_pattern(pattern) for pattern in (*config.rank_pattern, *config.alpha_pattern))
    )


def plan_plain_merge(
    config: AdapterConfig, adapter_tensors: Mapping[str, StoredTensor], beneath: Mapping[str, StoredTensor]
) -> tuple[PlainDelta, ...]:
    """Every product that a plain LoRA adapter adds, with the stored tensor that it goes to.

    Args:
        config: Of an adapter for which :func:`can_merge_plain` holds.
        adapter_tensors: The tensors of its file.
        beneath: The logical tensors that it is merged into.

    Raises:
        CannotMergeError: A tensor that input and output layers share (the product belongs to one of its two uses),
            square weights whose orientation nothing tells, or a tensor of a type that is not summed here.
        WrongBaseError: A module has no tensor beneath, or one of another shape.
    """
    names = TensorNames(beneath)
    has_output = names.has_output()
    found: list[PlainDelta] = []
    undecided: list[int] = []
    seen: set[bool] = set()
    owners: dict[str, str] = {}
    for update in bind_updates(config, adapter_tensors, beneath):
        target, lies = update.target, beneath[update.target]
        if lies.dtype not in MERGEABLE:
            raise CannotMergeError(f"{target} is of type {lies.dtype}", object=target)
        if owners.setdefault(target, update.module) != update.module:
            raise CannotMergeError(f"{owners[target]} and {update.module} share {target}", object=target)
        parameters = dict(update.parameters)
        if target == names.input_embedding() and not has_output:
            # Tied: the product belongs to one use of the tensor, and merged it would act in both.
            raise CannotMergeError(f"{target} is the input embedding and may be the output layer too", object=target)
        if set(parameters) == {"lora_embedding_A", "lora_embedding_B"}:
            first, second, swapped = parameters["lora_embedding_A"], parameters["lora_embedding_B"], True
        elif set(parameters) == {"lora_A.weight", "lora_B.weight"}:
            first, second = parameters["lora_A.weight"], parameters["lora_B.weight"]
            lies_swapped = _orientation(adapter_tensors[first], adapter_tensors[second], lies, first)
            if lies_swapped is None:
                undecided.append(len(found))
            else:
                seen.add(lies_swapped)
            swapped = config.fan_in_fan_out if lies_swapped is None else lies_swapped
        else:
            raise CannotMergeError(f"{update.module} has more than two factors", object=update.module)
        scale = lora_scaling(config, update.module)
        found.append(PlainDelta(target, update.module, first, second, swapped, scale))
    if undecided and not seen <= {config.fan_in_fan_out}:
        # peft sets fan_in_fan_out anew at every module by its class, which no file names.
        module = found[undecided[0]].module
        raise CannotMergeError(f"nothing tells whether {module} is stored (in, out) or (out, in)", object=module)
    return tuple(found)


def _orientation(first: StoredTensor, second: StoredTensor, lies: StoredTensor, name: str) -> bool | None:
    if (
        len(first.shape) < 2
        or len(second.shape) < 2
        or first.shape[0] != second.shape[1]
        or (len(lies.shape) > 2 and first.shape[1:] != lies.shape[1:])
    ):
        raise CannotMergeError(f"{name} belongs to a grouped convolution", object=name)
    try:
        return pair_is_swapped(first.shape, second.shape, lies.shape)
    except Misfit as error:
        raise CannotMergeError(f"{name} does not fit", object=name) from error


def oriented(first: Floats, second: Floats, *, swapped: bool) -> tuple[Floats, Floats]:
    """The factors as (rank, columns) and (rows, rank) of the stored tensor, its dimensions past the first flattened.

    Args:
        first: lora_A (rank, in, ...) or lora_embedding_A (rank, rows).
        second: lora_B (out, rank, ...) or lora_embedding_B (columns, rank).
        swapped: Whether the stored tensor is (in, out), or an embedding's.
    """
    flat_first, flat_second = first.reshape(first.shape[0], -1), second.reshape(second.shape[0], -1)
    return (flat_second.T, flat_first.T) if swapped else (flat_first, flat_second)


def bf16_to_fp32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16, as its bits, in float32: exact."""
    import numpy as np

    return (bits.astype(np.uint32) << 16).view(np.float32)


def fp32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 rounded to bfloat16's bits, to nearest with ties to even; NaN stays NaN, its sign and high bits kept."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    chosen: NDArray[np.uint32] = np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), quiet, rounded)
    return chosen.astype(np.uint16)


def read_floats(data: bytes | memoryview, dtype: str, shape: Sequence[int]) -> Floats:
    """Stored little-endian bytes as float32 (float64 for F64), of a shape.

    Raises:
        CannotMergeError: A type that is not summed here.
        InputError: The bytes are not as many as the shape takes.
    """
    import numpy as np

    if dtype not in MERGEABLE:
        raise CannotMergeError(f"tensors of type {dtype} are not summed here", object=dtype)
    if len(data) != span_bytes(dtype, shape):
        raise InputError(f"{len(data)} bytes do not fill {dtype} of shape {list(shape)}")
    if dtype == "BF16":
        return bf16_to_fp32(np.frombuffer(data, "<u2")).reshape(shape)
    if dtype == "F64":
        return np.frombuffer(data, "<f8").reshape(shape)
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32).reshape(shape)


def write_floats(values: Floats, dtype: str) -> bytes:
    """float32 or float64 rounded once to a stored type, as little-endian bytes."""
    import numpy as np

    if dtype == "BF16":
        return fp32_to_bf16(values.astype(np.float32, copy=False)).astype("<u2", copy=False).tobytes()
    with np.errstate(over="ignore"):
        return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def merge_block(base: Floats, deltas: Sequence[Delta]) -> Floats:
    """The sum base + scale * B A, added up in the order given and in the base's own precision.

    The product is a sum of outer products in the order of the ranks, every multiplication and addition rounded by
    itself. A matrix product of a library sums in another order with another number of threads, or on another processor;
    this gives the same bits everywhere, and for the ranks of adapters takes no longer.

    Args:
        base: (rows, columns), float32; float64 for F64 tensors.
        deltas: (A (rank, columns), B (rows, rank), scale) for these rows.
    """
    import numpy as np

    total: Floats = base.copy()
    rows, columns = base.shape
    step = max(1, _TILE_ELEMENTS // max(1, columns))
    product, term = np.empty((2, min(step, rows), columns), base.dtype)
    for first, second, scale in deltas:
        across, down = (factor.astype(base.dtype, copy=False) for factor in (first, second))
        with np.errstate(over="ignore", invalid="ignore"):
            factor = base.dtype.type(scale)
            for start in range(0, rows if len(across) else 0, step):
                tile, sides = total[start : start + step], down[start : start + step]
                outer, one = product[: len(tile)], term[: len(tile)]
                np.multiply(sides[:, :1], across[:1], out=outer)
                for rank in range(1, len(across)):
                    np.multiply(sides[:, rank : rank + 1], across[rank : rank + 1], out=one)
                    np.add(outer, one, out=outer)
                np.multiply(outer, factor, out=outer)
                np.add(tile, outer, out=tile)
    return total


def merge_tensor(
    read_rows: Callable[[int, int], bytes | memoryview],
    dtype: str,
    shape: Sequence[int],
    deltas: Sequence[Delta],
    rows_per_block: int | None = None,
) -> Iterator[bytes]:
    """The bytes of a merged tensor, block of rows by block.

    Args:
        read_rows: Gives the stored bytes of rows [start, start + count).
        dtype: The stored type, one of ``MERGEABLE``; the result has it too.
        shape: Of the tensor, two dimensions or more; those past the first count as columns.
        deltas: (A (rank, columns), B (rows, rank), scale) as :func:`oriented` gives them, in the composition's order.
        rows_per_block: How many rows at once; by default as many as take 8 MiB in float32.

    Yields:
        Bytes that concatenate to the whole tensor.

    Raises:
        CannotMergeError: A type that is not summed here, or factors that do not fit.
        InputError: ``read_rows`` gave another number of bytes than asked for.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    for first, second, _ in deltas:
        if first.shape[1:] != (columns,) or second.shape[:1] != (rows,) or first.shape[0] != second.shape[1]:
            raise CannotMergeError(f"factors {first.shape} and {second.shape} do not fit a tensor {list(shape)}")
    step = rows_per_block or max(1, BLOCK_BYTES // max(1, columns * 4))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        base = read_floats(read_rows(start, count), dtype, (count, columns))
        block = [(first, second[start : start + count], scale) for first, second, scale in deltas]
        yield write_floats(merge_block(base, block), dtype)
