"""Turns a live model's composition into another over a checkpoint of the same names and shapes.

What changed goes or comes; the rest stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import nn

from rblstore.checkpoints.attaching import AttachSpec, activate, attach_adapters
from rblstore.checkpoints.ledger import ledger_of
from rblstore.live.attach import attached
from rblstore.live.binding import Read, bind
from rblstore.live.detach import detach

__all__ = ["AttachSpec", "recompose", "stored_values"]


def stored_values(model: nn.Module, names: Iterable[str], read: Read) -> Callable[[str], torch.Tensor | None]:
    """What :func:`rblstore.live.detach.detach` asks for: the value of a live tensor beneath all behaviors.

    Args:
        model: The live model.
        names: The identity's logical tensor names.
        read: Reads one of them.

    Returns:
        A function of a live name. It binds the model to the stored names
        when first called: most behaviors replace nothing.
    """
    restore: list[Read] = []

    def value(live_name: str) -> torch.Tensor | None:
        if not restore:
            # A model with another task's head has no place for the identity's own; what is asked for is still bound.
            restore.append(bind(model, names, absent=frozenset(names)).restorer(read))
        return restore[0](live_name)

    return value


def recompose(
    model: nn.Module,
    target: Sequence[AttachSpec],
    *,
    keep: Collection[str],
    restore: Callable[[str], torch.Tensor | None],
    rewrite: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Makes exactly the target's adapters active, in its order, on the target's checkpoint.

    Args:
        model: What rblstore's load or attach returned.
        target: Every adapter that is to be there afterwards, in order.
        keep: Slots that stay as they are; every other one on the model is taken out.
        restore: Gives the stored value of a tensor that a behavior replaced; see :func:`stored_values`.
        rewrite: Puts the target's overlays in the place of the model's, once the adapters that go are gone and before
            others come; see :func:`rblstore.live.overlaying.put_stored_values`. None where they are the same.

    Returns:
        The plain transformers model where nothing is left, else a PEFT model.

    Raises:
        UnrestorableError: A replaced tensor has no stored value.
        UnattachableError: PEFT refuses the target.
    """
    model = detach(model, [name for name in attached(model) if name not in keep], restore=restore)
    if rewrite is not None:
        rewrite(model)
    there = set(attached(model))
    model = attach_adapters(model, [spec for spec in target if spec.name not in there])
    ledger = ledger_of(model)
    order = {spec.name: place for place, spec in enumerate(target)}
    if ledger is not None and (ordered := sorted(ledger.attached, key=lambda one: order[one.slot])) != ledger.attached:
        ledger.attached[:] = ordered
        activate(model, ledger)
    return model
