"""Running a model over a probe, and its output values as bytes.

A model is measured as it stands: in evaluation mode, without gradients, autocast or a cache, one batch of the probe's
plan a forward pass. Its own modes are restored before any result is handed out.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch

from rblstore.divergence.alignment import aligned
from rblstore.divergence.metrics import NanOutputError
from rblstore.divergence.model_limits import context_of, vocabulary_of
from rblstore.errors import InputError
from rblstore.objects.dtypes import span_bytes
from rblstore.objects.evidence_records import Output, Probe, Prompt
from rblstore.objects.ids import ContentId

__all__ = [
    "BadValuesError",
    "PromptMeasurement",
    "UnmeasurableModelError",
    "aligned",
    "context_of",
    "dtype_name",
    "measure",
    "tensor_from_bytes",
    "values_bytes",
    "values_digest",
    "vocabulary_of",
]

_DTYPES: Final = MappingProxyType(
    {
        "BF16": torch.bfloat16,
        "F16": torch.float16,
        "F32": torch.float32,
        "F64": torch.float64,
    }
)
_NAMES: Final = MappingProxyType({dtype: name for name, dtype in _DTYPES.items()})

# What holds the result in the outputs of transformers models, the most telling first.
_OUTPUTS: Final[tuple[tuple[str, Output], ...]] = (
    ("logits", "logits"),
    ("prediction_logits", "logits"),
    ("last_hidden_state", "embedding"),
)
# What a model's own code raises when its input does not suit it.
_FORWARD_FAILURES: Final = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class UnmeasurableModelError(InputError):
    """The model cannot be run on token ids, or gives neither logits nor hidden states."""

    code = "unmeasurable_model"


class BadValuesError(InputError):
    """Recorded values do not have the element type or the size that their record says."""

    code = "bad_values"


@dataclass(frozen=True, eq=False)
class PromptMeasurement:
    """A model's output for one prompt.

    Attributes:
        id: The prompt's.
        values: (positions, width), contiguous, on the CPU, in the model's own output dtype.
        output: ``logits`` (a distribution over the last axis) or ``embedding`` (no distribution).
    """

    id: str
    values: torch.Tensor
    output: Output

    @property
    def shape(self) -> tuple[int, int]:
        """(positions, width)."""
        return (int(self.values.shape[0]), int(self.values.shape[1]))

    @property
    def dtype(self) -> str:
        """Element type, as safetensors names it."""
        return dtype_name(self.values)


def measure(model: torch.nn.Module, probe: Probe) -> Iterator[PromptMeasurement]:
    """The model's outputs under a probe, in the order of its prompts.

    Causal and masked language models and token classifiers give a row for each token of the prompt (the last token's
    alone where the probe measures ``last``; virtual tokens of a prompt-tuned model are left out), sequence
    classifiers one row, encoder-decoders the row of the decoder's start token. A model without a head gives its last
    hidden states, as ``embedding``; what a regression or multi-label head gives is called that too, since it is no
    distribution over classes.

    Args:
        model: A transformers model, peft-wrapped or not, or a module from token ids (batch, tokens) to logits. Its
            tensors are moved to aligned addresses (see :func:`aligned`); nothing else of it changes.
        probe: Batches of one prompt are not padded; larger ones are padded on the right, with an attention mask.

    Raises:
        NanOutputError: NaN in the output, or logits that are no distribution; names the prompt.
        UnmeasurableModelError: The model cannot be run on a prompt, or its output is of no known kind; names the
            prompt.
    """
    call = _Call(aligned(model))
    waiting: dict[int, PromptMeasurement] = {}
    following = 0
    for batch in probe.batches:
        found = call.run([probe.prompts[place] for place in batch], last=probe.positions == "last")
        waiting.update(zip(batch, found, strict=True))
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def dtype_name(tensor: torch.Tensor) -> str:
    """The name that safetensors gives to a tensor's element type.

    Raises:
        UnmeasurableModelError: It is none of BF16, F16, F32 and F64.
    """
    if tensor.dtype not in _NAMES:
        raise UnmeasurableModelError(f"outputs of type {tensor.dtype} are not measured", object=str(tensor.dtype))
    return _NAMES[tensor.dtype]


def values_bytes(tensor: torch.Tensor) -> memoryview:
    """The values as raw little-endian row-major bytes; a view of the tensor's own memory where that is possible."""
    array = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    if sys.byteorder == "big":
        array = array.reshape(-1, tensor.element_size())[:, ::-1].copy().reshape(-1)
    return memoryview(array).toreadonly()


