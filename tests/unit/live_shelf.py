"""A repository of small behaviors on one small model, for tests of a live model's values."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_models
import torch

import rblstore
from rblstore.checkpoints.saving import live_tensor_digest
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.live_values import CACHE_BYTES, LiveValues

PLAIN = ("lora", "rslora", "rank_pattern")
BY_PEFT = ("dora", "ia3", "modules_to_save", "bias_all", "lokr", "pissa")


@dataclass(frozen=True)
class Shelf:
    """A repository whose branches are named after what lies on the base."""

    repo: Any
    model: Any

    @property
    def store(self) -> Any:
        return self.repo._store

    def composition(self, revision: str) -> Composition:
        commit = self.store.record(self.repo.resolve(revision), Commit)
        return self.store.record(commit.composition, Composition)  # type: ignore[no-any-return]

    def values(self, live: Any, cache_bytes: int = CACHE_BYTES) -> LiveValues:
        return LiveValues(self.store, live, cache_bytes=cache_bytes)


def fine_tune(model: Any, rows: int | None = None) -> Any:
    tuned = copy.deepcopy(model)
    if rows is not None:
        tuned.resize_token_embeddings(rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return tuned


def make_shelf(folder: Path, model: Any, behaviors: dict[str, Any]) -> Shelf:
    repo = rblstore.init(folder / "store")
    repo.commit("base", identity=tiny_models.save(model, folder / "base"))
    for name, source in behaviors.items():
        repo.switch(name, create=True, start="main")
        repo.commit(name, behaviors={name: source})
    return Shelf(repo, model)


def small_shelf(folder: Path) -> Shelf:
    """One behavior of each kind, each on a branch of its own."""
    model = tiny_models.llama(dtype=torch.bfloat16)
    behaviors = {kind: tiny_models.save_adapter(model, folder / kind, kind) for kind in (*PLAIN, *BY_PEFT)}
    behaviors["other"] = tiny_models.save_adapter(model, folder / "other", "lora", seed=2)
    behaviors["prompt"] = tiny_models.save_adapter(model, folder / "prompt", "prompt_tuning")
    return make_shelf(folder, model, {**behaviors, "tuned": fine_tune(model)})


def digests(model: Any) -> dict[str, str]:
    return {name: live_tensor_digest(tensor) for name, tensor in model.state_dict().items()}


def places_of(model: Any) -> dict[str, tuple[int, int]]:
    return {name: (id(one), one.data_ptr()) for name, one in model.named_parameters()}
