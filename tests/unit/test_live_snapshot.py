"""Snapshots of what is trained: committed later, they are what committing the model would have been."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from training_stories import Bench, make_bench, nudge

import rblstore
from rblstore.live.snapshot import Buffers, PhiCopier, modules_by_name

KINDS = [kind for kind in tiny_models.KINDS if kind != "edited_base"]
BASES: dict[str, Any] = {
    "fp32": lambda: tiny_models.llama(),
    "bf16": lambda: tiny_models.llama(dtype=torch.bfloat16),
    "tied": lambda: tiny_models.llama(tied=True),
    "t5": tiny_models.t5,
    "classifier": lambda: tiny_models.bert("BertForSequenceClassification"),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = make_bench(tmp_path_factory.mktemp("snapshots"), tiny_models.llama())
    with bench.repo:
        yield bench


def check_equal(repo: Any, model: Any, edit: Any = None, states: int = 2) -> Any:
    """Commits states both ways, on branches of their own, and compares the behaviors."""
    head = repo.resolve("main")
    name = f"b{len(repo.branches())}"
    repo.create_branch(name, head)
    repo.create_branch(f"{name}-r", head)
    with repo.training(model, "x", every=1, branch=name, guard=False) as run:
        for step in range(states):
            if step == 1 and edit is not None:
                edit(model)
            nudge(model, step)
            run.step()
            run.wait()
            reference = repo.commit("reference", behaviors={"x": model}, branch=f"{name}-r")
            assert run.commits[-1].slots == reference.slots
            assert run.commits[-1].composition == reference.composition
    assert run.unchanged == [states]
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter(bench: Bench, kind: str) -> None:
    run = check_equal(bench.repo, bench.adapted(kind), states=2 if kind == "lora" else 1)
    assert len(run.commits) == (2 if kind == "lora" else 1)
    assert run.blocking is None


@pytest.mark.parametrize("base", BASES)
def test_a_model_that_is_trained_itself(tmp_path: Path, base: str) -> None:
    bench = make_bench(tmp_path, BASES[base]())
    with bench.repo:
        run = check_equal(bench.repo, bench.whole())
        assert run.blocking is None
        assert torch.equal(
            tiny_models.outputs(bench.repo.load(run.branch)), tiny_models.outputs(bench.repo.load(f"{run.branch}-r"))
        )


@pytest.mark.parametrize("widen", [True, False])
def test_a_model_of_which_a_part_is_trained(tmp_path: Path, widen: bool) -> None:
    bench = make_bench(tmp_path, tiny_models.llama(dtype=torch.bfloat16))
    model = bench.whole().float() if widen else bench.whole()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" in name)
    with bench.repo:
        run = check_equal(bench.repo, model)
        change = bench.repo.diff("main", run.branch)
    assert all("layers.0" in one.target for one in change.tensors)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_that_grow_meanwhile(tmp_path: Path, tied: bool) -> None:
    bench = make_bench(tmp_path, tiny_models.llama(tied=tied))
    with bench.repo:
        check_equal(bench.repo, bench.whole(), lambda model: model.resize_token_embeddings(100, mean_resizing=False))


def test_experts_are_saved_before_the_loop_goes_on(tmp_path: Path) -> None:
    """They are stored one by one and live as one tensor: no copy of live tensors is the file."""
    bench = make_bench(tmp_path, tiny_models.mixtral())
    with bench.repo:
        run = check_equal(bench.repo, bench.whole())
    assert run.blocking is not None
    assert "experts.0" in run.blocking


class Tied(torch.nn.Module):
    """No model of transformers'; two of its tensors are one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.norm = torch.nn.BatchNorm1d(4)


def test_any_module(tmp_path: Path) -> None:
    model = Tied()
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=model)
        check_equal(repo, model, lambda model: model.norm.running_mean.add_(1.0))


