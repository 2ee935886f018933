"""Elimination by magnitude against sorting everything, and noise that depends on nothing but seed and name."""

from __future__ import annotations

import math

import pytest
import torch

from rblstore.divergence.elimination import Elimination
from rblstore.divergence.perturbations import (
    PAPER,
    BadPerturbationError,
    Perturbation,
    add_noise,
    add_uniform,
    check_alpha,
    check_epsilon,
    dropped,
    generator_for,
    in_region,
    layer_count,
    parse_perturbation,
    perturb,
)

EPSILONS = (0.0, 0.001, 0.2, 0.5, 0.77, 1.0)


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Three tensors with many equal magnitudes, zeros of both signs among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b": (7, 11), "a": (40,), "c": (3, 5, 2)}
    found = {name: torch.randn(shape, generator=generator).mul_(4).round_().div_(4) for name, shape in shapes.items()}
    found["a"][::7] = -0.0
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def by_sorting(
    tensors: dict[str, torch.Tensor], ground: dict[str, torch.Tensor] | None, epsilon: float
) -> dict[str, torch.Tensor]:
    """The same by a stable sort of all elements, tensors in the order of their names."""
    names = sorted(tensors)
    flat = torch.cat([tensors[name].reshape(-1) for name in names])
    beneath = torch.zeros_like(flat) if ground is None else torch.cat([ground[name].reshape(-1) for name in names])
    whole = flat.view(torch.int32 if flat.element_size() == 4 else torch.int16)
    counted = torch.ones_like(flat, dtype=torch.bool) if ground is None else whole != beneath.view(whole.dtype)
    places = counted.nonzero()[:, 0]
    order = (flat.float() - beneath.float()).abs()[places].argsort(stable=True)
    gone = places[order[: round(epsilon * len(places))]]
    flat[gone] = beneath[gone]
    parts = flat.split([tensors[name].numel() for name in names])
    return {name: part.reshape(tensors[name].shape) for name, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("over", [False, True], ids=["zero", "beneath"])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_elimination_takes_the_smallest_first(epsilon: float, over: bool, dtype: torch.dtype) -> None:
    tensors, ground = drawn(1, dtype), drawn(2, dtype) if over else None
    expected = by_sorting({name: one.clone() for name, one in tensors.items()}, ground, epsilon)
    plan = Elimination(tensors, ground, EPSILONS)
    gone = plan.apply(epsilon)
    assert gone == round(epsilon * plan.elements)
    for name, tensor in tensors.items():
        assert tensor.equal(expected[name]), name
        assert tensor.signbit().equal(expected[name].signbit()), name


def test_elimination_of_everything_leaves_what_is_beneath_to_the_bit() -> None:
    tensors, ground = drawn(1), drawn(2)
    ground["a"][3], tensors["a"][3] = 0.0, -0.0  # no difference in value is one in bits
    Elimination(tensors, ground, (1.0,)).apply(1.0)
    assert all(tensors[name].view(torch.int32).equal(ground[name].view(torch.int32)) for name in tensors)


def test_elimination_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = drawn(3), drawn(3)
    Elimination(whole, None, (0.5,)).apply(0.5)
    monkeypatch.setattr("rblstore.divergence.perturbations._BLOCK", 16)
    Elimination(cut, None, (0.5,)).apply(0.5)
    assert all(whole[name].equal(cut[name]) for name in whole)


def test_noise_depends_on_seed_and_name_alone() -> None:
    one, turned, other = drawn(0), dict(reversed(drawn(0).items())), drawn(0)
    add_noise(one, 0.1, 5)
    add_noise(turned, 0.1, 5)
    add_noise(other, 0.1, 6)
    assert all(one[name].equal(turned[name]) for name in one)
    assert not any(one[name].equal(other[name]) for name in one)
    alone = {"b": drawn(0)["b"]}
    add_noise(alone, 0.1, 5)
    assert alone["b"].equal(one["b"])
    renamed = {"x": drawn(0)["b"]}
    add_noise(renamed, 0.1, 5)
    assert not renamed["x"].equal(one["b"])
    assert not torch.rand(3, generator=generator_for("a", 0, "n")).equal(
        torch.rand(3, generator=generator_for("b", 0, "n"))
    )


def test_noise_does_not_depend_on_threads() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            tensors = {"w": torch.zeros(100_000)}
            add_noise(tensors, 1.0, 0)
            found.append(tensors["w"])
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1])