def values_digest(tensor: torch.Tensor) -> ContentId:
    """SHA-256 of the values' bytes: the id of the content they are stored as."""
    return ContentId(hashlib.sha256(values_bytes(tensor)).hexdigest())


def tensor_from_bytes(data: bytes | bytearray | memoryview, dtype_name: str, shape: Sequence[int]) -> torch.Tensor:
    """The tensor whose :func:`values_bytes` these are.

    Args:
        data: Raw little-endian row-major values. A bytearray becomes the tensor's memory; all else is copied.
        dtype_name: BF16, F16, F32 or F64.
        shape: Extents, outermost first.

    Raises:
        BadValuesError: Another element type, or not as many bytes as type and shape take.
    """
    if dtype_name not in _DTYPES:
        raise BadValuesError(f"recorded outputs cannot be of type {dtype_name[:32]!r}", object=dtype_name[:32])
    if len(data) != (size := span_bytes(dtype_name, shape)):
        raise BadValuesError(
            f"recorded values of {len(data)} bytes, where {dtype_name} of shape {list(shape)} takes {size}",
            hint="Run rbl fsck.",
        )
    dtype = _DTYPES[dtype_name]
    raw = data if isinstance(data, bytearray) else bytearray(data)
    if not raw:
        return torch.empty(tuple(shape), dtype=dtype)
    if sys.byteorder == "big":
        width = size // max(1, torch.Size(shape).numel())
        raw[:] = b"".join(raw[start : start + width][::-1] for start in range(0, size, width))
    return torch.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


