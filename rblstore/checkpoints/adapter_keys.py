"""What the name of a tensor in an adapter's file says: which module it belongs to, and what it is there.

peft (0.21) saves ``base_model.model.<module>.<parameter>`` without the adapter's own name. <parameter> begins with the
kind's prefix (``lora_A.weight``, ``ia3_l``). What has no such part is a whole tensor that stands in for the base's: a
copy from ``modules_to_save``, a bias, an embedding, or, with ``.base_layer.`` in between, the weight under the adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from rblstore.checkpoints.adapter_config import AdapterConfig

KeyKind = Literal["delta", "full", "inert", "prompt", "shared"]

# Where a kind's parameters do not simply begin with its own name in lower case.
_PREFIXES = MappingProxyType({
    "LORA": ("lora_", "trainable_tokens_"),
    "ADALORA": ("lora_", "ranknum", "trainable_tokens_"),
    "LOHA": ("hada_",),
    "ADAPTION_PROMPT": ("adaption_",),
    "LN_TUNING": ("ln_tuning_layers",),
})  # fmt: skip
_ANY_PREFIX = (
    "adamss_", "adaption_", "beft_", "boft_", "c3a_", "deft_", "delora_", "fourierft_", "frod_", "glora_", "gralora_",
    "hada_", "hira_", "hra_", "ia3_", "lily_", "ln_tuning_layers", "lokr_", "lora_", "miss_", "oft_", "osf_", "peanut_",
    "poly_", "psoft_", "pvera_", "randlora_", "ranknum", "road_", "shadow_", "shira_", "supertuning_", "tinylora_",
    "trainable_tokens_", "unilora_", "vblora_", "vera_", "waveft_",
)  # fmt: skip
_PROMPTS = ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows", "prompt_encoder")
# Wrappers that appear in a name between the base's module and the parameter, and are none of the base's.
_WRAPPERS = ("base_layer", "token_adapter", "_fsdp_wrapped_module", "_orig_mod")
# Copies that bias="all" saves by accident and that no loader reads (seen with peft 0.21: X.original_module.bias and
# X.modules_to_save.bias beside X.bias).
_INERT = ("original_module", "modules_to_save")


@dataclass(frozen=True)
class AdapterKey:
    """One tensor name of an adapter's file, taken apart.

    Attributes:
        module: The base's module, without wrappers; empty for what belongs to no module.
        parameter: What is left of the name: ``lora_A.weight``, ``weight``, ``prompt_embeddings``.
        kind: ``delta`` (part of an update), ``full`` (a whole tensor of the base), ``shared`` (used by every layer),
            ``prompt`` (virtual tokens), ``inert`` (saved by accident, never read).
        beneath: Whether a full tensor lies under an update of the same module (``.base_layer.``).
    """

    module: str
    parameter: str
    kind: KeyKind
    beneath: bool = False

    @property
    def tensor(self) -> str:
        """For a full tensor, the name that it would have in the base."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter


def _strip(name: str, config: AdapterConfig | None) -> str:
    if config is not None and config.is_prompt_learning:
        # Prompt learning wraps the model itself, not a tuner around it, so there is one level less.
        return name.removeprefix("base_model.")
    if name.startswith("base_model.model."):
        return name.removeprefix("base_model.model.")
    return name.removeprefix("base_model.")


def parse_adapter_key(name: str, config: AdapterConfig | None = None) -> AdapterKey:
    """Takes the name of a saved adapter tensor apart.

    Args:
        name: As in ``adapter_model.safetensors``.
        config: The adapter's config; with it only that kind's own parameters are recognised, so that a base whose
            modules are called ``road_net`` or ``vera_head`` is not mistaken.
    """
    if name.split(".", 1)[0] in _PROMPTS:
        return AdapterKey("", name, "prompt")
    parts = _strip(name, config).split(".")
    if config is None:
        prefixes: tuple[str, ...] = _ANY_PREFIX
    elif config.is_prompt_learning:
        prefixes = ()
    else:
        prefixes = _PREFIXES.get(config.peft_type, (config.peft_type.lower() + "_",))
    # The last such part: a module of the base may carry the prefix too, but it comes before the parameter.
    start = next((at for at in reversed(range(len(parts))) if parts[at].startswith(prefixes)), None)
    if start is None:
        if any(part in _INERT for part in parts[:-1]):
            return AdapterKey(".".join(part for part in parts[:-1] if part not in _INERT), parts[-1], "inert")
        module = [part for part in parts[:-1] if part not in _WRAPPERS]
        return AdapterKey(".".join(module), parts[-1], "full", "base_layer" in parts[:-1])
    module = [part for part in parts[:start] if part not in _WRAPPERS]
    parameter = ".".join(parts[start:])
    if not module:
        return AdapterKey("", parameter, "shared")
    if parts[start].startswith("adaption_"):
        return AdapterKey(".".join(module), parameter, "prompt")
    if parts[start] == "ln_tuning_layers":
        # LN tuning keeps whole layer norms, not differences.
        return AdapterKey(".".join(module), ".".join(parts[start + 1 :]), "full", beneath=True)
    return AdapterKey(".".join(module), parameter, "delta")
