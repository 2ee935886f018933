"""The load proof: a behavior that comes onto a live model has to do something there, with every tensor that it holds.

Adapters whose names do not match are loaded by many tools without a word, and serve the base model. Here the outputs
under a probe are compared before and after, once for each behavior and what lies beneath it; switches that follow do
not pay for it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from rblstore.checkpoints.composition_ground import shown
from rblstore.errors import ConflictError
from rblstore.objects.content_records import Behavior, FileManifest
from rblstore.objects.evidence_records import Probe
from rblstore.objects.history_records import Composition, Slot
from rblstore.objects.ids import ProbeId
from rblstore.operations.load import laid_out_behaviors
from rblstore.operations.probe import find_probe
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, adapter_config, file_named
from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.operations.live_form import LiveForm
    from rblstore.operations.live_switch import LiveState, Proof

_REMEMBERED = 1024
_UPDATES = (".lora_B.", ".lora_embedding_B")
_PLAIN_LORA = (*_UPDATES, ".lora_A.", ".lora_embedding_A")


class NoEffectError(ConflictError):
    """A behavior changes no output of the model that it was put on."""

    code: ClassVar[str] = "no_effect"


class _Remembered:
    """What one live model has shown already."""

    def __init__(self) -> None:
        self.proved: dict[tuple[Composition, str], None] = {}
        self.outputs: dict[tuple[Composition, str, str, tuple[tuple[str, str], ...]], str] = {}


_REMEMBERED_BY: WeakKeyDictionary[LiveState, _Remembered] = WeakKeyDictionary()


def become_proved(
    state: LiveState,
    target: Composition,
    form: LiveForm,
    *,
    probe: str | None,
    discard: bool = False,
    allow_no_effect: bool = False,
) -> None:
    """Makes a live model another composition, in which each behavior that comes has an effect.

    Where several come, they come one after another, each over those before it.

    Args:
        state: The live model; as before where this raises.
        target: The composition, which was checked.
        form: How its behaviors are to be held.
        probe: The probe's name; None for the default or the only one. Without any, only behaviors that cannot have an
            effect whatever is measured are found.
        discard: Whether adapters' tensors that were changed in memory may be lost.
        allow_no_effect: Whether nothing is proved.

    Raises:
        NoEffectError: A behavior changes no output.
        UnusedTensorsError: A behavior holds tensors that the model does not use.
    """
    steps = [] if allow_no_effect or state.broken else _steps(state, target, form)
    if not steps:
        state.become(target, form, discard=discard)
        return
    was = state.composition, state.form
    beneath = _without(target, [slot for slot, _ in steps])
    try:
        for composition in (beneath, *(composition for _, composition in steps)):
            state.compositions.checked(composition, state.composition)
    except ConflictError:
        # What stays stands on what comes: they can only come together.
        state.become(target, form, discard=discard)
        return
    with state.keeping():
        if (beneath, form) != was:
            state.become(beneath, form, discard=discard)
        for slot, composition in steps:
            state.become(composition, form, discard=discard, proof=_proof(state, slot, composition, form, probe))


def _steps(state: LiveState, target: Composition, form: LiveForm) -> list[tuple[Slot, Composition]]:
    """The behaviors that come, each with the composition that it makes; none where all were proved before."""
    coming = [slot for slot in target.slots if state.composition.slot(slot.name) != slot and slot.weight != 0]
    remembered = _remembered(state)
    steps = []
    for place, slot in enumerate(coming):
        composition = _without(target, coming[place + 1 :])
        steps.append((slot, composition))
    return [] if all((composition, form) in remembered.proved for _, composition in steps) else steps


def _without(composition: Composition, gone: Sequence[Slot]) -> Composition:
    return Composition(composition.identity, tuple(slot for slot in composition.slots if slot not in gone))


def _remembered(state: LiveState) -> _Remembered:
    return _REMEMBERED_BY.setdefault(state, _Remembered())


def _proof(state: LiveState, slot: Slot, target: Composition, form: LiveForm, probe: str | None) -> Proof | None:
    remembered = _remembered(state)
    if (target, form) in remembered.proved:
        return None
    if _is_zero(state.store, slot):
        raise NoEffectError(
            f"{slot.name!r} has no effect: everything that it would add is zero",
            object=slot.name,
            hint="Was it saved before it was trained? Pass allow_no_effect=True to attach it all the same.",
        )
    found = find_probe(state.store, probe)

    def before() -> Callable[[], None]:
        beneath = state.composition
        outputs = None if found is None else _outputs(state, *found)

        def after() -> None:
            _check_used(state, slot, beneath, target, form)
            if outputs is not None and found is not None and _outputs(state, *found) == outputs:
                raise NoEffectError(
                    f"{slot.name!r} changes no output under the probe {found[0]!r}",
                    object=slot.name,
                    hint="Was it trained on this model? Pass allow_no_effect=True to attach it all the same.",
                )
            if len(remembered.proved) >= _REMEMBERED:
                remembered.proved.clear()
            remembered.proved[target, form] = None

        return after

    return before


def _outputs(state: LiveState, name: str, probe_id: ProbeId) -> str | None:
    """A digest of what the live model gives under a probe; None where it cannot be measured under it."""
    from rblstore.divergence.environment import current_environment
    from rblstore.divergence.measure import UnmeasurableModelError, measure, values_digest
    from rblstore.divergence.metrics import NanOutputError
    from rblstore.divergence.probes import ProbeMismatchError
    from rblstore.operations.baseline import check_fit

    remembered, probe = _remembered(state).outputs, state.store.record(probe_id, Probe)
    environment = tuple(current_environment(state.model, probe).items())
    key = state.composition, state.form, probe_id, environment
    if key not in remembered:
        digest = hashlib.sha256()
        try:
            check_fit(state.store, state.composition, probe, name, state.model)
            for prompt in measure(state.model, probe):
                digest.update(
                    f"{prompt.output} {prompt.dtype} {prompt.shape} {values_digest(prompt.values)}\n".encode()
                )
        except (NanOutputError, ProbeMismatchError, UnmeasurableModelError):
            return None
        if len(remembered) >= _REMEMBERED:
            remembered.clear()
        remembered[key] = digest.hexdigest()
    return remembered[key]


def _is_zero(store: Store, slot: Slot) -> bool:
    """Whether an adapter is plain LoRA whose second factors are all zero; told by their digests, nothing is read."""
    behavior = store.record(slot.behavior, Behavior)
    if behavior.form != "adapter" or adapter_config(store, behavior).peft_type != "LORA":
        return False
    entry = file_named(behavior.files, ADAPTER_WEIGHTS)
    if entry is None or entry.manifest is None:
        return False
    tensors = {one.name: one.tensor for one in store.record(entry.manifest, FileManifest).tensors}
    updates = [tensor for name, tensor in tensors.items() if any(part in name for part in _UPDATES)]
    if not updates or not all(any(part in name for part in _PLAIN_LORA) for name in tensors):
        return False
    return all(tensor.content == hashlib.sha256(bytes(tensor.size)).hexdigest() for tensor in updates)


def _check_used(state: LiveState, slot: Slot, beneath: Composition, target: Composition, form: LiveForm) -> None:
    """Refuses a behavior of which the live model does not use every tensor.

    Raises:
        UnusedTensorsError: Names those that it does not.
    """
    from rblstore.checkpoints.attaching import UnusedTensorsError

    behavior = state.store.record(slot.behavior, Behavior)
    written = [one.target for one in behavior.effects if one.on == "tensor" and one.action != "removes"]
    if behavior.form == "overlay":
        unused = _without_place(state, written)
    elif form == "merged":
        before, after = state.values.of(beneath, form), state.values.of(target, form)
        unused = [name for name in written if before.get(name) == after.get(name)]
    else:
        unused = _not_live(state, slot)
    if unused:
        raise UnusedTensorsError(
            f"{slot.name!r} holds {len(unused)} tensors that the live model does not use: {shown(sorted(unused))}",
            object=slot.name,
            hint="Was it trained on another model?",
        )


def _without_place(state: LiveState, names: Sequence[str]) -> list[str]:
    from rblstore.live.binding import UnmappedTensorError, bind

    try:
        bind(state.plain, names)
    except UnmappedTensorError as error:
        return [error.object or names[0]]
    return []


def _not_live(state: LiveState, slot: Slot) -> list[str]:
    """Tensors of an adapter that are not in the model as they are stored."""
    from rblstore.checkpoints.ledger import ledger_of
    from rblstore.live.adapters_alike import differing_tensors

    ledger = ledger_of(state.model)
    entry = None if ledger is None else next((one for one in ledger.attached if one.slot == slot.name), None)
    if entry is None:
        return []
    alone = Composition(state.composition.identity, (slot,))
    with laid_out_behaviors(state.store, alone) as (_, ((_, directory, _),)):
        return differing_tensors(state.model, entry.live, directory)
