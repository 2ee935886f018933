"""In which environment a live model is measured, and the fresh load that its baseline is recorded from."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from rblstore.objects.content_records import Behavior, StoredTensor
from rblstore.objects.evidence_records import Probe
from rblstore.objects.history_records import Composition
from rblstore.operations.load import load_composition
from rblstore.operations.stored_models import CONFIG, composed_state
from rblstore.repository import Store

if TYPE_CHECKING:
    from torch import nn

    from rblstore.operations.live_form import LiveForm
    from rblstore.operations.live_model import LiveModel

FORM = "form"
"""The entry of an environment that says that adapters were summed into the weights; see :func:`live_environment`."""


def live_environment(live: LiveModel, composition: Composition, probe: Probe, form: LiveForm) -> dict[str, str]:
    """Where and how a live model is measured as a composition.

    A sum in the weights rounds otherwise than two products that are added. So a merged composition has baselines of its
    own: its environment says ``form: merged``. Without adapters both forms are one.

    Args:
        live: The live model.
        composition: What it is, or is to be.
        probe: Under what.
        form: How the behaviors are held.
    """
    from rblstore.divergence.environment import current_environment

    environment = current_environment(live.model, probe)
    if form == "merged" and adapters_of(live.store, composition):
        environment[FORM] = "merged"
    return dict(sorted(environment.items()))


def adapters_of(store: Store, composition: Composition) -> tuple[str, ...]:
    """Names of the slots that are adapters, in order."""
    return tuple(slot.name for slot in composition.slots if store.record(slot.behavior, Behavior).form == "adapter")


def fresh_model(live: LiveModel, composition: Composition, form: LiveForm) -> Any:
    """A model of a composition with every value read from the store, to be measured beside the live one.

    Args:
        live: Decides element type, device and attention, and of a module that no configuration describes the structure.
        composition: What to load.
        form: How its behaviors are to be held.

    Returns:
        A model that shares no tensor with the live one.

    Raises:
        CorruptError: Stored bytes are damaged.
        CannotMergeError: The behaviors cannot be merged.
    """
    from rblstore.divergence.alignment import aligned
    from rblstore.operations.live_values import LiveValues

    store = live.store
    described = CONFIG in composed_state(store, composition).files
    merged = form == "merged" and bool(adapters_of(store, composition))
    if described and not merged:
        return load_composition(store, composition, live.progress, **_options(live, composition))
    if described:
        beneath = _without_adapters(store, composition)
        model = load_composition(store, beneath, live.progress, **_options(live, composition))
    else:
        # Its structure is nowhere but in memory; none of its values are taken from there.
        model = copy.deepcopy(live.plain)
    values = LiveValues(store, model, cache_bytes=0)
    wanted = values.of(composition, form)
    values.write({}, wanted)
    return aligned(model)


def _without_adapters(store: Store, composition: Composition) -> Composition:
    adapters = adapters_of(store, composition)
    return Composition(composition.identity, tuple(slot for slot in composition.slots if slot.name not in adapters))


def _options(live: LiveModel, composition: Composition) -> dict[str, Any]:
    """How to load what is to be like the live model."""
    import torch

    from rblstore.live.binding import DTYPES

    plain = live.plain
    stored = _most(composed_state(live.store, composition).tensors.values())
    dtype = most_common_dtype(plain)
    options: dict[str, Any] = {"device": str(next(iter(plain.parameters())).device)}
    if stored not in DTYPES or getattr(torch, DTYPES[stored]) != dtype:
        options["dtype"] = dtype
    attention = getattr(getattr(plain, "config", None), "_attn_implementation", None)
    if isinstance(attention, str):
        options["attn_implementation"] = attention
    return options


def _most(tensors: Any) -> str:
    elements: dict[str, int] = {}
    tensor: StoredTensor
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.size
    return max(sorted(elements), key=lambda name: elements[name])


def most_common_dtype(model: nn.Module) -> Any:
    """The element type of most of a model's parameters."""
    elements: dict[Any, int] = {}
    for parameter in model.parameters():
        elements[parameter.dtype] = elements.get(parameter.dtype, 0) + parameter.numel()
    return max(elements, key=lambda dtype: elements[dtype])
