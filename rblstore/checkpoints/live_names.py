"""Slot names and the names that adapters have inside a live model, each found from the other.

PEFT uses an adapter's name as the name of a module, so ``a.b`` is impossible there, ``keys`` or ``type`` collide with
the container's own attributes, and ``weight``, ``q_proj`` or ``lora_A`` with parts of tensor names that PEFT tells
apart by text.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

_ESCAPED = "rbl__"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# Where PEFT's wrappers keep what they wrap, and copies of it: parts of tensors' names once an adapter is there.
_WRAPPED = frozenset({"base_layer", "base_model", "modules_to_save", "original_module", "token_adapter"})


@cache
def _reserved() -> frozenset[str]:
    from peft.tuners._buffer_dict import BufferDict
    from torch import nn

    return frozenset(dir(nn.ModuleDict())) | frozenset(dir(nn.ParameterDict())) | frozenset(dir(BufferDict()))


@cache
def _prefixes() -> frozenset[str]:
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    return frozenset(PEFT_TYPE_TO_PREFIX_MAPPING.values())


def live_name(slot: str, taken: Collection[str] = ()) -> str:
    """The adapter name of a slot in a live model: the slot's own where PEFT can use it, else an escaped form.

    Args:
        slot: The slot's name, as ``check_name`` accepts it.
        taken: Every part of every tensor name of the model, which an adapter's name must not equal.
    """
    usable = (
        _PLAIN.fullmatch(slot) is not None
        and not slot.startswith(_ESCAPED)
        and slot not in taken
        and slot not in _reserved()
        and slot not in _WRAPPED
        and not any(slot in prefix or slot.startswith(prefix) for prefix in _prefixes())
    )
    return slot if usable else _ESCAPED + slot.replace("-", "-0").replace(".", "-1")


def slot_name(live: str) -> str:
    """The slot that a live model's adapter name stands for."""
    if not live.startswith(_ESCAPED):
        return live
    return live.removeprefix(_ESCAPED).replace("-1", ".").replace("-0", "-")


def name_parts(names: Collection[str]) -> frozenset[str]:
    """Every dotted part of the given tensor names."""
    return frozenset(part for name in names for part in name.split("."))
