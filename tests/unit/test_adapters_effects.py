"""What adapters do to what lies beneath, on adapters that peft saved over models that transformers saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from adapters_tiny import BOTH, Adapter, Zoo, bert, bert_encoder, content, gpt2, llama, mixtral, tied_llama

from rblstore.checkpoints.adapter_config import parse_adapter_config
from rblstore.checkpoints.adapter_effects import BadAdapterError, WrongBaseError, adapter_effects
from rblstore.objects.content_records import Behavior, Effect, StoredTensor

LAYER = "model.layers.0."
QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


def lora(**arguments: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, **arguments)


def effects(
    adapter: Adapter, beneath: Mapping[str, StoredTensor], files: Mapping[str, Any] | None = None
) -> tuple[dict[str, Effect], list[str]]:
    found, ground = adapter_effects(adapter.config, adapter.tensors, beneath, files or {})
    record = Behavior("adapter", (), found, ground)
    assert Behavior.parse(record.encode()) == record
    return {effect.target: effect for effect in found}, [entry.target for entry in ground]


def actions(adapter: Adapter, beneath: Mapping[str, StoredTensor]) -> dict[str, str]:
    return {target: effect.action for target, effect in effects(adapter, beneath)[0].items()}


def test_lora_modifies_the_weights_of_its_modules(zoo: Zoo) -> None:
    base = zoo.base(llama)
    found, ground = effects(zoo.make(llama, lora(target_modules=BOTH)), base, {"config.json": content("c")})
    assert set(found) == {LAYER + "self_attn.q_proj.weight", LAYER + "mlp.down_proj.weight"}
    assert ground == []
    for target, effect in found.items():
        assert effect.action == "modifies"
        assert effect.value is None
        assert effect.beneath is not None
        assert effect.beneath.content == base[target].content
        assert effect.beneath.shape == base[target].shape


def test_dora_and_saved_embeddings_that_are_equal(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(target_modules=["q_proj"], use_dora=True), save_embedding_layers=True)
    found, ground = effects(adapter, zoo.base(llama))
    assert {target: effect.action for target, effect in found.items()} == {
        LAYER + "self_attn.q_proj.weight": "modifies"
    }
    assert ground == ["lm_head.weight", "model.embed_tokens.weight"]


def test_an_edited_base_layer_replaces(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(target_modules=["q_proj", "embed_tokens"]), seed=7)
    before = actions(adapter, zoo.base(llama))
    assert before["model.embed_tokens.weight"] == "modifies"
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    adapter.edit(lambda tensors: tensors.update({name: tensors[name] + 1}))
    found, _ = effects(adapter, zoo.base(llama))
    effect = found["model.embed_tokens.weight"]
    assert effect.action == "replaces"
    assert effect.value is not None
    assert effect.value.content == adapter.tensors[name].content
    assert found[LAYER + "self_attn.q_proj.weight"].action == "modifies"


def test_a_saved_head_is_added_or_replaced_or_equal(zoo: Zoo) -> None:
    config = lora(task_type="SEQ_CLS", target_modules=["query"])
    adapter = zoo.make(bert, config)
    assert actions(adapter, zoo.base(bert)) == {
        QUERY + ".weight": "modifies",
        "classifier.bias": "replaces",
        "classifier.weight": "replaces",
    }
    headless = {name: tensor for name, tensor in zoo.base(bert).items() if not name.startswith("classifier")}
    assert actions(adapter, headless)["classifier.weight"] == "adds"
    equal = zoo.make(bert, config, seed=9)
    base = dict(zoo.base(bert))
    for name in ("classifier.weight", "classifier.bias"):
        base[name] = equal.tensors["base_model.model." + name]
    found, ground = effects(equal, base)
    assert set(found) == {QUERY + ".weight"}
    assert ground == ["classifier.bias", "classifier.weight"]


def test_a_head_of_another_size_is_another_base(zoo: Zoo) -> None:
    adapter = zoo.make(bert, lora(task_type="SEQ_CLS", target_modules=["query"]))
    base = dict(zoo.base(bert))
    base["classifier.weight"] = StoredTensor("F32", (3, 32), content("three"))
    with pytest.raises(WrongBaseError, match=r"classifier.weight of shape \[2, 32\].*\[3, 32\]"):
        effects(adapter, base)


def test_biases_replace_where_they_differ(zoo: Zoo) -> None:
    adapter = zoo.make(bert, lora(target_modules=["query"], bias="lora_only"))
    assert actions(adapter, zoo.base(bert)) == {QUERY + ".weight": "modifies", QUERY + ".bias": "replaces"}
    everywhere = zoo.make(bert, lora(target_modules=["query"], bias="all"))
    found = actions(everywhere, zoo.base(bert))
    assert found["bert.pooler.dense.bias"] == "replaces"
    assert sum(action == "modifies" for action in found.values()) == 1


def test_old_layer_norm_names(zoo: Zoo) -> None:
    adapter = zoo.make(bert, lora(target_modules=["query"], bias="all"))
    base = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in zoo.base(bert).items()}
    assert actions(adapter, base)["bert.embeddings.LayerNorm.beta"] == "replaces"


def test_ia3_and_its_lengths(zoo: Zoo) -> None:
    from peft import IA3Config

    adapter = zoo.make(llama, IA3Config(target_modules=BOTH, feedforward_modules=["down_proj"]))
    assert set(actions(adapter, zoo.base(llama)).values()) == {"modifies"}
    base = dict(zoo.base(llama))
    base[LAYER + "mlp.down_proj.weight"] = StoredTensor("F32", (33, 49), content("x"))
    with pytest.raises(WrongBaseError, match=r"ia3_l of shape \[1, 48\] does not fit .* \[33, 49\]"):
        effects(adapter, base)


def test_conv1d_and_embeddings_fit_the_other_way_round(zoo: Zoo) -> None:
    adapter = zoo.make(gpt2, lora(target_modules=["c_attn", "wte"]))
    assert actions(adapter, zoo.base(gpt2)) == {
        "transformer.h.0.attn.c_attn.weight": "modifies",
        "transformer.wte.weight": "modifies",
    }


def test_layer_norms_are_replaced(zoo: Zoo) -> None:
    from peft import LNTuningConfig

    adapter = zoo.make(llama, LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]))
    found, _ = effects(adapter, zoo.base(llama))
    assert {target: effect.action for target, effect in found.items()} == {LAYER + "input_layernorm.weight": "replaces"}


def test_trained_tokens_modify_the_embedding(zoo: Zoo) -> None:
    from peft import TrainableTokensConfig

    alone = zoo.make(llama, TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[1, 2]))
    assert actions(alone, zoo.base(llama)) == {"model.embed_tokens.weight": "modifies"}
    beside = zoo.make(llama, lora(target_modules=["q_proj"], trainable_token_indices=[1]))
    assert set(actions(beside, zoo.base(llama)).values()) == {"modifies"}
    assert len(actions(beside, zoo.base(llama))) == 2


@pytest.mark.parametrize("kind", ["prompt", "adaption"])
def test_no_weights_stands_on_config_tokenizer_and_embedding(zoo: Zoo, kind: str) -> None:
    from peft import AdaptionPromptConfig, PromptTuningConfig

    config: Any = (
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        if kind == "prompt"
        else AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=1)
    )
    files = {name: content(name) for name in ("config.json", "tokenizer.json", "vocab.txt", "README.md")}
    found, ground = effects(zoo.make(llama, config), zoo.base(llama), files)
    assert found == {}
    assert ground == ["config.json", "tokenizer.json", "vocab.txt", "model.embed_tokens.weight"]


def test_prompt_learning_may_bring_a_head(zoo: Zoo) -> None:
    from peft import PromptTuningConfig

    adapter = zoo.make(bert, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    found, ground = effects(adapter, zoo.base(bert))
    assert {effect.action for effect in found.values()} == {"replaces"}
    assert ground == ["bert.embeddings.word_embeddings.weight"]


def test_an_added_prefix(zoo: Zoo) -> None:
    """Trained on the bare encoder, committed on the classifier's checkpoint, and the other way round."""
    bare = zoo.make(bert_encoder, lora(target_modules=["query"], bias="lora_only"))
    assert actions(bare, zoo.base(bert)) == {QUERY + ".weight": "modifies", QUERY + ".bias": "replaces"}
    whole = zoo.make(bert, lora(task_type="SEQ_CLS", target_modules=["query"]))
    assert actions(whole, zoo.base(bert_encoder)) == {
        "encoder.layer.0.attention.self.query.weight": "modifies",
        "classifier.weight": "adds",
        "classifier.bias": "adds",
    }


