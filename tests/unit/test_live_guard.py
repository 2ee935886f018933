"""The guard names what training did to the identity at its next check, and keeps still about honest training."""

from __future__ import annotations

import copy
import os
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from torch import nn

import rblstore
from rblstore.live import fingerprints, watching
from rblstore.live import guard as guard_module
from rblstore.live.fingerprints import chunks_of, fingerprint, flat_bytes, spots
from rblstore.live.guard import BadGuardError, IdentityGuard
from rblstore.live.watching import UnguardableError
from rblstore.operations.guarding import NotCommittedModelError

# Every way to check at a step: all of it now, all of it in threads, and next to nothing beside what looks suspicious.
WAYS: dict[str, dict[str, Any]] = {
    "now": {"background": False},
    "behind": {"background": True, "threads": 2},
    "sampled": {"background": False, "sample": 1},
}
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return WAYS[request.param]


def with_lora(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def train(model: Any, optimizer: torch.optim.Optimizer | None = None, *, backward: bool = True) -> None:
    """One real step of everything that is trainable."""
    if optimizer is None:
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    model.train()
    loss = model(input_ids=tiny_models.PROMPT, labels=tiny_models.PROMPT).loss
    if backward:
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def mutations(guard: IdentityGuard) -> dict[str, str]:
    """What the next step's check raises, by name; that it was this step's is checked."""

    def look() -> None:
        guard.step()
        guard.check(full=False)  # what was left to threads is raised here

    with pytest.raises(rblstore.IdentityMutated) as caught:
        look()
    assert {one.step for one in caught.value.mutations} == {guard.steps} == {caught.value.step}
    assert guard.findings == caught.value.mutations
    assert all(one.name in str(caught.value) for one in caught.value.mutations[:8])
    guard.stop()
    return {one.name: one.change for one in caught.value.mutations}


# What training does wrong.


def test_lora_that_trains_biases(way: dict[str, Any]) -> None:
    model = with_lora(tiny_models.llama(), bias="all")
    guard = IdentityGuard(model, **way)
    train(model)
    found = mutations(guard)
    assert set(found) == {name for name in guard.names if name.endswith(".bias")} != set()
    assert set(found.values()) == {"value"}


def test_batch_norm_statistics(way: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    guard = IdentityGuard(model, **way)
    model.train()(torch.randn(8, 4))
    assert mutations(guard) == dict.fromkeys(("1.running_mean", "1.running_var", "1.num_batches_tracked"), "value")


@pytest.mark.parametrize("tied", [False, True])
def test_resized_embeddings(way: dict[str, Any], tied: bool) -> None:
    model = tiny_models.llama(tied=tied)
    guard = IdentityGuard(model, **way)
    model.resize_token_embeddings(tiny_models.VOCABULARY + 4)
    assert mutations(guard) == {EMBEDDING: "shape", HEAD: "shape"}


def test_norms_cast_to_single_precision(way: dict[str, Any]) -> None:
    model = tiny_models.llama(dtype=torch.bfloat16)
    guard = IdentityGuard(model, **way)
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.to(torch.float32)
    found = mutations(guard)
    assert set(found) == {name for name in guard.names if "norm" in name} != set()
    assert set(found.values()) == {"dtype"}
    assert "bfloat16 to float32" in str(guard.findings[0])


def test_preparation_for_quantized_training(way: dict[str, Any]) -> None:
    model = tiny_models.llama(dtype=torch.bfloat16)
    guard = IdentityGuard(model, **way)
    peft.prepare_model_for_kbit_training(model)
    assert mutations(guard) == dict.fromkeys(guard.names, "dtype")


@pytest.mark.parametrize("kind", ["foreach", "single", "fused", "sgd"])
def test_a_forgotten_requires_grad(way: dict[str, Any], kind: str) -> None:
    model = with_lora(tiny_models.llama())
    forgotten = model.base_model.model.model.norm.weight.requires_grad_(True)
    parameters = [one for one in model.parameters() if one.requires_grad]
    assert any(one is forgotten for one in parameters)
    settings = {"foreach": {"foreach": True}, "single": {"foreach": False}, "fused": {"fused": True}}
    optimizer = (
        torch.optim.SGD(parameters, lr=1.0)
        if kind == "sgd"
        else torch.optim.AdamW(parameters, lr=0.01, **settings[kind])
    )
    guard = IdentityGuard(model, **way)
    train(model, optimizer)
    assert mutations(guard) == {NORM: "value"}


def test_a_requires_grad_that_comes_back(way: dict[str, Any]) -> None:
    model = with_lora(tiny_models.llama())
    guard = IdentityGuard(model, **way)
    model.base_model.model.model.norm.weight.requires_grad_(True)
    assert mutations(guard) == {NORM: "requires_grad"}


def by_data(tensor: torch.Tensor) -> None:
    tensor.data.view(-1)[7] += 1


def by_numpy(tensor: torch.Tensor) -> None:
    tensor.detach().numpy().reshape(-1)[7] += 1


def by_new_memory(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data + 1


@pytest.mark.parametrize("write", [by_data, by_numpy, by_new_memory])
def test_writes_that_torch_does_not_count(way: dict[str, Any], write: Callable[[torch.Tensor], None]) -> None:
    model = with_lora(tiny_models.llama())
    guard = IdentityGuard(model, **way)
    before = (parameter := model.base_model.model.model.embed_tokens.weight)._version
    write(parameter)
    assert parameter._version == before
    assert mutations(guard) == {EMBEDDING: "value"}


def test_an_embedding_tied_to_a_head_that_is_trained(way: dict[str, Any]) -> None:
    model = tiny_models.llama(tied=True).requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    guard = IdentityGuard(model, **way)
    train(model)
    assert mutations(guard) == {EMBEDDING: "value", HEAD: "value"}


def test_weight_decay_of_what_is_frozen_by_its_gradients(way: dict[str, Any]) -> None:
    model = with_lora(tiny_models.llama())
    frozen = model.base_model.model.model.norm.weight
    optimizer = torch.optim.AdamW([*(one for one in model.parameters() if one.requires_grad), frozen], weight_decay=0.1)
    frozen.grad = torch.zeros_like(frozen)
    guard = IdentityGuard(model, **way)
    train(model, optimizer)
    assert mutations(guard) == {NORM: "value"}


def test_replaced_and_removed(way: dict[str, Any]) -> None:
    model = tiny_models.llama()
    guard = IdentityGuard(model, **way)
    model.model.norm.weight = nn.Parameter(model.model.norm.weight.detach() * 2)
    del model.model.layers[1].self_attn.q_proj.bias
    found = mutations(guard)
    assert found == {NORM: "replaced", "model.layers.1.self_attn.q_proj.bias": "removed"}


def test_offloaded_meanwhile(way: dict[str, Any]) -> None:
    model = tiny_models.llama()
    guard = IdentityGuard(model, **way)
    model.lm_head.to("meta")
    assert mutations(guard) == {HEAD: "removed"}


def test_merged_adapters_are_a_mutation() -> None:
    model = with_lora(tiny_models.llama(), init_lora_weights=False)
    guard = IdentityGuard(model, background=False)
    model.merge_adapter()
    assert set(mutations(guard)) == {name for name in guard.names if "q_proj.weight" in name or "v_proj.weight" in name}


# What it does right.


def honest(model: Any) -> None:
    train(model)


def checkpointed(model: Any) -> None:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    train(model)


def autocast(model: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        train(model)


def evaluated(model: Any) -> None:
    model.eval()
    with torch.inference_mode():
        model(tiny_models.PROMPT)
    model.train()


def moved(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def replaced_by_equals(model: Any) -> None:
    norm = model.base_model.model.model.norm
    norm.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)


def written_with_the_same(model: Any) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.clone())


def another_adapter(model: Any) -> None:
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["k_proj"], task_type="CAUSAL_LM"))
    model.set_adapter("other")
    train(model)
    model.delete_adapter("other")


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [5, 17]}},
}


