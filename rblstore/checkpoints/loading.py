"""Loads a Hugging Face directory and adapters into memory: local files only, safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from rblstore.checkpoints.attaching import (
    LIBRARY_ERRORS,
    SEED,
    AttachSpec,
    LoadMismatchError,
    UnattachableError,
    adapter_shapes,
    attach_adapters,
    read_adapter_config,
)
from rblstore.checkpoints.model_class import (
    UnloadableModelError,
    architecture,
    architecture_for_task,
    class_named,
    read_config,
)
from rblstore.checkpoints.quiet import quiet
from rblstore.errors import RblError

__all__ = [
    "AttachSpec",
    "DeviceError",
    "LoadMismatchError",
    "ModelForm",
    "UnattachableError",
    "UnloadableModelError",
    "load_directory",
    "load_plain",
    "model_form",
]

Tensors = Callable[[], Mapping[str, torch.Tensor]]

_LABELLED_HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")


class DeviceError(RblError):
    """A device that is not there, or has no room for the model."""

    code: ClassVar[str] = "no_device"


@dataclass(frozen=True)
class ModelForm:
    """Which class loads a directory's model.

    Attributes:
        name: The class.
        labels: How many classes its head tells apart, where adapters decide that; else None.
        switched: Whether adapters need another class than the config names.
    """

    name: str
    labels: int | None = None
    switched: bool = False

    def fits(self, model: Any) -> bool:
        """Whether a plain model is of this form."""
        return type(model).__name__ == self.name and self.labels in (None, getattr(model.config, "num_labels", None))


def model_form(directory: Path, adapters: Sequence[AttachSpec] = ()) -> ModelForm:
    """The class that a directory's config names, or the one with the head that the adapters' task needs.

    Args:
        directory: Holds ``config.json``.
        adapters: What is to be attached.

    Raises:
        UnloadableModelError: No class of transformers' own fits, or the config reaches outside the directory.
        UnattachableError: Two adapters need different heads.
    """
    config = read_config(directory)
    own = architecture(config)
    form, switched_by = ModelForm(own), ""
    for spec in adapters:
        task = read_adapter_config(spec.directory).get("task_type")
        shapes = adapter_shapes(spec.directory)
        wanted = architecture_for_task(config, task if isinstance(task, str) else None, shapes)
        if wanted == own:
            continue
        if form.switched and wanted != form.name:
            raise UnattachableError(
                f"the behaviors {switched_by!r} and {spec.name!r} need different heads ({form.name}, {wanted})",
                object=spec.name,
            )
        labels = form.labels or next((shape[0] for key, shape in shapes.items() if _is_labelled(key, shape)), None)
        form, switched_by = ModelForm(wanted, labels, switched=True), spec.name
    return form


def load_directory(
    directory: Path,
    adapters: Sequence[AttachSpec] = (),
    *,
    tensors: Tensors | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    attn_implementation: str | None = None,
) -> Any:
    """The model of a directory with adapters attached, as transformers and PEFT load them.

    The class is the config's own where transformers itself has it. Where an adapter's task needs a head that this class
    lacks, the class with that head is used and the head starts from a fixed seed, for the adapter to fill.

    Args:
        directory: A Hugging Face directory with ``config.json`` and safetensors weights.
        adapters: What to attach, in order.
        tensors: Gives the weights by their stored names, in the directory's stead; asked for once the rest is ready.
            The model keeps the tensors themselves, where their element type is the model's.
        dtype: Of the model's own weights; None for the dtype that is stored.
        device: Where to put the model.
        attn_implementation: ``eager``, ``sdpa`` and so on; None for transformers' choice.

    Returns:
        A transformers model in evaluation mode, or a PEFT model around it where adapters were given.

    Raises:
        UnloadableModelError: No class of transformers' own fits, or the config reaches outside the directory.
        LoadMismatchError: Weights are missing, left over or of another shape.
        DeviceError: The model cannot be put on the device.
        UnattachableError: An adapter cannot be attached.
    """
    model = load_plain(
        directory,
        model_form(directory, adapters),
        tensors,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
    )
    return attach_adapters(model, adapters)


def _is_labelled(key: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and any(key.endswith(f".{head}") for head in _LABELLED_HEADS)


def load_plain(
    directory: Path,
    form: ModelForm,
    tensors: Tensors | None,
    *,
    dtype: torch.dtype | None,
    device: str,
    attn_implementation: str | None,
) -> Any:
    """The model of a directory as a class of transformers, without adapters; see :func:`load_directory`."""
    from transformers import AutoConfig

    kind = class_named(form.name)
    extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        # Weights that the class adds (another head) are drawn at random: always the same ones, from no one's generator.
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(SEED)
            config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            if form.labels is not None:
                config.num_labels = form.labels
            weights = None if tensors is None else dict(sorted(tensors().items()))
            model, report = kind.from_pretrained(
                str(directory) if weights is None else None,
                config=config,
                state_dict=weights,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below by name
                **{_dtype_argument(): "auto" if dtype is None else dtype},
                **extra,
            )
            if weights is not None:
                _name_after(model, directory)
    except LIBRARY_ERRORS as error:
        raise LoadMismatchError(
            f"{directory.name} cannot be loaded as {form.name}: {error}", object=str(directory)
        ) from error
    _check_report(directory.name, kind, report, switched=form.switched)
    try:
        return model.to(device)
    except LIBRARY_ERRORS as error:
        raise DeviceError(f"the model cannot be put on {device!r}: {error}", object=device) from error


def _name_after(model: Any, directory: Path) -> None:
    """What loading the directory itself would leave on the model, besides its weights."""
    from transformers import GenerationConfig

    model.config.name_or_path = model.name_or_path = str(directory)
    if model.can_generate() and (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(directory), local_files_only=True)


def _dtype_argument() -> str:
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _check_report(where: str, kind: Any, report: dict[str, Any], *, switched: bool) -> None:
    """Refuses what transformers only warns about."""
    missing = sorted(map(str, report.get("missing_keys", ())))
    unexpected = sorted(map(str, report.get("unexpected_keys", ())))
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get("mismatched_keys", ()))
    errors = [str(error) for error in report.get("error_msgs", ())]
    if switched:
        # The head that the config names is left over, and the one that the task needs is new. The body must match.
        prefix = f"{kind.base_model_prefix}."
        missing = [key for key in missing if key.startswith(prefix) and not _is_pooler(key)]
        unexpected = []
    if missing or unexpected or wrong or errors:
        raise LoadMismatchError(
            f"{where} does not fit {kind.__name__}: "
            + "; ".join(
                f"{label} {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
                for label, names in _labelled(missing, unexpected, wrong, errors)
            ),
            object=where,
            hint="config.json and the weights are not of one model.",
        )


def _is_pooler(key: str) -> bool:
    return ".pooler." in f".{key}"


def _labelled(
    missing: Iterable[str], unexpected: Iterable[str], wrong: Iterable[str], errors: Iterable[str]
) -> list[tuple[str, list[str]]]:
    found = [
        ("missing", list(missing)),
        ("left over", list(unexpected)),
        ("of another shape", list(wrong)),
        ("errors", list(errors)),
    ]
    return [(label, names) for label, names in found if names]