class _Call:
    """How one model is called, found out once from its signature and config."""

    def __init__(self, model: torch.nn.Module) -> None:
        unwrap = getattr(model, "get_base_model", None)
        base = unwrap() if callable(unwrap) else model
        self._model = model
        self._config = getattr(base, "config", None)
        self._generation = getattr(base, "generation_config", None)
        self._parameters = inspect.signature(base.forward).parameters
        self._device = next((parameter.device for parameter in base.parameters()), torch.device("cpu"))
        # Classifiers built on an encoder-decoder feed the decoder themselves.
        self._decodes = (
            self._setting("is_encoder_decoder") is True
            and "decoder_input_ids" in self._parameters
            and "Classification" not in type(base).__name__
        )

    def _setting(self, name: str) -> Any:
        return getattr(self._config, name, None)

    def run(self, prompts: Sequence[Prompt], *, last: bool) -> list[PromptMeasurement]:
        """One forward pass over a batch of prompts."""
        named = ", ".join(repr(prompt.id) for prompt in prompts)
        width = max(len(prompt.tokens) for prompt in prompts)
        arguments = self._arguments(prompts, width, last=last)
        try:
            with _as_measured(self._model, self._device):
                outputs = self._call(arguments)
        except _FORWARD_FAILURES as error:
            raise UnmeasurableModelError(
                f"prompt {named}: the model's forward pass failed ({type(error).__name__}: {str(error)[:300]})",
                object=prompts[0].id,
                hint="Check that the probe was made for this model.",
            ) from error
        values, output = self._values(outputs, named)
        return [
            self._measurement(prompt, self._rows(values, place, len(prompt.tokens), width, last=last), output)
            for place, prompt in enumerate(prompts)
        ]

    def _arguments(self, prompts: Sequence[Prompt], width: int, *, last: bool) -> dict[str, Any]:
        padding = self._setting("pad_token_id")
        ids = torch.full((len(prompts), width), padding if isinstance(padding, int) else 0, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, : len(prompt.tokens)] = torch.tensor(prompt.tokens, dtype=torch.long)
            mask[place, : len(prompt.tokens)] = 1
        arguments: dict[str, Any] = {"input_ids": ids.to(self._device)}
        if len(prompts) > 1:
            arguments["attention_mask"] = mask.to(self._device)
        if "use_cache" in self._parameters:
            arguments["use_cache"] = False
        if self._config is not None and self._accepts("return_dict"):
            arguments["return_dict"] = True
        if self._decodes:
            arguments["decoder_input_ids"] = torch.full(
                (len(prompts), 1), self._decoder_start(), dtype=torch.long, device=self._device
            )
        elif last and len(prompts) == 1 and "logits_to_keep" in self._parameters:
            # The logits of a long prompt over a large vocabulary would take gigabytes, of which one row is wanted.
            arguments["logits_to_keep"] = 1
        return arguments

    def _accepts(self, name: str) -> bool:
        kinds = {parameter.kind for parameter in self._parameters.values()}
        return name in self._parameters or inspect.Parameter.VAR_KEYWORD in kinds

    def _decoder_start(self) -> int:
        for source in (self._config, self._generation):
            for name in ("decoder_start_token_id", "bos_token_id"):
                if isinstance(token := getattr(source, name, None), int):
                    return token
        raise UnmeasurableModelError(
            "the encoder-decoder model names no token that its decoder starts with",
            object="decoder_start_token_id",
            hint="Set decoder_start_token_id in its config.",
        )

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        if self._accepts("input_ids"):
            return self._model(**arguments)
        others = {name: value for name, value in arguments.items() if name != "input_ids" and self._accepts(name)}
        return self._model(arguments["input_ids"], **others)

    def _values(self, outputs: Any, named: str) -> tuple[torch.Tensor, Output]:
        candidates = [(outputs, "logits")] if isinstance(outputs, torch.Tensor) else []
        candidates += [(getattr(outputs, name, None), output) for name, output in _OUTPUTS]
        for values, output in candidates:
            if isinstance(values, torch.Tensor) and values.ndim in (2, 3):
                told = output == "logits" and self._is_distribution(values)
                return values.detach(), "logits" if told else "embedding"
        raise UnmeasurableModelError(
            f"prompt {named}: a {type(outputs).__name__} holds neither logits nor last hidden states",
            object=type(self._model).__name__,
        )

    def _is_distribution(self, values: torch.Tensor) -> bool:
        if values.ndim == 2 and self._setting("problem_type") in ("regression", "multi_label_classification"):
            return False
        return int(values.shape[-1]) > 1

    def _rows(self, values: torch.Tensor, place: int, length: int, width: int, *, last: bool) -> torch.Tensor | None:
        """The rows of one prompt, or None where there are fewer than tokens."""
        if values.ndim == 2:
            return values[place : place + 1]
        rows = int(values.shape[1])
        if self._decodes:
            return values[place, rows - 1 :] if rows else None
        # A prompt-tuned model puts its virtual tokens first; padding comes last.
        end = rows - width + length
        start = end - (1 if last else length)
        return values[place, start:end] if start >= 0 else None

    def _measurement(self, prompt: Prompt, rows: torch.Tensor | None, output: Output) -> PromptMeasurement:
        if rows is None:
            raise UnmeasurableModelError(
                f"prompt {prompt.id!r}: the model's output has fewer rows than the prompt has tokens", object=prompt.id
            )
        values = rows.to("cpu").contiguous()
        if values.untyped_storage().nbytes() > values.numel() * values.element_size():
            # A view would keep the whole batch's output in memory.
            values = values.clone()
        dtype_name(values)
        _refuse_nan(prompt, values, output)
        return PromptMeasurement(prompt.id, values, output)


@contextlib.contextmanager
def _as_measured(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    # Setting what is set already takes as long as a tenth of a short prompt's forward pass.
    if any(training for _, training in modes):
        model.eval()
    try:
        # Not inference_mode: what modules cache in it could never take part in training again.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


def _refuse_nan(prompt: Prompt, values: torch.Tensor, output: Output) -> None:
    if output == "embedding":
        whole = not bool(torch.isnan(values).any())
    else:
        whole = values.shape[1] > 0 and bool(torch.isfinite(values.amax(dim=1)).all())
    if not whole:
        what = "the output holds NaN" if output == "embedding" else "the logits hold NaN or are no distribution"
        raise NanOutputError(
            f"prompt {prompt.id!r}: {what}",
            object=prompt.id,
            hint="Look for NaN or overflowing weights in the composition.",
        )