@pytest.mark.parametrize(
    "do",
    [honest, checkpointed, autocast, evaluated, moved, replaced_by_equals, written_with_the_same, another_adapter],
)
def test_no_false_alarm(way: dict[str, Any], do: Callable[[Any], None]) -> None:
    model = with_lora(tiny_models.llama())
    with IdentityGuard(model, **way) as guard:
        for _ in range(3):
            do(model)
            guard.step()
    assert guard.findings == ()
    assert not any("lora" in name for name in guard.names)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_no_false_alarm_at_what_adapters_keep_beside_the_model(kind: str) -> None:
    model = with_lora(tiny_models.llama(), **ADAPTERS[kind])
    plain = set(tiny_models.llama().state_dict())
    with IdentityGuard(model) as guard:
        train(model)
        guard.step()
    assert set(guard.names) == plain


def test_adapters_that_come_later_are_seen_through() -> None:
    model = tiny_models.llama()
    with IdentityGuard(model) as guard:
        wrapped = with_lora(model)
        train(wrapped)
        guard.step()
        assert guard.findings == ()
        wrapped.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.data += 1
        assert mutations(guard) == {QUERY: "value"}


# How it looks.


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> nn.Linear:
    """A weight of 256 KiB that is read in pieces of 32 KiB."""
    monkeypatch.setattr(fingerprints, "CHUNK_BYTES", 32 << 10)
    torch.manual_seed(0)
    return nn.Linear(256, 256, bias=False)


