"""What training did to tensors that it had no business with, and the error that names them. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rblstore.errors import ConflictError

Change = Literal["value", "replaced", "dtype", "shape", "removed", "requires_grad"]

_SHOWN = 8


@dataclass(frozen=True)
class Mutation:
    """One thing that happened to one of the identity's tensors.

    Attributes:
        name: The tensor's name in the plain model.
        change: ``value`` (other bits in the same tensor), ``replaced`` (another tensor with other bits), ``dtype``,
            ``shape``, ``removed``, or ``requires_grad`` (it became trainable).
        detail: What it was and what it is, or how it was written; may be empty.
        step: The guard's step at which it was noticed; it happened after the check before that one.
    """

    name: str
    change: Change
    detail: str
    step: int

    def __str__(self) -> str:
        return f"{self.name} ({_WORDS[self.change]}{f', {self.detail}' if self.detail else ''})"


_WORDS: dict[Change, str] = {
    "value": "other values",
    "replaced": "replaced by another tensor",
    "dtype": "other element type",
    "shape": "other shape",
    "removed": "gone",
    "requires_grad": "became trainable",
}


class IdentityMutated(ConflictError):  # noqa: N818 - reads as what happened; the public name
    """Something wrote into tensors of the identity.

    Attributes:
        mutations: What changed, a tensor and change each.
        step: The guard's step at which it was noticed.
    """

    code: ClassVar[str] = "identity_mutated"

    def __init__(self, mutations: Sequence[Mutation], step: int) -> None:
        named = "; ".join(map(str, mutations[:_SHOWN]))
        more = f"; and {len(mutations) - _SHOWN} more" if len(mutations) > _SHOWN else ""
        count = len({mutation.name for mutation in mutations})
        super().__init__(
            f"{count} of the identity's tensors changed by step {step}: {named}{more}",
            object=mutations[0].name,
            hint=_advice(mutations),
        )
        self.mutations = tuple(mutations)
        self.step = step


_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def _advice(mutations: Sequence[Mutation]) -> str:
    """What most likely did it, told from the names and the kind of change."""
    names = {mutation.name for mutation in mutations}
    changes = {mutation.change for mutation in mutations}
    if "shape" in changes:
        return "Resize embeddings before training, and commit the resized model as an overlay or an identity."
    if "dtype" in changes:
        return "Load the model in the element type that it is to have; peft's prepare_model_for_kbit_training casts it."
    if all(f".{name}".endswith(_STATISTICS) for name in names):
        return "Put batch normalization into evaluation mode, or keep its statistics out of training."
    if all(f".{name}".endswith(".bias") for name in names):
        return 'Train the adapter with bias="none": LoRA with "all" or "lora_only" trains the base model\'s own biases.'
    return "Freeze them, give the optimizer the adapter's parameters alone, or commit what was trained as an overlay."
