"""Puts behaviors onto a live model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rblstore.checkpoints.attaching import AttachSpec, UnattachableError, attach_adapters
from rblstore.checkpoints.ledger import ledger_of

__all__ = ["AttachSpec", "attach", "attached"]


def attach(model: nn.Module, specs: Sequence[AttachSpec]) -> nn.Module:
    """Attaches adapters to a live model, after those that rblstore attached before, and activates all in order.

    Args:
        model: A transformers model, or what this function or rblstore's load returned.
        specs: What to attach, in order.

    Returns:
        The PEFT model around it; it shares the model's modules.

    Raises:
        UnattachableError: PEFT refuses an adapter or the combination, or somebody else's adapters are on the model.
        LoadMismatchError: An adapter's tensors do not fit the model.
    """
    if ledger_of(model) is None and getattr(model, "peft_config", None):
        raise UnattachableError(
            "the model has adapters that rblstore did not attach",
            hint="Load the composition with rblstore, or take those adapters off first.",
        )
    return attach_adapters(model, specs)


def attached(model: nn.Module) -> tuple[str, ...]:
    """Names of the slots on a live model, in order; () for a plain model."""
    ledger = ledger_of(model)
    return () if ledger is None else tuple(entry.slot for entry in ledger.attached)
