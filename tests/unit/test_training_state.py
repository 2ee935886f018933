"""Training states: every optimizer goes on as if it had never stopped, and a state lives with its commit."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from click.testing import CliRunner
from test_state_tree import same

import rblstore
from rblstore.cli.program import rbl
from rblstore.live.optimizer_state import StateMismatchError
from rblstore.objects.ids import CommitId
from rblstore.operations.training_state import NoStateError, UnstorableStateError, load_state, store_state

optim, plans = torch.optim, torch.optim.lr_scheduler
SHAPES = ((3, 4), (4,), (2, 3))


class Loop:
    """A little training loop with noise from every random generator."""

    def __init__(
        self, make: Callable[[Any], Any], plan: Callable[[Any], Any], dtype: torch.dtype = torch.float32
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
        self.optimizer = make([{"params": self.weights[:1]}, {"params": self.weights[1:], "weight_decay": 0.01}])
        self.plan = plan(self.optimizer)

    def step(self) -> None:
        for weight in self.weights:
            weight.grad = (torch.randn(weight.shape) + random.random() + np.random.rand()).to(weight.dtype)
        self.optimizer.step()
        self.plan.step()

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        return ((f"weight{at}", weight) for at, weight in enumerate(self.weights))


def adafactor(groups: Any) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=0.01, scale_parameter=False, relative_step=False)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda groups: optim.AdamW(groups, lr=0.01, foreach=False),
    "adamw-foreach": lambda groups: optim.AdamW(groups, lr=0.01, foreach=True),
    "adamw-fused": lambda groups: optim.AdamW(groups, lr=0.01, fused=True, amsgrad=True),
    "adamw-tensor-rate": lambda groups: optim.AdamW(groups, lr=torch.tensor(0.01), foreach=False),
    "sgd-momentum": lambda groups: optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "sgd-fused": lambda groups: optim.SGD(groups, lr=0.01, momentum=0.9, fused=True),
    "adafactor": lambda groups: optim.Adafactor(groups, lr=0.01),
    "adafactor-transformers": adafactor,
    "rmsprop": lambda groups: optim.RMSprop(groups, lr=0.01, centered=True, momentum=0.5),
    "adagrad": lambda groups: optim.Adagrad(groups, lr=0.01),
}
PLANS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda one: plans.LambdaLR(one, lambda step: 1 / (1 + step)),
    "cosine": lambda one: plans.CosineAnnealingLR(one, 10),
    "one-cycle": lambda one: plans.OneCycleLR(one, 0.1, total_steps=20, cycle_momentum=False),
    "multi-step": lambda one: plans.MultiStepLR(one, [2, 2, 5]),
    "sequential": lambda one: plans.SequentialLR(
        one, [plans.ConstantLR(one, 0.5), plans.ExponentialLR(one, 0.9)], milestones=[4]
    ),
    "warm-restarts": lambda one: plans.CosineAnnealingWarmRestarts(one, 3),
}


def seed() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[rblstore.Repository, CommitId]:
    folder = tmp_path_factory.mktemp("state")
    repo = rblstore.init(folder / "store")
    base = repo.commit("base", identity=tiny_models.save(tiny_models.bert(), folder / "model"))
    return repo, base.commit


CASES = [(name, "lambda") for name in OPTIMIZERS] + [("adamw", plan) for plan in PLANS if plan != "lambda"]


@pytest.mark.parametrize(("optimizer", "plan"), CASES)
def test_goes_on_bit_for_bit(stored: tuple[rblstore.Repository, CommitId], optimizer: str, plan: str) -> None:
    repo, _ = stored
    seed()
    loop = Loop(OPTIMIZERS[optimizer], PLANS[plan])
    for _ in range(3):
        loop.step()
    state = repo.store_state(rblstore.capture_state(loop.optimizer, loop.plan, model=loop), step=3)
    halfway = [weight.detach().clone() for weight in loop.weights]
    for _ in range(3):
        loop.step()
    random.random(), torch.rand(5), np.random.rand(3)

    other = Loop(OPTIMIZERS[optimizer], PLANS[plan])
    for weight, value in zip(other.weights, halfway, strict=True):
        weight.data.copy_(value)
    tree = repo.load_state(state.state)
    rblstore.restore_state(tree, other.optimizer, other.plan, model=other)
    for _ in range(3):
        other.step()
    assert all(same(one.detach(), two.detach()) for one, two in zip(loop.weights, other.weights, strict=True))
    assert same(*(rblstore.capture_state(one.optimizer, one.plan, random=False) for one in (loop, other)))
    assert same(tree, repo.load_state(state.state)), "going on wrote into the tree"


def test_fp32_moments_of_bf16_weights_keep_their_bits() -> None:
    loop, other = (Loop(OPTIMIZERS["adafactor-transformers"], PLANS["lambda"], torch.bfloat16) for _ in range(2))
    loop.step()
    tree = rblstore.capture_state(loop.optimizer, random=False)
    assert any(
        value.dtype == torch.float32
        for value in tree["optimizer"]["state"]["state"][0].values()
        if hasattr(value, "dtype")
    )
    rblstore.restore_state(tree, other.optimizer, random=False)
    assert same(rblstore.capture_state(other.optimizer, random=False), tree)


def test_gradient_scaler_and_other_generators(stored: tuple[rblstore.Repository, CommitId]) -> None:
    repo, _ = stored
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    scaler.scale(torch.ones(()))
    scaler.update(2.0**9)
    generators = {
        "numpy": np.random.default_rng(4),
        "torch": torch.Generator().manual_seed(4),
        "python": random.Random(4),
    }
    tree = rblstore.capture_state(scaler=scaler, generators=generators, random=False, extra={"epoch": 0.5})
    info = repo.store_state(tree)
    expected = generators["numpy"].random(), torch.rand(3, generator=generators["torch"]), generators["python"].random()
    fresh = torch.amp.GradScaler("cpu")
    got = rblstore.restore_state(repo.load_state(info.state), scaler=fresh, generators=generators, random=False)
    assert got == {"epoch": 0.5}
    assert fresh.state_dict() == scaler.state_dict()
    found = generators["numpy"].random(), torch.rand(3, generator=generators["torch"]), generators["python"].random()
    assert (found[0], found[2]) == (expected[0], expected[2])
    assert torch.equal(found[1], expected[1])
    with pytest.raises(StateMismatchError, match="scaler is enabled"):
        rblstore.restore_state(tree, scaler=torch.amp.GradScaler("cpu", enabled=False), random=False)


def broken(tree: Any, *path: Any, value: Any) -> Any:
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def test_what_does_not_fit_changes_nothing() -> None:
    loop = Loop(OPTIMIZERS["adamw"], PLANS["lambda"])
    loop.step()
    tree = copy.deepcopy(rblstore.capture_state(loop.optimizer, loop.plan, model=loop))
    loop.step()
    before = copy.deepcopy(rblstore.capture_state(loop.optimizer, loop.plan, model=loop))
    parameters, state = ("optimizer", "parameters"), ("optimizer", "state")
    for changed, why in [
        (5, "no training state"),
        ({}, "has no optimizer"),
        (broken(tree, "optimizer", "class", value="SGD"), "that of SGD"),
        (broken(tree, *parameters, value=tree["optimizer"]["parameters"][:1]), "1 parameter groups"),
        (broken(tree, *parameters, 1, value=[[None, [4]]]), "has 1 parameters"),
        (broken(tree, *parameters, 1, 0, value=["weight1", [5]]), r"weight1 was of shape \[5\]"),
        (broken(tree, *parameters, 1, 0, value=["other", [4]]), "weight1 stands where other was"),
        (broken(tree, *state, "param_groups", value=[]), "contradicts itself"),
        (broken(tree, *state, "state", 9, value={}), "does not have"),
        (broken(tree, *state, "state", 0, value=7), "does not fit"),
        (broken(tree, "scheduler", "class", value="OneCycleLR"), "that of OneCycleLR"),
        (broken(tree, "scheduler", "state", "odd", value=1), "only one of scheduler and state has odd"),
        (broken(tree, "scheduler", "state", "base_lrs", value=[1.0]), "not as long"),
        (broken(tree, "scheduler", "state", value=None), "does not fit"),
        (broken(tree, "random", "python", value=(3, (1,), None)), "does not fit"),
        (broken(tree, "random", "torch", value=torch.zeros(3, dtype=torch.uint8)), "does not fit"),
        (broken(tree, "random", "numpy", value=("MT19937", np.zeros(3))), "does not fit"),
    ]:
        with pytest.raises(StateMismatchError, match=why):
            rblstore.restore_state(changed, loop.optimizer, loop.plan, model=loop)
        assert same(rblstore.capture_state(loop.optimizer, loop.plan, model=loop), before), why
    with pytest.raises(StateMismatchError, match="no random generator"):
        rblstore.capture_state(generators={"odd": object()})


def test_failing_half_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(OPTIMIZERS["sgd-momentum"], PLANS["multi-step"])
    loop.step()
    tree = copy.deepcopy(rblstore.capture_state(loop.optimizer, loop.plan))
    loop.step()
    before = copy.deepcopy(rblstore.capture_state(loop.optimizer, loop.plan))
    with monkeypatch.context() as patch:
        patch.setattr("rblstore.live.optimizer_state._set_global_states", lambda states: [][states is tree["random"]])
        with pytest.raises(StateMismatchError, match="nothing was changed"):
            rblstore.restore_state(tree, loop.optimizer, loop.plan)
    assert same(rblstore.capture_state(loop.optimizer, loop.plan), before)


# -- in a repository ----------------------------------------------------------------------------------------------


@pytest.fixture
def story(tmp_path: Path) -> tuple[rblstore.Repository, CommitId, CommitId]:
    """A repository with two commits, the second on a branch of its own, each with a state."""
    repo = rblstore.init(tmp_path / "store")
    model = tiny_models.bert()
    base = repo.commit("base", identity=tiny_models.save(model, tmp_path / "model"))
    repo.create_branch("run")
    adapter = tiny_models.save_adapter(model, tmp_path / "adapter")
    tip = repo.commit("tip", behaviors={"one": adapter}, branch="run")
    for at, commit in enumerate((base.commit, tip.commit)):
        tree = {"optimizer": {"moment": torch.full((300,), float(at))}, "shared": torch.arange(500.0)}
        repo.store_state(tree, commit, step=at, author="Ada")
    return repo, base.commit, tip.commit


def test_states_are_listed_shown_and_counted(story: Any) -> None:
    repo, base, tip = story
    assert [(one.commit, one.step, one.tensors, one.author) for one in repo.training_states()] == [
        (base, 0, 2, "Ada"), (tip, 1, 2, "Ada"),
    ]  # fmt: skip
    (own,) = repo.training_states("run")
    assert repo.show("run").states == (own,)
    assert repo.show("main").states != (own,)
    assert repo.show(own.state[:10]).kind == "training-state"
    detail = repo.training_state("run")
    assert [(part.name, part.tensors, part.bytes) for part in detail.parts] == [
        ("optimizer", 1, 1200), ("shared", 1, 2000),
    ]  # fmt: skip
    assert own.environment["torch"] == torch.__version__
    usage = repo.du("run")
    assert (usage.states.contents, usage.states.raw) == (4, own.bytes)
    assert usage.total.stored == usage.identity.stored + usage.behaviors[0].stored, "a state is no part of the model"
    assert repo.du("main").states.stored > 0
    assert repo.du().unreached.contents == 0


def test_the_latest_state_of_a_commit_is_read(story: Any) -> None:
    repo, base, _ = story
    first = repo.training_state(base).state
    second = repo.store_state({"now": 2}, base).state
    assert repo.load_state(base) == {"now": 2}
    assert torch.equal(repo.load_state(first)["shared"], torch.arange(500.0))
    assert [one.state for one in repo.training_states(base)] == [first, second]
    repo.commit("more", remove=["one"], branch="run")
    with pytest.raises(NoStateError):
        repo.load_state("run")
    with pytest.raises(rblstore.NotFoundError):
        repo.load_state("nowhere")
    with pytest.raises(rblstore.UsageError, match="x cannot be stored"):
        repo.store_state({"x": object()}, base)


def test_a_state_goes_into_the_transaction_of_its_commit(story: Any) -> None:
    repo, base, _ = story
    before = repo.training_states()

    def store_two() -> None:
        with repo._store.transaction("Ada") as transaction:
            store_state(transaction, base, {"a": torch.ones(3)}, step=5, author="Ada")
            store_state(transaction, base, {"a": object()}, step=5, author="Ada")

    with pytest.raises(UnstorableStateError):
        store_two()
    assert repo.training_states() == before
    with pytest.raises(rblstore.RblError):
        store_state(repo._store, CommitId("0" * 64), {}, step=0, author="Ada")
    assert repo.training_states() == before


def test_a_state_lives_as_long_as_its_commit(story: Any, tmp_path: Path) -> None:
    repo, base, tip = story
    root = repo.path
    assert repo.gc().dead == {}
    repo.delete_branch("run")
    repo.close()
    (root / ".rbl" / "config.toml").write_text("[gc]\ngrace = 0\noperations = 0\n")
    with rblstore.open(root) as again:
        assert again.gc().dead["training-state"] == 1
        again.gc(apply=True)
        assert [one.commit for one in again.training_states()] == [base]
        assert torch.equal(again.load_state("main")["shared"], torch.arange(500.0))
        assert again.fsck(full=True).ok
        again.restore_trash()
        assert {one.commit for one in again.training_states()} == {base, tip}
    (root / ".rbl" / "catalog.db").unlink()
    rblstore.reindex(root)
    with rblstore.open(root) as rebuilt:
        assert {one.commit for one in rebuilt.training_states()} == {base, tip}
        assert rebuilt.fsck(full=True).ok


def test_damage_names_the_state_and_repair_keeps_it(story: Any, tmp_path: Path) -> None:
    import shutil

    repo, base, _ = story
    info = repo.training_state(base)
    content = next(one for one in repo._store.any_record(info.state).files if one.path == "state.json").sha256
    location = repo._store.location(content)
    shutil.copytree(repo.path, tmp_path / "copy")
    repo.close()
    pack = repo.path / ".rbl" / "packs" / location.pack[:2] / f"{location.pack}.pack"
    data = bytearray(pack.read_bytes())
    data[20] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    with rblstore.open(repo.path) as damaged:
        found = damaged.fsck(full=True)
        assert any(f"training-state {info.state.short}" in need for one in found.damages for need in one.needed_by), (
            found
        )
    assert rblstore.repair(repo.path, apply=True, sources=[tmp_path / "copy"]).whole
    with rblstore.open(repo.path) as mended:
        assert torch.equal(mended.load_state(base)["optimizer"]["moment"], torch.zeros(300))


def test_a_rescued_commit_keeps_its_state() -> None:
    from rblstore.objects.content_records import FileEntry
    from rblstore.objects.history_records import Commit
    from rblstore.objects.ids import CompositionId, ContentId
    from rblstore.objects.record import Record
    from rblstore.objects.training_records import TrainingState
    from rblstore.operations.repair_history import HistoryMender

    lost = CommitId("9" * 64)
    child = Commit(CompositionId("1" * 64), (lost,), "Ada", "2026-01-01T00:00:00Z", "child")
    child_id = CommitId(Commit.id_of(child.encode()))
    files = (FileEntry("state.json", ContentId("2" * 64), 1),)
    states = [TrainingState(one, files, 1, {}, "Ada", "2026-01-01T00:00:00Z") for one in (child_id, lost)]
    records: dict[Any, Record] = {child_id: child, **{one.id_of(one.encode()): one for one in states}}
    plan = HistoryMender(records, lambda _: False).plan
    (kept,) = [one for one in plan.added.values() if isinstance(one, TrainingState)]
    assert kept.commit == plan.rescued[child_id].after
    assert plan.rescued[states[1].id_of(states[1].encode())].after is None


def test_the_command_line(story: Any) -> None:
    repo, _, tip = story

    def run(*words: str) -> str:
        result = CliRunner().invoke(rbl, ["-C", str(repo.path), *words])
        assert result.exit_code == 0, result.output
        return result.output

    listed = json.loads(run("training", "list", "--json"))
    assert [one["commit"] for one in listed][1] == tip
    assert run("training", "list", "run").count(tip[:12]) == 1
    shown = json.loads(run("training", "show", "run", "--json"))
    assert shown["state"] == listed[1]["state"]
    assert shown["parts"][0] == {"name": "optimizer", "tensors": 1, "bytes": 1200}
    assert "optimizer" in run("training", "show", listed[1]["state"])
    assert f"training state {listed[1]['state'][:12]}, step 1" in run("show", "run")
    assert "state.safetensors" in run("show", listed[1]["state"])
    assert "training states" in run("du", "run")
    failed = CliRunner().invoke(rbl, ["-C", str(repo.path), "training", "show", "nowhere", "--json"])
    assert failed.exit_code == 1
    repo.commit("none", remove=["one"], branch="run")
    failed = CliRunner().invoke(rbl, ["-C", str(repo.path), "training", "show", "run", "--json"])
    assert json.loads(failed.stdout)["code"] == "no_state"


def test_a_hostile_record_is_refused_when_its_state_is_read(story: Any) -> None:
    from dataclasses import replace

    from rblstore.checkpoints.state_tree import BadStateError

    repo, base, _ = story
    record = repo._store.any_record(repo.training_state(base).state)
    tensors = next(one for one in record.files if one.manifest is not None)
    text = next(one for one in record.files if one.manifest is None)
    for files in ((text,), (replace(tensors, manifest=None), text), (replace(text, path="a"), tensors)):
        with repo._store.transaction("Ada") as transaction:
            content = transaction.add_content([b"x"]).content
            files = tuple(
                replace(one, sha256=content) if one.path == "state.safetensors" and one.manifest is None else one
                for one in files
            )
            odd = transaction.add_record(replace(record, files=tuple(sorted(files, key=lambda one: one.path))))
        with pytest.raises(BadStateError):
            load_state(repo._store, odd)