def test_a_new_head_is_not_taken_for_a_tensor_behind_a_prefix_that_the_updates_have_not(zoo: Zoo) -> None:
    adapter = zoo.make(bert, lora(target_modules=["query"]), seed=8)
    adapter.edit(lambda tensors: tensors.update({"base_model.model.dense.weight": torch.ones(32, 32)}))
    base = {name: tensor for name, tensor in zoo.base(bert).items() if "dense" not in name or "pooler" in name}
    base = {name.replace("bert.pooler", "pooler"): tensor for name, tensor in base.items()}
    assert actions(adapter, base) == {QUERY + ".weight": "modifies", "dense.weight": "adds"}


def test_a_prefix_in_another_order(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(target_modules=BOTH))
    moved = {f"language_model.{name}": tensor for name, tensor in zoo.base(llama).items()}
    assert set(actions(adapter, moved)) == {
        f"language_model.{LAYER}self_attn.q_proj.weight",
        f"language_model.{LAYER}mlp.down_proj.weight",
    }


def test_an_ambiguous_module_is_refused(zoo: Zoo) -> None:
    adapter = zoo.make(bert_encoder, lora(target_modules=["query"]))
    base = zoo.base(bert_encoder)
    twice = {f"{side}.{name}": tensor for side in ("left", "right") for name, tensor in base.items()}
    with pytest.raises(WrongBaseError, match=r"could be any of left.encoder"):
        effects(adapter, twice)


