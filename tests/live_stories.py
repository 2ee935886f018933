"""A repository of compositions for live models, what such a model is in every respect, and what a fresh load gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
import torch

import rblstore
from rblstore.checkpoints.plain_view import plain_modules, plain_tensors
from rblstore.checkpoints.saving import live_tensor_digest
from rblstore.operations.load import load_composition

NAMES = ("base", "a", "ab", "abf", "bf", "f", "bias")


class Story:
    """Commits by name over one tiny Llama: adapters ``a`` and ``b``, the overlay ``ft``, an adapter with biases.

    Attributes:
        repo: The repository.
        commits: Ids by name.
        folder: Where its sources lie.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, tied: bool = True) -> None:
        self.folder = folder
        model = tiny_models.llama(dtype=dtype, tied=tied)
        tiny_models.save(model, folder / "base")
        for seed, (name, kind) in enumerate((("a", "lora"), ("b", "rslora"), ("bias", "bias_all")), 1):
            tiny_models.save_adapter(model, folder / name, kind, seed=seed)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.down_proj.weight.mul_(1.25)
            model.model.norm.weight.add_(0.5)
        tiny_models.save(model, folder / "ft")
        self.repo: Any = rblstore.init(folder / "store")
        self.commits = {
            "base": self.repo.commit("base", identity=folder / "base").commit,
            "a": self._behave("a", a="a"),
            "ab": self._behave("ab", b="b"),
            "abf": self._behave("abf", ft="ft"),
            "bf": self.repo.commit("bf", remove=["a"]).commit,
            "f": self.repo.commit("f", remove=["b"]).commit,
            "bias": self._behave("bias", remove=["ft"], bias="bias"),
        }

    def _behave(self, message: str, remove: list[str] | None = None, **behaviors: str) -> Any:
        made = self.repo.commit(
            message, remove=remove or [], behaviors={name: self.folder / kind for name, kind in behaviors.items()}
        )
        return made.commit

    def load(self, name: str, **options: Any) -> Any:
        """A fresh load of a commit."""
        return self.repo.load(self.commits[name], **options)

    def fresh(self, composition: Any, **options: Any) -> Any:
        """A fresh load of any composition."""
        return load_composition(self.repo._store, composition, **options)


def weights(model: Any) -> dict[str, str]:
    """Digests of the model's own tensors by their plain names."""
    return {name: live_tensor_digest(tensor) for name, tensor in plain_tensors(model).items()}


def structure(model: Any) -> dict[str, Any]:
    """Everything about a model that a change must put back where it fails, but for values."""
    return {
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules(remove_duplicate=False)],
        "parameters": [
            (name, id(one), one.data_ptr(), one.requires_grad)
            for name, one in model.named_parameters(remove_duplicate=False)
        ],
        "attributes": sorted(vars(model)),
        "plain attributes": [(name, sorted(vars(module))) for name, module in plain_modules(model)],
    }


def whole(model: Any) -> tuple[Any, ...]:
    """Structure, every value and the outputs."""
    values = {name: live_tensor_digest(one) for name, one in model.state_dict().items()}
    return structure(model), values, tiny_models.outputs(model).tolist()


def assert_fresh(live: Any, fresh: Any) -> None:
    """A live model with adapters apart is what a fresh load gives, bit for bit."""
    assert type(live.model) is type(fresh)
    assert weights(live.model) == weights(fresh)
    assert list(live.model.state_dict()) == list(fresh.state_dict())
    assert torch.equal(tiny_models.outputs(live.model), tiny_models.outputs(fresh))
