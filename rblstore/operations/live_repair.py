"""Writing back whatever differs from a live model's composition: somebody wrote into it, and the store has it all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.composition_ground import shown
from rblstore.objects.history_records import Composition
from rblstore.operations.live_writing import LiveBrokenError
from rblstore.operations.load import laid_out_behaviors

if TYPE_CHECKING:
    import torch

    from rblstore.operations.live_switch import LiveState
    from rblstore.operations.value_cache import ValueKey


def repair_state(state: LiveState) -> tuple[str, ...]:
    """Gives every tensor of a live model that differs from its composition the stored value, by reference.

    Tensors stay the objects that they are, but for adapters that peft keeps in another form than it saves them in, or
    that somebody merged, disabled or rescaled: these are taken off, and attached anew from the store.

    Args:
        state: The live model, held by the caller.

    Returns:
        Names of what was written: stored names, and for an adapter's ``SLOT: NAME``; sorted, none where nothing
        differed.

    Raises:
        CorruptError: Stored bytes are damaged; what could not be written is as it was.
        LiveBrokenError: Something differs still, or what stored bytes are damaged of is not even as it was.
    """
    wanted = state.values.of(state.composition, state.form)
    mounting = state.mounting
    replaced = _replaced(state, wanted)
    found = [name for name in state.values.differing(wanted) if name not in replaced]
    if mounting is None:
        _write(state, wanted, found)
    else:
        overwritten = mounting.overwritten()
        usable = mounting.untouched
        if usable:
            _write(state, wanted, found)
            mounting.write({name: mounting.own[name] for name in overwritten})
        found += [name for name, live in replaced.items() if live in overwritten]
        of_adapters = _adapters_differing(state, put_back=usable)
        if not usable or (of_adapters and _adapters_differing(state)):
            _attach_anew(state)
        found += of_adapters
    left = _left(state, {name: wanted[name] for name in found if name in wanted})
    if left:
        raise LiveBrokenError(
            f"{len(left)} tensors differ from the stored ones although these were written: {shown(sorted(left))}",
            object=left[0],
            hint="Something holds on to the tensors and writes into them. Load the model anew: repo.load.",
        )
    return tuple(sorted(found))


def _replaced(state: LiveState, wanted: Mapping[str, ValueKey]) -> dict[str, str]:
    """Stored names of those tensors that attaching an adapter gave values of its own, with their live names."""
    from rblstore.live.binding import bind

    if state.mounting is None or not state.mounting.own:
        return {}
    direct = bind(state.model, wanted, absent=frozenset(wanted)).direct
    return {name: live for name, live in direct.items() if live in state.mounting.own}


def _write(state: LiveState, wanted: Mapping[str, ValueKey], names: list[str]) -> None:
    try:
        state.values.rewrite(wanted, names)
    except LiveBrokenError:
        state.broken = True
        raise


def _left(state: LiveState, wanted: Mapping[str, ValueKey]) -> list[str]:
    """What differs of what was written, and of the adapters."""
    replaced = _replaced(state, wanted)
    left = [name for name in state.values.differing(wanted) if name not in replaced] if wanted else []
    if state.mounting is None:
        return left
    overwritten = state.mounting.overwritten()
    return [*left, *(name for name, live in replaced.items() if live in overwritten), *_adapters_differing(state)]


def _adapters_differing(state: LiveState, *, put_back: bool = False) -> list[str]:
    """Adapters' tensors that differ from the stored ones; they are written where they can be, before this returns."""
    from rblstore.live.adapters_alike import differing_tensors

    found = []
    with laid_out_behaviors(state.store, state.composition) as (_, slots):
        folders = {name: directory for name, directory, _ in slots}
        for slot, live in mounted(state):
            names = differing_tensors(state.model, live, folders[slot])
            if names and put_back:
                _put_back(state.model, live, folders[slot], names)
            found += [f"{slot}: {name}" for name in names]
    return found


def _put_back(model: Any, live: str, directory: Path, names: list[str]) -> None:
    import torch
    from safetensors import safe_open

    places = adapter_tensors(model, live)
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file, torch.no_grad():
        stored = frozenset(file.keys())
        for name in names:
            tensor = places.get(name)
            if name in stored and tensor is not None:
                value = file.get_tensor(name)
                if value.shape == tensor.shape:
                    tensor.copy_(value)


def adapter_tensors(model: Any, live: str) -> dict[str, torch.Tensor]:
    """The tensors of an adapter on a model that are what peft would save, by the names that it would save them under.

    Args:
        model: A ``PeftModel``.
        live: The adapter's name in it.

    Returns:
        The live tensors themselves: what is written to them is what the model computes with.

    Raises:
        UnattachableError: Peft cannot say which tensors the adapter has.
    """
    from peft import get_peft_model_state_dict

    from rblstore.checkpoints.attaching import LIBRARY_ERRORS, UnattachableError
    from rblstore.checkpoints.quiet import quiet

    try:
        with quiet():
            present = get_peft_model_state_dict(model, adapter_name=live, save_embedding_layers=False)
    except LIBRARY_ERRORS as error:
        raise UnattachableError(f"the adapter {live!r} cannot be read from the model: {error}", object=live) from error
    # What peft computes to save it (prompt encoders) is no tensor of the model: writing to it changes nothing.
    own = {_memory(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in present.items():
        place = own.get(_memory(tensor))
        if place is not None:
            found[name] = place.detach()
    return found


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _attach_anew(state: LiveState) -> None:
    """Takes the adapters off, makes what lies beneath them whole, and reads them from the store again."""
    composition, form = state.composition, state.form
    adapters = {slot.name for slot in state.adapters(composition, form)}
    beneath = Composition(composition.identity, tuple(slot for slot in composition.slots if slot.name not in adapters))
    state.become(beneath, form, discard=True)
    wanted = state.values.of(beneath, form)
    _write(state, wanted, state.values.differing(wanted))  # some adapters take their start from what lies beneath
    state.become(composition, form, discard=True)


def mounted(state: LiveState) -> Iterator[tuple[str, str]]:
    """(slot, name in peft's model) of each adapter on a live model, in order."""
    from rblstore.checkpoints.ledger import ledger_of

    ledger = ledger_of(state.model)
    for entry in () if ledger is None else ledger.attached:
        yield entry.slot, entry.live
