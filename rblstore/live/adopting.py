"""Adapters that peft put on a model itself, taken for rblstore's own once they were found to be the stored ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from rblstore.checkpoints.ledger import Attached, Ledger, PlainState, keep_ledger, ledger_of
from rblstore.checkpoints.live_names import slot_name
from rblstore.checkpoints.plain_view import plain_tensors


def live_names(model: nn.Module) -> dict[str, str]:
    """The name in peft of each active adapter, by its slot's name, in the order in which they are active."""
    ledger = ledger_of(model)
    if ledger is not None:
        return {entry.slot: entry.live for entry in ledger.attached}
    active: Any = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", None) or ()
    names = [active] if isinstance(active, str) else list(active)
    return {slot_name(live): live for live in names}


def names_on(model: nn.Module) -> list[str]:
    """Slot names of the active adapters, in order; others that peft holds beside them are named after them."""
    active = live_names(model)
    held = [slot_name(live) for live in getattr(model, "peft_config", {})]
    return [*active, *(name for name in held if name not in active)]


def adopted_ledger(model: Any, attached: Sequence[tuple[str, frozenset[str]]]) -> Ledger:
    """A ledger for adapters that peft attached itself; the model keeps it.

    Args:
        model: A ``PeftModel``.
        attached: Slot's name and plain names of the model's own tensors that attaching it replaced, in order.
    """
    live = live_names(model)
    state = PlainState.of(model)
    # Which tensors were trainable before is not known any more: those are taken to have been that can be.
    own = plain_tensors(model)
    trainable = {name: tensor.is_floating_point() and isinstance(tensor, nn.Parameter) for name, tensor in own.items()}
    ledger = Ledger(
        replace(state, trainable=trainable),
        [Attached(name, live[name], 1.0, replaced) for name, replaced in attached],
    )
    keep_ledger(model, ledger)
    return ledger


def used_otherwise(model: nn.Module, attached: Sequence[Attached]) -> str | None:
    """What makes attached adapters compute something else than their tensors and settings say; None for nothing.

    Args:
        model: A ``PeftModel``.
        attached: What is on it.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("peft.") and vars(module).get("_disable_adapters"):
            return f"the adapters are disabled, at {name}"
    for entry in attached:
        known = [(held.get(entry.live), value) for held, value in entry.scalings] or _scalings(model, entry.live)
        for now, value in known:
            if now != (value if entry.weight == 1.0 else value * entry.weight):
                return f"{entry.slot!r} is scaled by {now}, and would be by {value} as it is configured"
    return None


def _scalings(model: nn.Module, live: str) -> Iterator[tuple[float, float]]:
    """Of every layer of LoRA: what it is scaled by, and what its settings give."""
    for module in model.modules():
        held = vars(module)
        if type(module).__module__.startswith("peft.tuners.lora.") and live in held.get("scaling", ()):
            rank = held["r"][live]
            rank = math.sqrt(rank) if held.get("use_rslora", {}).get(live) else rank
            yield held["scaling"][live], held["lora_alpha"][live] / rank
