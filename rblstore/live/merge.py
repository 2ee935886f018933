"""Behaviors merged into the weights of a live model, by peft's own arithmetic."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from rblstore.checkpoints.attaching import LIBRARY_ERRORS
from rblstore.checkpoints.ledger import forget_ledger, ledger_of
from rblstore.checkpoints.plain_view import plain_model
from rblstore.checkpoints.quiet import quiet
from rblstore.errors import ConflictError


class UnmergeableError(ConflictError):
    """peft cannot merge what is attached."""

    code: ClassVar[str] = "cannot_merge"


def merged_model(model: nn.Module) -> nn.Module:
    """The plain model with everything attached merged into its weights, in order; the weights stay changed.

    Args:
        model: What rblstore's load returned; in fp32 the sums are rounded only where they are stored.

    Raises:
        UnmergeableError: peft cannot merge it.
    """
    ledger = ledger_of(model)
    if ledger is None:
        return model
    names = [entry.live for entry in ledger.attached]
    try:
        with quiet():
            merged = model.merge_and_unload(adapter_names=names)
    except LIBRARY_ERRORS as error:
        raise UnmergeableError(
            f"peft cannot merge {', '.join(entry.slot for entry in ledger.attached)}: {error}",
            hint="Check out the 'adapters' form.",
        ) from error
    forget_ledger(model)
    return plain_model(merged)
