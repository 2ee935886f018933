"""Structured fine-tuning, distillation and the resets without a snapshot, on tiny models."""

from __future__ import annotations

import io
from typing import Any

import pytest
import tiny_models
import torch

from rblstore.divergence.adaptations import (
    UntrainableModelError,
    distil,
    fine_tune,
    last_layers,
    task_of,
    train,
)
from rblstore.divergence.recipes import Recipe
from rblstore.divergence.resets import EightBitCopy, pull_back, subtract_estimate
from rblstore.errors import UsageError

SEQUENCES = [[5, 17, 80, 3, 42, 11], [7, 7, 1, 90, 33], [9]]
QUICK = Recipe(steps=3, learning_rate=1e-3, layers=1, rows=2)


def values(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(float((a[name].float() - b[name].float()).square().sum()) for name in a) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "task", "prefix"),
    [
        (tiny_models.llama, "causal", "model.layers.1."),
        (lambda dtype: tiny_models.bert("BertForMaskedLM", dtype=dtype), "masked", "bert.encoder.layer.1."),
        (
            lambda dtype: tiny_models.bert("BertForSequenceClassification", dtype=dtype),
            "classes",
            "bert.encoder.layer.1.",
        ),
    ],
    ids=["causal", "masked", "classes"],
)
def test_the_last_layers_alone_learn(make: Any, task: str, prefix: str, dtype: torch.dtype) -> None:
    model = make(dtype=dtype)
    assert task_of(model) == task
    before, flags = values(model), [parameter.requires_grad for parameter in model.parameters()]
    random = torch.random.get_rng_state()

    losses = fine_tune(model, last_layers(model, 1), SEQUENCES, QUICK, 3)

    touched = changed(model, before)
    assert touched
    assert all(name.startswith(prefix) for name in touched)
    assert len(losses) == 3
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert torch.equal(random, torch.random.get_rng_state())


