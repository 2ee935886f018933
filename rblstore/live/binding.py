"""The explicit map from stored tensor names to the tensors of a live model.

transformers renames tensors as it loads them, adds or removes the base model's prefix, ties some and fuses others
(a mixture's experts are stored one by one and live as one tensor); PEFT then wraps the modules. The map follows both,
and what it cannot follow is an error that names the tensor.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from rblstore.checkpoints.ledger import ledger_of
from rblstore.checkpoints.plain_view import plain_model, plain_tensors, unwrapped
from rblstore.checkpoints.quiet import quiet
from rblstore.checkpoints.saving import live_tensor_digest
from rblstore.errors import ConflictError, NotFoundError
from rblstore.objects.content_records import Ground
from rblstore.objects.dtypes import TORCH_NAMES

Read = Callable[[str], torch.Tensor | None]

DTYPES = MappingProxyType({stored: name for stored, name in TORCH_NAMES.items() if hasattr(torch, name)})
"""What this torch calls the element types that it has: those below 2.7 lack one."""


class UnmappedTensorError(ConflictError):
    """A stored tensor has no place in a live model."""

    code: ClassVar[str] = "unmapped_tensor"


class FusedTensorError(ConflictError):
    """A stored tensor is only a part of a live one."""

    code: ClassVar[str] = "fused_tensor"


class UnboundNameError(NotFoundError):
    """A name was asked for that the binding was not made with."""

    code: ClassVar[str] = "unbound_name"


@dataclass(frozen=True)
class Fused:
    """Stored tensors that transformers turns into other ones.

    Attributes:
        target: The first live name that they become.
        sources: (stored name, the converter's pattern that it matched), in the order in which they are collected.
        converter: transformers' own ``WeightConverter``.
    """

    target: str
    sources: tuple[tuple[str, str], ...]
    converter: Any

    def convert(self, model: nn.Module, read: Read, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The live tensors that the stored ones become, by live name.

        Raises:
            UnmappedTensorError: A stored tensor cannot be read, or they do not convert.
        """
        converter = copy.deepcopy(self.converter)
        for stored, pattern in self.sources:
            tensor = read(stored)
            if tensor is None:
                raise UnmappedTensorError(f"the stored tensor {stored!r}, a part of {self.target!r}, is missing")
            # transformers casts before it converts, and so do we: the order decides the last bit.
            converter.add_tensor(self.target, stored, pattern, tensor.to(dtype))
        try:
            made = converter.convert(self.target, model=model, config=getattr(model, "config", None))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UnmappedTensorError(f"{self.target!r} cannot be converted: {error}", object=self.target) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class Binding:
    """Stored names bound to a live model's tensors; made by :func:`bind`.

    Attributes:
        model: The plain model, seen through whatever wraps it.
        direct: Live name by stored name, where the stored tensor is the live one up to its dtype.
        fused: Groups that are converted.
        passed_over: Stored names that transformers leaves out on purpose (tables that it computes).
        unbound: Live names that no stored tensor fills, tied ones left out.
    """

    model: nn.Module
    direct: Mapping[str, str]
    fused: tuple[Fused, ...]
    passed_over: frozenset[str]
    unbound: tuple[str, ...]

    def live_name(self, name: str) -> str:
        """The live name of a stored tensor.

        Raises:
            FusedTensorError: It is only a part of a live tensor.
            UnboundNameError: The binding does not know it.
        """
        if name in self.direct:
            return self.direct[name]
        for group in self.fused:
            if any(stored == name for stored, _ in group.sources):
                raise FusedTensorError(f"{name!r} is a part of the live tensor {group.target!r}", object=name)
        raise UnboundNameError(f"no live tensor is bound to {name!r}", object=name)

    def live(self, name: str) -> torch.Tensor:
        """The live tensor of a stored name, now; the tensor itself, not a copy.

        Raises:
            FusedTensorError: It is only a part of a live tensor.
            UnboundNameError: The binding does not know it.
        """
        return plain_tensors(self.model)[self.live_name(name)]

    def check(self, digests: Mapping[str, str], read: Read | None = None) -> list[str]:
        """Stored names whose live tensor does not hold the stored value.

        Args:
            digests: SHA-256 of the stored bytes by stored name; names that the binding passes over are passed over.
            read: Reads a stored tensor, for those that are live in another dtype or fused; without it they differ.

        Returns:
            The names, sorted.
        """
        tensors = plain_tensors(self.model)
        differing = []
        for name, live_name in self.direct.items():
            if name not in digests:
                continue
            live = tensors[live_name]
            if live_tensor_digest(live) == digests[name]:
                continue
            stored = None if read is None else read(name)
            if stored is None or stored.dtype == live.dtype or not same_bits(stored.to(live.dtype), live):
                differing.append(name)
        for group in self.fused:
            names = [name for name, _ in group.sources if name in digests]
            if not names:
                continue
            target = tensors[group.target]
            if read is None or not all(
                live_name in tensors and same_bits(made, tensors[live_name])
                for live_name, made in group.convert(self.model, read, target.dtype).items()
            ):
                differing.extend(names)
        return sorted(differing)

    def restorer(self, read: Read) -> Read:
        """What detaching asks for replaced tensors: the stored value of a live name, or None where nothing is stored.

        Args:
            read: Reads a stored tensor by its stored name.
        """
        stored_by_live = {live: stored for stored, live in self.direct.items()}
        owners = {group.target: group for group in self.fused}

        def restore(live_name: str) -> torch.Tensor | None:
            if live_name in stored_by_live:
                return read(stored_by_live[live_name])
            if live_name in owners:
                dtype = plain_tensors(self.model)[live_name].dtype
                return owners[live_name].convert(self.model, read, dtype).get(live_name)
            for group in self.fused:
                if live_name in group_targets(group, live_name):
                    made = group.convert(self.model, read, plain_tensors(self.model)[group.target].dtype)
                    if live_name in made:
                        return made[live_name]
            tied = _tied_names(self.model, live_name)
            return next((read(stored_by_live[name]) for name in tied if name in stored_by_live), None)

        return restore


def group_targets(group: Fused, live_name: str) -> frozenset[str]:
    """The live names beside a group's first one that its converter may make, as far as a name tells."""
    patterns = tuple(getattr(group.converter, "target_patterns", ()))
    return frozenset({live_name}) if len(patterns) > 1 and any(part in live_name for part in patterns) else frozenset()


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have one dtype, one shape and the same bytes: NaN equals itself, -0.0 does not equal 0.0."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right))
    return bool(torch.equal(one, other))


def _tied_names(model: nn.Module, live_name: str) -> list[str]:
    tensors = plain_tensors(model)
    here = tensors.get(live_name)
    return [name for name, tensor in tensors.items() if here is not None and tensor is here and name != live_name]


def _transforms(model: nn.Module) -> tuple[list[Any], list[Any], Callable[..., tuple[str, str | None]]]:
    """Transformers' renamings and converters for a model, and its own function that applies them."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key
    except ImportError:
        return [], [], _rename_by_pattern
    with quiet():
        # A copy: a used renaming changes how the model would be saved afterwards.
        found = copy.deepcopy(get_model_conversion_mapping(model))
    converters = [entry for entry in found if isinstance(entry, WeightConverter)]
    return [entry for entry in found if entry not in converters], converters, rename_source_key


def _rename_by_pattern(
    name: str, renamings: Any, converters: Any, prefix: str | None, present: Mapping[str, torch.Tensor]
) -> tuple[str, None]:
    """What transformers before version 5 does: the base model's prefix added or removed."""
    del renamings, converters
    if prefix and name.startswith(f"{prefix}.") and name.removeprefix(f"{prefix}.") in present:
        return name.removeprefix(f"{prefix}."), None
    if prefix and f"{prefix}.{name}" in present:
        return f"{prefix}.{name}", None
    return name, None


def _passed_over_patterns(model: nn.Module) -> list[re.Pattern[str]]:
    patterns = {r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"}
    patterns.update(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return [re.compile(pattern) for pattern in patterns]


def bind(model: nn.Module, stored_names: Iterable[str], *, absent: Collection[str] = ()) -> Binding:
    """Binds stored tensor names to a live model, whatever is attached to it.

    Args:
        model: A transformers model, or a PEFT model around one.
        stored_names: The identity's logical tensor names.
        absent: Stored names that may have no place in the model (the head of another task).

    Raises:
        UnmappedTensorError: A stored tensor has no place in the model; the message names it.
    """
    plain = unwrapped(plain_model(model))
    present = plain_tensors(model)
    renamings, converters, rename = _transforms(plain)
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = getattr(plain, "base_model_prefix", None)
    ignorable = _passed_over_patterns(plain)
    direct: dict[str, str] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    passed_over = set()
    for name in sorted(stored_names, key=_natural):
        target, pattern = rename(name, renamings, converters, prefix, present)
        if target not in present and name in present:
            target, pattern = rename(name, [], [], prefix, present)
        if target not in present:
            if name in absent or any(found.search(target) for found in ignorable):
                passed_over.add(name)
                continue
            raise UnmappedTensorError(
                f"the stored tensor {name!r} has no place in this {type(plain).__name__}",
                object=name,
                hint="Is this the model that was committed?",
            )
        if pattern is None:
            direct[name] = target
        else:
            groups.setdefault(target, []).append((name, pattern))
    fused = tuple(Fused(target, tuple(parts), by_pattern[parts[0][1]]) for target, parts in groups.items())
    filled = {id(present[name]) for name in (*direct.values(), *groups)}
    beside = {name for group in fused for name in present if group_targets(group, name)}
    unbound = tuple(name for name, tensor in present.items() if id(tensor) not in filled and name not in beside)
    return Binding(plain_model(model), direct, fused, frozenset(passed_over), unbound)


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def differing_ground(source: Any, grounds: Iterable[Ground], read: Read | None = None) -> list[str]:
    """Names of a behavior's ground that a live model contradicts: it was trained on another base.

    Tensors that the adapter itself replaced in the live model (biases, edited base weights) say nothing about its base,
    and neither do tensors that are live in a narrower dtype or fused, unless ``read`` gives the stored ones.

    Args:
        source: The live model; anything else (tensors) contradicts nothing.
        grounds: What the behavior stands on.
        read: Reads a stored tensor by its stored name.

    Returns:
        Stored names, sorted.
    """
    if not isinstance(source, nn.Module):
        return []
    tensors = {ground.target: ground for ground in grounds if ground.on == "tensor"}
    if not tensors:
        return []
    present = plain_tensors(source)
    try:
        binding = bind(source, tensors)
    except UnmappedTensorError as error:
        return [error.object] if error.object else []
    replaced = replaced_names(source, present)
    differing = []
    for name, live_name in binding.direct.items():
        if live_name not in replaced and _contradicts(present[live_name], tensors[name], read):
            differing.append(name)
    return sorted(differing)


def _contradicts(live: torch.Tensor, ground: Ground, read: Read | None) -> bool:
    if tuple(live.shape) != ground.shape:
        return True
    stored_dtype = getattr(torch, DTYPES.get(ground.dtype or "", ""), None)
    if stored_dtype is None:
        return False
    if stored_dtype == live.dtype or torch.promote_types(stored_dtype, live.dtype) == live.dtype:
        # The live dtype holds every stored value, so the way back is exact, or the value was never the stored one.
        narrow = live.detach().to(stored_dtype)
        return live_tensor_digest(narrow) != ground.content or not same_bits(narrow.to(live.dtype), live)
    stored = None if read is None else read(ground.target)
    return stored is not None and not same_bits(stored.to(live.dtype), live)


# Ways in which PEFT starts LoRA that leave the base weights alone.
_HARMLESS_STARTS = frozenset({"gaussian", "eva", "orthogonal"})


def replaced_names(model: nn.Module, present: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Live names whose values the attached adapters replaced, as far as ledger and configs tell.

    Args:
        model: What the adapters are attached to.
        present: Its plain tensors.
    """
    names: set[str] = set()
    ledger = ledger_of(model)
    if ledger is not None:
        names.update(name for entry in ledger.attached for name in entry.replaced)
    for config in getattr(model, "peft_config", {}).values():
        if getattr(config, "bias", "none") != "none":
            names.update(name for name in present if name == "bias" or name.endswith(".bias"))
        start = getattr(config, "init_lora_weights", True)
        if isinstance(start, str) and start not in _HARMLESS_STARTS:
            names.update(name for name in present if name.endswith(".weight"))
    return frozenset(names)