def write_unseen(model: nn.Linear) -> None:
    """Changes a byte of the sixth piece that only reading all of it can notice."""
    flat = flat_bytes(model.weight)
    before = spots(flat, "xxh3")
    flat.numpy()[5 * (32 << 10) + 1000] ^= 1
    assert spots(flat, "xxh3") == before


def test_sampling_reads_everything_in_turn(large: nn.Linear) -> None:
    guard = IdentityGuard(large, sample=32 << 10, background=False)
    assert guard.checks_to_cover == 8
    for _ in range(20):
        guard.step()
    write_unseen(large)
    guard.step()  # reads the fifth
    with pytest.raises(rblstore.IdentityMutated):
        guard.step()
    assert guard.findings[0].step == guard.steps == 22


def test_a_full_check_reads_everything_at_once(large: nn.Linear) -> None:
    guard = IdentityGuard(large, sample=1, threads=2)
    write_unseen(large)
    with pytest.raises(rblstore.IdentityMutated, match="1 of the identity's tensors changed by step 0: weight"):
        guard.check()
    guard.stop()


def test_threads_tell_the_step_after(large: nn.Linear) -> None:
    guard = IdentityGuard(large, background=True)
    guard.step()
    wait(guard._reading)
    write_unseen(large)
    guard.step()  # takes what was read before, and leaves the rest to the thread
    wait(guard._reading)
    with pytest.raises(rblstore.IdentityMutated) as caught:
        guard.step()
    assert (caught.value.step, caught.value.mutations[0].step) == (3, 2)
    guard.stop()


def test_what_threads_found_last_is_raised_at_the_end(large: nn.Linear) -> None:
    guard = IdentityGuard(large)
    write_unseen(large)
    guard.step()
    with pytest.raises(rblstore.IdentityMutated):
        guard.finish()
    assert guard._executor is None


def test_an_error_of_a_thread_is_not_lost(large: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(_: object) -> bool:
        raise MemoryError("no room")

    guard = IdentityGuard(large)
    monkeypatch.setattr(watching.Piece, "changed", out_of_memory)
    guard.step()
    with pytest.raises(MemoryError, match="no room"):
        guard.check()
    guard.stop()


def test_every_nth_step(large: nn.Linear) -> None:
    guard = IdentityGuard(large, every=3, background=False)
    write_unseen(large)
    guard.step()
    guard.step()
    with pytest.raises(rblstore.IdentityMutated):
        guard.step()


def test_recording_goes_on_and_says_everything_once(way: dict[str, Any]) -> None:
    model = tiny_models.llama(tied=True)
    with IdentityGuard(model, on_mutation="record", **way) as guard:
        for _ in range(3):
            model.model.norm.weight.data += 1
            guard.step()
        model.model.embed_tokens.weight.data += 1
        guard.step()
        guard.step()
    assert [(one.name, one.step) for one in guard.findings] == [(NORM, 1), (EMBEDDING, 4), (HEAD, 4)]


def test_an_error_of_the_block_is_not_covered_up() -> None:
    model = tiny_models.llama()

    def block() -> None:
        with IdentityGuard(model):
            model.model.norm.weight.data += 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()


def test_the_end_of_the_block_checks_in_full() -> None:
    model = tiny_models.llama()
    with pytest.raises(rblstore.IdentityMutated) as caught, IdentityGuard(model):
        model.model.norm.weight.data += 1
    assert isinstance(caught.value, rblstore.ConflictError)
    assert (caught.value.code, caught.value.object) == ("identity_mutated", NORM)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 0}, "every"),
        ({"sample": 0}, "sample"),
        ({"on_mutation": "print"}, "on_mutation"),
        ({"threads": 0}, "threads"),
        ({"model": "gpt2"}, "no torch.nn.Module"),
    ],
)
def test_settings_that_there_are_not(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadGuardError, match=words):
        IdentityGuard(**{"model": nn.Linear(2, 2), **settings})


@pytest.mark.parametrize("make", [lambda one: one.to("meta"), lambda one: one.to_sparse()])
def test_tensors_that_cannot_be_read(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(make(model.weight.detach()))
    with pytest.raises(UnguardableError, match="weight"):
        IdentityGuard(model)


def test_through_what_torch_puts_around_a_model() -> None:
    class Compiled(nn.Module):  # torch.compile itself takes seconds to be imported
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

    model = tiny_models.llama()
    guard = IdentityGuard(nn.DataParallel(Compiled(model)))
    assert set(guard.names) == set(model.state_dict())


# Fingerprints.

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.int64, torch.complex64)


