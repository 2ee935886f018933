"""Strict reading of ``adapter_config.json``: data, never a reason to import, execute or fetch anything.

What each member means is peft's business (checked against 0.21); here its type is checked, and the few members by
which a config makes peft import a module or read another file are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json

PROMPT_TYPES = frozenset({
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
})  # fmt: skip

PEFT_TYPES = PROMPT_TYPES | {
    "LORA", "ADALORA", "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD",
    "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT",
    "POLY", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS",
    "UNILORA", "VBLORA", "VERA", "WAVEFT",
}  # fmt: skip

TASK_TYPES = frozenset({
    "SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION",
})  # fmt: skip

# For these tasks peft saves the head whether or not modules_to_save names it (PeftModelFor*.add_adapter).
_HEADS = MappingProxyType({
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
})  # fmt: skip

_TEXTS = (
    "base_model_name_or_path", "revision", "peft_version", "megatron_core", "tokenizer_name_or_path",
    "prompt_tuning_init_text", "prompt_tuning_init_state_dict_path",
)  # fmt: skip
_FLAGS = (
    "inference_mode", "fan_in_fan_out", "use_dora", "use_rslora", "use_qalora", "lora_bias", "ensure_weight_tying",
    "save_projection", "save_precomputed_indices",
)  # fmt: skip
_OBJECTS = ("auto_mapping", "megatron_config", "tokenizer_kwargs", "loftq_config", "adapters")
_NAMES = (
    "target_modules", "modules_to_save", "exclude_modules", "target_parameters", "feedforward_modules",
    "layers_pattern",
)  # fmt: skip

# Every entry is compared with every part of every name, as peft does.
_MOST_SAVED = 1000
# How peft starts an adapter that takes a part of the base weight away when it is attached (peft/tuners/lora/layer.py).
_MUTATING = ("pissa", "corda", "olora", "loftq", "lora_ga")
# Members that make a LoRA layer compute something else than base + scale * B A x, or do something to the model first.
_VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "velora_config", "monteclora_config", "layer_replication", "target_parameters", "trainable_token_indices",
    "ensure_weight_tying", "megatron_config",
)  # fmt: skip


class BadAdapterConfigError(InputError):
    """An ``adapter_config.json`` breaks the rules for it."""

    code = "bad_adapter_config"


@dataclass(frozen=True)
class AdapterConfig:
    """What an ``adapter_config.json`` says.

    Attributes:
        peft_type: The kind of adapter, as peft spells it (``LORA``).
        task_type: peft's task, or None.
        base_model_name_or_path: What it says it was trained on, or None.
        revision: Of that base, or None.
        bias: ``none``, ``all`` or ``<kind>_only``.
        modules_to_save: Ends of names of modules whose whole copy the adapter carries, as the file says.
        target_modules: Ends of module names, or one regular expression, or None.
        target_parameters: Ends of names of bare parameters (fused experts).
        fan_in_fan_out: Whether the targets' weights are stored (in, out), as Conv1D does.
        use_dora: Weight-decomposed LoRA.
        use_rslora: Scaled by alpha / sqrt(r) in place of alpha / r.
        r: Rank, or None where the kind has none.
        lora_alpha: Numerator of the scale, or None.
        rank_pattern: Rank by module pattern (LoRA); empty for AdaLoRA, whose own meaning it has.
        alpha_pattern: Alpha by module pattern.
        trainable_token_indices: Token ids, or token ids by module name, or None.
        layer_replication: (start, end) ranges of layers that the model is rebuilt of; empty where it is not.
        raw: Every member as parsed.
    """

    peft_type: str
    task_type: str | None
    base_model_name_or_path: str | None
    revision: str | None
    bias: str
    modules_to_save: tuple[str, ...]
    target_modules: tuple[str, ...] | str | None
    target_parameters: tuple[str, ...]
    fan_in_fan_out: bool
    use_dora: bool
    use_rslora: bool
    r: int | None
    lora_alpha: float | None
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None
    layer_replication: tuple[tuple[int, int], ...]
    raw: Mapping[str, Any]

    @property
    def is_prompt_learning(self) -> bool:
        """Whether it puts virtual tokens before the input and touches no weight."""
        return self.peft_type in PROMPT_TYPES

    @property
    def has_implied_head(self) -> bool:
        """Whether peft saves and expects a head with it because of its task alone."""
        return self.task_type in _HEADS

    @property
    def saved_modules(self) -> tuple[str, ...]:
        """Ends of names of the modules that the adapter brings whole copies of, the task's head included."""
        return tuple(dict.fromkeys((*self.modules_to_save, *_HEADS.get(self.task_type or "", ()))))

    @property
    def mutates_base(self) -> bool:
        """Whether attaching it changes the base weight beneath it (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, KaSA)."""
        start = self.raw.get("init_lora_weights")
        return (isinstance(start, str) and start.lower().startswith(_MUTATING)) or bool(self.raw.get("kasa_config"))

    @property
    def is_plain_lora(self) -> bool:
        """Whether all that it does is to add scale * B A to weights (rsLoRA and ranks per layer included)."""
        return (
            self.peft_type == "LORA"
            and self.bias == "none"
            and not self.saved_modules
            and not self.mutates_base
            and not any(self.raw.get(member) for member in _VARIANTS)
        )

    def saves_module(self, module: str) -> bool:
        """Whether the adapter brings a whole copy of this module or of one around it.

        As peft does, any module whose name ends with an entry counts: ``head`` matches ``lm_head``.
        """
        return saved_wrapper(self, module) is not None


