"""One body under another head: the modules or parameters of a live model, seen through a model of another class.

A fine-tune may bring a head of its own, unties what was tied, or changes its configuration. The model then is another
object; its body is the one that was live.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from rblstore.checkpoints.plain_view import plain_owner, plain_tensors
from rblstore.checkpoints.quiet import quiet
from rblstore.live.binding import UnmappedTensorError, bind


def body_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a plain transformers model's body, by their names in the whole model."""
    body = getattr(model, "base_model", model)
    own = {id(tensor) for tensor in plain_tensors(body).values()}
    return {name: tensor for name, tensor in plain_tensors(model).items() if id(tensor) in own}


def unfilled(model: nn.Module, names: Collection[str]) -> frozenset[str]:
    """Names of a plain model's parameters that none of the stored tensors fills."""
    return _parameters_among(model, bind(model, names, absent=names).unbound)


def ties_fit(model: nn.Module, contents: Mapping[str, str], *, empty: Collection[str] = ()) -> bool:
    """Whether every stored tensor has a place of its own in a model, and every place a stored tensor.

    Args:
        model: A plain model.
        contents: SHA-256 by stored name of what it is to hold.
        empty: Names of parameters for which nothing need be stored.
    """
    try:
        binding = bind(model, contents)
    except UnmappedTensorError:
        return False
    tensors = plain_tensors(model)
    held: dict[int, str] = {}
    for stored, name in binding.direct.items():
        if held.setdefault(id(tensors[name]), contents[stored]) != contents[stored]:
            return False  # two values for one tensor: what is tied here was trained apart
    return _parameters_among(model, binding.unbound) <= set(empty)


def _parameters_among(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    tensors = plain_tensors(model)
    return frozenset(name for name in names if isinstance(tensors[name], nn.Parameter))


def share_modules(live: Any, into: Any) -> Any:
    """Puts a plain model's body into a plain model with another head: the very modules, not copies of them.

    Args:
        live: The plain model whose body is kept.
        into: A plain model over the same kind of body; its own body is dropped.

    Returns:
        ``into``.
    """
    body, other = live.base_model, into.base_model
    for name, module in body.named_children():
        if type(getattr(other, name, None)) is type(module):
            setattr(other, name, module)
    for name, parameter in body.named_parameters(recurse=False):
        setattr(other, name, parameter)
    _point_configs(into, _counterparts(live.config, into.config))
    _tie(into)
    return into


def shares_modules(one: Any, other: Any) -> bool:
    """Whether two plain models' bodies are the very same modules."""
    mine = {id(module) for module in one.base_model.children()}
    return any(id(module) in mine for module in other.base_model.children())


def share_parameters(live: Any, into: Any) -> Any:
    """Gives a plain model the parameters of another one where name and shape agree; its modules stay its own.

    Where configurations differ, modules compute differently and cannot be shared; what optimizers and ties hold on to
    can.

    Args:
        live: The plain model whose parameters are kept.
        into: A plain model.

    Returns:
        ``into``.
    """
    present = plain_tensors(into)
    for name, tensor in body_tensors(live).items():
        there = present.get(name)
        if there is None or there is tensor or there.shape != tensor.shape or not isinstance(tensor, nn.Parameter):
            continue
        owner, leaf = plain_owner(into, name)
        owner._parameters[leaf] = tensor  # noqa: SLF001 - the parameter itself, which setattr would also register
    _tie(into)
    return into


def _tie(model: Any) -> None:
    """Ties what was tied when the model was made, and nothing that only its configuration ties."""
    with quiet():
        if hasattr(model, "all_tied_weights_keys"):
            model.tie_weights(recompute_mapping=False)
        else:
            model.tie_weights()


def _counterparts(old: Any, new: Any) -> dict[int, Any]:
    """The new configuration for each part of the old one, by identity."""
    found = {id(old): new}
    for name, part in vars(old).items():
        counterpart = getattr(new, name, None)
        if type(part) is type(counterpart) and hasattr(part, "to_dict"):
            found[id(part)] = counterpart
    return found


def _point_configs(model: nn.Module, counterparts: dict[int, Any]) -> None:
    for module in model.modules():
        if (config := vars(module).get("config")) is not None and id(config) in counterparts:
            module.config = counterparts[id(config)]
