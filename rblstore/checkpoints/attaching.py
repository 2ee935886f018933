"""Attaches PEFT adapters to a model in memory, as PEFT's own loader does, several in order and with weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import errors
from safetensors import SafetensorError, safe_open
from torch import nn

from rblstore.checkpoints.ledger import Attached, Ledger, PlainState, keep_ledger, ledger_of, marks
from rblstore.checkpoints.live_names import live_name, name_parts
from rblstore.checkpoints.plain_view import plain_model, plain_tensors
from rblstore.checkpoints.quiet import quiet
from rblstore.errors import ConflictError, InputError, RblError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json


def _hub_errors() -> tuple[type[Exception], ...]:
    """What configs that check their own members raise; newer versions of huggingface_hub have it."""
    found = getattr(errors, "StrictDataclassError", None)
    return () if found is None else (found,)


# What PEFT, transformers and torch raise on configs and tensors that do not fit; their messages go on in ours.
LIBRARY_ERRORS: tuple[type[Exception], ...] = (
    *_hub_errors(),
    re.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
# Kinds whose loading reads other models or adapters that the config names.
_REFUSED_KINDS = frozenset({"XLORA", "SHADOW"})
# Members that PEFT imports from, loads a pickle from, or rebuilds the model by.
_REFUSED_MEMBERS = ("megatron_config", "layer_replication", "corda_config", "lora_ga_config")
SEED = 20_260_303


class UnattachableError(ConflictError):
    """PEFT cannot put an adapter on this model, or not together with the others."""

    code: ClassVar[str] = "unattachable"


class LoadMismatchError(ConflictError):
    """The tensors of a directory are not those of the model that it describes."""

    code: ClassVar[str] = "load_mismatch"


class UnusedTensorsError(LoadMismatchError):
    """An adapter holds tensors that the model it is put on has no use for."""

    code: ClassVar[str] = "unused_tensors"


@dataclass(frozen=True)
class AttachSpec:
    """One adapter to attach.

    Attributes:
        name: The slot's name.
        directory: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        weight: What its update is multiplied by; 1.0 leaves PEFT's own scaling.
    """

    name: str
    directory: Path
    weight: float = 1.0


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The parsed ``adapter_config.json``, refused where loading it would import or read something elsewhere.

    Raises:
        UnattachableError: Missing, or of a kind that is not loaded.
        InputError: Not strict JSON.
    """
    path = directory / "adapter_config.json"
    if not path.is_file() or not (directory / "adapter_model.safetensors").is_file():
        raise UnattachableError(
            f"{directory.name}: adapter_config.json and adapter_model.safetensors are not both there",
            object=str(directory),
        )
    with path.open("rb") as file:
        data = file.read(limits.ADAPTER_CONFIG_BYTES + 1)
    config = decode_json(data, what="adapter_config.json", max_bytes=limits.ADAPTER_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise InputError("adapter_config.json: not a JSON object", object=str(path))
    if not isinstance(kind := config.get("peft_type"), str):
        raise InputError("adapter_config.json: no peft_type", object=str(path))
    if kind in _REFUSED_KINDS:
        raise UnattachableError(f"{directory.name}: adapters of kind {kind} load other models", object=str(path))
    for member in _REFUSED_MEMBERS:
        if config.get(member):
            raise UnattachableError(f"{directory.name}: adapters with '{member}' are not loaded", object=str(path))
    return config


def adapter_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an adapter directory, from the file's header.

    Raises:
        InputError: The file is not a safetensors file.
    """
    path = directory / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.name}: {error}", object=str(path)) from error


def _config_object(spec: AttachSpec) -> Any:
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = read_adapter_config(spec.directory).get("peft_type")
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind, None)
    if known is None:
        raise UnattachableError(
            f"behavior {spec.name!r}: {kind!r} is no kind of adapter that PEFT has", object=spec.name
        )
    config: PeftConfig = known.from_pretrained(str(spec.directory))
    config.inference_mode = True
    return config


def _first(model: nn.Module, config: Any, live: str) -> Any:
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    return kind(model, config, live, autocast_adapter_dtype=True)


def _load(peft_model: Any, spec: AttachSpec, live: str, device: str) -> None:
    """Loads an adapter's tensors and refuses what PEFT passes over with a warning, or without one."""
    mapping = None
    if not peft_model.peft_config[live].is_prompt_learning:
        mapping = getattr(peft_model.get_base_model(), "_checkpoint_conversion_mapping", {})
    result = peft_model.load_adapter(
        str(spec.directory),
        live,
        is_trainable=False,
        torch_device=device,
        autocast_adapter_dtype=True,
        key_mapping=mapping,
        local_files_only=True,
    )
    prompt = peft_model.peft_config[live].is_prompt_learning
    # With bias="all" PEFT saves the biases of wrapped modules twice, once under a name that it never reads.
    unexpected = [] if prompt else sorted(key for key in result.unexpected_keys if ".modules_to_save." not in key)
    # PEFT takes every key for this adapter's that has its name anywhere: those of "polite2" for "polite", too.
    lacking = (key for key in result.missing_keys if live in key.split("."))
    missing = sorted(key for key in lacking if not any(part in key for part in SHARED_TENSORS))
    if missing or unexpected:
        named = ", ".join([*missing, *unexpected][:8])
        kind = LoadMismatchError if missing else UnusedTensorsError
        raise kind(
            f"behavior {spec.name!r}: {len(missing)} tensors that the model needs are missing, "
            f"{len(unexpected)} have no place in it: {named}",
            object=spec.name,
            hint="Was the adapter trained on another model?",
        )


# Tensors that PEFT rebuilds or shares between layers and so leaves out of the file.
SHARED_TENSORS = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")


def _scale(peft_model: Any, entry: Attached) -> None:
    """Multiplies PEFT's own scaling by the weight; always from the first value, so that it never compounds."""
    if not entry.scalings:
        for module in peft_model.modules():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, dict) and entry.live in scaling:
                entry.scalings.append((scaling, scaling[entry.live]))
    if entry.weight != 1.0 and not entry.scalings:
        raise UnattachableError(
            f"behavior {entry.slot!r}: its kind of adapter has nothing that a weight of {entry.weight} could scale",
            object=entry.slot,
            hint="Use the weight 1.0.",
        )
    for scaling, original in entry.scalings:
        scaling[entry.live] = original if entry.weight == 1.0 else original * entry.weight


