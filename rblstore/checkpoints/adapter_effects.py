"""What an adapter does to the tensors beneath it, and what it stands on, from shapes and digests alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from rblstore.checkpoints.adapter_config import AdapterConfig
from rblstore.checkpoints.adapter_keys import AdapterKey, parse_adapter_key
from rblstore.checkpoints.adapter_shapes import Misfit, check_fits
from rblstore.checkpoints.composition_ground import WrongBaseError as WrongBaseError  # noqa: PLC0414 - part of this interface
from rblstore.checkpoints.composition_ground import shown
from rblstore.checkpoints.tensor_names import Found, Prefix, TensorNames, is_embedding
from rblstore.errors import InputError
from rblstore.objects.content_records import Effect, Ground, StoredTensor
from rblstore.objects.ids import ContentId

TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
CONFIG_FILE = "config.json"

# LoRA variants whose factors are not (rank, in) and (out, rank): one pair for all experts, grouped inputs, blocks.
_OTHER_SHAPES = ("target_parameters", "use_qalora", "use_bdlora")
_HINT = "Commit it on the base that it was trained on."


class BadAdapterError(InputError):
    """An adapter's file contradicts itself or its config."""

    code = "bad_adapter"


@dataclass(frozen=True)
class ModuleUpdate:
    """One module's update, bound to the stored tensor that it changes.

    Attributes:
        module: The module's name as peft spells it.
        target: The stored tensor's logical name.
        parameters: The adapter's tensor names by parameter (``lora_A.weight``).
    """

    module: str
    target: str
    parameters: Mapping[str, str]


