"""Comparing outputs with those of a baseline: bits first, divergences where the bits differ.

Equality is decided by digest, which proves that both divergences are zero without reading what is stored. Only prompts
whose digests differ are read, and measured: distributions by KL and JS; embeddings, which are none, by relative L2
distance and cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, NamedTuple, TypeAlias, TypeVar

import torch

from rblstore.divergence.embeddings import embedding_measures
from rblstore.divergence.measure import (
    BadValuesError,
    PromptMeasurement,
    tensor_from_bytes,
    values_bytes,
    values_digest,
)
from rblstore.divergence.metrics import NanOutputError, divergences, means
from rblstore.errors import ConflictError
from rblstore.objects.dtypes import span_bytes
from rblstore.objects.evidence_records import Output, PromptDivergence

__all__ = ["BaselineMismatchError", "Comparison", "Reference", "compare", "compare_measurements"]

_EMBEDDING: Final = "the output is an embedding, not a distribution"

_READ_TOGETHER: Final = 2
# A reference that takes more is not read before it is needed.
_AHEAD_BYTES: Final = 64 << 20

Bytes: TypeAlias = "bytes | bytearray | memoryview"
Theirs = TypeVar("Theirs")


class BaselineMismatchError(ConflictError):
    """Two sets of outputs are not of the same prompts."""

    code = "baseline_mismatch"


class Reference(NamedTuple):
    """The recorded output for one prompt, its values read only if they are needed.

    Attributes:
        id: The prompt's.
        shape: (positions, width).
        dtype: Element type, as safetensors names it.
        digest: SHA-256 of the values' bytes.
        read: Gives those bytes, verified; a bytearray becomes the comparison's own.
    """

    id: str
    shape: tuple[int, int]
    dtype: str
    digest: str
    read: Callable[[], Bytes]


@dataclass(frozen=True)
class Comparison:
    """How far measured outputs are from a reference.

    Attributes:
        prompts: One each, in order; KL and JS, or an embedding's ``relative_l2`` and ``cosine``
            in ``values``, are means over the prompt's positions.
        kl: Mean over the prompts of KL(reference || measured), nats; None with a reason where it cannot be had.
        js: The same with JS.
        bit_equal: Whether every value is the same, bit for bit, with the same dtype and shape.
        comparable: Whether every prompt's outputs are distributions over one vocabulary.
        reason: Why ``kl`` or ``js`` is None, else None.
    """

    prompts: tuple[PromptDivergence, ...]
    kl: float | None
    js: float | None
    bit_equal: bool
    comparable: bool
    reason: str | None


@dataclass(frozen=True)
class _Outcome:
    divergence: PromptDivergence
    comparable: bool
    reason: str | None


def compare(
    reference: Iterable[Reference],
    measured: Iterable[PromptMeasurement],
    *,
    output: Output | None = None,
) -> Comparison:
    """Compares measured outputs with recorded ones, prompt by prompt, both in the probe's order.

    KL is infinite where the measured model gives no probability at all to a token that the reference allows. Records
    hold finite numbers only, so KL is then None with that reason, and JS stays a number.

    Args:
        reference: The recorded outputs; plain tuples (id, shape, dtype, digest, read) will do.
        measured: The measured outputs; taken one at a time, so a running measurement may be passed.
        output: What the recorded values are, where known: ``logits`` or ``embedding``.

    Raises:
        BaselineMismatchError: Not the same prompts in the same order, or none at all.
        BadValuesError: Recorded values are not as their record says; names the prompt.
        NanOutputError: Outputs are no distributions; names the prompt.
    """
    outcomes: list[_Outcome] = []
    with ThreadPoolExecutor(_READ_TOGETHER, thread_name_prefix="rbl-reference") as pool:
        recorded = _Recorded(reference, pool)
        for theirs, ours in _paired(recorded, measured, lambda one: one.id):
            differed = bool(outcomes) and not outcomes[-1].divergence.bit_equal
            outcomes.append(_compared(recorded, theirs, ours, output, differed=differed))
    return _comparison(outcomes)


class _Recorded:
    """References, one after another; where one has to be read, the next is with it.

    Not while the model runs: its threads wait for one another, and take longer by more than reading does.

    Args:
        reference: What was recorded.
        pool: Its threads read.
    """

    def __init__(self, reference: Iterable[Reference], pool: ThreadPoolExecutor) -> None:
        self._reference = (Reference(*one) for one in reference)
        self._pool = pool
        self._reading: dict[Reference, Future[Bytes]] = {}
        self._together: list[Reference] = []

    def __iter__(self) -> Iterator[Reference]:
        current = next(self._reference, None)
        while current is not None:
            following = next(self._reference, None)
            self._together = [one for one in (current, following) if one is not None]
            yield current
            self._reading.pop(current, None)
            current = following

    def read(self) -> Future[Bytes]:
        """The bytes of the one given out last, or why they cannot be had."""
        current = self._together[0]
        if current not in self._reading:
            for one in self._together:
                if one is current or span_bytes(one.dtype, one.shape) <= _AHEAD_BYTES:
                    self._reading[one] = self._pool.submit(one.read)
            wait(self._reading.values())
        return self._reading[current]


def _compared(
    recorded: _Recorded, theirs: Reference, ours: PromptMeasurement, output: Output | None, *, differed: bool
) -> _Outcome:
    id, shape, dtype, digest, _ = theirs
    reason = _incomparable(tuple(shape), output or ours.output, ours)
    if (tuple(shape), dtype, output or ours.output) == (ours.shape, ours.dtype, ours.output):
        # Where the one before differed this one will, and is read at once: what is read has the recorded digest, so
        # that comparing bytes proves the same, and ends where they differ.
        reading = recorded.read() if differed else None
        if reading is None or reading.exception() is not None:
            equal = digest == values_digest(ours.values)
        else:
            equal = reading.result() == values_bytes(ours.values)
        if equal:
            return _equal(ours)
    if reason is not None and reason != _EMBEDDING:
        return _Outcome(PromptDivergence(id, None, None, bit_equal=False), False, reason)
    try:
        values = tensor_from_bytes(recorded.read().result(), dtype, shape)
    except BadValuesError as error:
        raise BadValuesError(f"prompt {id!r}: {error.message}", object=id, hint=error.hint) from error
    return _measured(values, ours)


def compare_measurements(reference: Iterable[PromptMeasurement], measured: Iterable[PromptMeasurement]) -> Comparison:
    """Compares two sets of outputs in memory, as :func:`compare` does with recorded ones.

    Raises:
        BaselineMismatchError: Not the same prompts in the same order, or none at all.
        NanOutputError: Outputs are no distributions; names the prompt.
    """
    outcomes = []
    for theirs, ours in _paired(reference, measured, lambda measurement: measurement.id):
        reason = _incomparable(theirs.shape, theirs.output, ours)
        like = (theirs.shape, theirs.dtype, theirs.output) == (ours.shape, ours.dtype, ours.output)
        if like and values_bytes(theirs.values) == values_bytes(ours.values):
            outcomes.append(_equal(ours))
        elif reason is not None and reason != _EMBEDDING:
            outcomes.append(_Outcome(PromptDivergence(ours.id, None, None, bit_equal=False), False, reason))
        else:
            outcomes.append(_measured(theirs.values, ours))
    return _comparison(outcomes)


def _paired(
    reference: Iterable[Theirs], measured: Iterable[PromptMeasurement], id_of: Callable[[Theirs], str]
) -> Iterator[tuple[Theirs, PromptMeasurement]]:
    for theirs, ours in zip_longest(reference, measured):
        named = "nothing" if theirs is None else repr(id_of(theirs))
        found = "nothing" if ours is None else repr(ours.id)
        if theirs is None or ours is None or named != found:
            raise BaselineMismatchError(
                f"the reference has {named} where the measurement has {found}: not the same prompts in the same order",
                object=named if ours is None else ours.id,
                hint="Measure under the probe that the baseline was recorded with.",
            )
        yield theirs, ours


def _incomparable(shape: tuple[int, ...], output: Output, ours: PromptMeasurement) -> str | None:
    """Why no divergence is defined between an output of this shape and kind and a measured one, or None."""
    if output != ours.output:
        return f"the reference gives {output}, the measured model {ours.output}"
    if shape[1] != ours.shape[1]:
        what = "embeddings have" if output == "embedding" else "vocabulary has"
        return f"the reference's {what} {shape[1]} entries, the measured model's {ours.shape[1]}"
    if shape[0] != ours.shape[0]:
        return f"the reference has {shape[0]} positions, the measured model {ours.shape[0]}"
    return _EMBEDDING if output == "embedding" else None


def _equal(ours: PromptMeasurement) -> _Outcome:
    if ours.output == "embedding":
        values: dict[str, float | None] = {"relative_l2": 0.0, "cosine": 1.0}
        return _Outcome(PromptDivergence(ours.id, None, None, True, values), False, _EMBEDDING)
    return _Outcome(PromptDivergence(ours.id, 0.0, 0.0, bit_equal=True), True, None)


def _measured(theirs: torch.Tensor, ours: PromptMeasurement) -> _Outcome:
    try:
        if ours.output == "embedding":
            values = means(embedding_measures(theirs, ours.values))
            return _Outcome(PromptDivergence(ours.id, None, None, False, values), False, _EMBEDDING)
        kl, js = divergences(theirs, ours.values).sum().mean()
    except NanOutputError as error:
        raise NanOutputError(f"prompt {ours.id!r}: {error.message}", object=ours.id, hint=error.hint) from error
    if math.isfinite(kl):
        return _Outcome(PromptDivergence(ours.id, kl, js, bit_equal=False), True, None)
    reason = "KL is infinite: the measured model gives no probability to a token that the reference allows"
    return _Outcome(PromptDivergence(ours.id, None, js, bit_equal=False), True, reason)


def _comparison(outcomes: list[_Outcome]) -> Comparison:
    if not outcomes:
        raise BaselineMismatchError("there are no outputs to compare")
    prompts = tuple(outcome.divergence for outcome in outcomes)
    first = next((outcome for outcome in outcomes if outcome.reason is not None), None)
    return Comparison(
        prompts,
        kl=_mean([prompt.kl for prompt in prompts]),
        js=_mean([prompt.js for prompt in prompts]),
        bit_equal=all(prompt.bit_equal for prompt in prompts),
        comparable=all(outcome.comparable for outcome in outcomes),
        reason=None if first is None else f"prompt {first.divergence.id!r}: {first.reason}",
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None
