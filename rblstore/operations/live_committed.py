"""Whether what was trained on a live model is stored already, so that nothing is lost where it is taken off."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rblstore.objects.content_records import Behavior, FileManifest
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, file_named
from rblstore.operations.switch import branches

if TYPE_CHECKING:
    import torch

    from rblstore.operations.live_switch import LiveState
    from rblstore.repository import Store


def tips_hold(state: LiveState) -> bool:
    """Whether each adapter on a live model, bit for bit, is a behavior of its name at some branch's tip.

    Told by digests; no stored tensor is read. An adapter that is not live as it would be stored (in another element
    type, or computed by peft as it saves) is held by none.

    Args:
        state: The live model, held by the caller.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    from rblstore.operations.live_repair import adapter_tensors, mounted

    if state.mounting is None:
        return True
    for slot, live in mounted(state):
        digests = {name: _digest(tensor) for name, tensor in adapter_tensors(state.model, live).items()}
        if digests not in _stored(state.store, slot):
            return False
    return True


def _stored(store: Store, slot: str) -> Iterator[dict[str, str]]:
    """Digests of the tensors of each behavior of a name at the branches' tips, the current one's first."""
    seen = set()
    for branch in sorted(branches(store), key=lambda one: not one.current):
        if branch.commit is None:
            continue
        composition = store.record(store.record(branch.commit, Commit).composition, Composition)
        found = composition.slot(slot)
        if found is None or found.behavior in seen:
            continue
        seen.add(found.behavior)
        entry = file_named(store.record(found.behavior, Behavior).files, ADAPTER_WEIGHTS)
        if entry is not None and entry.manifest is not None:
            tensors = store.record(entry.manifest, FileManifest).tensors
            yield {one.name: one.tensor.content for one in tensors}


def _digest(tensor: torch.Tensor) -> str:
    from rblstore.operations.tensor_values import bytes_of

    return hashlib.sha256(bytes_of(tensor.detach().cpu().contiguous())).hexdigest()
