"""How large what each behavior changed is: Frobenius norms by tensor and by layer, without forming a product."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from rblstore.operations.behavior_deltas import BehaviorDeltas
from rblstore.operations.report_facts import LayerNorm, TensorNorm

if TYPE_CHECKING:
    from rblstore.divergence.subspaces import Delta

_NUMBERS: Final = re.compile(r"(\d+)")


def layer_of(tensor: str) -> str:
    """What a tensor belongs to: its name up to the first part that is a number; "" where none is."""
    parts = tensor.split(".")
    at = next((at for at, part in enumerate(parts[:-1]) if part.isascii() and part.isdigit()), None)
    return "" if at is None else ".".join(parts[: at + 1])


def layer_order(layer: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts layers by their numbers, and what lies outside of all of them last."""
    if not layer:
        return ((2, 0, ""),)
    return tuple(
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in _NUMBERS.split(layer[:255])
    )


def delta_norm(delta: Delta) -> float:
    """The Frobenius norm of a delta; NaN or infinite where its numbers are.

    Of ``scale * B A`` it is ``|scale| sqrt(tr((B^T B)(A A^T)))``, from the factors alone.
    """
    import torch

    from rblstore.divergence.subspaces import LowRankDelta

    with torch.no_grad():
        if isinstance(delta, LowRankDelta):
            first, second = delta.first.double(), delta.second.double()
            square = float(((second.T @ second) * (first @ first.T)).sum())
            # Grams of factors are never negative; what lies below zero is rounding.
            return abs(delta.scale) * math.sqrt(square) if not square < 0 else 0.0
        return math.sqrt(math.fsum(float(block.double().square().sum()) for block in delta.blocks()))


def tensor_norms(deltas: BehaviorDeltas) -> tuple[TensorNorm, ...]:
    """The norm of what a behavior adds to each tensor that it changes, sorted by layer and name.

    Raises:
        CorruptError: Stored bytes are missing or damaged.
    """
    found = []
    for name in sorted(deltas.changed, key=lambda one: (layer_order(layer_of(one)), one)):
        reason = deltas.without.get(name)
        norm = None if reason is not None else delta_norm(deltas.of[name])
        if norm is not None and not math.isfinite(norm):
            norm, reason = None, "it holds NaN or infinity, or overflows"
        found.append(TensorNorm(name, layer_of(name), norm, reason))
    return tuple(found)


def layer_norms(norms: Iterable[TensorNorm]) -> tuple[LayerNorm, ...]:
    """The same by layer: roots of summed squares."""
    by_layer: dict[str, list[float | None]] = {}
    for one in norms:
        by_layer.setdefault(one.layer, []).append(one.norm)
    return tuple(
        LayerNorm(layer, _together(by_layer[layer]), len(by_layer[layer]))
        for layer in sorted(by_layer, key=layer_order)
    )


def _together(norms: list[float | None]) -> float | None:
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) if len(known) == len(norms) else None