@dataclass
class _Binding:
    config: AdapterConfig
    tensors: Mapping[str, StoredTensor]
    beneath: Mapping[str, StoredTensor]
    names: TensorNames
    keys: dict[str, AdapterKey] = field(default_factory=dict)
    prefixes: set[Prefix] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    def check(self) -> None:
        if self.absent:
            raise WrongBaseError(
                f"the base has no tensor for {len(self.absent)} of the adapter's: {shown(self.absent)}",
                object=self.absent[0],
                hint=_HINT,
            )
        if self.misfits:
            more = f" ({len(self.misfits)} in all)" if len(self.misfits) > 1 else ""
            raise WrongBaseError(f"{self.misfits[0]}{more}", object=self.misfits[0].split(" ", 1)[0], hint=_HINT)

    def misfit(self, name: str, target: str) -> None:
        mine, other = list(self.tensors[name].shape), list(self.beneath[target].shape)
        self.misfits.append(f"{name} of shape {mine} does not fit {target} of shape {other}")

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that a replicated model is made of; made once, since there may be a hundred thousand."""
        return tuple(layer for start, end in self.config.layer_replication for layer in range(start, end))

    def source_module(self, module: str) -> str:
        """The module of the stored model that a replicated layer was copied from."""
        layers = self.layers
        if not layers:
            return module
        parts = module.split(".")
        for at, part in enumerate(parts):
            if part.isascii() and part.isdecimal() and len(part) < 7 and int(part) < len(layers):
                parts[at] = str(layers[int(part)])
                break
        return ".".join(parts)

    def targets(self, module: str) -> list[str]:
        """The stored tensors that an update of a module changes; empty where there is none, or no single one."""
        source = self.source_module(module)
        named = [entry.rpartition(".")[2] for entry in self.config.target_parameters]
        names = [f"{source}.{parameter}" for parameter in named] if named else []
        if found := [one for name in names for one in self._one(name)]:
            return found
        # nn.MultiheadAttention has no weight of its own; peft changes in_proj_weight.
        for name in (f"{source}.weight", f"{source}.in_proj_weight"):
            if found := self._one(name):
                return found
        if (tied := self.names.tied(source)) is not None:
            return [tied]
        return self.names.experts(source) if named else []

    def _one(self, name: str) -> list[str]:
        found = self.names.candidates(name)
        if len(found) > 1:
            raise WrongBaseError(f"{name} could be any of {shown(one.name for one in found)}", object=name, hint=_HINT)
        self.prefixes.update(one.prefix for one in found)
        return [one.name for one in found]

    def full(self, key: AdapterKey) -> Found | None:
        """The stored tensor that a whole tensor stands in for; only by a prefix that the updates showed too."""
        found = self.names.candidates(key.tensor)
        if self.prefixes:
            found = [one for one in found if one.prefix in self.prefixes or one.prefix == Prefix()]
        return found[0] if len(found) == 1 else None


def bind_updates(
    config: AdapterConfig, adapter_tensors: Mapping[str, StoredTensor], beneath: Mapping[str, StoredTensor]
) -> tuple[ModuleUpdate, ...]:
    """Every update of the adapter with the stored tensor that it changes, sorted by module and target.

    Raises:
        WrongBaseError: A module has no tensor beneath, could mean several, or is of another shape.
    """
    binding = _Binding(config, adapter_tensors, beneath, TensorNames(beneath))
    updates = _updates(binding)
    binding.check()
    return updates


def _updates(binding: _Binding) -> tuple[ModuleUpdate, ...]:
    by_module: dict[str, dict[str, str]] = {}
    for name in sorted(binding.tensors):
        key = binding.keys[name] = parse_adapter_key(name, binding.config)
        if key.kind != "delta":
            continue
        plain = name.removeprefix("base_model.model.")
        if plain in binding.beneath:
            # A base whose own tensors are called like an adapter's: this is a bias or a saved module.
            module, _, parameter = plain.rpartition(".")
            binding.keys[name] = AdapterKey(module, parameter, "full")
            continue
        by_module.setdefault(key.module, {})[key.parameter] = name
    found = []
    for module, parameters in sorted(by_module.items()):
        targets = binding.targets(module)
        if not targets:
            binding.absent += parameters.values()
        for target in targets:
            if not any(binding.config.raw.get(member) for member in _OTHER_SHAPES):
                try:
                    check_fits(
                        {parameter: binding.tensors[name] for parameter, name in parameters.items()},
                        binding.beneath[target].shape,
                    )
                except Misfit as misfit:
                    binding.misfit(parameters[misfit.parameter], target)
            found.append(ModuleUpdate(module, target, parameters))
    return tuple(found)


def _configured_targets(binding: _Binding) -> list[str]:
    """For kinds whose file names no module (UniLoRA keeps one shared vector): what the config says."""
    wanted = binding.config.target_modules
    if wanted is None or isinstance(wanted, str):
        # One regular expression, from outside: not run. The embedding and files stand for the base instead.
        return []
    ends = frozenset(wanted)
    found = []
    for name, tensor in binding.beneath.items():
        module = name.removesuffix(".weight")
        if module == name or len(tensor.shape) < 2:
            continue
        parts = module.split(".")
        if any(".".join(parts[start:]) in ends for start in range(len(parts))):
            found.append(name)
    return found


def _check_ranks(config: AdapterConfig, updates: Iterable[ModuleUpdate], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuses LoRA factors whose rank is not the config's; peft would not load them."""
    if config.peft_type != "LORA" or config.r is None or config.rank_pattern or config.target_parameters:
        return
    for update in updates:
        for parameter in ("lora_A.weight", "lora_embedding_A"):
            name = update.parameters.get(parameter)
            if name is not None and tensors[name].shape[:1] != (config.r,):
                rank = tensors[name].shape[0] if tensors[name].shape else 0
                raise BadAdapterError(f"{name} has rank {rank}, the config says {config.r}", object=name)


