"""A repository with a tiny base, and tiny models over it that are trained by hand or by an optimizer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import tiny_models
import torch

import rblstore
from rblstore.checkpoints.quiet import quiet


@dataclass(frozen=True)
class Bench:
    """A repository whose main branch has a base, and the model that it was made from."""

    repo: Any
    base: Any

    def adapted(self, kind: str = "lora", *, seed: int = 1) -> Any:
        """A copy of the base under a new adapter of one of the tiny kinds."""
        torch.manual_seed(seed)
        with quiet():
            return peft.get_peft_model(copy.deepcopy(self.base), tiny_models._config(self.base, kind))

    def whole(self) -> Any:
        """A copy of the base, to be trained itself."""
        return copy.deepcopy(self.base)


def make_bench(folder: Path, base: Any) -> Bench:
    """A repository in a new folder, the base committed."""
    with quiet():
        tiny_models.save(base, folder / "base")
    repo = rblstore.init(folder / "store")
    repo.commit("base", identity=folder / "base")
    return Bench(repo, base)


def nudge(model: Any, seed: int = 0) -> None:
    """What a step of training does, without the training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.01
                parameter.add_(noise.to(parameter.dtype))


def train(model: Any, optimizer: Any, scheduler: Any, run: Any, steps: range) -> None:
    """Steps of a real loop; each step's tokens depend on its number alone."""
    model.train()
    for step in steps:
        tokens = torch.randint(1, tiny_models.VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        if run is not None:
            run.step(loss=loss, tokens=tokens.numel())