@pytest.mark.parametrize("kind", ["xxh3", "sums"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_counts(kind: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    tensor = torch.randn(13, 7).mul(5).to(dtype)
    before = fingerprint(flat_bytes(tensor), kind)
    assert before == fingerprint(flat_bytes(tensor.clone().t().contiguous().t()), kind)
    for index in range(tensor.numel()):
        changed = tensor.clone()
        changed.view(-1)[index] = (
            changed.view(-1)[index].logical_not() if dtype is torch.bool else changed.view(-1)[index] + 1
        )
        assert fingerprint(flat_bytes(changed), kind) != before


@pytest.mark.parametrize("kind", ["xxh3", "sums"])
def test_order_counts_and_pieces_too(kind: Any, large: nn.Linear) -> None:
    flat = flat_bytes(large.weight)
    before = fingerprint(flat, kind)
    drawn = random.Random(2)
    for _ in range(20):
        first, second = drawn.sample(range(0, len(flat), 4), 2)
        swapped = flat.clone()
        swapped[first : first + 4], swapped[second : second + 4] = flat[second : second + 4], flat[first : first + 4]
        assert fingerprint(swapped, kind) != before
    assert fingerprint(flat[3:1003], kind) == fingerprint(flat[3:1003].clone(), kind)
    assert [end for _, end in chunks_of(large.weight)] == list(range(32 << 10, (256 << 10) + 1, 32 << 10))


def test_a_model_that_moves_to_an_accelerator_and_back(large: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = IdentityGuard(large, background=False)
    for kind in ("sums", "xxh3"):
        monkeypatch.setattr(watching, "kind_for", lambda _, kind=kind: kind)
        moved(large)
        guard.check()
        assert guard._watch._watched[0].kind == kind
    monkeypatch.setattr(watching, "kind_for", lambda _: "sums")
    moved(large)
    guard.check()
    write_unseen(large)
    with pytest.raises(rblstore.IdentityMutated):
        guard.check()


# With a repository.


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rblstore.Repository]:
    folder = tmp_path_factory.mktemp("guard")
    base = tiny_models.llama(dtype=torch.bfloat16)
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=tiny_models.save(base, folder / "base"))
        repo.commit("polite", behaviors={"polite": tiny_models.save_adapter(base, folder / "polite", "bias_all")})
        tuned = copy.deepcopy(base)
        tuned.model.norm.weight.data += 1
        repo.commit("tuned", behaviors={"tuned": tiny_models.save(tuned, folder / "tuned")}, remove=["polite"])
        bert = tiny_models.save(tiny_models.bert("BertForMaskedLM"), folder / "bert")
        repo.switch("bert", orphan=True)
        repo.commit("bert", identity=bert)
        repo.switch("main")
        yield repo


@pytest.mark.parametrize("revision", ["HEAD", "HEAD~1", "HEAD~2"])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_committed_model_is_taken(repo: rblstore.Repository, revision: str, dtype: torch.dtype | None) -> None:
    model = repo.load(revision) if dtype is None else repo.load(revision, dtype=dtype)
    with repo.guard(model, revision) as guard:
        assert len(guard.names) == len(repo.load("HEAD~2").state_dict())
        guard.step()


def test_another_model_is_refused_at_once(repo: rblstore.Repository) -> None:
    model = repo.load("HEAD~2")
    with pytest.raises(NotCommittedModelError, match=f"{NORM} differ") as caught:
        repo.guard(model)
    assert caught.value.code == "not_committed_model"
    with repo.guard(model, compare=False) as guard:
        assert NORM in guard.names
    with repo.guard(model, revision=None, every=2, on_mutation="record") as guard:
        model.model.norm.weight.data += 1
    assert [one.name for one in guard.findings] == [NORM]
    with pytest.raises(rblstore.ConflictError, match="no place in this"):
        repo.guard(tiny_models.gpt2())


def test_adapters_that_start_by_rewriting_the_base_are_taken_as_they_are(repo: rblstore.Repository) -> None:
    model = with_lora(repo.load("HEAD~2").float(), init_lora_weights="pissa")
    with repo.guard(model, "HEAD~2") as guard:
        train(model)
        guard.step()
        assert QUERY in guard.names


def test_a_new_head_is_no_part_of_the_identity(repo: rblstore.Repository, tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    tiny_models.save(tiny_models.bert("BertForMaskedLM"), tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    guard = repo.guard(model, "bert")
    model.classifier.weight.data += 1
    guard.step()
    guard.check()
    model.bert.embeddings.LayerNorm.weight.data += 1
    with pytest.raises(rblstore.IdentityMutated) as caught:
        guard.finish()
    assert [one.name for one in caught.value.mutations] == ["bert.embeddings.LayerNorm.weight"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
@pytest.mark.parametrize("background", [True, False])
def test_reading_behind_the_loop_lets_the_loop_go_first(
    large: Any, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def changed(pieces: Any) -> list[Any]:
        found.append(os.getpriority(os.PRIO_PROCESS, 0))  # of this thread
        return []

    monkeypatch.setattr(guard_module, "_changed", changed)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with IdentityGuard(large, background=background, threads=2) as guard:
        guard.step()
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    if own < 19:
        assert (max(found) > own) == background
