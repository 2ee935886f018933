"""The values that tensors have once adapters are merged into them: in fp32, in the composition's order, rounded once.

Plain LoRA is merged in blocks of rows without torch, anything else by peft's own deltas in fp32. A ``merged`` checkout
and a live model take their values from here, so they are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rblstore.checkpoints.merging import (
    CannotMergeError,
    can_merge_plain,
    merge_tensor,
    oriented,
    plan_plain_merge,
    read_floats,
)
from rblstore.objects.content_records import FileManifest, StoredTensor
from rblstore.objects.dtypes import TORCH_NAMES
from rblstore.objects.history_records import Composition
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, Member, file_named
from rblstore.repository import Store

if TYPE_CHECKING:
    import torch

    from rblstore.checkpoints.merging import Floats

# Held against peft by tests/integration/test_true_composition.py.
_TURNING = frozenset({"BOFT", "OFT"})

ReadRows = Callable[[int, int], "bytes | memoryview"]


@dataclass(frozen=True)
class LowRankTerm:
    """One product that is added to a tensor.

    Attributes:
        first: The adapter's tensor that gives the columns' factor.
        second: The adapter's tensor that gives the rows' factor.
        swapped: Whether the factors have to be transposed and exchanged.
        scale: What the product is multiplied by, the composition's weight included.
    """

    first: StoredTensor
    second: StoredTensor
    swapped: bool
    scale: float


Terms = tuple[LowRankTerm, ...]


@dataclass(frozen=True)
class MergePlan:
    """Which tensors a composition's adapters change, and how.

    Attributes:
        terms: The products that are added, in order, by logical name; empty where it takes peft.
        by_peft: The names that peft changes; empty where the products are all there is.
        added: Names of tensors that nothing lies beneath: another class of model has them.
    """

    terms: Mapping[str, Terms]
    by_peft: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def plan_merge(store: Store, adapters: Sequence[Member], beneath: Mapping[str, StoredTensor]) -> MergePlan:
    """What merging a composition's adapters does.

    Args:
        store: The repository.
        adapters: In the composition's order; its overlays are in ``beneath`` already.
        beneath: The logical tensors that they are merged into.

    Raises:
        CannotMergeError: A behavior that is no change of weights (prompt tuning), or that cannot be merged.
        CorruptError: A record is missing or damaged.
    """
    for member in adapters:
        if not member.behavior.effects:
            raise CannotMergeError(
                f"{member.name!r} changes no weights, so it cannot be merged into them",
                object=member.name,
                hint="Check out the 'adapters' form.",
            )
    if all(member.config is not None and can_merge_plain(member.config, member.behavior) for member in adapters):
        return MergePlan(_terms(store, adapters, beneath))
    _refuse_turned_twice(adapters)
    effects = [effect for member in adapters for effect in member.behavior.effects if effect.on == "tensor"]
    added = {effect.target: None for effect in effects if effect.action == "adds"}
    changed: dict[str, None] = {}
    for effect in effects:
        changed[effect.target] = None
        # Kinds that scale outputs, and LoRA with a bias of its own, change the bias of the module as well.
        if effect.action == "modifies" and effect.target.endswith("weight"):
            bias = effect.target.removesuffix("weight") + "bias"
            if bias in beneath:
                changed[bias] = None
    return MergePlan({}, tuple(changed), tuple(added))


def _refuse_turned_twice(adapters: Sequence[Member]) -> None:
    """Refuses kinds that multiply what goes into a layer: attached the first comes first, and merged peft has it last.

    Raises:
        CannotMergeError: Two of them change one tensor.
    """
    owners: dict[str, str] = {}
    for member in adapters:
        if member.config is None or member.config.peft_type not in _TURNING:
            continue
        for effect in member.behavior.effects:
            owner = owners.setdefault(effect.target, member.name)
            if effect.action == "modifies" and owner != member.name:
                raise CannotMergeError(
                    f"{owner!r} and {member.name!r} are of kind {member.config.peft_type} and both change "
                    f"{effect.target!r}: merged they would act in the wrong order",
                    object=effect.target,
                    hint="Check out the 'adapters' form.",
                )


def _terms(store: Store, adapters: Sequence[Member], beneath: Mapping[str, StoredTensor]) -> dict[str, Terms]:
    found: dict[str, list[LowRankTerm]] = {}
    for member in adapters:
        assert member.config is not None, "only adapters are merged"
        entry = file_named(member.behavior.files, ADAPTER_WEIGHTS)
        assert entry is not None, "an adapter has weights"
        assert entry.manifest is not None, "safetensors files have a manifest"
        tensors = {one.name: one.tensor for one in store.record(entry.manifest, FileManifest).tensors}
        for delta in plan_plain_merge(member.config, tensors, beneath):
            term = LowRankTerm(tensors[delta.first], tensors[delta.second], delta.swapped, delta.scale * member.weight)
            found.setdefault(delta.target, []).append(term)
    return {name: tuple(terms) for name, terms in found.items()}


def merged_rows(store: Store, beneath: StoredTensor, terms: Terms, read_rows: ReadRows) -> Iterator[bytes]:
    """The bytes of a tensor with products added, in its stored element type, block of rows by block.

    Args:
        store: Holds the factors.
        beneath: Element type and shape of the tensor.
        terms: What is added, in order.
        read_rows: Gives the stored bytes of rows [start, start + count).

    Raises:
        CannotMergeError: Factors that do not fit.
        CorruptError: Stored bytes are damaged.
    """
    deltas = [(*factors(store, term), term.scale) for term in terms]
    return merge_tensor(read_rows, beneath.dtype, beneath.shape, deltas)


def factors(store: Store, term: LowRankTerm) -> tuple[Floats, Floats]:
    """The factors of a product: (rank, columns) and (rows, rank) of the tensor that it is added to.

    Args:
        store: Holds them.
        term: The product.

    Raises:
        CorruptError: Stored bytes are damaged.
    """
    first, second = (
        read_floats(store.content_bytes(one.content, one.size), one.dtype, one.shape)
        for one in (term.first, term.second)
    )
    return oriented(first, second, swapped=term.swapped)


class PeftMerge:
    """A composition merged by peft, in fp32, in a model of its own.

    Args:
        store: The repository.
        composition: What to merge.

    Raises:
        UnmergeableError: peft cannot merge it.
        CorruptError: Stored bytes are damaged.
    """

    def __init__(self, store: Store, composition: Composition) -> None:
        import torch

        from rblstore.live.merge import merged_model
        from rblstore.operations.load import load_composition

        self._model = merged_model(load_composition(store, composition, dtype=torch.float32))

    def save(self, folder: Path, beneath: Mapping[str, StoredTensor]) -> None:
        """Writes the whole model, in the stored element type where there is one for all tensors of float types."""
        import torch

        from rblstore.checkpoints.saving import save_model

        dtypes = {tensor.dtype for tensor in beneath.values() if tensor.dtype in ("BF16", "F16", "F32", "F64")}
        if len(dtypes) == 1:
            self._model.to(getattr(torch, TORCH_NAMES[dtypes.pop()]))
        save_model(self._model, folder)

    def reader(self, beneath: Mapping[str, StoredTensor]) -> Callable[[str], torch.Tensor]:
        """A function that gives a merged tensor by its logical name, rounded once to its stored element type.

        Args:
            beneath: Every logical tensor beneath the adapters.

        Raises:
            UnmappedTensorError: A stored tensor has no place in the model.
        """
        import torch

        from rblstore.live.binding import bind

        binding = bind(self._model, beneath)

        def value(name: str) -> torch.Tensor:
            stored = beneath[name]
            live = binding.live(name).detach().to(getattr(torch, TORCH_NAMES[stored.dtype])).contiguous()
            if tuple(live.shape) != stored.shape:
                raise CannotMergeError(f"{name} has another shape once merged", object=name)
            return live

        return value
