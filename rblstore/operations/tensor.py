"""``tensor``: one tensor of a commit's checkpoint, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rblstore.checkpoints.name_patterns import nearest
from rblstore.errors import InputError, NotFoundError
from rblstore.forgotten import require_remembered
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.stored_models import composed_state
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    import torch


class NoSuchTensorError(NotFoundError):
    """The checkpoint has no tensor of that name."""

    code = "no_such_tensor"


class NoSuchElementTypeError(InputError):
    """torch has no tensors of the stored element type."""

    code = "no_such_element_type"


def tensor(store: Store, revision: str, name: str) -> torch.Tensor:
    """One tensor of the checkpoint beneath a composition's adapters; no other one is read.

    Args:
        store: The repository.
        revision: Which commit.
        name: The tensor's logical name.

    Returns:
        It, in its stored element type and shape, with memory of its own; its digest was compared.

    Raises:
        NoSuchTensorError: There is none of that name.
        NoSuchElementTypeError: torch cannot hold it.
        ForgottenError: Something of the composition was removed on purpose.
        CorruptError: Stored bytes are damaged.
    """
    from rblstore.operations.tensor_memory import TensorReading, are_plain

    composition = store.record(store.record(resolve(store, revision).commit, Commit).composition, Composition)
    require_remembered(store, composition)
    tensors = composed_state(store, composition).tensors
    stored = tensors.get(name)
    if stored is None:
        raise NoSuchTensorError(
            f"the checkpoint of {revision} has no tensor {name[:200]!r}",
            object=name[:200],
            hint=nearest(name[:200], sorted(tensors), "tensor"),
        )
    if not are_plain({name: stored}):
        raise NoSuchElementTypeError(
            f"torch has no element type {stored.dtype}, which {name} is stored in",
            object=name,
            hint="Take its bytes into a file: rbl checkout REV DIR --tensor NAME",
        )
    with TensorReading(store, {name: stored}, None) as reading:
        return reading.tensors()[name]
