"""Which transformers class loads a directory: one that the library itself lists, never code beside the weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json

CONFIG_BYTES = 16 << 20
_DISTRIBUTED_SHARD = "shard-[0-9]*-model-[0-9]*-of-[0-9]*.safetensors"

# Auto class and its table for each task that PEFT knows.
_TASKS = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "SEQ_CLS": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    "TOKEN_CLS": ("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"),
    "QUESTION_ANS": ("AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    "FEATURE_EXTRACTION": ("AutoModel", "MODEL_MAPPING_NAMES"),
}


class UnloadableModelError(InputError):
    """A directory holds no model that can be loaded without code of its own."""

    code: ClassVar[str] = "unloadable_model"


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a directory, refused where loading it would reach outside the directory.

    Raises:
        UnloadableModelError: Missing, not an object, or naming files or kernels elsewhere.
        InputError: Not strict JSON.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UnloadableModelError(f"{directory.name}: there is no config.json", object=str(path))
    with path.open("rb") as file:
        data = file.read(CONFIG_BYTES + 1)
    config = decode_json(data, what="config.json", max_bytes=CONFIG_BYTES, max_entries=limits.JSON_ENTRIES)
    if not isinstance(config, dict):
        raise UnloadableModelError("config.json: not a JSON object", object=str(path))
    weights = config.get("transformers_weights")
    if weights is not None and (not isinstance(weights, str) or "/" in weights or "safetensors" not in weights):
        raise UnloadableModelError("config.json: 'transformers_weights' names no safetensors file", object=str(path))
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        # A slash makes transformers fetch a kernel, which is code, from a hub.
        if "/" in str(config.get(key, "")) or isinstance(config.get(key), dict):
            raise UnloadableModelError(f"config.json: '{key}' names a kernel to fetch", object=str(path))
    if (directory / "adapter_config.json").exists():
        raise UnloadableModelError(
            f"{directory.name}: a model with an adapter inside it cannot be loaded as an identity",
            object=str(directory),
            hint="Keep the adapter in a directory of its own and commit it as a behavior.",
        )
    if any(directory.glob(_DISTRIBUTED_SHARD)):
        raise UnloadableModelError(f"{directory.name}: a distributed checkpoint", object=str(directory))
    return config


def reads_other_weights(directory: Path) -> bool:
    """Whether loading the directory takes more than its tensors: they are quantized, or in files of other names.

    Raises:
        UnloadableModelError, InputError: As for :func:`read_config`.
    """
    config = read_config(directory)
    return any(config.get(key) is not None for key in ("quantization_config", "transformers_weights"))


def _tables() -> dict[str, dict[str, Any]]:
    from transformers.models.auto import modeling_auto

    return {
        name: value
        for name, value in vars(modeling_auto).items()
        if name.endswith("MAPPING_NAMES") and hasattr(value, "items")
    }


def _names(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def native_architectures(model_type: str) -> frozenset[str]:
    """Every class name that transformers' own tables list for a model type."""
    return frozenset(name for table in _tables().values() for name in _names(table.get(model_type)))


def task_architectures(task: str, model_type: str) -> tuple[str, ...]:
    """The class names that transformers lists for one of PEFT's tasks and a model type; () where there is none."""
    if task not in _TASKS:
        return ()
    return _names(_tables().get(_TASKS[task][1], {}).get(model_type))


def class_named(name: str) -> Any:
    """The transformers class of a name that :func:`native_architectures` gave."""
    return getattr(importlib.import_module("transformers"), name)


def architecture(config: dict[str, Any]) -> str:
    """The class name that a config asks for, or the bare model of its type where it names none.

    Raises:
        UnloadableModelError: transformers has no such class for this model type.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnloadableModelError("config.json: no model_type", hint="Add the model_type that transformers knows.")
    wanted: Sequence[Any] = config.get("architectures") or ()
    if not isinstance(wanted, list) or not wanted:
        wanted = task_architectures("FEATURE_EXTRACTION", model_type)[:1]
    native = native_architectures(model_type)
    if not wanted or not isinstance(wanted[0], str) or wanted[0] not in native:
        shown = str(wanted[0])[:80] if wanted else model_type[:80]
        raise UnloadableModelError(
            f"{shown!r} is not a class that transformers itself has for the model type {model_type[:80]!r}",
            object=shown,
            hint="Code beside the weights is never run; only architectures built into transformers are loaded.",
        )
    return wanted[0]


def _needs_bare_model(keys: Iterable[str], prefix: str) -> bool:
    """Whether an adapter's keys were made on the model without a head, so without the base model's own prefix."""
    return not any(key.startswith(f"base_model.model.{prefix}.") for key in keys)


def architecture_for_task(config: dict[str, Any], task: str | None, keys: Iterable[str]) -> str:
    """The class that an adapter's task needs: the config's own, or one with the task's head where it has none.

    Args:
        config: The identity's ``config.json``.
        task: The adapter's ``task_type``, or None.
        keys: The adapter's tensor names.

    Raises:
        UnloadableModelError: transformers has no class for this task and model type.
    """
    own = architecture(config)
    if task is None or task not in _TASKS:
        return own
    fitting = task_architectures(task, config["model_type"])
    if own in fitting:
        return own
    if task == "FEATURE_EXTRACTION":
        prefix = class_named(own).base_model_prefix
        keys = [key for key in keys if key.startswith("base_model.model.")]
        return fitting[0] if fitting and keys and prefix and _needs_bare_model(keys, prefix) else own
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and own not in task_architectures(
        "FEATURE_EXTRACTION", config["model_type"]
    ):
        return own  # some other class with a language model head, an image and text model for one
    if not fitting:
        raise UnloadableModelError(
            f"transformers has no {task} model of type {config['model_type']!r}", object=config["model_type"]
        )
    return fitting[0]
