"""PEFT's wrappers on a live model: which adapters they hold, and which of those are merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from rblstore.checkpoints.plain_view import unwrapped


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is one of PEFT's."""
    return type(module).__module__.startswith("peft.")


def wrapper_chain(module: nn.Module) -> Iterator[nn.Module]:
    """A wrapper and those that it wraps or keeps beside it, down to the plain module, which is left out."""
    waiting, plain = [module], unwrapped(module)
    while waiting:
        one = waiting.pop()
        if one is plain or not is_wrapper(one):
            continue
        yield one
        own = one._modules  # noqa: SLF001 - a wrapper's attributes look through to what it wraps
        waiting.extend(
            inner for name in ("token_adapter", "original_module", "base_layer") if (inner := own.get(name)) is not None
        )


def adapters_in(module: nn.Module) -> list[str]:
    """Names of the adapters that a wrapper and those inside it hold, sorted."""
    return sorted({name for one in wrapper_chain(module) for table in _tables(one) for name in table})


def merged_into(module: nn.Module) -> list[str]:
    """Names of the adapters that are merged into what a wrapper wraps, sorted."""
    return sorted({name for one in wrapper_chain(module) for name in vars(one).get("merged_adapters") or ()})


def drop_adapter(module: nn.Module, adapter: str) -> None:
    """Takes an adapter's tensors out of a wrapper and of those inside it; nothing is merged or unmerged."""
    for one in wrapper_chain(module):
        for table in (*_tables(one), *_tables(one, "other_param_names")):
            if adapter in table:
                del table[adapter]
        named: Any = vars(one)
        for key in ("_adapters", "_active_adapter"):
            if isinstance(named.get(key), (set, list)) and adapter in named[key]:
                named[key].remove(adapter)


def _tables(wrapper: nn.Module, names: str = "adapter_layer_names") -> Iterator[Any]:
    for path in getattr(wrapper, names, ()):
        held: Any = wrapper
        for part in str(path).split("."):
            held = vars(held).get(part, held._modules.get(part)) if isinstance(held, nn.Module) else None  # noqa: SLF001
        if held is not None and hasattr(held, "keys") and hasattr(held, "__delitem__"):
            yield held
