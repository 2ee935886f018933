"""Which value each tensor of a model has to hold for it to be a composition."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from rblstore.checkpoints.merging import CannotMergeError
from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.content_records import StoredTensor
from rblstore.objects.history_records import Composition
from rblstore.operations.live_places import UnwritableTensorError
from rblstore.operations.merged_tensors import plan_merge
from rblstore.operations.stored_models import CONFIG, composed_state, members
from rblstore.operations.value_cache import MergedValue, PeftTerm, ValueKey
from rblstore.repository import Store

if TYPE_CHECKING:
    from torch import nn

    from rblstore.checkpoints.composition_ground import LogicalState


def wanted_values(
    store: Store, model: nn.Module, composition: Composition, form: Literal["adapters", "merged"]
) -> tuple[dict[str, ValueKey], Collection[str]]:
    """The value of each tensor by stored name, and the names that may have no place in the model.

    Args:
        store: The repository.
        model: The live model.
        composition: What it is to be.
        form: Whether adapters are held apart or summed in.

    Raises:
        CannotMergeError: The adapters cannot be merged into this model.
        UnwritableTensorError: A tensor is of a type that torch does not have.
        CorruptError: A record is missing or damaged.
    """
    from rblstore.live.binding import DTYPES

    state = composed_state(store, composition)
    for name, tensor in state.tensors.items():
        if tensor.dtype not in DTYPES:
            raise UnwritableTensorError(f"torch has no type for {name!r} ({tensor.dtype})", object=name)
    wanted: dict[str, ValueKey] = dict(state.tensors)
    if form == "merged":
        wanted.update(_merged(store, composition, state.tensors))
    return wanted, _may_lack(store, model, state)


def _merged(store: Store, composition: Composition, beneath: Mapping[str, StoredTensor]) -> dict[str, ValueKey]:
    adapters = [member for member in members(store, composition) if member.config is not None]
    plan = plan_merge(store, adapters, beneath)
    if plan.added:
        added = plan.added[0]
        by = next(one.name for one in adapters if any(effect.target == added for effect in one.behavior.effects))
        raise CannotMergeError(
            f"{by!r} adds {added!r}, for which the model beneath has no place: it cannot be merged into that",
            object=by,
            hint="Hold it apart: form='adapters'. A merged model to use alone: repo.checkout(..., form='merged')",
        )
    merged: dict[str, ValueKey] = {name: MergedValue(beneath[name], terms) for name, terms in plan.terms.items()}
    merged.update((name, MergedValue(beneath[name], PeftTerm(composition, name))) for name in plan.by_peft)
    return merged


def _may_lack(store: Store, model: nn.Module, state: LogicalState) -> Collection[str]:
    """A checkpoint's tensors outside the body, where the model has another head than the checkpoint names."""
    from rblstore.checkpoints.plain_view import plain_model

    plain = plain_model(model)
    config = _config(store, state)
    if config is None or type(plain).__name__ in (config.get("architectures") or ()):
        return ()
    prefix = f"{getattr(plain, 'base_model_prefix', '')}."
    prefixed = any(name.startswith(prefix) for name in state.tensors)
    return [name for name in state.tensors if ".pooler." in f".{name}" or (prefixed and not name.startswith(prefix))]


def _config(store: Store, state: LogicalState) -> dict[str, Any] | None:
    content = state.files.get(CONFIG)
    if content is None:
        return None
    try:
        data = store.content_bytes(content, limits.RECORD_BYTES)
        config = decode_json(data, what=CONFIG, max_bytes=limits.RECORD_BYTES, max_entries=limits.JSON_ENTRIES)
    except InputError:
        return None
    return config if isinstance(config, dict) else None