def test_an_adapter_that_nobody_trained_on_is_what_was_stored(tmp_path: Path) -> None:
    """Its files come back as they were committed, the card beside them included."""
    bench = make_bench(tmp_path, tiny_models.llama())
    folder = tiny_models.save_adapter(bench.base, tmp_path / "adapter")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    with bench.repo as repo:
        before = repo.commit("x", behaviors={"x": folder})
        model = repo.load()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        with repo.training(model, "x", every=1, guard=False) as run:
            run.step()
        assert (run.commits, run.unchanged) == ([], [1, 1])
        assert repo.head == before.commit
        with repo.training(model, "x", every=1, guard=False) as run:
            nudge(model)
        assert [slot.behavior for slot in run.commits[-1].slots] != [slot.behavior for slot in before.slots]


class TestCopies:
    def copier(self, model: Any) -> PhiCopier:
        @contextmanager
        def scratch() -> Iterator[Path]:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)

        return PhiCopier(model, None, scratch)

    @pytest.mark.parametrize("whole", [True, False])
    def test_what_is_trained_afterwards_does_not_reach_them(self, bench: Bench, whole: bool) -> None:
        model = bench.whole() if whole else bench.adapted()
        copier = self.copier(model)
        first = copier.take(Buffers())
        (weights,) = first.weights.values()
        before = {name: tensor.clone() for name, tensor in weights.tensors.items()}
        nudge(model)
        (after,) = copier.take(Buffers()).weights.values()
        assert all(torch.equal(before[name], tensor) for name, tensor in weights.tensors.items())
        assert any(not torch.equal(before[name], tensor) for name, tensor in after.tensors.items())

    def test_memory_is_used_again(self, bench: Bench) -> None:
        model, buffers = bench.adapted(), Buffers()
        copier = self.copier(model)
        places = []
        for seed in range(2):
            nudge(model, seed)
            (weights,) = copier.take(buffers).weights.values()
            places.append({name: tensor.data_ptr() for name, tensor in weights.tensors.items()})
        assert places[0] == places[1]

    def test_what_is_not_trained_is_copied_once_and_again_where_it_was_written_to(self, bench: Bench) -> None:
        model = bench.whole().requires_grad_(False)
        model.lm_head.requires_grad_(True)
        copier = self.copier(model)
        name = "model.norm.weight"
        taken = [copier.take(Buffers()).weights["model.safetensors"].tensors[name] for _ in range(2)]
        assert taken[0].data_ptr() == taken[1].data_ptr()
        with torch.no_grad():
            model.model.norm.weight.add_(1.0)
        again = copier.take(Buffers()).weights["model.safetensors"].tensors[name]
        assert again.data_ptr() != taken[0].data_ptr()
        assert torch.equal(again, model.model.norm.weight)

    def test_a_write_that_torch_does_not_count(self, bench: Bench) -> None:
        model = bench.whole().requires_grad_(False)
        model.lm_head.requires_grad_(True)
        copier, norm = self.copier(model), model.model.norm.weight
        before = copier.take(Buffers()).weights["model.safetensors"].tensors["model.norm.weight"]
        kept, version = before.clone(), norm._version
        norm.data.add_(1.0)  # as fused optimizers do it, of a layer that is trained only now and then
        assert norm._version == version
        after = copier.take(Buffers()).weights["model.safetensors"].tensors["model.norm.weight"]
        assert torch.equal(after, norm)
        assert torch.equal(before, kept)  # which may still be being written


def test_modules_have_the_names_that_torch_gives_them() -> None:
    model = with_shared_modules()
    assert modules_by_name(model) == dict(model.named_modules())
    assert list(modules_by_name(model)) == [name for name, _ in model.named_modules()]


def with_shared_modules() -> Any:
    """One module under two names, one of them deeper, and a name without a module."""
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model = torch.nn.Sequential(torch.nn.Sequential(inner), inner, inner[1])
    model.register_module("nothing", None)
    return model