def activate(peft_model: Any, ledger: Ledger) -> None:
    """Makes exactly the ledger's behaviors active, in its order and with its weights.

    Raises:
        UnattachableError: PEFT cannot have them active together.
    """
    names = [entry.live for entry in ledger.attached]
    slots = ", ".join(repr(entry.slot) for entry in ledger.attached)
    config = peft_model.peft_config[names[0]]
    if len(names) > 1 and (config.is_prompt_learning or config.is_adaption_prompt):
        raise UnattachableError(f"only one adapter of kind {config.peft_type.value} can be active, not {slots}")
    try:
        peft_model.active_adapter = names[0]
        if config.is_prompt_learning or config.is_adaption_prompt:
            peft_model.set_adapter(names[0], inference_mode=True)
        else:
            peft_model.base_model.set_adapter(names, inference_mode=True)
    except LIBRARY_ERRORS as error:
        raise UnattachableError(f"the behaviors {slots} cannot be active together: {error}", object=slots) from error
    for entry in ledger.attached:
        _scale(peft_model, entry)
    for parameter in peft_model.parameters():
        if parameter.is_leaf:
            parameter.requires_grad_(False)
    peft_model.eval()


def _give_up(peft_model: Any, ledger: Ledger, live: str) -> None:
    """Takes out what a failed attempt left, so that the model works as before it."""
    if not ledger.attached:
        ledger.plain.put_back()
        return
    with quiet():
        if live in peft_model.peft_config:
            peft_model.base_model.set_adapter([entry.live for entry in ledger.attached][:1], inference_mode=True)
            peft_model.delete_adapter(live)
        activate(peft_model, ledger)


def attach_adapters(model: nn.Module, specs: Sequence[AttachSpec]) -> nn.Module:
    """Attaches adapters to a model, after those that it has already, and activates all in order.

    The model's own modules are used, not copied; what they were is remembered so that detaching puts them back.

    Args:
        model: A transformers model, or a PEFT model that this function returned.
        specs: What to attach, in order.

    Returns:
        The PEFT model; the same object where one was given, the model itself where there is nothing to attach.

    Raises:
        UnattachableError: PEFT refuses an adapter, a weight, or the combination.
        LoadMismatchError: Tensors are missing, or have no place in the model.
        InputError: A config or file breaks its rules.
    """
    if not specs:
        return model
    peft_model: Any = model if ledger_of(model) is not None else None
    ledger = ledger_of(model) or Ledger(PlainState.of(plain_model(model)))
    parts = name_parts(plain_tensors(model).keys())
    device = str(next(iter(plain_tensors(model).values())).device)
    taken = {entry.slot for entry in ledger.attached}
    for spec in specs:
        if spec.name in taken:
            raise UnattachableError(f"a behavior {spec.name!r} is attached already", object=spec.name)
        taken.add(spec.name)
        before = marks(model)
        live = live_name(spec.name, parts)
        try:
            # PEFT draws random numbers for tensors that it then overwrites: nobody else's generator may notice.
            with quiet(), torch.random.fork_rng():
                torch.manual_seed(SEED)
                config = _config_object(spec)
                if peft_model is None:
                    peft_model = _first(model, config, live)
                else:
                    peft_model.add_adapter(live, config, autocast_adapter_dtype=True)
                _load(peft_model, spec, live, device)
        except RblError:
            _give_up(peft_model, ledger, live)
            raise
        except LIBRARY_ERRORS as error:
            _give_up(peft_model, ledger, live)
            raise UnattachableError(f"behavior {spec.name!r} cannot be attached: {error}", object=spec.name) from error
        after = marks(peft_model)
        replaced = frozenset(name for name, mark in before.items() if after.get(name) != mark)
        ledger.attached.append(Attached(spec.name, live, spec.weight, replaced))
        keep_ledger(peft_model, ledger)
    activate(peft_model, ledger)
    attached: nn.Module = peft_model
    return attached
