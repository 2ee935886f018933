"""The base that an adapter names, where the name leads to tensors: a cast is the same base, a fine-tune is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch

import rblstore


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """Two checkpoints with the same values, bf16 and fp32, a third with others, and an adapter of the first."""
    model = tiny_models.llama(dtype=torch.bfloat16)
    adapter = tiny_models.save_adapter(model, tmp_path / "adapters" / "polite")
    model = tiny_models.llama(dtype=torch.bfloat16)
    tiny_models.save(model, tmp_path / "narrow")
    tiny_models.save(model.to(torch.float32), tmp_path / "wide")
    tiny_models.save(tiny_models.llama(seed=5), tmp_path / "tuned")
    _name(adapter, "narrow")
    return tmp_path


def _name(adapter: Path, base: str) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))


@pytest.mark.parametrize("named", ["directory", "identity"])
def test_a_cast_is_no_other_base(story: Path, named: str) -> None:
    adapter = story / "adapters" / "polite"
    _name(adapter, str(story / "narrow") if named == "directory" else "somewhere/narrow")
    with rblstore.init(story / "store") as repo:
        repo.commit("narrow", identity=story / "narrow")
        for branch in ("wide", "tuned"):
            repo.switch(branch, orphan=True)
            repo.commit(branch, identity=story / branch)
        repo.switch("wide")
        repo.commit("polite", behaviors={"polite": adapter})
        repo.switch("tuned")
        with pytest.raises(rblstore.ConflictError, match=r"q_proj\.weight") as caught:
            repo.commit("polite", behaviors={"polite": adapter})
        assert caught.value.code == "wrong_base"
        assert "--rebind" in str(caught.value.hint)
        repo.commit("polite", behaviors={"polite": adapter}, rebind=True)


def test_of_several_identities_of_one_name_one_that_agrees_is_enough(story: Path) -> None:
    adapter = story / "adapters" / "polite"
    (story / "again").mkdir()
    (story / "tuned").rename(story / "again" / "narrow")
    _name(adapter, "somewhere/narrow")
    with rblstore.init(story / "store") as repo:
        repo.commit("narrow", identity=story / "again" / "narrow")
        repo.switch("first", orphan=True)
        repo.commit("narrow", identity=story / "narrow")
        repo.commit("polite", behaviors={"polite": adapter})
