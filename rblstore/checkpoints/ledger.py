"""What a model was before anything was attached to it, by reference, and what each attached behavior changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from rblstore.checkpoints.model_state import HOOKS, LEFT_BEHIND, ModelState
from rblstore.checkpoints.plain_view import plain_tensors

__all__ = [
    "HOOKS",
    "LEFT_BEHIND",
    "Attached",
    "Ledger",
    "PlainState",
    "forget_ledger",
    "keep_ledger",
    "ledger_of",
    "marks",
]

PlainState = ModelState


@dataclass
class Attached:
    """One behavior on a live model.

    Attributes:
        slot: The slot's name.
        live: The adapter's name in PEFT.
        weight: What its update is multiplied by.
        replaced: Plain names of the model's own tensors that attaching it overwrote.
        scalings: Each layer's scaling dictionary with the value that PEFT gave, before the weight.
    """

    slot: str
    live: str
    weight: float
    replaced: frozenset[str] = frozenset()
    scalings: list[tuple[dict[str, Any], Any]] = field(default_factory=list)


@dataclass
class Ledger:
    """Everything attached to a model, in order, over the state that it had before."""

    plain: ModelState
    attached: list[Attached] = field(default_factory=list)


_LEDGERS: WeakKeyDictionary[nn.Module, Ledger] = WeakKeyDictionary()


def ledger_of(model: nn.Module) -> Ledger | None:
    """The ledger of a PEFT model that rblstore attached behaviors to; None for any other."""
    return _LEDGERS.get(model)


def keep_ledger(model: nn.Module, ledger: Ledger) -> None:
    """Remembers a PEFT model's ledger for as long as the model lives."""
    _LEDGERS[model] = ledger


def forget_ledger(model: nn.Module) -> None:
    """Forgets a model's ledger, where it has one."""
    _LEDGERS.pop(model, None)


def marks(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(address, version) of every tensor of the plain model: they differ after any write that goes through autograd."""
    return {name: (tensor.data_ptr(), tensor._version) for name, tensor in plain_tensors(model).items()}  # noqa: SLF001
