"""Logits in blocks of float64: how distributions over a large vocabulary are worked through within the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final

import torch

from rblstore.errors import ConflictError, InputError

__all__ = [
    "EXTREME",
    "ORDINARY",
    "Blocks",
    "NanOutputError",
    "PositionsMismatchError",
    "VocabularyMismatchError",
    "block_elements",
    "blocks",
    "check_matrix",
    "check_pair",
    "exp_",
    "float64_device",
    "in_pieces",
    "normalizer",
    "over_blocks",
]

Blocks = Sequence[tuple[slice, list[slice]]]
"""Rows, and the columns that they are worked through in."""

# Elements of one block on the CPU: small enough for the cache, and just below the 32,768 (2,048 for expm1 and log1p)
# from which torch splits an operation over its threads. There are thousands of operations, and on busy cores threads
# that wait for one another each time take many times the work itself. So the numbers do not depend on threads either.
_BLOCK: Final = 32_000
_PIECE: Final = 2_000
# On an accelerator larger blocks pay, since each operation has to be launched: 6 buffers of 8 MiB.
_ACCELERATOR_BLOCK: Final = 1 << 20
# Row blocks that a thread is worth: below that, starting it takes longer than it saves.
_LEAST_BLOCKS: Final = 4
# Above this no probability is below 1e-260, and no ratio of two above 1e260: nothing over- or underflows.
ORDINARY: Final = -600.0
# Beyond this, differences of logits could overflow; -inf lies beyond it too.
EXTREME: Final = 1e300


class NanOutputError(InputError):
    """A model's output holds NaN or infinity where a distribution is needed."""

    code = "nan_output"


class VocabularyMismatchError(ConflictError):
    """Two outputs are distributions over vocabularies of different sizes."""

    code = "vocabulary_mismatch"


class PositionsMismatchError(ConflictError):
    """Two outputs do not have the same number of positions, or are not (positions, vocabulary) at all."""

    code = "positions_mismatch"


def float64_device(tensor: torch.Tensor) -> torch.device:
    """Where the float64 numbers of a tensor are computed."""
    # Other accelerators may have no float64 at all; their blocks are copied to the host.
    return tensor.device if tensor.device.type in ("cpu", "cuda") else torch.device("cpu")


def check_matrix(logits: torch.Tensor) -> None:
    """Refuses what is not (positions, vocabulary).

    Raises:
        PositionsMismatchError: Not two-dimensional.
        NanOutputError: A vocabulary of size 0.
    """
    if logits.ndim != 2:
        raise PositionsMismatchError(f"an output of shape {tuple(logits.shape)} is not (positions, vocabulary)")
    if logits.shape[1] == 0:
        raise NanOutputError("the output has a vocabulary of size 0 and so is not a distribution")


def check_pair(reference: torch.Tensor, other: torch.Tensor) -> None:
    """Refuses two outputs that are not of one shape.

    Raises:
        VocabularyMismatchError, PositionsMismatchError: The shapes differ; names both sizes.
        NanOutputError: A vocabulary of size 0.
    """
    check_matrix(reference)
    check_matrix(other)
    if reference.shape[1] != other.shape[1]:
        raise VocabularyMismatchError(
            f"the reference's vocabulary has {reference.shape[1]} entries, the other's {other.shape[1]}",
            hint="Divergences are defined over one vocabulary; compare models with the same tokenizer and head.",
        )
    if reference.shape[0] != other.shape[0]:
        raise PositionsMismatchError(
            f"the reference has {reference.shape[0]} positions, the other {other.shape[0]}",
            hint="Measure both under the same probe.",
        )


def block_elements(device: torch.device) -> int:
    """The most elements of one block on a device."""
    return _BLOCK if device.type == "cpu" else _ACCELERATOR_BLOCK


def blocks(positions: int, vocabulary: int, device: torch.device) -> Iterator[tuple[slice, list[slice]]]:
    """Row blocks, each with the vocabulary blocks that it is worked through in."""
    elements = block_elements(device)
    width = min(vocabulary, elements)
    columns = [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]
    height = max(1, elements // width)
    for start in range(0, positions, height):
        yield slice(start, min(start + height, positions)), columns


def over_blocks(
    positions: int,
    vocabulary: int,
    device: torch.device,
    work: Callable[[Blocks], None],
    done: torch.Tensor | None = None,
) -> None:
    """Works through the row blocks, on the CPU with as many threads as torch has: each row is one thread's alone.

    Args:
        positions: How many rows.
        vocabulary: How wide they are.
        device: Where it is computed.
        work: Does its share of the blocks, one after another; it is called once a thread, without gradients.
        done: (positions,) bool; a block whose rows are all done is passed over.
    """
    every = [one for one in blocks(positions, vocabulary, device) if done is None or not bool(done[one[0]].all())]
    threads = min(torch.get_num_threads(), len(every) // _LEAST_BLOCKS) if device.type == "cpu" else 1

    def share(part: Blocks) -> None:
        with torch.no_grad():  # a setting of each thread
            work(part)

    if threads <= 1:
        share(every)
        return
    bounds = [len(every) * place // threads for place in range(threads + 1)]
    with ThreadPoolExecutor(threads, thread_name_prefix="rbl-divergence") as pool:
        found = [pool.submit(share, every[start:end]) for start, end in pairwise(bounds)]
    for one in found:
        one.result()  # what is wrong with the lowest row is what is said


def normalizer(
    logits: torch.Tensor, columns: list[slice], device: torch.device, side: str, first: int
) -> tuple[float, torch.Tensor]:
    """The smallest logit of these rows, and log(sum(exp(logits))) of each row as (rows, 1) float64.

    Args:
        logits: (rows, vocabulary).
        columns: The vocabulary in blocks.
        device: Where to compute.
        side: How messages call the output.
        first: The position of the first row, for messages.

    Raises:
        NanOutputError: A row holds NaN, +inf or nothing but -inf; names side and position.
    """
    # Not aminmax: along a dimension that takes five times as long as both of these.
    low = torch.stack([logits[:, column].amin() for column in columns]).amin()
    high = torch.cat([logits[:, column].amax(dim=1, keepdim=True) for column in columns], dim=1).amax(1, keepdim=True)
    finite = torch.isfinite(high)
    if not bool(finite.all()):
        row = first + int((~finite[:, 0]).nonzero()[0, 0])
        raise NanOutputError(
            f"the {side}'s logits at position {row} are no distribution: NaN, +inf or nothing but -inf",
            object=f"position {row}",
            hint="Look for NaN or overflowing weights; a wider dtype may help.",
        )
    peak = high.to(device=device, dtype=torch.float64)
    total = torch.zeros_like(peak)
    for column in columns:
        block = torch.sub(logits[:, column].to(device=device, dtype=torch.float64), peak)
        total += exp_(block).sum(dim=1, keepdim=True)
    return float(low), total.log_().add_(peak)


def exp_(block: torch.Tensor) -> torch.Tensor:
    """The exponential in place, without starting threads."""
    # Not exp_: where torch has MKL, that is spread over MKL's own threads whatever the size.
    return block.mul_(1.0 / math.log(2.0)).exp2_()


def in_pieces(function: Callable[[torch.Tensor], torch.Tensor], block: torch.Tensor) -> torch.Tensor:
    """The contiguous block after an in-place function, applied so that no threads are started for it."""
    if block.device.type != "cpu" or torch.get_num_threads() == 1:
        return function(block)
    for piece in block.view(-1).split(_PIECE):
        function(piece)
    return block
