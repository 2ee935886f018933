"""What behaviors add to tensors: held against a merged checkout, which is computed in another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import rblstore
from rblstore.divergence.subspaces import BlockedDelta, Delta, LowRankDelta, overlap_of
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.behavior_deltas import BehaviorDeltas, behavior_deltas
from rblstore.operations.composition_parts import Parts


def whole(delta: Delta) -> torch.Tensor:
    if isinstance(delta, LowRankDelta):
        return delta.scale * delta.second @ delta.first
    return torch.cat(list(delta.blocks()))


def composition(repo: Any, commit: Any) -> Composition:
    store = repo._store
    found: Composition = store.record(store.record(commit, Commit).composition, Composition)
    return found


def deltas_of(repo: Any, commit: Any) -> dict[str, BehaviorDeltas]:
    return {one.name: one for one in behavior_deltas(repo._store, composition(repo, commit))}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "lora"), ("llama", "rslora"), ("llama", "rank_pattern"), ("gpt2", "lora"), ("llama", "lora_embedding")],
)
def test_the_factors_are_what_merging_adds(tmp_path: Path, family: str, kind: str) -> None:
    model = getattr(tiny_models, family)()
    base = tiny_models.save(model, tmp_path / "base")
    adapter = tiny_models.save_adapter(model, tmp_path / "adapter", kind)
    file = adapter / "adapter_model.safetensors"
    # Without the copy of the whole embedding that peft saves beside its update.
    save_file({name: one for name, one in load_file(file).items() if ".lora_" in name}, file, {"format": "pt"})
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        made = repo.commit("one", behaviors={"one": adapter}, weights={"one": 0.5})
        repo.checkout("HEAD", tmp_path / "out", form="merged")
        found = deltas_of(repo, made.commit)["one"]
    before, after = weights(base), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert found.of.keys() == changed
    assert found.without == {}
    for name, delta in found.of.items():
        assert isinstance(delta, LowRankDelta)
        difference = after[name].double() - before[name].double()
        torch.testing.assert_close(whole(delta), difference, rtol=0, atol=1e-6)


def test_an_overlay_gives_differences_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rblstore.operations.behavior_deltas._BLOCK_ELEMENTS", 100)
    model = tiny_models.llama(dtype=torch.bfloat16)
    base = tiny_models.save(model, tmp_path / "base")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.25)
        model.model.norm.weight.add_(0.5)
    tuned = tiny_models.save(model, tmp_path / "tuned")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        found = deltas_of(repo, repo.commit("tuned", behaviors={"tuned": tuned}).commit)["tuned"]
        before, after = weights(base), weights(tuned)
        assert found.of.keys() == {"model.layers.0.mlp.down_proj.weight", "model.norm.weight"}
        for name, delta in found.of.items():
            assert isinstance(delta, BlockedDelta)
            assert len(list(delta.blocks())) == (16 if "down_proj" in name else 1)
            assert torch.equal(whole(delta).reshape(after[name].shape), after[name].double() - before[name].double())
        assert found.of["model.norm.weight"].shape == (1, 32)


def test_an_overlay_that_is_a_merged_adapter_has_its_directions(tmp_path: Path) -> None:
    model = tiny_models.llama()
    base = tiny_models.save(model, tmp_path / "base")
    adapter = tiny_models.save_adapter(model, tmp_path / "adapter")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        low = deltas_of(repo, repo.commit("one", behaviors={"one": adapter}).commit)["one"]
        repo.checkout("HEAD", tmp_path / "out", form="merged")
        made = repo.commit("merged", behaviors={"merged": tmp_path / "out"}, remove=["one"])
        full = deltas_of(repo, made.commit)["merged"]
        assert full.of.keys() == low.of.keys()
        for name, delta in full.of.items():
            overlap = overlap_of(low.of[name], delta)
            assert overlap is not None
            assert overlap.cosine == pytest.approx(1.0, abs=1e-9)
            assert overlap.output.overlap == pytest.approx(1.0, abs=1e-9)
            assert overlap.input.overlap == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("prompt_tuning", "virtual tokens"),
        ("ia3", "scales activations"),
        ("loha", "no product of two factors"),
        ("pissa", "takes a part of the weight away"),
    ],
)
def test_what_has_no_delta_says_why(tmp_path: Path, kind: str, reason: str) -> None:
    model = tiny_models.llama()
    base = tiny_models.save(model, tmp_path / "base")
    adapter = tiny_models.save_adapter(model, tmp_path / "adapter", kind)
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        found = deltas_of(repo, repo.commit("one", behaviors={"one": adapter}).commit)["one"]
    assert not found.of
    assert reason in (found.reason or "")
    assert all(reason in why for why in found.without.values())


def test_what_has_a_delta_in_part(tmp_path: Path) -> None:
    model = tiny_models.llama()
    base = tiny_models.save(model, tmp_path / "base")
    kinds = ("dora", "bias_all", "lora_tokens", "modules_to_save", "edited_base")
    found = {}
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        for kind in kinds:
            adapter = tiny_models.save_adapter(model, tmp_path / kind, kind)
            made = repo.commit(kind, behaviors={kind: adapter}, remove=list(found))
            found = deltas_of(repo, made.commit)
            one = found[kind]
            assert one.reason is None
            assert one.of["model.layers.0.self_attn.v_proj.weight"].shape == (16, 32)
            if kind == "dora":
                assert one.without == {}
            if kind == "bias_all":
                assert one.of["model.layers.0.self_attn.q_proj.bias"].shape == (1, 32)
            if kind == "modules_to_save":
                assert one.of["lm_head.weight"].shape == (96, 32)
            if kind == "lora_tokens":
                assert set(one.without) == {"model.embed_tokens.weight"}
            if kind == "edited_base":
                assert list(one.without.values()) == ["it is replaced and updated at once"]


def test_a_new_head_lies_on_nothing_and_a_longer_embedding_on_another_shape(tmp_path: Path) -> None:
    model = tiny_models.llama()
    base = tiny_models.save(model, tmp_path / "base")
    tuned = tiny_models.save(model, tmp_path / "tuned")
    tensors = weights(tuned)
    tensors["score.weight"] = torch.ones(2, 32)
    tensors["model.embed_tokens.weight"] = torch.cat([tensors["model.embed_tokens.weight"], torch.ones(1, 32)])
    del tensors["model.norm.weight"]
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        found = deltas_of(repo, repo.commit("tuned", behaviors={"tuned": tuned}).commit)["tuned"]
    assert not found.of
    assert found.without == {
        "model.embed_tokens.weight": "it has another shape than what lies beneath it: [97, 32]",
        "model.norm.weight": "it is removed",
        "score.weight": "it is added, and nothing lies beneath it",
    }
    assert found.reason is not None


def test_parts_come_with_what_they_stand_on(tmp_path: Path) -> None:
    model = tiny_models.llama()
    base = tiny_models.save(model, tmp_path / "base")
    for step in ("sft", "dpo"):
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(1.25)
        tiny_models.save(model, tmp_path / step)
    adapter = tiny_models.save_adapter(model, tmp_path / "free")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        for step in ("sft", "dpo"):
            repo.commit(step, behaviors={step: tmp_path / step})
        made = repo.commit("free", behaviors={"free": adapter})
        parts = Parts(repo._store, composition(repo, made.commit))
        assert parts.names == ("sft", "dpo", "free")
        assert parts.needed(["dpo"]) == {"sft"}
        assert parts.needed(["sft", "free"]) == frozenset()
        assert parts.needed(["dpo", "free"]) == {"sft"}
        assert [slot.name for slot in parts.of({"free", "sft"}).slots] == ["sft", "free"]
        assert [slot.name for slot in parts.of({"free", "sft"}, ("free", "sft")).slots] == ["free", "sft"]
        assert parts.refused(parts.of({"dpo", "sft"})) is None
        assert "dpo" in (parts.refused(parts.of({"dpo"})) or "")
        assert parts.refused(parts.of({"dpo", "sft"}, ("dpo", "sft"))) is not None
