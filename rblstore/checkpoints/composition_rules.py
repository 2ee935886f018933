"""Which adapters peft can attach to one model together, by rule and without torch.

Loading is ``PeftModel.from_pretrained`` for the first adapter, ``load_adapter`` for the others, then all active at
once. Every rule was found in peft 0.21's source and is held against it by ``tests/unit/test_adapters_attachable.py``:
what is refused here, peft refuses or attaches wrongly without a word.

1. An adapter that needs something that its files do not hold, or that our loader never attaches: replicated layers,
   CorDA and LoRA-GA caches, Arrow's experts, a shadow model.
2. A weight other than 1.0 where nothing scales (IA3, DoRA, anything that replaces).
3. An embedding with more tokens than the base's: peft loads it only into a model that was resized first.
4. A name that ends as an entry of ``modules_to_save`` does: peft takes the adapter itself for the module to save.
5. Several adapters: all of one kind; never prompt learning or adaption prompts; only kinds whose layers add up several
   active adapters (not LN tuning, C3A, OSF, Poly).
6. At most one with ``bias`` other than none; at most one that takes a part of the base away when attached (PiSSA,
   OLoRA, LoftQ), and KaSA never with others.
7. A module wrapped by ``modules_to_save`` by one adapter only, and changed by no other's update.
8. Trained tokens only in the last adapter; where they are the whole adapter, no token trained twice.
9. A head that the task implies (SEQ_CLS ...) not in the first of several: peft then expects one in each.
10. A bias or embedding kept whole must come before the adapters that wrap its module, else peft drops it in silence.
11. The same set of ``target_parameters`` in all that have them, and no other that changes those weights as modules.
12. One set of shared projections (VeRA, PVeRA, RandLoRA, FRoD): same key, rank and widths, saved by all or by none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rblstore.checkpoints.adapter_config import AdapterConfig, saved_wrapper
from rblstore.checkpoints.composition_ground import WeightRefusedError, check_scalable
from rblstore.errors import ConflictError
from rblstore.objects.content_records import Behavior

# Kinds of which several can be active: each update is added to, or multiplied with, what those before it gave.
_TOGETHER = frozenset({
    "LORA", "ADALORA", "ADAMSS", "BEFT", "BOFT", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA",
    "HIRA", "HRA", "IA3", "LILY", "LOHA", "LOKR", "MISS", "OFT", "PEANUT", "PSOFT", "PVERA", "RANDLORA",
    "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
})  # fmt: skip
# Kinds whose layers keep one linear scale an adapter (``scaling``), by which a weight can multiply.
_SCALABLE = frozenset({"LORA", "ADALORA", "LOHA", "LOKR"})
_NOT_SCALABLE = ("use_dora", "kasa_config", "arrow_config", "trainable_token_indices", "monteclora_config")
_PROJECTED = frozenset({"VERA", "PVERA", "RANDLORA", "FROD"})
_UNLOADED = ("layer_replication", "corda_config", "lora_ga_config", "arrow_config")

Adapter = tuple[str, AdapterConfig, Behavior, float]
_Rule = Callable[[Sequence[Adapter]], "str | None"]


class UnloadableError(ConflictError):
    """peft cannot attach these adapters to one model, or would do so wrongly."""

    code = "unloadable"


def check_weight(name: str, config: AdapterConfig, behavior: Behavior, weight: float) -> None:
    """Refuses a weight other than 1.0 on an adapter that has no linear scale.

    Raises:
        WeightRefusedError: It has none.
    """
    check_scalable(name, behavior, weight)
    scalable = config.peft_type in _SCALABLE and not any(config.raw.get(member) for member in _NOT_SCALABLE)
    if weight != 1.0 and not scalable:
        kind = "DoRA" if config.use_dora else config.peft_type
        raise WeightRefusedError(
            f"{name!r} is an adapter of kind {kind}, which no weight scales", object=name, hint="Use the weight 1.0."
        )


def check_attachable(adapters: Sequence[Adapter]) -> None:
    """Refuses adapters that peft cannot attach together.

    Args:
        adapters: (name, config, behavior, weight) in the composition's order.

    Raises:
        UnloadableError: By one of the rules above; says which, and names the adapters.
        WeightRefusedError: A weight on an adapter that has no scale.
    """
    for name, config, behavior, weight in adapters:
        check_weight(name, config, behavior, weight)
    rules: tuple[_Rule, ...] = (_loadable_alone, _resized, _names_clash)
    if len(adapters) > 1:
        rules += (
            _kinds, _biases, _mutating, _wrapped_once, _trained_tokens, _implied_heads, _dropped, _parameters,
            _projections,
        )  # fmt: skip
    for rule in rules:
        reason = rule(adapters)
        if reason is not None:
            raise UnloadableError(
                reason,
                object=adapters[-1][0],
                hint="Leave one of them out, or pass --unloadable to record it all the same.",
            )


def _pairs(adapters: Sequence[Adapter]) -> Iterator[tuple[Adapter, Adapter]]:
    for at, one in enumerate(adapters):
        for other in adapters[at + 1 :]:
            yield one, other


def _module(target: str) -> str:
    return target.rpartition(".")[0]


def _modified(behavior: Behavior) -> set[str]:
    return {effect.target for effect in behavior.effects if effect.on == "tensor" and effect.action == "modifies"}


def _whole(behavior: Behavior) -> set[str]:
    """The tensors that it brings whole: what it writes, and what it brings equal to what lies beneath."""
    written = {effect.target for effect in behavior.effects if effect.on == "tensor" and effect.action != "modifies"}
    return written | {ground.target for ground in behavior.ground if ground.on == "tensor"}


def _wrapped(config: AdapterConfig, behavior: Behavior) -> set[str]:
    """The modules that peft wraps for it in a ModulesToSaveWrapper."""
    found = (saved_wrapper(config, _module(target)) for target in _whole(behavior))
    return {module for module in found if module is not None}


def _inside(target: str, modules: set[str]) -> bool:
    return any(target.startswith(module + ".") for module in modules)


def _loadable_alone(adapters: Sequence[Adapter]) -> str | None:
    for name, config, _, _ in adapters:
        if config.peft_type == "SHADOW":
            return f"{name!r} is of kind SHADOW, which runs a second model beside the first"
        for member in _UNLOADED:
            if config.raw.get(member):
                return f"{name!r} needs more than its own files to be attached ({member})"
    return None


def _resized(adapters: Sequence[Adapter]) -> str | None:
    for name, _, behavior, _ in adapters:
        for effect in behavior.effects:
            before, after = effect.beneath, effect.value
            if before is not None and after is not None and before.shape != after.shape:
                was, now = list(before.shape or ()), list(after.shape or ())
                return f"{name!r} brings {effect.target} of shape {now} where the base has {was}"
    return None


def _names_clash(adapters: Sequence[Adapter]) -> str | None:
    for name, _, _, _ in adapters:
        for other, config, _, _ in adapters:
            for entry in config.saved_modules:
                if name.endswith(entry):
                    return f"the name {name!r} ends like {entry!r}, a module that {other!r} saves whole"
    return None


def _kinds(adapters: Sequence[Adapter]) -> str | None:
    for name, config, _, _ in adapters:
        first, kind = adapters[0][0], adapters[0][1].peft_type
        if config.peft_type != kind:
            return f"{first!r} is of kind {kind}, {name!r} of kind {config.peft_type}; peft attaches one kind at a time"
        if kind not in _TOGETHER:
            return f"only one adapter of kind {kind} can be active, and there are {first!r} and {adapters[1][0]!r}"
    return None


def _biases(adapters: Sequence[Adapter]) -> str | None:
    found = [name for name, config, _, _ in adapters if config.bias != "none"]
    return None if len(found) < 2 else f"{found[0]!r} and {found[1]!r} both train biases; peft takes one such adapter"


def _mutating(adapters: Sequence[Adapter]) -> str | None:
    found = [(name, config) for name, config, _, _ in adapters if config.mutates_base]
    for name, config in found:
        if config.raw.get("kasa_config"):
            return f"{name!r} uses KaSA, which takes a part of the weights away that the others stand on"
    if len(found) > 1:
        first, second = found[0][0], found[1][0]
        return f"attaching {first!r} and {second!r} changes the base weights, the second's on top of the first's"
    return None


def _wrapped_once(adapters: Sequence[Adapter]) -> str | None:
    for (one, one_config, one_behavior, _), (other, other_config, other_behavior, _) in _pairs(adapters):
        mine, theirs = _wrapped(one_config, one_behavior), _wrapped(other_config, other_behavior)
        if mine & theirs:
            return f"{one!r} and {other!r} both save the module {min(mine & theirs)} whole; only one copy can be active"
        for name, modules, changer, behavior in (
            (one, mine, other, other_behavior),
            (other, theirs, one, one_behavior),
        ):
            changed = sorted(target for target in _modified(behavior) if _inside(target, modules))
            if changed:
                return f"{name!r} saves a module whole that {changer!r} changes ({changed[0]})"
    return None


def _trained_tokens(adapters: Sequence[Adapter]) -> str | None:
    alone = all(config.peft_type == "TRAINABLE_TOKENS" for _, config, _, _ in adapters)
    if alone:
        for (one, mine, _, _), (other, theirs, _, _) in _pairs(adapters):
            if common := _tokens(mine) & _tokens(theirs):
                return f"{one!r} and {other!r} both train token {min(common)}"
        return None
    for (one, mine, mine_behavior, _), (other, theirs, theirs_behavior, _) in _pairs(adapters):
        if mine.trainable_token_indices is not None:
            return f"{one!r} trains tokens; peft takes no other adapter ({other!r}) after such a one"
        if theirs.trainable_token_indices is not None:
            shared = _embeddings(theirs, theirs_behavior) & (_modified(mine_behavior) | _whole(mine_behavior))
            if shared:
                return f"{one!r} changes {min(shared)}, of which {other!r} trains tokens"
    return None


def _tokens(config: AdapterConfig) -> set[int]:
    indices = config.trainable_token_indices
    if indices is None:
        return set()
    if isinstance(indices, Mapping):
        return {token for tokens in indices.values() for token in tokens}
    return set(indices)


def _embeddings(config: AdapterConfig, behavior: Behavior) -> set[str]:
    """The tensors of which it trains tokens, by the ends of the names that the config gives."""
    indices = config.trainable_token_indices
    ends = tuple(indices) if isinstance(indices, Mapping) else ("embed_tokens", "wte", "word_embeddings", "shared")
    return {target for target in _modified(behavior) if _module(target).endswith(ends)}


def _implied_heads(adapters: Sequence[Adapter]) -> str | None:
    first, config, _, _ = adapters[0]
    if not config.has_implied_head:
        return None
    return (
        f"{first!r} is for {config.task_type} and comes first: peft then expects a head in {adapters[1][0]!r} as well"
    )


def _dropped(adapters: Sequence[Adapter]) -> str | None:
    for (one, one_config, one_behavior, _), (other, other_config, other_behavior, _) in _pairs(adapters):
        own = {_module(target) for target in _modified(other_behavior)}
        covered = {_module(target) for target in _modified(one_behavior)} | _wrapped(one_config, one_behavior)
        for target in sorted(_whole(other_behavior)):
            module = _module(target)
            if module in covered - own and not other_config.saves_module(module):
                return f"{other!r} brings {target} whole, which peft drops after {one!r} has wrapped the module"
    return None


def _parameters(adapters: Sequence[Adapter]) -> str | None:
    for (one, mine, mine_behavior, _), (other, theirs, theirs_behavior, _) in _pairs(adapters):
        if mine.target_parameters and theirs.target_parameters:
            if set(mine.target_parameters) != set(theirs.target_parameters):
                return f"{one!r} and {other!r} target different parameters"
        elif mine.target_parameters or theirs.target_parameters:
            shared = _modified(mine_behavior) & _modified(theirs_behavior)
            if shared:
                return f"{one!r} and {other!r} change {min(shared)}, one as a parameter and one as a module"
    return None


def _widths(behavior: Behavior) -> tuple[int, int]:
    """The largest height and width of what it changes: the size of the shared projections."""
    shapes = [
        effect.beneath.shape for effect in behavior.effects if effect.beneath is not None and effect.beneath.shape
    ]
    pairs = [shape for shape in shapes if len(shape) > 1]
    return max((shape[0] for shape in pairs), default=0), max((shape[1] for shape in pairs), default=0)


def _projections(adapters: Sequence[Adapter]) -> str | None:
    first, config, behavior, _ = adapters[0]
    if config.peft_type not in _PROJECTED:
        if config.peft_type == "SUPERTUNING":
            kept = {bool(other.raw.get("save_precomputed_indices")) for _, other, _, _ in adapters}
            return "some of the adapters save their indices and some do not" if len(kept) > 1 else None
        return None
    for name, other, other_behavior, _ in adapters[1:]:
        for member in ("projection_prng_key", "save_projection", "r", "runtime_offload_base_weight"):
            if config.raw.get(member) != other.raw.get(member):
                return f"{first!r} and {name!r} share projections, but differ in {member}"
        if config.peft_type != "FROD" and _widths(behavior) != _widths(other_behavior):
            return f"{first!r} and {name!r} share projections, but change weights of different sizes"
    return None
