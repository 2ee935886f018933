"""A LoRA made on the spot, in memory alone: put around a plain model, and taken off again by reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from rblstore.checkpoints.attaching import LIBRARY_ERRORS, UnattachableError
from rblstore.checkpoints.ledger import PlainState
from rblstore.checkpoints.quiet import quiet

RANK: Final = 8
ALPHA: Final = 32
DROPOUT: Final = 0.05
# The query and value projections, as architectures call them.
_TARGETS: Final = (("q_proj", "v_proj"), ("query", "value"), ("c_attn",), ("q", "v"))


@contextmanager
def fresh_adapter(plain: nn.Module, seed: int) -> Iterator[Any]:
    """Puts a new LoRA around a model: rank 8, alpha 32, dropout 0.05, on the attention's query and value projections.

    As it starts it changes nothing: its second factors are zero until they are trained. Where a model calls those
    projections otherwise than the architectures known here, it lies on all linear layers.

    Args:
        plain: A transformers model without adapters.
        seed: Of its first factors; torch's own generators stay as they are.

    Yields:
        The ``PeftModel``; its trainable parameters are the adapter's. On leaving every module of ``plain`` has its own
        children again.

    Raises:
        UnattachableError: PEFT cannot put one on this model.
    """
    import peft

    names = {name.rpartition(".")[2] for name, module in plain.named_modules() if not any(module.children())}
    found = next((list(targets) for targets in _TARGETS if names.issuperset(targets)), "all-linear")
    before = PlainState.of(plain)
    flags = [(parameter, parameter.requires_grad) for parameter in plain.parameters()]
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = peft.LoraConfig(
                r=RANK,
                lora_alpha=ALPHA,
                lora_dropout=DROPOUT,
                target_modules=found,
                fan_in_fan_out=found == ["c_attn"],
            )
            try:
                wrapped = peft.get_peft_model(plain, config)
            except LIBRARY_ERRORS as error:
                raise UnattachableError(
                    f"PEFT cannot put a LoRA on a {type(plain).__name__}: {error}", object=type(plain).__name__
                ) from error
        yield wrapped.eval()
    finally:
        before.put_back()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