def saved_wrapper(config: AdapterConfig, module: str) -> str | None:
    """The module that peft wraps for ``modules_to_save`` at or around this one, or None."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if any(path.endswith(entry) for entry in config.saved_modules):
            return path
    return None


def _refuse(member: str, why: str, hint: str | None = None) -> BadAdapterConfigError:
    return BadAdapterConfigError(f"adapter_config.json: {member[:80]!r} {why}", object=member[:80], hint=hint)


def _text(raw: Mapping[str, Any], member: str) -> str | None:
    value = raw.get(member)
    if value is not None and (not isinstance(value, str) or "\0" in value or len(value) > limits.TEXT_BYTES):
        raise _refuse(member, "is not text")
    return value


def _flag(raw: Mapping[str, Any], member: str) -> bool:
    value = raw.get(member)
    if value is not None and type(value) is not bool:
        raise _refuse(member, "is not true or false")
    return bool(value)


def _names(raw: Mapping[str, Any], member: str) -> tuple[str, ...] | str | None:
    value = raw.get(member)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _refuse(member, "is not a list of names")
    if member == "modules_to_save" and len(value) > _MOST_SAVED:
        raise _refuse(member, f"holds {len(value)} entries, more than the {_MOST_SAVED} allowed")
    return tuple(dict.fromkeys(value))


def _as_tuple(names: tuple[str, ...] | str | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def _number(raw: Mapping[str, Any], member: str) -> float | None:
    value = raw.get(member)
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _refuse(member, "is not a finite number")
    return float(value)


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _rank_pattern(raw: Mapping[str, Any], peft_type: str) -> Mapping[str, int]:
    value = raw.get("rank_pattern") or {}
    if not isinstance(value, dict):
        raise _refuse("rank_pattern", "is not a JSON object")
    if peft_type != "LORA":
        return MappingProxyType({})
    if not all(_is_rank(item) for item in value.values()):
        raise _refuse("rank_pattern", "holds something that is not a rank")
    return MappingProxyType(dict(value))


def _alpha_pattern(raw: Mapping[str, Any]) -> Mapping[str, float]:
    value = raw.get("alpha_pattern") or {}
    if not isinstance(value, dict):
        raise _refuse("alpha_pattern", "is not a JSON object")
    if not all(type(item) in (int, float) and math.isfinite(item) for item in value.values()):
        raise _refuse("alpha_pattern", "holds something that is not a number")
    return MappingProxyType({key: float(item) for key, item in value.items()})


def _indices(value: object, member: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise _refuse(member, "is not a list of token ids")
    return tuple(value)


def _token_indices(raw: Mapping[str, Any]) -> tuple[int, ...] | Mapping[str, tuple[int, ...]] | None:
    member = "token_indices" if raw.get("peft_type") == "TRAINABLE_TOKENS" else "trainable_token_indices"
    value = raw.get(member)
    if value is None:
        return None
    if isinstance(value, dict):
        return MappingProxyType({key: _indices(item, member) for key, item in value.items()})
    return _indices(value, member)


def _replication(raw: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    value = raw.get("layer_replication")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _refuse("layer_replication", "is not a list of ranges")
    found = []
    total = 0
    for item in value:
        ends = item if isinstance(item, list) else []
        if len(ends) != 2 or not all(type(end) is int for end in ends) or not 0 <= ends[0] < ends[1]:
            raise _refuse("layer_replication", "is not a list of ranges")
        total += ends[1] - ends[0]
        found.append((ends[0], ends[1]))
    if total > 100_000:
        raise _refuse("layer_replication", f"asks for {total} layers")
    return tuple(found)


def _remote_code(value: object) -> bool:
    if isinstance(value, dict):
        return any((key == "trust_remote_code" and bool(item)) or _remote_code(item) for key, item in value.items())
    return isinstance(value, list) and any(_remote_code(item) for item in value)


def _refuse_reaching_out(raw: Mapping[str, Any], peft_type: str) -> None:
    """Refuses the members by which a config makes peft import a module or load something else than its own file.

    ``auto_mapping`` (read by AutoPeftModel alone) and ``runtime_config`` (dropped by peft on reading) are only data.
    """
    if _remote_code(raw):
        raise _refuse("trust_remote_code", "asks for code from elsewhere to be run", "Remove it from the config.")
    if raw.get("megatron_config") is not None:
        # LoRA's dispatch calls importlib.import_module(config.megatron_core).
        raise _refuse("megatron_config", "makes peft import the module that 'megatron_core' names")
    if peft_type == "SHADOW" and raw.get("shadow_model", "mirror") != "mirror":
        raise _refuse("shadow_model", "makes peft load another model")
    member = "prompt_tuning_init_state_dict_path"
    own = raw.get("prompt_tuning_init") in (None, "RANDOM", "TEXT", "SAMPLE_VOCAB")
    if raw.get(member) is not None and not own:
        raise _refuse(member, "makes peft load another file", "Set prompt_tuning_init to RANDOM.")


def parse_adapter_config(data: bytes) -> AdapterConfig:
    """Reads the bytes of an ``adapter_config.json``, which may be hostile.

    Members that no version here knows are kept as data: newer versions of peft add some with every release.

    Raises:
        BadAdapterConfigError: Not an object, not a kind of adapter that can be kept, a member of the wrong type, or one
            that would make peft import or load something.
    """
    try:
        raw = decode_json(data, what="adapter_config.json", max_bytes=limits.ADAPTER_CONFIG_BYTES)
    except InputError as error:
        raise BadAdapterConfigError(error.message, object=error.object) from error
    if not isinstance(raw, dict):
        raise BadAdapterConfigError("adapter_config.json is not a JSON object", object="adapter_config.json")
    peft_type = raw.get("peft_type")
    if peft_type == "XLORA":
        raise _refuse("peft_type", "is XLORA, which loads other adapters from the paths that it names")
    if not isinstance(peft_type, str) or peft_type not in PEFT_TYPES:
        why = f"is {str(peft_type)[:40]!r}, not a kind of adapter that is known"
        raise _refuse("peft_type", why, "Upgrade rblstore, or convert the adapter.")
    _refuse_reaching_out(raw, peft_type)
    task_type = raw.get("task_type")
    if task_type is not None and (not isinstance(task_type, str) or task_type not in TASK_TYPES):
        raise _refuse("task_type", "is not one of peft's tasks")
    for member in _TEXTS:
        _text(raw, member)
    for member in _FLAGS:
        _flag(raw, member)
    for member in _OBJECTS:
        if raw.get(member) is not None and not isinstance(raw[member], dict):
            raise _refuse(member, "is not a JSON object")
    names = {member: _names(raw, member) for member in _NAMES}
    bias = raw.get("bias", "none")
    if not isinstance(bias, str) or not (bias in ("none", "all") or bias.endswith("_only")):
        raise _refuse("bias", "is none of none, all, <kind>_only")
    rank = raw.get("r")
    if rank is not None and not _is_rank(rank):
        if peft_type in ("LORA", "ADALORA") or type(rank) not in (int, float):
            raise _refuse("r", "is not a rank")
        rank = None
    return AdapterConfig(
        peft_type=peft_type,
        task_type=task_type,
        base_model_name_or_path=_text(raw, "base_model_name_or_path"),
        revision=_text(raw, "revision"),
        bias=bias,
        modules_to_save=_as_tuple(names["modules_to_save"]),
        target_modules=names["target_modules"],
        target_parameters=_as_tuple(names["target_parameters"]),
        fan_in_fan_out=_flag(raw, "fan_in_fan_out"),
        use_dora=_flag(raw, "use_dora"),
        use_rslora=_flag(raw, "use_rslora"),
        r=rank,
        lora_alpha=_number(raw, "lora_alpha"),
        rank_pattern=_rank_pattern(raw, peft_type),
        alpha_pattern=_alpha_pattern(raw),
        trainable_token_indices=_token_indices(raw),
        layer_replication=_replication(raw),
        raw=MappingProxyType(raw),
    )