def test_noise_has_the_moments_that_it_should() -> None:
    tensors = {"w": torch.full((200_000,), 2.0, dtype=torch.float64)}
    add_noise(tensors, 0.25, 1)
    noise = tensors["w"] - 2.0
    assert abs(float(noise.mean())) < 0.005
    assert abs(float(noise.std()) - 0.25) < 0.005
    uniform = {"w": torch.zeros(200_000)}
    add_uniform(uniform, 0.05, 1, purpose="test")
    assert float(uniform["w"].abs().max()) <= 0.05
    assert abs(float(uniform["w"].std()) - 0.05 / math.sqrt(3)) < 0.001


def test_the_sum_is_rounded_once() -> None:
    tensors = {"w": torch.ones(1000, dtype=torch.bfloat16)}
    add_noise(tensors, 0.01, 0)
    noise = torch.randn(1000, generator=generator_for("mutation", 0, "w")).mul_(0.01)
    assert tensors["w"].equal((torch.ones(1000) + noise).bfloat16())


def test_perturbations_are_read_and_written() -> None:
    assert [str(one) for one in PAPER] == ["drop:0.25", "scale:0.9", "normal:0.01", "uniform:0.05@middle"]
    for one in (*PAPER, Perturbation("scale", -1.5, "last"), Perturbation("normal", 1e-9, "first")):
        assert parse_perturbation(str(one)) == one


@pytest.mark.parametrize(
    "text",
    [
        "", "drop", "drop:", "drop:x", "drop:0", "drop:1.5", "drop:nan", "scale:1", "scale:inf", "normal:-1",
        "normal:0", "uniform:0.1@nowhere", "uniform:0.1@", "flip:0.5", "uniform:@middle",
    ],
)  # fmt: skip
def test_what_is_no_perturbation_is_refused(text: str) -> None:
    with pytest.raises(BadPerturbationError):
        parse_perturbation(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, True, "1"])
def test_numbers_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(BadPerturbationError, match="alpha"):
        check_alpha(value)
    with pytest.raises(BadPerturbationError, match="epsilon"):
        check_epsilon(value)


def test_seeds_out_of_range_are_refused() -> None:
    for seed in (-1, 1 << 53, True):
        with pytest.raises(BadPerturbationError):
            generator_for("a", seed, "n")


def test_regions_are_thirds_of_the_model() -> None:
    names = [f"model.layers.{layer}.w" for layer in range(10)] + ["embed.weight"]
    assert layer_count(names) == 10
    found = {region: in_region(names, region, 10) for region in ("first", "middle", "last", "all")}
    assert found["first"] == tuple(names[:3])
    assert found["middle"] == tuple(names[3:7])
    assert found["last"] == tuple(names[7:10])
    assert found["all"] == tuple(names)
    assert in_region(names[:2], "last", 2) == tuple(names[:2])


def test_dropping_a_fraction_of_tensors() -> None:
    names = [f"w{number}" for number in range(8)]
    assert len(dropped(names, 0.25, 0)) == 2
    assert len(dropped(names, 0.001, 0)) == 1
    assert dropped(names, 1.0, 0) == tuple(names)
    assert dropped(names[::-1], 0.25, 0) == dropped(names, 0.25, 0)
    assert len({dropped(names, 0.25, seed) for seed in range(10)}) > 1


def test_perturbing_what_differs_from_beneath() -> None:
    for kind, expected in (("scale", 1.5), ("drop", 1.0)):
        tensors, ground = {"w": torch.full((4,), 2.0)}, {"w": torch.ones(4)}
        perturb(tensors, Perturbation(kind, 0.5 if kind == "scale" else 1.0), 0, ground)  # type: ignore[arg-type]
        assert tensors["w"].tolist() == [expected] * 4
    tensors = {"w": torch.full((4,), 2.0), "new": torch.full((2,), 2.0)}
    perturb(tensors, Perturbation("drop", 1.0), 0, {"w": torch.ones(4)})
    assert (tensors["w"].tolist(), tensors["new"].tolist()) == ([1.0] * 4, [0.0] * 2)
    for kind, expected in (("scale", 1.0), ("drop", 0.0)):
        tensors = {"w": torch.full((4,), 2.0)}
        perturb(tensors, Perturbation(kind, 0.5 if kind == "scale" else 1.0), 0)  # type: ignore[arg-type]
        assert tensors["w"].tolist() == [expected] * 4
