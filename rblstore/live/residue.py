"""What adapters leave on a model after they are gone."""

from __future__ import annotations

from torch import nn

from rblstore.checkpoints.ledger import LEFT_BEHIND


def residue(model: nn.Module) -> list[str]:
    """Everything on a model that belongs to PEFT: wrappers, adapter modules, hooks and attributes.

    Args:
        model: What should be a plain transformers model.

    Returns:
        One line a finding, sorted; empty for a plain model.
    """
    found = set()
    for name, module in model.named_modules(remove_duplicate=False):
        where = name or "the model"
        if type(module).__module__.startswith("peft."):
            found.add(f"{where}: is a {type(module).__name__}")
        if getattr(module, "parametrizations", None):
            found.add(f"{where}: has parametrizations")
        for hooks in (module._forward_hooks, module._forward_pre_hooks):  # noqa: SLF001 - there is no public list
            for hook in hooks.values():
                owner = getattr(getattr(hook, "func", hook), "__module__", None) or type(hook).__module__
                if str(owner).startswith("peft."):
                    found.add(f"{where}: has a hook of {owner}")
    found.update(f"the model: has the attribute {name}" for name in LEFT_BEHIND if name in vars(model))
    return sorted(found)
