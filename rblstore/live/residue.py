"""What adapters leave on a model after they are gone, found and, where that takes no invented value, mended."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial

from torch import nn

from rblstore.checkpoints.ledger import ledger_of
from rblstore.checkpoints.model_state import (
    HOOKS,
    LEFT_BEHIND,
    ModelState,
    address_of,
    drop_hook,
    is_pefts,
    origin_of,
    plain_modules_once,
)
from rblstore.checkpoints.plain_view import plain_model, unwrapped
from rblstore.live.differences import differences
from rblstore.live.findings import Difference, Finding, Kind
from rblstore.live.wrappers import adapters_in, drop_adapter, is_wrapper, merged_into

__all__ = ["Finding", "Kind", "ModelState", "mend", "residue"]

# Mending one thing may lay another bare (a tie under a replaced dtype).
_PASSES = 3


def residue(model: nn.Module, before: ModelState | None = None) -> list[Finding]:
    """What is on a model that should not be: adapters' wrappers, hooks, flags, dtypes, broken ties, configs.

    The values of weights are not looked at; whether they are right, a comparison with the store tells. What rblstore
    attached and still is attached is no residue.

    Args:
        model: A plain model, or one that rblstore attached behaviors to; any other PEFT model is full of findings.
        before: The state of the plain model before anything was attached. Without it only what belongs to PEFT, or
            contradicts the model's own config, can be told; with it, everything that differs.

    Returns:
        One finding a thing, by module; empty for a clean model.
    """
    return [difference.finding for difference in _scan(model, before)]


def mend(model: nn.Module, before: ModelState | None = None, *, keep: Collection[Kind] = ()) -> list[Finding]:
    """Undoes what :func:`residue` finds where that is done by reference, and says what it was.

    Modules, hooks, flags, attributes, configs and ties are put back as they were; a dtype where every value survives
    the cast. No weight is given another value: that is for the store.

    Args:
        model: As for :func:`residue`.
        before: As for :func:`residue`.
        keep: Kinds of findings that are left as they are, and only said.

    Returns:
        The findings, each with ``mended`` as it turned out.
    """
    found: dict[tuple[str, str, str], Finding] = {}
    for _ in range(_PASSES):
        present = list(_scan(model, before))
        for difference in present:
            found.setdefault(_key(difference.finding), difference.finding)
        left = {_key(difference.finding) for difference in present}
        undoable = [one.undo for one in present if one.undo is not None and one.finding.kind not in keep]
        if not undoable:
            break
        for undo in undoable:
            undo()
    else:
        left = {_key(finding) for finding in residue(model, before)}
    return [replace(finding, mended=key not in left) for key, finding in found.items()]


def _key(finding: Finding) -> tuple[str, str, str]:
    return finding.module, finding.kind, finding.detail


def _scan(model: nn.Module, before: ModelState | None) -> Iterator[Difference]:
    ledger = ledger_of(model)
    attached = frozenset() if ledger is None else frozenset(entry.live for entry in ledger.attached)
    plain = plain_model(model)
    if plain is not model and not attached:
        yield Difference.of("", "wrapper", f"is inside a {type(model).__name__} of peft")
    if before is not None and before.model is not unwrapped(plain):
        yield Difference.of("", "module", f"is another {type(plain).__name__} than the one whose state was taken")
        before = None
    yield from _of_peft(plain, attached, known=before is not None)
    if before is not None:
        yield from differences(before, adapted=bool(attached))


def _of_peft(plain: nn.Module, attached: frozenset[str], *, known: bool) -> Iterator[Difference]:
    """What is PEFT's by its class, its name or where its code was written, whatever the model was before."""
    for name, module in plain_modules_once(plain):
        for key, child in module._modules.items():  # noqa: SLF001 - also the second names of one module
            if child is not None and is_wrapper(child) and not is_wrapper(module):
                yield from _of_wrapper(module, key, child, f"{name}.{key}" if name else key, attached)
        if known or attached or is_wrapper(module):
            continue
        if "parametrizations" in module._modules:  # noqa: SLF001
            yield Difference.of(name, "wrapper", "has parametrizations")
        yield from _on_module(name, module)
    if not known:
        yield from _untied(plain)


def _of_wrapper(
    parent: nn.Module, key: str, wrapper: nn.Module, name: str, attached: frozenset[str]
) -> Iterator[Difference]:
    held, merged = adapters_in(wrapper), merged_into(wrapper)
    if merged:
        listed = ", ".join(map(repr, merged))
        yield Difference.of(name, "merged", f"has {listed} merged into its weights, which unwrapping does not undo")
    if attached and attached.intersection(held):
        for adapter in held:
            if adapter not in attached:
                undo = None if adapter in merged else partial(drop_adapter, wrapper, adapter)
                yield Difference.of(name, "adapter", f"holds the adapter {adapter!r}, which is not attached", undo)
        return
    inner = unwrapped(wrapper)
    undo = None if inner is wrapper else partial(parent._modules.__setitem__, key, inner)  # noqa: SLF001
    holding = f" that holds {', '.join(map(repr, held))}" if held else ""
    yield Difference.of(name, "wrapper", f"is a {type(wrapper).__name__} of peft{holding}", undo)


def _on_module(name: str, module: nn.Module) -> Iterator[Difference]:
    own = vars(module)
    for table in HOOKS:
        for key, hook in (own.get(table) or {}).items():
            if is_pefts(hook):
                yield Difference.of(
                    name, "hook", f"has a hook of {origin_of(hook)}", partial(drop_hook, module, table, key)
                )
    for attribute in [one for one in own if one in LEFT_BEHIND or "peft" in one]:
        yield Difference.of(name, "attribute", f"has the attribute {attribute}", partial(own.pop, attribute, None))
    for attribute, value in list(own.items()):
        if attribute not in LEFT_BEHIND and callable(value) and not isinstance(value, type) and is_pefts(value):
            detail = f"the method {attribute} was replaced by one of {origin_of(value)}"
            yield Difference.of(name, "method", detail, partial(own.pop, attribute, None))
    if "generation_config" in own and not getattr(module, "can_generate", lambda: True)():
        undo = partial(own.pop, "generation_config", None)
        yield Difference.of(name, "attribute", "has the attribute generation_config, and does not generate", undo)


def _untied(plain: nn.Module) -> Iterator[Difference]:
    """Weights that the model's own config ties and that lie apart."""
    tied = getattr(plain, "all_tied_weights_keys", None)
    config = getattr(plain, "config", None)
    if not isinstance(tied, dict) or not getattr(config, "tie_word_embeddings", False):
        return
    named = dict(plain.named_parameters(remove_duplicate=False))
    for target, source in tied.items():
        if target in named and source in named and address_of(named[target]) != address_of(named[source]):
            yield Difference.of(target, "tie", f"does not share memory with {source}, though the config ties them")
