"""Weight-based adaptation of a model in memory, as the studies of arXiv 2603.02934 do it: training that writes.

Structured fine-tuning there is ten AdamW steps at 5e-5 on the last four layers. What the paper leaves open is decided
here: each step takes a few of the sequences, drawn by the seed; losses are means over a sequence, then over those; the
optimizer works on float32 copies of the trained tensors, since most steps of that size would vanish in bfloat16;
dropout is on, and draws by the seed. Beside the model that takes memory for the trained tensors alone: gradients, the
optimizer's two moments, and the float32 copies where the model holds another type.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.nn import functional

from rblstore.divergence.model_limits import vocabulary_of
from rblstore.divergence.recipes import Recipe
from rblstore.errors import InputError

Task = Literal["causal", "masked", "classes"]
Losses = Callable[[int], torch.Tensor]
"""The loss of one sequence, by its place, with gradients."""

_MASKED_SHARE: Final = 0.15


class UntrainableModelError(InputError):
    """The model cannot be adapted this way, or training it gave no finite numbers."""

    code = "untrainable_model"


def task_of(model: nn.Module) -> Task:
    """What a model learns: the next token, what was masked, or the class of a sequence.

    Raises:
        UntrainableModelError: None of these: an encoder-decoder, a model without a head, several labels at once.
    """
    unwrap = getattr(model, "get_base_model", None)
    base = unwrap() if callable(unwrap) else model
    name, config = type(base).__name__, getattr(base, "config", None)
    encodes_and_decodes = getattr(config, "is_encoder_decoder", False) is True
    if not encodes_and_decodes:
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal"
        if name.endswith("ForMaskedLM"):
            return "masked"
        one_class = getattr(config, "problem_type", None) in (None, "single_label_classification")
        if name.endswith("ForSequenceClassification") and one_class and getattr(config, "num_labels", 0) > 1:
            return "classes"
    raise UntrainableModelError(
        f"a {name} is not trained here: only causal and masked language models and classifiers of one label are",
        object=name,
        hint="Study other mechanisms of it: --mechanism.",
    )


def last_layers(model: nn.Module, count: int) -> dict[str, nn.Parameter]:
    """The parameters of a model's last layers.

    Args:
        model: Its layers are the modules of the list that holds most parameters.
        count: How many, from the end.

    Returns:
        By name, in the model's order; a parameter that is shared comes once.

    Raises:
        UntrainableModelError: The model has no list of layers.
    """
    lists = [
        (sum(parameter.numel() for parameter in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    size, prefix, layers = max(lists, key=lambda found: found[0], default=(0, "", nn.ModuleList()))
    if not size:
        raise UntrainableModelError(
            f"a {type(model).__name__} has no list of layers whose last ones could be trained",
            object=type(model).__name__,
        )
    first = max(0, len(layers) - count)
    found: dict[str, nn.Parameter] = {}
    for place in range(first, len(layers)):
        for name, parameter in layers[place].named_parameters():
            if parameter.is_floating_point() and not any(parameter is other for other in found.values()):
                found[f"{prefix}.{place}.{name}" if prefix else f"{place}.{name}"] = parameter
    return found


def fine_tune(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    sequences: Sequence[Sequence[int]],
    recipe: Recipe,
    seed: int,
) -> list[float]:
    """Trains some of a model's parameters in place, on token sequences.

    Causal language models learn the next token (a sequence needs two of them). Masked ones have 15 % of the tokens, at
    least one, replaced by random ones, and learn what was there; without a tokenizer nobody knows the mask token.
    Classifiers learn a label that is drawn at random for each sequence, since there are none.

    Args:
        model: A transformers model, peft-wrapped or not.
        parameters: What is trained, by name; nothing else changes.
        sequences: Token ids, one forward pass each.
        recipe: How.
        seed: Of drawing sequences, tokens, labels and dropout.

    Returns:
        The loss of each step before it, nats.

    Raises:
        UntrainableModelError: Another kind of model, no usable sequence, or a loss that is not finite.
    """
    task = task_of(model)
    device = next(model.parameters()).device
    usable = [list(sequence) for sequence in sequences if len(sequence) > (1 if task == "causal" else 0)]
    if not usable:
        raise UntrainableModelError(
            "no sequence has the two tokens that predicting the next one takes" if sequences else "nothing to train on",
            hint="Train on a probe of longer prompts.",
        )
    generator = torch.Generator().manual_seed(seed)
    labels = [0] * len(usable)
    if task == "classes":
        classes = int(getattr(getattr(model, "config", None), "num_labels", 2))
        labels = torch.randint(classes, (len(usable),), generator=generator).tolist()

    def loss(place: int) -> torch.Tensor:
        tokens = torch.tensor(usable[place], dtype=torch.long)
        if task == "causal":
            ids = tokens.to(device)
            return functional.cross_entropy(_logits(model, ids)[:-1].float(), ids[1:])
        if task == "classes":
            logits = _logits(model, tokens.to(device)).reshape(1, -1)
            return functional.cross_entropy(logits.float(), torch.tensor([labels[place]], device=device))
        chosen = torch.randperm(len(tokens), generator=generator)[: max(1, round(_MASKED_SHARE * len(tokens)))]
        shown = tokens.clone()
        shown[chosen] = torch.randint(
            vocabulary_of(model) or int(tokens.max()) + 1, (len(chosen),), generator=generator
        )
        places = chosen.to(device)
        return functional.cross_entropy(_logits(model, shown.to(device))[places].float(), tokens.to(device)[places])

    return train(model, parameters, loss, len(usable), recipe, seed)


def distil(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    sequences: Sequence[Sequence[int]],
    target: Callable[[int], torch.Tensor],
    recipe: Recipe,
    seed: int,
) -> list[float]:
    """Trains some of a model's parameters in place towards recorded outputs: KL(recorded || model), means over rows.

    Args:
        model: As for :func:`fine_tune`; any that gives logits will do.
        parameters: What is trained, by name.
        sequences: Token ids, one forward pass each.
        target: The recorded logits of a sequence by its place, (positions, vocabulary); the last positions of it.
        recipe: How.
        seed: Of drawing sequences and dropout.

    Returns:
        The loss of each step before it, nats.

    Raises:
        UntrainableModelError: The recorded outputs are not this model's, or a loss is not finite.
    """
    device = next(model.parameters()).device

    def loss(place: int) -> torch.Tensor:
        ours = _logits(model, torch.tensor(list(sequences[place]), dtype=torch.long, device=device))
        theirs = target(place).to(device)
        ours = ours.reshape(-1, ours.shape[-1])[-theirs.shape[0] :]
        if ours.shape != theirs.shape:
            raise UntrainableModelError(
                f"recorded outputs of shape {tuple(theirs.shape)} are no target for a model that gives "
                f"{tuple(ours.shape)}",
                hint="Record the baseline of this very model.",
            )
        logs = torch.log_softmax(theirs.float(), dim=-1)
        return functional.kl_div(torch.log_softmax(ours.float(), dim=-1), logs, reduction="batchmean", log_target=True)

    return train(model, parameters, loss, len(sequences), recipe, seed)


def check_distillable(model: nn.Module, sequence: Sequence[int]) -> None:
    """Refuses a model that :func:`distil` cannot train, after one forward pass.

    Args:
        model: As there.
        sequence: Token ids that it can read.

    Raises:
        UntrainableModelError: It gives no logits, or cannot be run on tokens alone.
    """
    ids = torch.tensor(list(sequence), dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        try:
            _run(lambda _: _logits(model, ids), 0)
        except UntrainableModelError as error:
            raise UntrainableModelError(
                f"{error.message}, so nothing is distilled", object=error.object, hint="Name other resets: --reset."
            ) from error


def train(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    loss: Losses,
    sequences: int,
    recipe: Recipe,
    seed: int,
) -> list[float]:
    """AdamW on some parameters, in place; everything else, the model's modes and torch's generators stay as they are.

    Args:
        model: What is trained.
        parameters: Which of its parameters.
        loss: Of one sequence.
        sequences: How many there are.
        recipe: How.
        seed: Of drawing sequences and dropout.

    Returns:
        The loss of each step before it, nats.

    Raises:
        UsageError: The recipe is out of range.
        UntrainableModelError: A loss is not finite, or the model cannot be run.
    """
    recipe.check()
    trained = list(parameters.values())
    drawing = torch.Generator().manual_seed(seed)
    found: list[float] = []
    with _training(model, trained, seed):
        masters = [parameter.detach().to(torch.float32, copy=parameter.dtype != torch.float32) for parameter in trained]
        optimizer = torch.optim.AdamW(masters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        for step in range(recipe.steps):
            rows = torch.randint(sequences, (recipe.rows,), generator=drawing).tolist()
            total = 0.0
            for row in rows:
                part = _run(loss, row) / len(rows)
                part.backward()
                total += float(part.detach())
            if not math.isfinite(total):
                raise UntrainableModelError(f"the loss of step {step + 1} is {total}", hint="A smaller learning rate.")
            found.append(total)
            _step(optimizer, masters, trained)
    return found


def _step(optimizer: torch.optim.Optimizer, masters: Sequence[torch.Tensor], trained: Sequence[nn.Parameter]) -> None:
    for master, parameter in zip(masters, trained, strict=True):
        master.grad = None if parameter.grad is None else parameter.grad.to(torch.float32)
        parameter.grad = None
    optimizer.step()
    with torch.no_grad():
        for master, parameter in zip(masters, trained, strict=True):
            if master.data_ptr() != parameter.data_ptr():
                parameter.copy_(master)


def _run(loss: Losses, row: int) -> torch.Tensor:
    try:
        return loss(row)
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UntrainableModelError(
            f"the model cannot be trained on sequence {row + 1} ({type(error).__name__}: {str(error)[:300]})"
        ) from error


def _logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    arguments: dict[str, Any] = {"input_ids": ids[None]}
    if hasattr(getattr(model, "config", None), "use_cache"):
        arguments["use_cache"] = False
    outputs = model(**arguments)
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, torch.Tensor):
        raise UntrainableModelError(f"a {type(model).__name__} gives no logits", object=type(model).__name__)
    return logits[0]


@contextlib.contextmanager
def _training(model: nn.Module, trained: Sequence[nn.Parameter], seed: int) -> Iterator[None]:
    """Training mode with gradients for these parameters alone, and random numbers of this seed; undone afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    chosen = {id(parameter) for parameter in trained}
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        model.train()
        try:
            for parameter, _, _ in flags:
                parameter.grad = None
                parameter.requires_grad_(id(parameter) in chosen)
            with torch.enable_grad():
                yield
        finally:
            for parameter, flag, gradient in flags:
                parameter.requires_grad_(flag)
                parameter.grad = gradient
            for module, training in modes:
                module.training = training