def test_an_encoder_is_never_taken_for_a_decoder(zoo: Zoo) -> None:
    adapter = zoo.make(bert_encoder, lora(target_modules=["query"]))
    moved = {name.replace("encoder.", "decoder."): tensor for name, tensor in zoo.base(bert_encoder).items()}
    with pytest.raises(WrongBaseError, match="the base has no tensor for 2 of the adapter's"):
        effects(adapter, moved)
    vision = {f"vision_model.{name}": tensor for name, tensor in zoo.base(bert_encoder).items()}
    with pytest.raises(WrongBaseError, match="no tensor"):
        effects(adapter, vision)


def test_another_base_by_name_and_by_shape(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(target_modules=BOTH))
    with pytest.raises(WrongBaseError) as caught:
        effects(adapter, zoo.base(gpt2))
    assert caught.value.code == "wrong_base"
    assert "for 4 of the adapter's" in caught.value.message
    base = dict(zoo.base(llama))
    base[LAYER + "self_attn.q_proj.weight"] = StoredTensor("F32", (32, 40), content("x"))
    with pytest.raises(WrongBaseError, match=r"q_proj.lora_A.weight of shape \[4, 32\] does not fit .*\[32, 40\]"):
        effects(adapter, base)


def test_a_tied_output_layer(zoo: Zoo) -> None:
    base = zoo.base(tied_llama)
    assert "lm_head.weight" not in base
    adapter = zoo.make(tied_llama, lora(target_modules=["lm_head", "q_proj"]))
    found, _ = effects(adapter, base)
    assert {target: effect.action for target, effect in found.items()} == {
        "model.embed_tokens.weight": "modifies",
        LAYER + "self_attn.q_proj.weight": "modifies",
    }
    saved = zoo.make(tied_llama, lora(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert actions(saved, base)["lm_head.weight"] == "adds"
    both = zoo.make(tied_llama, lora(target_modules=["embed_tokens", "lm_head"]), seed=3)
    assert actions(both, base) == {"model.embed_tokens.weight": "modifies"}
    name = "base_model.model.{}.base_layer.weight"
    both.edit(lambda tensors: tensors.update({name.format("lm_head"): tensors[name.format("lm_head")] + 1}))
    assert actions(both, base) == {"model.embed_tokens.weight": "replaces"}
    embed = name.format("model.embed_tokens")
    both.edit(lambda tensors: tensors.update({embed: tensors[embed] + 2}))
    with pytest.raises(BadAdapterError, match=r"two values for model.embed_tokens.weight"):
        effects(both, base)


def test_an_embedding_with_more_tokens_replaces(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(target_modules=["v_proj"]), save_embedding_layers=True)
    name = "base_model.model.model.embed_tokens.weight"
    adapter.edit(lambda tensors: tensors.update({name: torch.cat([tensors[name], tensors[name][:3]])}))
    found, _ = effects(adapter, zoo.base(llama))
    effect = found["model.embed_tokens.weight"]
    assert effect.action == "replaces"
    assert effect.value is not None
    assert effect.value.shape == (67, 32)


def test_fused_experts_that_are_stored_one_by_one(zoo: Zoo) -> None:
    config = lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    found = actions(zoo.make(mixtral, config), zoo.base(mixtral))
    experts = {name for name in zoo.base(mixtral) if ".experts." in name}
    assert len(experts) == 6
    assert set(found) == experts | {LAYER + "self_attn.q_proj.weight"}
    assert set(found.values()) == {"modifies"}
    fused = {name: tensor for name, tensor in zoo.base(mixtral).items() if ".experts." not in name}
    for name in ("gate_up_proj", "down_proj"):
        fused[f"{LAYER}mlp.experts.{name}"] = StoredTensor("F32", (2, 96, 32), content(name))
    assert LAYER + "mlp.experts.gate_up_proj" in actions(zoo.make(mixtral, config), fused)


def test_replicated_layers_stand_on_what_they_copy(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(target_modules=["q_proj"], layer_replication=[(0, 1), (0, 1)]))
    assert actions(adapter, zoo.base(llama)) == {LAYER + "self_attn.q_proj.weight": "modifies"}


def test_a_rank_that_is_not_the_configs(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(target_modules=["q_proj"]), seed=5)
    raw = json.loads((adapter.directory / "adapter_config.json").read_text())
    raw["r"] = 6
    with pytest.raises(BadAdapterError, match="has rank 4, the config says 6"):
        adapter_effects(parse_adapter_config(json.dumps(raw).encode()), adapter.tensors, zoo.base(llama), {})


def test_half_a_pair(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(target_modules=["q_proj"]), seed=6)
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if "lora_A" in name}
    with pytest.raises(WrongBaseError):
        adapter_effects(adapter.config, tensors, zoo.base(llama), {})


@pytest.mark.parametrize("name", ["", ".", "..", "lora_A", "base_model.", "base_model.model.", "a.lora_A.weight", "\0"])
@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (1, 2, 3, 4, 5)])
def test_hostile_names_and_shapes_raise_only_our_errors(zoo: Zoo, name: str, shape: tuple[int, ...]) -> None:
    config = parse_adapter_config(b'{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    tensors = {
        name: StoredTensor("F32", shape, content("x")),
        "a.lora_B.weight": StoredTensor("F32", shape, content("y")),
    }
    base = {"a.weight": StoredTensor("F32", shape, content("z")), **zoo.base(llama)}
    try:
        adapter_effects(config, tensors, base, {})
    except (WrongBaseError, BadAdapterError):
        pass


def test_many_hostile_names_take_no_time_to_speak_of() -> None:
    """Every scan of the base happens once, whatever the number of names that find nothing."""
    config = parse_adapter_config(
        json.dumps({"peft_type": "LORA", "target_parameters": ["x"], "layer_replication": [[0, 100_000]]}).encode()
    )
    one = StoredTensor("F32", (2, 2), content("x"))
    base = {f"m.{at}.experts.{at}.w": one for at in range(20_000)}
    names = [f"base_model.model.m.{at}.experts.lora_A.weight" for at in range(10_000)]
    names += [f"base_model.model.a{at}.lm_head.lora_A.weight" for at in range(10_000)]
    names += ["base_model.model.m.\u00b2.experts.lora_A.weight", f"base_model.model.m.{'9' * 900}.q.lora_A.weight"]
    with pytest.raises(WrongBaseError):
        adapter_effects(config, dict.fromkeys(names, one), base, {})
