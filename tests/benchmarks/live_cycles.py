"""What is left of the weights after cycles of merging and unmerging two adapters in turn: peft's and rblstore's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from live_models import ADAPTERS, Subject, load, tensors_of, touched_names

Cycle = Callable[[str], None]


def residue(now: dict[str, Any], before: dict[str, Any]) -> dict[str, float]:
    """How far tensors are from what they were.

    Args:
        now: By name.
        before: The same names, element types and shapes.

    Returns:
        ``bits`` and ``elements`` that changed, ``max_abs``, ``mean_abs``, and ``relative``: the mean over the mean
        absolute weight.
    """
    elements = bits = count = 0
    greatest = total = weight = 0.0
    for name, kept in before.items():
        changed, flipped = changed_bits(now[name], kept)
        elements, bits, count = elements + changed, bits + flipped, count + kept.numel()
        weight += float(kept.double().abs().sum())
        if changed:
            distance = (now[name].detach().double() - kept.double()).abs()
            greatest, total = max(greatest, float(distance.max())), total + float(distance.sum())
    return {
        "bits": bits, "elements": elements, "of_elements": count, "max_abs": greatest, "mean_abs": total / count,
        "relative": total / weight if weight else 0.0,
    }  # fmt: skip


def changed_bits(now: Any, before: Any) -> tuple[int, int]:
    """How many elements of a tensor have other bits than those of another one of its kind, and how many bits."""
    import numpy as np
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = integers[before.element_size()]
    words = (now.detach().contiguous().view(kind) ^ before.contiguous().view(kind)).reshape(-1)
    words = words[words != 0]
    return len(words), int(np.unpackbits(words.view(torch.uint8).numpy()).sum(dtype=np.int64))


def peft_cycle(repo: Any, subject: Subject, dtype: str) -> tuple[Any, Cycle]:
    """A model with both adapters, and peft's own cycle of one of them."""
    del repo
    from peft import PeftModel

    model = PeftModel.from_pretrained(load(subject.base, dtype), subject.adapters["a"], adapter_name="a")
    model.load_adapter(subject.adapters["b"], adapter_name="b")

    def cycle(name: str) -> None:
        model.set_adapter(name)
        model.merge_adapter([name])
        model.unmerge_adapter()

    return model.eval(), cycle


def our_cycle(repo: Any, subject: Subject, dtype: str) -> tuple[Any, Cycle]:
    """The same of a live model."""
    import torch

    live = repo.attach(repo.load(subject.commits["base"], dtype=getattr(torch, dtype)), subject.commits["base"])

    def cycle(name: str) -> None:
        live.switch(subject.commits[name], form="merged")
        live.switch(subject.commits["base"])

    return live.model, cycle


def measure(subject: Subject, counts: Sequence[int], dtypes: Sequence[str]) -> list[dict[str, Any]]:
    """Residual error after each of those numbers of cycles, adapters ``a`` and ``b`` in turn, a row each.

    Args:
        subject: On what.
        counts: Ascending.
        dtypes: Of the live models, by torch's names.
    """
    import rblstore

    rows = []
    with rblstore.open(subject.repository) as repo, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes:
            before = {name: one.detach().clone() for name, one in tensors_of(load(subject.base, dtype)).items()}
            for tool, make in (("peft", peft_cycle), ("rblstore", our_cycle)):
                model, cycle = make(repo, subject, dtype)
                touched = set(touched_names(model))
                done = 0
                for count in counts:
                    for number in range(done, count):
                        cycle(ADAPTERS[number % len(ADAPTERS)])
                    done = count
                    now = tensors_of(model)
                    found = residue(now, {name: one for name, one in before.items() if name in touched})
                    others = [changed_bits(now[name], one)[1] for name, one in before.items() if name not in touched]
                    rows.append({"tool": tool, "dtype": dtype, "cycles": count, **found, "elsewhere": sum(others)})
    return rows
