"""Reverts of what breaks the model: what cannot be measured any more must still be provable once it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import rblstore
from rblstore import Repository
from rblstore.divergence import metrics
from rblstore.operations import revert_proof

PROMPTS = ["w5 w17 w80", "w7 w7 w12 w90"]


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    """base <- a <- b on a tiny Llama, with one probe."""
    model = tiny_models.llama()
    tiny_models.save_tokenizer(tiny_models.save(model, tmp_path / "base"))
    with rblstore.init(tmp_path / "store") as opened:
        opened.commit("base", identity=tmp_path / "base")
        opened.add_probe("two", PROMPTS)
        for seed, name in enumerate("ab", start=1):
            adapter = tiny_models.save_adapter(model, tmp_path / name, seed=seed)
            opened.commit(name, behaviors={name: adapter})
        yield opened


def test_a_behavior_of_nan_is_taken_out_with_a_proof(repo: Repository, tmp_path: Path) -> None:
    weights = tmp_path / "b" / "adapter_model.safetensors"
    save_file({name: torch.full_like(one, torch.nan) for name, one in load_file(weights).items()}, weights)
    repo.commit("broken", behaviors={"b": tmp_path / "b"})
    result = repo.revert("HEAD")
    assert result.verification is not None
    assert (result.verdict, result.verification.kl) == ("exact", 0.0)
    assert (result.verification.rf, result.verification.kl_adapted) == (None, None)
    assert "NaN" in (result.verification.reason or "")


def test_an_identity_with_another_tokenizer_is_taken_back(repo: Repository, tmp_path: Path) -> None:
    other = tiny_models.save(tiny_models.llama(seed=9), tmp_path / "other")
    tiny_models.save_tokenizer(other)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"w5"', '"w5x"'))
    repo.commit("other", identity=other, remove=["a", "b"])
    result = repo.revert("HEAD")
    assert result.verification is not None
    assert (result.verdict, result.verification.rf) == ("exact", None)
    assert "tokenizer" in (result.verification.reason or "")


def test_the_reference_is_of_the_environment_of_its_own_model(repo: Repository, tmp_path: Path) -> None:
    recorded = repo.baseline("HEAD")
    narrow = tiny_models.save(tiny_models.llama(dtype=torch.bfloat16), tmp_path / "narrow")
    tiny_models.save_tokenizer(narrow)
    repo.commit("narrow", identity=narrow, remove=["a", "b"])
    result = repo.revert("HEAD")
    assert result.verification is not None
    assert result.verification.baseline == recorded.baseline
    assert result.verification.environment == recorded.environment


def test_a_proof_that_fails_half_way_leaves_no_damage(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise metrics.NanOutputError("the recovered model gives NaN")

    monkeypatch.setattr(revert_proof.RevertProof, "_live_revert", fail)
    with pytest.raises(metrics.NanOutputError):
        repo.revert(behavior="a")
    assert len(repo.baselines()) == 1
    assert repo.fsck(full=True).damages == ()