def adapter_effects(
    config: AdapterConfig,
    adapter_tensors: Mapping[str, StoredTensor],
    beneath: Mapping[str, StoredTensor],
    beneath_files: Mapping[str, ContentId],
) -> tuple[tuple[Effect, ...], tuple[Ground, ...]]:
    """What a PEFT adapter does, bound to what lies beneath it.

    An update (LoRA, IA3 ...) ``modifies`` the weight of its module. A whole tensor (``base_layer``, a bias, an
    embedding, a copy of ``modules_to_save``) ``replaces`` the base's where it differs, and only stands on it where it
    is equal; where none lies beneath it ``adds``. One effect per tensor: what both replaces and modifies, replaces.
    An adapter that updates no weight stands on config, tokenizer and input embedding.

    Args:
        config: The adapter's config.
        adapter_tensors: The tensors of its file, by their names there.
        beneath: The logical tensors that it is put on.
        beneath_files: The files that it is put on, SHA-256 by path.

    Returns:
        The effects and the further ground, each sorted as a behavior record demands.

    Raises:
        WrongBaseError: A tensor that it needs is absent, ambiguous or of another shape; names the tensors.
        BadAdapterError: Two whole tensors for one place, or a rank that is not the config's.
    """
    binding = _Binding(config, adapter_tensors, beneath, TensorNames(beneath))
    updates = _updates(binding)
    modified = {update.target for update in updates}
    kinds = {key.kind for key in binding.keys.values()}
    if not modified and "shared" in kinds:
        modified.update(_configured_targets(binding))
    written, equal = _whole_tensors(binding)
    binding.check()
    _check_ranks(config, updates, adapter_tensors)
    effects = []
    for target in sorted(modified | set(written)):
        lies = beneath.get(target)
        ground = None if lies is None else Ground.tensor(target, lies)
        if target in written:
            value = Ground.tensor(target, written[target])
            effects.append(Effect("tensor", target, "adds" if ground is None else "replaces", ground, value))
        else:
            effects.append(Effect("tensor", target, "modifies", ground, None))
    grounds = {name: Ground.tensor(name, beneath[name]) for name in equal - modified - set(written)}
    files: list[Ground] = []
    if not modified or "prompt" in kinds:
        embedding = binding.names.input_embedding()
        if embedding is not None and embedding not in written:
            grounds[embedding] = Ground.tensor(embedding, beneath[embedding])
        files = [
            Ground("file", path, beneath_files[path])
            for path in sorted((CONFIG_FILE, *TOKENIZER_FILES))
            if path in beneath_files
        ]
    return tuple(effects), (*files, *(grounds[name] for name in sorted(grounds)))


def _whole_tensors(binding: _Binding) -> tuple[dict[str, StoredTensor], set[str]]:
    """What the adapter's whole tensors write, by logical name, and the names of those beneath that they equal."""
    written: dict[str, StoredTensor] = {}
    equal: set[str] = set()
    sources: dict[str, str] = {}
    for name in sorted(binding.tensors):
        key, tensor = binding.keys[name], binding.tensors[name]
        if key.kind != "full":
            continue
        found = binding.full(key)
        saved = not key.beneath and binding.config.saves_module(key.module)
        target = None if found is None else found.name
        if target is None and not saved and key.parameter == "weight":
            target = binding.names.tied(key.module)
        if target is None and not saved and key.parameter == "bias":
            target = binding.names.tied_bias(key.module)
        if target is None:
            tied = binding.names.tied(key.module) if key.parameter == "weight" else None
            if tied is not None and binding.beneath[tied] == tensor:
                equal.add(tied)  # a saved copy of a tied output layer that was not trained
                continue
            if not saved and (key.beneath or key.parameter == "bias"):
                binding.absent.append(name)
                continue
            target = _without_prefix(key.tensor, binding.prefixes)
        elif binding.beneath[target] == tensor:
            equal.add(target)
            continue
        elif not _replaceable(key.module, tensor, binding.beneath[target]):
            binding.misfit(name, target)
            continue
        if sources.get(target, name) != name and written[target] != tensor:
            raise BadAdapterError(f"{sources[target]} and {name} are two values for {target}", object=target)
        written[target], sources[target] = tensor, name
    return written, equal - set(written)


def _replaceable(module: str, tensor: StoredTensor, lies: StoredTensor) -> bool:
    """Whether the shapes are equal, or differ as an embedding's do that was given more tokens."""
    if tensor.shape == lies.shape:
        return True
    return is_embedding(module) and len(tensor.shape) == len(lies.shape) == 2 and tensor.shape[1] == lies.shape[1]


def _without_prefix(name: str, prefixes: Iterable[Prefix]) -> str:
    """A new tensor's logical name: without the model prefix that the base's names have not."""
    for prefix in prefixes:
        if prefix.removed and not prefix.added and name.startswith(prefix.removed + "."):
            return re.sub(rf"^{re.escape(prefix.removed)}\.", "", name)
    return name
