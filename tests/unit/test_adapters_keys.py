"""The names of saved adapter tensors, for every kind that peft saves, against files that peft wrote."""

from __future__ import annotations

from typing import Any

import pytest
from adapters_tiny import BOTH, Zoo, bert, llama

from rblstore.checkpoints.adapter_keys import AdapterKey, parse_adapter_key

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("base_model.model.a.q.lora_A.weight", AdapterKey("a.q", "lora_A.weight", "delta")),
        ("base_model.model.a.q.lora_magnitude_vector", AdapterKey("a.q", "lora_magnitude_vector", "delta")),
        ("base_model.model.a.lora_q.lora_A.weight", AdapterKey("a.lora_q", "lora_A.weight", "delta")),
        ("base_model.model.wte.lora_embedding_B", AdapterKey("wte", "lora_embedding_B", "delta")),
        ("base_model.model.wte.base_layer.weight", AdapterKey("wte", "weight", "full", beneath=True)),
        ("base_model.model.a.experts.base_layer.lora_A.weight", AdapterKey("a.experts", "lora_A.weight", "delta")),
        ("base_model.model.e.token_adapter.trainable_tokens_delta", AdapterKey("e", "trainable_tokens_delta", "delta")),
        ("base_model.model.a.q.lora_B.bias", AdapterKey("a.q", "lora_B.bias", "delta")),
        ("base_model.model.a.q.ia3_l", AdapterKey("a.q", "ia3_l", "delta")),
        ("base_model.model.a.q.hada_w1_a", AdapterKey("a.q", "hada_w1_a", "delta")),
        ("base_model.model.a.q.adamss_A.0", AdapterKey("a.q", "adamss_A.0", "delta")),
        ("base_model.model.a.q.boft_R", AdapterKey("a.q", "boft_R", "delta")),
        ("base_model.model.a.q.lokr_w2", AdapterKey("a.q", "lokr_w2", "delta")),
        ("base_model.model.n.ln_tuning_layers.weight", AdapterKey("n", "weight", "full", beneath=True)),
        ("base_model.model.a.adaption_gate", AdapterKey("a", "adaption_gate", "prompt")),
        ("base_model.vera_A", AdapterKey("", "vera_A", "shared")),
        ("base_model.vblora_vector_bank", AdapterKey("", "vblora_vector_bank", "shared")),
        ("base_model.tinylora_v.0", AdapterKey("", "tinylora_v.0", "shared")),
        ("prompt_embeddings", AdapterKey("", "prompt_embeddings", "prompt")),
        ("base_model.model.classifier.weight", AdapterKey("classifier", "weight", "full")),
        ("base_model.model.classifier.original_module.bias", AdapterKey("classifier", "bias", "inert")),
        ("base_model.model.classifier.modules_to_save.bias", AdapterKey("classifier", "bias", "inert")),
        ("base_model.model.a.q.bias", AdapterKey("a.q", "bias", "full")),
        ("weight", AdapterKey("", "weight", "full")),
        ("", AdapterKey("", "", "full")),
        ("...", AdapterKey("..", "", "full")),
    ],
)
def test_takes_a_name_apart(name: str, key: AdapterKey) -> None:
    assert parse_adapter_key(name) == key


EXTRA: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "OFT": {"oft_block_size": 4},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 5},
    "WAVEFT": {"n_frequency": 5},
    "VBLORA": {"vector_length": 4, "num_vectors": 8},
    "SHIRA": {"r": 2},
    "MISS": {"r": 8},
    "ROAD": {"group_size": 8},
}
NOT_HERE = {
    "XLORA", "TRAINABLE_TOKENS", "LN_TUNING", "ADAPTION_PROMPT", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
    "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE", "UNILORA",
    "BOFT", "ADAMSS",  # one compiles a CUDA extension when it is made, the other clusters for seconds
}  # fmt: skip


def kinds() -> list[str]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value not in NOT_HERE)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_names_the_modules_that_it_targets(zoo: Zoo, kind: str) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](target_modules=BOTH, **EXTRA.get(kind, {}))
    adapter = zoo.make(llama, config)
    keys = [parse_adapter_key(name, adapter.config) for name in adapter.tensors]
    modules = {key.module for key in keys if key.kind == "delta"}
    assert modules == {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"}
    assert {key.kind for key in keys} <= {"delta", "shared"}
    # The effects say the same.
    targets = {(effect.target, effect.action) for effect in zoo.bind(llama, adapter).effects}
    assert targets == {(f"{module}.weight", "modifies") for module in modules}


def test_a_kind_without_names_goes_by_its_config(zoo: Zoo) -> None:
    from peft import UniLoraConfig

    behavior = zoo.bind(llama, zoo.make(llama, UniLoraConfig(target_modules=BOTH)))
    assert {effect.target for effect in behavior.effects} == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    }


def test_bias_all_beside_a_saved_head(zoo: Zoo) -> None:
    from peft import LoraConfig

    adapter = zoo.make(bert, LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["query"], bias="all"))
    keys = {name: parse_adapter_key(name, adapter.config) for name in adapter.tensors}
    assert keys[f"base_model.model.{QUERY}.base_layer.bias"] == AdapterKey(QUERY, "bias", "full", beneath=True)
    assert keys["base_model.model.bert.pooler.dense.bias"] == AdapterKey("bert.pooler.dense", "bias", "full")
    # peft saves these by accident with bias="all"; its loader never reads them.
    inert = {name for name, key in keys.items() if key.kind == "inert"}
    assert inert == {
        "base_model.model.classifier.modules_to_save.bias",
        "base_model.model.classifier.original_module.bias",
    }


def test_prompt_learning_has_one_level_less(zoo: Zoo) -> None:
    from peft import PromptTuningConfig

    adapter = zoo.make(bert, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    keys = {name: parse_adapter_key(name, adapter.config) for name in adapter.tensors}
    assert keys["base_model.classifier.weight"] == AdapterKey("classifier", "weight", "full")
    assert keys["prompt_embeddings"].kind == "prompt"


def test_a_base_that_is_named_like_an_adapter() -> None:
    from rblstore.checkpoints.adapter_config import parse_adapter_config

    ia3 = parse_adapter_config(b'{"peft_type": "IA3"}')
    key = parse_adapter_key("base_model.model.road_net.lora_head.q.ia3_l", ia3)
    assert key == AdapterKey("road_net.lora_head.q", "ia3_l", "delta")
    assert parse_adapter_key("base_model.model.road_net.bias", ia3).kind == "full"
