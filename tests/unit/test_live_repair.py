"""``live.repair``: a model that somebody wrote into is its composition again, by reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import rblstore
from rblstore.errors import ConflictError, CorruptError
from rblstore.operations.live_writing import Change, LiveBrokenError

KINDS = ("lora", "bias_all", "modules_to_save", "pissa", "prompt_tuning")


class Shelf:
    """A base, and one adapter of each kind on a branch of its own; ``lora`` lies on a fine-tune besides."""

    def __init__(self, folder: Path) -> None:
        model = tiny_models.llama()
        tiny_models.save(model, folder / "base")
        self.repo: Any = rblstore.init(folder / "store")
        base = self.repo.commit("base", identity=folder / "base").commit
        for seed, kind in enumerate(KINDS, 1):
            tiny_models.save_adapter(model, folder / kind, kind, seed=seed)
            self.repo.create_branch(kind, base)
            self.repo.commit(kind, behaviors={"it": folder / kind}, branch=kind)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(1.25)
        tiny_models.save(model, folder / "ft")
        self.repo.commit("ft", behaviors={"ft": folder / "ft"}, branch="lora")

    def live(self, revision: str, **options: Any) -> Any:
        return self.repo.attach(self.repo.load(revision), revision, allow_no_effect=True, **options)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    found = Shelf(tmp_path_factory.mktemp("repair"))
    yield found
    found.repo.close()


def spoil(model: Any) -> None:
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_was_written_comes_back(shelf: Shelf, kind: str) -> None:
    with shelf.live(kind) as live:
        expected = tiny_models.outputs(live.model)
        assert live.repair() == ()
        kept = {name: id(tensor) for name, tensor in live.plain.named_parameters()}
        spoil(live.model)
        assert not tiny_models.outputs(live.model).equal(expected)
        written = live.repair()
        assert "model.layers.1.mlp.up_proj.weight" in written
        assert any(name.startswith("it: ") for name in written)
        assert list(written) == sorted(written)
        assert tiny_models.outputs(live.model).equal(expected)
        assert live.repair() == ()
        live.verify()
        plain = dict(live.plain.named_parameters())
        assert all(id(plain[name]) == known for name, known in kept.items() if name in plain)


def test_only_what_differs_is_named_and_written(shelf: Shelf) -> None:
    with shelf.live("lora") as live:
        adapter = dict(live.model.named_parameters())
        name = next(one for one in adapter if "layers.0.self_attn.q_proj.lora_B" in one)
        versions = {id(tensor): tensor._version for tensor in adapter.values()}
        with torch.no_grad():
            adapter[name][0, 0] = 7.0
            live.plain.model.norm.weight[0] = -0.0
        assert live.repair() == (
            "it: base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
            "model.norm.weight",
        )
        changed = [one for one, tensor in adapter.items() if tensor._version != versions[id(tensor)]]
        assert sorted(changed) == sorted(["base_model.model.model.norm.weight", name])


def test_nan_comes_back_too(shelf: Shelf) -> None:
    with shelf.live("lora") as live:
        expected = tiny_models.outputs(live.model)
        with torch.no_grad():
            for tensor in live.model.parameters():
                tensor.fill_(torch.nan)
        live.repair()
        assert tiny_models.outputs(live.model).equal(expected)


def test_what_peft_merged_behind_our_back_is_taken_apart(shelf: Shelf) -> None:
    with shelf.live("lora") as live:
        expected = tiny_models.outputs(live.model)
        live.model.merge_adapter()
        assert len(live.repair()) == 4
        assert tiny_models.outputs(live.model).equal(expected)
        assert live.repair() == ()


def test_a_merged_model_comes_back_merged(shelf: Shelf) -> None:
    with shelf.live("lora", form="merged") as live:
        expected = tiny_models.outputs(live.model)
        spoil(live.model)
        assert "model.layers.0.self_attn.q_proj.weight" in live.repair()
        assert tiny_models.outputs(live.model).equal(expected)
        assert live.form == "merged"


def test_a_model_that_trains_is_left_alone(shelf: Shelf) -> None:
    with shelf.live("lora") as live:
        live.model.train()
        spoil(live.model)
        with pytest.raises(ConflictError, match="training mode"):
            live.repair()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30], ids=["straight", "staged"])
def test_what_cannot_be_read_is_said_and_mended_later(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, cache_bytes: int
) -> None:
    with shelf.live("lora", cache_bytes=cache_bytes) as live:
        expected = tiny_models.outputs(live.model)
        spoil(live.plain)
        with monkeypatch.context() as patch:
            patch.setattr("rblstore.operations.tensor_values.TensorValues.read_into", _damaged)
            with pytest.raises(LiveBrokenError if cache_bytes == 0 else CorruptError):
                live.repair()
        if cache_bytes == 0:
            with pytest.raises(LiveBrokenError):
                live.repair()
            live.switch("lora")
        else:
            live.repair()
        assert tiny_models.outputs(live.model).equal(expected)


def _damaged(*_: Any) -> None:
    raise CorruptError("damaged on purpose")


def test_no_copy_is_kept_of_what_is_overwritten(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def straight(change: Change, places: Any, groups: Any, write: Any = Change.straight) -> None:
        write(change, places, groups)
        kept.append(len(change._kept))

    monkeypatch.setattr(Change, "straight", straight)
    with shelf.live("lora", cache_bytes=0) as live:
        kept.clear()
        spoil(live.model)
        live.repair()
    assert kept == [0]
