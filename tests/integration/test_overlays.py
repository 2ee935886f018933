"""Overlays: whole checkpoints committed as what they change, checked out byte for byte, taken out with proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_checkpoints import checked_out, digests

import rblstore

PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]
LAYER = "model.layers.0.self_attn.q_proj.weight"
OTHER = "model.layers.1.mlp.down_proj.weight"


def tuned(model: Any, *names: str, seed: int = 5) -> Any:
    """The model with the named parameters changed, or all of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not names or name in names:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_((parameter.float() + noise).to(parameter.dtype))
    return model


def write(model: Any, folder: Path, *, tokenizer: bool = True) -> Path:
    """A checkpoint, with its tokenizer and a card."""
    tiny_models.save(model, folder)
    if tokenizer:
        tiny_models.save_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    return folder


def commit_base(repo: Any, base: Path) -> None:
    repo.commit("base", identity=base)
    repo.add_probe("two", PROMPTS)


def assert_exact(result: Any, *, live: bool = True) -> None:
    evidence = result.verification
    assert (result.verdict, evidence.bit_equal, evidence.kl, evidence.js) == ("exact", True, 0.0, 0.0)
    assert evidence.removed == (result.removed if live else ())


class TestWholeFineTune:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("tied", [False, True])
    def test_it_comes_back_and_it_goes(self, tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
        base = write(tiny_models.llama(dtype=dtype, tied=tied), tmp_path / "base")
        model = tuned(tiny_models.llama(dtype=dtype, tied=tied))
        fine = write(model, tmp_path / "ft")
        (fine / "README.md").write_text("---\nlicense: mit\n---\nTuned.\n")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            result = repo.checkout("HEAD", tmp_path / "out")
            assert checked_out(tmp_path / "out") == digests(fine)
            assert repo.status(tmp_path / "out").clean
            (shown,) = repo.show("HEAD").behaviors
            assert (shown.form, shown.type) == ("overlay", None)
            loaded = rblstore.load_checkout(tmp_path / "out")
            assert torch.equal(tiny_models.outputs(loaded), tiny_models.outputs(repo.load("HEAD")))
            assert torch.equal(tiny_models.outputs(loaded), tiny_models.outputs(model))
            reverted = repo.revert(behavior="ft")
            assert_exact(reverted)
            assert reverted.verification.kl_adapted > 1e-6
            assert reverted.verification.rf == 1.0
            repo.checkout("HEAD", tmp_path / "plain")
            assert checked_out(tmp_path / "plain") == digests(base)
            assert_exact(repo.revert("HEAD"))  # it comes back, on the live model
            repo.checkout("HEAD", tmp_path / "again")
            assert checked_out(tmp_path / "again") == digests(fine)
            assert_exact(repo.revert("HEAD"))
            assert repo.fsck(full=True).damages == ()
        assert result.form == "adapters"
