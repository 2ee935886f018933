"""adapter_config.json is data: strict types, nothing that reaches out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rblstore.checkpoints.adapter_config import PEFT_TYPES, BadAdapterConfigError, parse_adapter_config
from rblstore.objects import limits


def parse(**members: Any):
    return parse_adapter_config(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **members}).encode())


def test_reads_what_a_lora_config_says() -> None:
    config = parse(
        task_type="CAUSAL_LM",
        base_model_name_or_path="base",
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"q_proj": 4},
        alpha_pattern={"q_proj": 3},
        use_rslora=True,
        layer_replication=[[0, 2], [1, 3]],
        trainable_token_indices={"embed_tokens": [1, 2]},
        modules_to_save=["head", "head"],
        something_new={"a": [1]},
    )
    assert (config.peft_type, config.task_type, config.r, config.lora_alpha) == ("LORA", "CAUSAL_LM", 8, 16.0)
    assert config.target_modules == ("q_proj", "v_proj")
    assert dict(config.rank_pattern) == {"q_proj": 4}
    assert dict(config.alpha_pattern) == {"q_proj": 3.0}
    assert config.layer_replication == ((0, 2), (1, 3))
    assert config.trainable_token_indices == {"embed_tokens": (1, 2)}
    assert config.modules_to_save == ("head",)
    assert config.use_rslora
    assert not config.is_plain_lora
    assert config.raw["something_new"] == {"a": [1]}


@pytest.mark.parametrize(
    "members",
    [
        {"peft_type": "XLORA", "adapters": {"0": "somebody/adapter"}},
        {"peft_type": "BONE"},
        {"peft_type": None},
        {"peft_type": ["LORA"]},
        {"task_type": "WORLD_PEACE"},
        {"task_type": {}},
        {"r": "8"},
        {"r": 0},
        {"r": True},
        {"lora_alpha": "16"},
        {"lora_alpha": True},
        {"bias": 1},
        {"bias": "some"},
        {"use_dora": "yes"},
        {"fan_in_fan_out": 1},
        {"target_modules": [1]},
        {"target_modules": {"q_proj": 1}},
        {"modules_to_save": [""]},
        {"rank_pattern": {"q": 0}},
        {"rank_pattern": {"q": "4"}},
        {"rank_pattern": [1]},
        {"alpha_pattern": {"q": None}},
        {"trainable_token_indices": [-1]},
        {"trainable_token_indices": {"e": 3}},
        {"layer_replication": [[0]]},
        {"layer_replication": [[2, 1]]},
        {"layer_replication": [[0, 10**9]]},
        {"base_model_name_or_path": 3},
        {"revision": []},
        {"auto_mapping": "module"},
        {"megatron_config": {"tensor_model_parallel_size": 1}, "megatron_core": "os"},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"anything": [{"deep": {"trust_remote_code": 1}}]},
        {"peft_type": "SHADOW", "shadow_model": "somebody/model"},
        {
            "peft_type": "MULTITASK_PROMPT_TUNING",
            "prompt_tuning_init": "EXACT_SOURCE_TASK",
            "prompt_tuning_init_state_dict_path": "/etc/evil.bin",
        },
    ],
)  # fmt: skip
def test_refuses(members: dict[str, Any]) -> None:
    with pytest.raises(BadAdapterConfigError):
        parse(**members)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"peft_type": "LORA", "peft_type": "LORA"}',
        b'{"peft_type": "LORA", "lora_alpha": NaN}',
        b'{"peft_type": "LORA", "x": 99999999999999999999}',
        b'{"peft_type": "LORA", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
        b"\xff\xfe",
        b'{"peft_type": "LORA", "x": "' + b"a" * limits.ADAPTER_CONFIG_BYTES + b'"}',
    ],
)
def test_refuses_bytes(data: bytes) -> None:
    with pytest.raises(BadAdapterConfigError):
        parse_adapter_config(data)


def test_inert_members_stay_data() -> None:
    config = parse(
        auto_mapping={"base_model_class": "X", "parent_library": "os"},
        megatron_core="megatron.core",
        runtime_config={"ephemeral_gpu_offload": True},
    )
    assert config.raw["auto_mapping"]["parent_library"] == "os"
    assert config.is_plain_lora


def test_the_task_implies_a_head() -> None:
    assert parse(task_type="SEQ_CLS").saved_modules == ("classifier", "score")
    assert parse(task_type="CAUSAL_LM").saved_modules == ()
    assert parse(task_type="TOKEN_CLS", modules_to_save=["score", "x"]).saved_modules == ("score", "x", "classifier")
    assert parse(modules_to_save=["head"]).saves_module("lm_head")
    assert not parse(modules_to_save=["head"]).saves_module("header")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "OLoRA", "loftq", "corda", "lora_ga"])
def test_starts_that_change_the_base(start: str) -> None:
    assert parse(init_lora_weights=start).mutates_base
    assert not parse(init_lora_weights=start).is_plain_lora


def test_starts_that_do_not() -> None:
    for start in (True, False, "gaussian", "eva", "orthogonal", "mica"):
        assert not parse(init_lora_weights=start).mutates_base


def test_every_kind_that_peft_has_is_known() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - PEFT_TYPES == {"XLORA"}


def test_peft_drops_runtime_config(tmp_path) -> None:
    """Why a ``runtime_config`` member is allowed: peft removes it before anything reads it."""
    from peft import PeftConfig

    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "runtime_config": {"x": 1}}))
    with pytest.warns(UserWarning, match="runtime_config"):
        assert "runtime_config" not in PeftConfig.from_json_file(str(tmp_path / "adapter_config.json"))
