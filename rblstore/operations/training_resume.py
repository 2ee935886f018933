"""Putting a committed behavior, and the state that it was trained with, back into a model that goes on training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.attaching import LIBRARY_ERRORS, LoadMismatchError
from rblstore.checkpoints.plain_view import plain_tensors
from rblstore.checkpoints.quiet import quiet
from rblstore.errors import InputError
from rblstore.live.binding import bind, same_bits
from rblstore.live.snapshot import Buffers, PhiCopier
from rblstore.objects.content_records import Behavior, FileManifest, StoredTensor
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId
from rblstore.operations.claims import claims_about
from rblstore.operations.commit import NoSuchBehaviorError
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, composed_state, file_named
from rblstore.operations.tensor_reading import tensor_reader
from rblstore.operations.training_facts import Progressed, TrainingOptions
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    from torch import nn


def resume(store: Store, copier: PhiCopier, options: TrainingOptions) -> tuple[Progressed, CommitId]:
    """Loads a commit's behavior into the model, and the state of optimizer, scheduler and random generators with it.

    Parameters keep their identity: an optimizer that was made before goes on with them.

    Args:
        store: The repository.
        copier: Of the model.
        options: The run's.

    Returns:
        How far training was, and the commit.

    Raises:
        NoSuchBehaviorError: The commit has no behavior of that name.
        LoadMismatchError: The model cannot hold the behavior's values.
        NotFoundError: ``save_state`` was asked for, and the commit has no state.
    """
    assert options.resume is not None, "there is something to resume"
    commit = resolve(store, options.resume).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    slot = composition.slot(options.behavior)
    if slot is None:
        names = ", ".join(one.name for one in composition.slots)
        raise NoSuchBehaviorError(
            f"commit {commit.short} has no behavior {options.behavior!r} to resume",
            object=options.behavior,
            hint=f"It has: {names or 'none'}.",
        )
    behavior = store.record(slot.behavior, Behavior)
    if (behavior.form == "adapter") != copier.is_adapter:
        raise LoadMismatchError(
            f"{options.behavior!r} is an {behavior.form} in commit {commit.short}, and the model is no model of one",
            object=options.behavior,
            hint="Give a PeftModel to resume an adapter, and the model itself to resume an overlay.",
        )
    # Everything is read and compared before the first value is written: what cannot be resumed stays as it is.
    if copier.is_adapter:
        write = _adapter_writer(store, behavior, copier)
    else:
        lower = composition.slots[: composition.slots.index(slot) + 1]
        write = _checkpoint_writer(store, Composition(composition.identity, lower), copier.model)
    progressed = _progressed(store, slot.behavior)
    if options.save_state:
        from rblstore.operations.training_state import find_state, load_state, restore, state_info

        found = find_state(store, commit)
        restore(load_state(store, found), options.optimizer, options.scheduler)
        # What is said of the behavior may come from another run that came to the same values.
        progressed.step = state_info(store, found).step
    write()
    return progressed, commit


def _adapter_writer(store: Store, behavior: Behavior, copier: PhiCopier) -> Callable[[], None]:
    from peft import set_peft_model_state_dict

    entry = file_named(behavior.files, ADAPTER_WEIGHTS)
    if entry is None or entry.manifest is None:
        raise InputError("the stored adapter has no weights", object=ADAPTER_WEIGHTS)
    stored = {one.name: one.tensor for one in store.record(entry.manifest, FileManifest).tensors}
    tensors = _read(store, stored)
    before = copier.take(Buffers()).weights[ADAPTER_WEIGHTS].tensors
    _check_alike(tensors, before)

    def write() -> None:
        try:
            with quiet():
                set_peft_model_state_dict(copier.model, dict(tensors), adapter_name=str(copier.adapter))
        except LIBRARY_ERRORS as error:
            raise LoadMismatchError(f"PEFT cannot load the adapter: {error}", object=copier.adapter) from error
        after = copier.take(Buffers()).weights[ADAPTER_WEIGHTS].tensors
        for name, tensor in tensors.items():
            if not same_bits(tensor.to(after[name].dtype), after[name]):
                raise LoadMismatchError(f"{name!r} does not hold the stored value after loading", object=name)

    return write


def _check_alike(tensors: Mapping[str, Any], live: Mapping[str, Any]) -> None:
    strange = sorted(tensors.keys() ^ live.keys()) or [
        name for name in sorted(tensors) if tensors[name].shape != live[name].shape
    ]
    if strange:
        raise LoadMismatchError(
            f"the model's adapter is not like the stored one: {', '.join(strange[:8])}",
            object=strange[0],
            hint="Make it with the same configuration.",
        )


def _checkpoint_writer(store: Store, composition: Composition, model: nn.Module) -> Callable[[], None]:
    import torch

    stored = composed_state(store, composition).tensors
    binding = bind(model, stored)
    read = tensor_reader(store, stored)
    present = plain_tensors(model)
    values = [(name, present[live_name], read(name)) for name, live_name in binding.direct.items()]
    for group in binding.fused:
        made = group.convert(binding.model, read, present[group.target].dtype)
        values += [(live_name, present[live_name], value) for live_name, value in made.items()]
    for name, live, value in values:
        if value is None or live.shape != value.shape:
            raise LoadMismatchError(
                f"{name!r} is of another shape than in the model",
                object=name,
                hint="Resize the model's embeddings first.",
            )

    def write() -> None:
        with torch.no_grad():
            for _, live, value in values:
                live.copy_(value)

    return write


def _read(store: Store, stored: Mapping[str, StoredTensor]) -> dict[str, Any]:
    read = tensor_reader(store, stored)
    found = {}
    for name in stored:
        value = read(name)
        if value is None:
            raise InputError(f"{name!r} is of an element type that no model has in memory", object=name)
        found[name] = value
    return found


def _progressed(store: Store, behavior: Any) -> Progressed:
    """How far training was, as the run that made the behavior said."""
    said = claims_about(store, behavior)

    def count(key: str) -> int | None:
        for claim in said.get(key, ()):
            if claim.value.isascii() and claim.value.isdigit() and len(claim.value) < 16:
                return int(claim.value)
        return None

    return Progressed(step=count("meta.step") or 0, tokens=count("meta.tokens"))