def test_training_lowers_the_loss_and_goes_by_the_seed() -> None:
    def trained(seed: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        model = tiny_models.llama()
        losses = fine_tune(model, last_layers(model, 2), SEQUENCES, Recipe(steps=12, learning_rate=3e-3), seed)
        return losses, values(model)

    losses, once = trained(1)
    assert losses[-1] < losses[0] - 0.05
    again, other = trained(1)[1], trained(2)[1]
    assert distance(once, again) == 0
    assert distance(once, other) > 0


def test_small_steps_are_not_lost_in_bfloat16() -> None:
    """Added to bfloat16 weights one by one, steps of 5e-5 would leave those above 0.02 where they are."""
    model = tiny_models.llama(dtype=torch.bfloat16)
    parameter = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        parameter.fill_(0.05)

    def loss(row: int) -> torch.Tensor:
        return parameter.float().sum()

    train(model, {"weight": parameter}, loss, 1, Recipe(steps=20, learning_rate=5e-5, weight_decay=0.0), 0)
    # 20 steps of 5e-5 are 1e-3, four times the distance between two such numbers of bfloat16.
    assert float(parameter.detach()[0, 0]) == pytest.approx(0.049, abs=1.3e-4)


def test_all_layers_where_there_are_fewer() -> None:
    model = tiny_models.llama(layers=2)
    names = {name.split(".")[2] for name in last_layers(model, 4)}
    assert names == {"0", "1"}
    with pytest.raises(UntrainableModelError, match="no list of layers"):
        last_layers(torch.nn.Linear(2, 2), 4)


@pytest.mark.parametrize("make", [tiny_models.t5, tiny_models.bert, lambda: torch.nn.Linear(2, 2)])
def test_what_is_not_trained_here_is_said(make: Any) -> None:
    with pytest.raises(UntrainableModelError, match="is not trained here"):
        task_of(make())


def test_sequences_too_short_and_losses_that_are_no_numbers() -> None:
    model = tiny_models.llama()
    with pytest.raises(UntrainableModelError, match="two tokens"):
        fine_tune(model, last_layers(model, 1), [[5], [6]], QUICK, 0)
    with pytest.raises(UntrainableModelError, match="cannot be trained on sequence 1"):
        fine_tune(model, last_layers(model, 1), [[5, 10_000]], QUICK, 0)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(UntrainableModelError, match="loss of step 1 is nan"):
        fine_tune(model, last_layers(model, 1), SEQUENCES, QUICK, 0)
    assert not model.training


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": True},
        {"layers": -1},
        {"rows": 1.5},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1e-3},
        {"learning_rate": "fast"},
    ],
)
def test_a_recipe_out_of_range_names_the_number(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Recipe(**wrong).check()


def test_distillation_comes_nearer_and_not_back() -> None:
    model = tiny_models.llama()
    base = values(model)
    with torch.no_grad():
        recorded = [model(input_ids=torch.tensor([tokens])).logits[0] for tokens in SEQUENCES]
    fine_tune(model, last_layers(model, 2), SEQUENCES, Recipe(steps=10, learning_rate=3e-3), 1)

    losses = distil(
        model, last_layers(model, 2), SEQUENCES, recorded.__getitem__, Recipe(steps=20, learning_rate=1e-3, rows=3), 1
    )

    assert losses[-1] < losses[0] / 2
    assert changed(model, base)
    with pytest.raises(UntrainableModelError, match="no target"):
        distil(model, last_layers(model, 2), SEQUENCES, lambda row: recorded[row][:, :5], QUICK, 1)


def test_pull_back_takes_out_the_noise_that_it_can() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(64, 64, generator=generator) * 0.05 + 0.3}
    noisy = {"w": base["w"] + torch.randn(64, 64, generator=generator) * 0.05}
    pulled = {"w": noisy["w"].clone()}
    pull_back(pulled, 0.05)
    # The best that a factor can do for equal variances is to halve the squared distance.
    assert distance(pulled, base) == pytest.approx(distance(noisy, base) / 2**0.5, rel=0.05)
    flat = {"w": torch.full((4,), 0.5), "one": torch.tensor([2.0])}
    pull_back(flat, 1.0)
    assert torch.equal(flat["w"], torch.full((4,), 0.5))
    assert torch.equal(flat["one"], torch.tensor([2.0]))
    with pytest.raises(UsageError, match="size of a change"):
        pull_back(flat, -1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_eight_bit_copy_is_near_and_not_the_same(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {
        "w": torch.randn(6, 4, 3, generator=generator).to(dtype),
        "b": torch.randn(7, generator=generator).to(dtype),
        "zero": torch.zeros(3, 2, dtype=dtype),
        "scalar": torch.tensor(0.75, dtype=dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
    }
    copy = EightBitCopy(io.BytesIO())
    copy.keep(base)
    live = {name: torch.full_like(tensor, 9.0) for name, tensor in base.items()}
    copy.put(live)
    for name, tensor in base.items():
        if name in ("zero", "empty", "scalar"):
            assert torch.equal(live[name], tensor)
            continue
        rows = tensor.float().reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.float()[None]
        bound = rows.abs().amax(dim=1, keepdim=True) / 127 * 0.51 + rows.abs() * torch.finfo(dtype).eps
        assert bool(((live[name].float().reshape(rows.shape) - rows).abs() <= bound).all())
        assert not torch.equal(live[name], tensor)


def test_large_tensors_are_worked_on_in_blocks_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from rblstore.divergence import perturbations, resets

    base = {"w": torch.randn(40, 7, generator=torch.Generator().manual_seed(0))}

    def results() -> list[torch.Tensor]:
        found = []
        for change in (lambda live: pull_back(live, 0.5), eight_bit, subtract):
            live = {"w": base["w"].clone()}
            change(live)
            found.append(live["w"])
        return found

    def eight_bit(live: dict[str, torch.Tensor]) -> None:
        copy = EightBitCopy(io.BytesIO())
        copy.keep(live)
        live["w"].zero_()
        copy.put(live)

    def subtract(live: dict[str, torch.Tensor]) -> None:
        subtract_estimate(live, lambda: live["w"].mul_(1.5))

    whole = results()
    monkeypatch.setattr(resets, "_BLOCK", 21)
    monkeypatch.setattr(perturbations, "_BLOCK", 21)
    for one, other in zip(whole, results(), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)
        assert not torch.equal(one, base["w"])


def test_an_estimate_of_the_delta_is_taken_back_twice() -> None:
    weight = torch.tensor([1.0, 2.0])
    tensors = {"w": weight}
    subtract_estimate(tensors, lambda: weight.add_(0.25))
    assert tensors["w"].tolist() == [0.75, 1.75]
