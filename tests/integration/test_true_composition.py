"""A composition computes what peft's own active adapters compute: attached to the bit, merged to the dtype's rounding.

The bound of the merged form: weights are rounded once more than where the adapter is held apart, and products are added
in another order. A rounding errs by half a unit in the last place, ``u = finfo(dtype).eps / 2`` of the value; some
twenty in a row happen on the way through these two layers, most of which cancel. So outputs may differ by ``8 u`` of
the largest output in fp32, and by ``4 u`` in bf16, whose sums are accumulated in fp32; what adapters change is larger
by an order of magnitude in bf16, by five in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch

import rblstore
from rblstore.checkpoints.quiet import quiet
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.live_values import LiveValues

MODELS: dict[str, Callable[[torch.dtype], Any]] = {
    "llama": lambda dtype: tiny_models.llama(dtype=dtype),
    "bert": lambda dtype: tiny_models.bert("BertForMaskedLM", dtype=dtype),
    "gpt2": lambda dtype: tiny_models.gpt2(dtype=dtype),
}
# Kind, and what is set otherwise than tiny_models has it.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "rslora": ("rslora", {}),
    "dora": ("dora", {}),
    "lora with bias=all": ("bias_all", {}),
    "lora with bias=lora_only": ("bias_lora_only", {}),
    "lora with a bias of its own": ("lora", {"lora_bias": True}),
    "ia3": ("ia3", {}),
    "modules_to_save": ("modules_to_save", {}),
}
ROUNDINGS = {torch.float32: 12, torch.bfloat16: 4}
CASES = [
    *(("llama", kind, dtype) for kind in KINDS for dtype in (torch.float32, torch.bfloat16)),
    *(
        (name, kind, torch.float32)
        for name in ("bert", "gpt2")
        for kind in ("dora", "lora with a bias of its own", "ia3")
    ),
]


@dataclass(frozen=True)
class Bench:
    """A repository whose main branch holds a base."""

    repo: Any
    model: Any
    base: Path

    def merged_live(self, revision: str) -> Any:
        """The base as a live model, and the behaviors of a commit written into its weights."""
        store = self.repo._store
        live = self.repo.load("main")
        values = LiveValues(store, live)
        before, after = (
            values.of(store.record(store.record(self.repo.resolve(name), Commit).composition, Composition), "merged")
            for name in ("main", revision)
        )
        values.write(before, after)
        return live


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, torch.dtype], Bench]]:
    made: dict[tuple[str, torch.dtype], Bench] = {}

    def make(name: str, dtype: torch.dtype) -> Bench:
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp(name)
            model = MODELS[name](dtype)
            base = tiny_models.save(model, folder / "base")
            repo = rblstore.init(folder / "store")
            repo.commit("base", identity=base)
            made[name, dtype] = Bench(repo, model, base)
        return made[name, dtype]

    yield make
    for one in made.values():
        one.repo.close()


def as_peft(bench: Bench, *adapters: Path) -> torch.Tensor:
    """Outputs of the base with adapters active in order, as peft itself loads them."""
    with quiet():
        base = type(bench.model).from_pretrained(bench.base, dtype="auto")
        model = peft.PeftModel.from_pretrained(base, str(adapters[0]), "a0", autocast_adapter_dtype=True)
        for at, adapter in enumerate(adapters[1:], 1):
            model.load_adapter(str(adapter), f"a{at}", autocast_adapter_dtype=True)
        model.base_model.set_adapter([f"a{at}" for at in range(len(adapters))])
    return tiny_models.outputs(model.eval())


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in roundings of the largest output."""
    unit = torch.finfo(wanted.dtype).eps / 2
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max() / unit)


@pytest.mark.parametrize(("name", "kind", "dtype"), CASES, ids=str)
def test_one_behavior_is_pefts_active_adapter(
    name: str, kind: str, dtype: torch.dtype, bench: Callable[..., Bench], tmp_path: Path
) -> None:
    its = bench(name, dtype)
    how, settings = KINDS[kind]
    adapter = tiny_models.save_adapter(its.model, tmp_path / "adapter", how, **settings)
    branch = kind.replace(" ", "-").replace("=", "-")
    its.repo.switch(branch, create=True, start="main")
    its.repo.commit(kind, behaviors={"polite": adapter})
    active, base = as_peft(its, adapter), tiny_models.outputs(its.repo.load("main"))
    assert error(base, active) > 2 * ROUNDINGS[dtype]

    assert torch.equal(tiny_models.outputs(its.repo.load("HEAD")), active)
    its.repo.checkout("HEAD", tmp_path / "merged", form="merged")
    merged = tiny_models.outputs(rblstore.load_checkout(tmp_path / "merged"))
    assert error(merged, active) <= ROUNDINGS[dtype]
    assert torch.equal(tiny_models.outputs(its.merged_live("HEAD")), merged)


