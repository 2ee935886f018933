"""Behaviors merged into the weights of a live model, by peft's own arithmetic."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from rblstore.checkpoints.attaching import LIBRARY_ERRORS
from rblstore.checkpoints.ledger import forget_ledger, ledger_of
from rblstore.checkpoints.plain_view import plain_model, plain_modules, unwrapped
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
        UnmergeableError: peft cannot merge it, or would merge what acts on one use of a tied tensor into both.
    """
    ledger = ledger_of(model)
    if ledger is None:
        return model
    names = [entry.live for entry in ledger.attached]
    if (reason := _reason_against(model)) is not None:
        raise UnmergeableError(reason, hint="Check out the 'adapters' form.")
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


def _reason_against(model: nn.Module) -> str | None:
    """Why a merged model would not compute what the model computes now, where peft would merge it all the same."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    biased = {
        id(unwrapped(layer))
        for layer in layers
        if isinstance(layer, TrainableTokensLayer) and getattr(unwrapped(layer), "bias", None) is not None
    }
    adapted = {id(unwrapped(layer)) for layer in layers}
    # A module that is trained whole has a copy of its own, and the original is not used.
    unused = {id(module.original_module) for module in model.modules() if isinstance(module, ModulesToSaveWrapper)}
    changed: dict[int, str] = {}
    others: list[tuple[int, str]] = []
    for name, module in plain_modules(model):
        weight = module._parameters.get("weight")  # noqa: SLF001 - its own, not a property that wraps one
        if weight is None or id(module) in unused:
            continue
        if id(module) in biased:
            return f"peft leaves out the bias of {name!r} as long as a behavior trains tokens that it shares"
        if id(module) in adapted:
            changed.setdefault(id(weight), name)
        else:
            others.append((id(weight), name))
    for key, name in others:
        if key in changed:
            return f"{changed[key]!r} and {name!r} are one tensor, and a behavior changes only one use of it"
    return None
