"""What each behavior of a composition adds to each tensor, as far as that is a delta: read from the store, no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rblstore.checkpoints.adapter_effects import ModuleUpdate, bind_updates
from rblstore.checkpoints.adapter_shapes import Misfit, pair_is_swapped
from rblstore.checkpoints.merging import MERGEABLE, CannotMergeError, lora_scaling, oriented, read_floats
from rblstore.forgotten import tombstones_of
from rblstore.objects.content_records import Effect, FileManifest, Ground, StoredTensor
from rblstore.objects.dtypes import BITS
from rblstore.objects.history_records import Composition
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, Member, composed_state, file_named, members
from rblstore.repository import Store

if TYPE_CHECKING:
    import torch

    from rblstore.checkpoints.merging import Floats
    from rblstore.divergence.subspaces import Delta, LowRankDelta

_BLOCK_ELEMENTS: Final = 1 << 20
_PAIRS: Final = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
# Members of a config by which a LoRA's product is not what is added to the weight, or not all of the time.
_OTHERWISE: Final = (
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
    "layer_replication", "target_parameters",
)  # fmt: skip


@dataclass(frozen=True)
class BehaviorDeltas:
    """What one behavior adds to tensors.

    Attributes:
        name: The slot.
        of: The deltas by the tensor's logical name; (rows, columns), dimensions past the first flattened; a vector is
            one row.
        without: Why a tensor that it changes has none, by name.
        reason: Why it has none at all, else None.
    """

    name: str
    of: Mapping[str, Delta]
    without: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None

    @property
    def changed(self) -> frozenset[str]:
        """Names of every tensor that it changes."""
        return frozenset(self.of) | frozenset(self.without)


def behavior_deltas(store: Store, composition: Composition) -> tuple[BehaviorDeltas, ...]:
    """What each behavior of a composition adds to tensors, in the composition's order.

    A LoRA (rsLoRA, DoRA's product) gives its scaled factors, the slot's weight included; what is stored whole in place
    of another tensor (overlays, saved modules, biases) gives the difference, read block by block whenever it is asked
    for. Anything else is named with a reason.

    Args:
        store: The repository.
        composition: One that was checked.

    Raises:
        CorruptError: Stored bytes are missing or damaged.
    """
    beneath = composed_state(store, composition).tensors
    forgotten = tombstones_of(store, (slot.behavior for slot in composition.slots))
    return tuple(
        BehaviorDeltas(slot.name, {}, reason="its content was removed on purpose")
        if slot.behavior in forgotten
        else _of(store, member, beneath)
        for slot, member in zip(composition.slots, members(store, composition), strict=True)
    )


def _of(store: Store, member: Member, beneath: Mapping[str, StoredTensor]) -> BehaviorDeltas:
    effects = [effect for effect in member.behavior.effects if effect.on == "tensor"]
    config = member.config
    if not effects:
        why = "it changes no tensor"
        if config is not None and config.is_prompt_learning:
            why = f"{config.peft_type} puts virtual tokens before the input and changes no weight"
        return BehaviorDeltas(member.name, {}, reason=why)
    found: dict[str, Delta] = {}
    without: dict[str, str] = {}
    modified = {effect.target for effect in effects if effect.action == "modifies"}
    updated: set[str] = set()
    if config is not None and (modified or config.peft_type == "LORA"):
        factors, refused = _products(store, member, beneath)
        updated = factors.keys() | refused.keys()
        found.update((name, delta) for name, delta in factors.items() if name in modified)
        without.update((name, refused.get(name, "it is changed in another way")) for name in modified - found.keys())
    for effect in effects:
        if effect.target in modified:
            continue
        why_not = "it is replaced and updated at once" if effect.target in updated else _no_difference(effect)
        if why_not is None:
            assert effect.beneath is not None
            assert effect.value is not None
            found[effect.target] = _difference(store, effect.beneath, effect.value)
        else:
            without[effect.target] = why_not
    reason = None if found else next(iter(without.values()))
    return BehaviorDeltas(member.name, found, without, reason)


def _no_difference(effect: Effect) -> str | None:
    """Why what a behavior writes is no difference from what lies beneath it, or None where it is one."""
    before, after = effect.beneath, effect.value
    if before is None:
        return "it is added, and nothing lies beneath it"
    if after is None:
        return "it is removed"
    if before.shape != after.shape:
        return f"it has another shape than what lies beneath it: {list(after.shape or ())}"
    if before.dtype not in MERGEABLE or after.dtype not in MERGEABLE:
        return f"it is of type {after.dtype}, on {before.dtype}"
    return None if math.prod(after.shape or ()) else "it is empty"


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _difference(store: Store, before: Ground, after: Ground) -> Delta:
    from rblstore.divergence.subspaces import BlockedDelta

    shape = _matrix_shape(after.shape or ())
    rows = max(1, _BLOCK_ELEMENTS // shape[1])

    def blocks() -> Iterator[torch.Tensor]:
        for new, old in zip(_blocks(store, after, shape, rows), _blocks(store, before, shape, rows), strict=True):
            yield new - old

    return BlockedDelta(shape, blocks)


def _blocks(store: Store, ground: Ground, shape: tuple[int, int], rows: int) -> Iterator[torch.Tensor]:
    """A stored tensor in float64, so many rows at a time."""
    assert ground.dtype is not None
    row = shape[1] * BITS[ground.dtype] // 8
    kept = bytearray()

    def block(data: bytes) -> torch.Tensor:
        return _torch(read_floats(data, ground.dtype or "", (len(data) // row, shape[1])))

    for chunk in store.content(ground.content):
        kept += chunk
        while len(kept) >= rows * row:
            yield block(bytes(kept[: rows * row]))
            del kept[: rows * row]
    if kept:
        yield block(bytes(kept))


def _products(
    store: Store, member: Member, beneath: Mapping[str, StoredTensor]
) -> tuple[dict[str, LowRankDelta], dict[str, str]]:
    """The scaled factors by tensor, and why others have none."""
    config = member.config
    assert config is not None
    modified = [effect.target for effect in member.behavior.effects if effect.on == "tensor"]
    if (why := _not_a_product(member)) is not None:
        return {}, dict.fromkeys(modified, why)
    entry = file_named(member.behavior.files, ADAPTER_WEIGHTS)
    if entry is None or entry.manifest is None:
        return {}, dict.fromkeys(modified, "its weights are in no safetensors file")
    tensors = {one.name: one.tensor for one in store.record(entry.manifest, FileManifest).tensors}
    found: dict[str, LowRankDelta] = {}
    without: dict[str, str] = {}

    def read(one: StoredTensor) -> Floats:
        return read_floats(store.content_bytes(one.content, one.size), one.dtype, one.shape)

    for update in bind_updates(config, tensors, beneath):
        made = _product(member, update, tensors, beneath[update.target], read)
        if isinstance(made, str):
            without[update.target] = made
        elif update.target in found:
            without[update.target] = "two of its modules share it"
        else:
            found[update.target] = made
    return {name: delta for name, delta in found.items() if name not in without}, without


def _not_a_product(member: Member) -> str | None:
    config = member.config
    assert config is not None
    if config.peft_type == "IA3":
        return "IA3 scales activations: what it changes is the whole weight, in no directions of its own"
    if config.peft_type != "LORA":
        return f"{config.peft_type} is no product of two factors"
    if config.mutates_base:
        return "attaching it takes a part of the weight away, so its product is not what it adds"
    otherwise = next((name for name in _OTHERWISE if config.raw.get(name)), None)
    return None if otherwise is None else f"with {otherwise} its product is not what it adds"


def _product(
    member: Member,
    update: ModuleUpdate,
    tensors: Mapping[str, StoredTensor],
    lies: StoredTensor,
    read: Callable[[StoredTensor], Floats],
) -> LowRankDelta | str:
    """The delta of one module, or why there is none."""
    from rblstore.divergence.subspaces import LowRankDelta

    config = member.config
    assert config is not None
    pair = next((pair for pair in _PAIRS if pair[0] in update.parameters and pair[1] in update.parameters), None)
    if pair is None:
        return "it is changed in another way than by a product of two factors"
    if any(name.startswith("trainable_tokens_") for name in update.parameters):
        return "single tokens of it are trained besides"
    first, second = update.parameters[pair[0]], update.parameters[pair[1]]
    shapes = tensors[first].shape, tensors[second].shape
    if any(tensors[name].dtype not in MERGEABLE for name in (first, second)):
        return f"its factors are of type {tensors[first].dtype}"
    if pair == _PAIRS[1]:
        swapped = True
    else:
        if shapes[0][:1] != shapes[1][1:2] or (len(lies.shape) > 2 and shapes[0][1:] != lies.shape[1:]):
            return "it is a grouped convolution"
        try:
            decided = pair_is_swapped(*shapes, lies.shape)
        except Misfit:
            return "its factors do not fit"
        # A square weight leaves both open, and then it is as the config says.
        swapped = config.fan_in_fan_out if decided is None else decided
    try:
        scale = lora_scaling(config, update.module, member.weight)
    except CannotMergeError as error:
        return error.message
    across, down = oriented(read(tensors[first]), read(tensors[second]), swapped=swapped)
    return LowRankDelta(_torch(across), _torch(down), scale)


def _torch(values: Floats) -> torch.Tensor:
    import torch

    return torch.from_numpy(values.astype("float64"))  # a copy: what was read may be read-only