@pytest.mark.parametrize(
    "kinds", [("lora", "rslora", "rank_pattern"), ("lora", "dora", "rslora"), ("ia3", "ia3", "ia3")]
)
def test_the_sum_of_several_does_not_depend_on_their_order_but_for_rounding(
    kinds: tuple[str, ...], bench: Callable[..., Bench], tmp_path: Path
) -> None:
    its = bench("llama", torch.float32)
    adapters = {
        f"b{at}": tiny_models.save_adapter(its.model, tmp_path / f"b{at}", kind, seed=at + 1)
        for at, kind in enumerate(kinds)
    }
    # DoRA scales what comes before it, so where it stands is part of what the composition is.
    orders = [tuple(adapters)] if "dora" in kinds else list(permutations(adapters))[1::2]
    first: torch.Tensor | None = None
    for number, order in enumerate(orders):
        its.repo.switch(f"{'-'.join(kinds)}-{number}", create=True, start="main")
        its.repo.commit("several", behaviors={name: adapters[name] for name in order})
        active = as_peft(its, *(adapters[name] for name in order))
        assert torch.equal(tiny_models.outputs(its.repo.load("HEAD")), active)
        merged = tiny_models.outputs(its.merged_live("HEAD"))
        first = active if first is None else first
        assert error(merged, active) <= 2 * ROUNDINGS[torch.float32]
        assert error(active, first) <= 2 * ROUNDINGS[torch.float32]
        alone = as_peft(its, adapters[order[0]])
        assert error(alone, active) > 1000  # each takes part


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gpt2", ("lora_embedding",)),  # the output layer shares the embedding, which only the input has adapted
        ("bert", ("lora_embedding",)),
        ("bert", ("trainable_tokens",)),  # peft leaves out the decoder's bias
        ("llama", ("oft", "oft")),  # rotations one after the other, which peft merges the other way round
        ("llama", ("prompt_tuning",)),
    ],
    ids=str,
)
def test_what_merged_would_compute_something_else_is_refused(
    name: str, kinds: tuple[str, ...], bench: Callable[..., Bench], tmp_path: Path
) -> None:
    its = bench(name, torch.float32)
    its.repo.switch("refused-" + "-".join(kinds), create=True, start="main")
    for at, kind in enumerate(kinds):
        adapter = tiny_models.save_adapter(its.model, tmp_path / f"b{at}", kind, seed=at + 1)
        its.repo.commit(kind, behaviors={f"b{at}": adapter})
    its.repo.load("HEAD")
    with pytest.raises(rblstore.ConflictError) as caught:
        its.repo.checkout("HEAD", tmp_path / "merged", form="merged")
    assert caught.value.code == "cannot_merge"
    assert "adapters" in (caught.value.hint or "")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(rblstore.ConflictError, match=caught.value.message[:20]):
        its.merged_live("HEAD")


@pytest.mark.parametrize(
    "kinds", [("lora", "ia3"), ("modules_to_save", "modules_to_save"), ("bias_all", "bias_lora_only")]
)
def test_what_peft_cannot_hold_together_is_refused_before_anything_is_loaded(
    kinds: tuple[str, str], bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = bench("llama", torch.float32)
    its.repo.switch("never-" + "-".join(kinds), create=True, start="main")
    one, two = (
        tiny_models.save_adapter(its.model, tmp_path / f"{at}", kind, seed=at) for at, kind in enumerate(kinds, 1)
    )
    its.repo.commit("one", behaviors={"one": one})
    head = its.repo.resolve("HEAD")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("rblstore.checkpoints.loading.load_directory", never)
    monkeypatch.setattr("rblstore.checkpoints.attaching.attach_adapters", never)
    with pytest.raises(rblstore.ConflictError):
        its.repo.commit("two", behaviors={"two": two})
    assert its.repo.resolve("HEAD") == head
