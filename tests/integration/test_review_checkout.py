"""Merged checkouts as somebody without rblstore loads them: by the line that is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import tiny_models
import torch
import transformers

import rblstore


def loaded_by(lines: tuple[str, ...]) -> Any:
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    return names["model"].eval()


def test_a_head_that_an_adapter_brings_is_in_the_merged_model(tmp_path: Path) -> None:
    tiny_models.save(tiny_models.llama(), tmp_path / "base")
    torch.manual_seed(0)
    classifier = transformers.LlamaForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, pad_token_id=0
    )
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    peft.get_peft_model(classifier, settings).save_pretrained(tmp_path / "adapter")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("classes", identity=tmp_path / "base", behaviors={"classes": tmp_path / "adapter"})
        result = repo.checkout("HEAD", tmp_path / "merged", form="merged")
        attached = tiny_models.outputs(repo.load())
        assert repo.status(tmp_path / "merged").differences == ()  # type: ignore[union-attr]
    model = loaded_by(result.load)
    assert type(model) is transformers.LlamaForSequenceClassification
    assert torch.allclose(tiny_models.outputs(model), attached, atol=1e-5)
    assert torch.allclose(tiny_models.outputs(rblstore.load_checkout(tmp_path / "merged")), attached, atol=1e-5)


def test_an_encoder_is_loaded_by_its_own_class(tmp_path: Path) -> None:
    model = tiny_models.bert("BertForMaskedLM")
    tiny_models.save(model, tmp_path / "base")
    tiny_models.save_adapter(model, tmp_path / "adapter")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("b", identity=tmp_path / "base", behaviors={"b": tmp_path / "adapter"})
        result = repo.checkout("HEAD", tmp_path / "merged", form="merged")
    assert result.load[0] == "from transformers import BertForMaskedLM"
    assert type(loaded_by(result.load)) is transformers.BertForMaskedLM


def test_a_config_that_names_code_prints_none(tmp_path: Path) -> None:
    base = tiny_models.save(tiny_models.llama(), tmp_path / "base")
    config = base / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "os; os.abort()"))
    tiny_models.save_adapter(tiny_models.llama(), tmp_path / "adapter")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("b", identity=base, behaviors={"b": tmp_path / "adapter"})
        result = repo.checkout("HEAD", tmp_path / "merged", form="merged")
    assert result.load[0] == "from transformers import AutoModel"
