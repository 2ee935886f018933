"""Every rule of composition_rules against peft.

What is refused, peft refuses or gets wrong; what passes, peft attaches.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters_tiny import BOTH, Adapter, Zoo, attach, bert, difference, llama, logits

from rblstore.checkpoints.composition_ground import WeightRefusedError, check_composition
from rblstore.checkpoints.composition_rules import UnloadableError, check_attachable

# What peft, transformers and torch raise where they refuse.
REFUSALS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


def lora(target: Any = BOTH, **arguments: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=target, **arguments)


def check(
    zoo: Zoo, make: Callable[[], Any], adapters: list[Adapter], names: list[str] | None = None, weight: float = 1.0
) -> None:
    names = names or [f"slot{at}" for at in range(len(adapters))]
    check_attachable(
        [(name, adapter.config, zoo.bind(make, adapter), weight) for name, adapter in zip(names, adapters, strict=True)]
    )


def refused_by_both(zoo: Zoo, make: Callable[[], Any], adapters: list[Adapter], names: list[str] | None = None) -> str:
    with pytest.raises(UnloadableError) as caught:
        check(zoo, make, adapters, names)
    with pytest.raises(REFUSALS):
        logits(attach(make, adapters, names))
    assert caught.value.code == "unloadable"
    assert "--unloadable" in (caught.value.hint or "")
    return caught.value.message


def accepted_by_both(zoo: Zoo, make: Callable[[], Any], adapters: list[Adapter], names: list[str] | None = None) -> Any:
    check(zoo, make, adapters, names)
    return logits(attach(make, adapters, names))


def together_kinds() -> dict[str, Any]:
    import peft

    return {
        "lora": lambda: lora(),
        "rslora and dora": lambda: lora(use_rslora=True, use_dora=True),
        "adalora": lambda: peft.AdaLoraConfig(target_modules=BOTH, total_step=10),
        "beft": lambda: peft.BeftConfig(target_modules=BOTH),
        "deft": lambda: peft.DeftConfig(target_modules=BOTH),
        "delora": lambda: peft.DeloraConfig(target_modules=BOTH),
        "fourierft": lambda: peft.FourierFTConfig(target_modules=BOTH, n_frequency=5),
        "frod": lambda: peft.FrodConfig(target_modules=BOTH, progressbar=False),
        "glora": lambda: peft.GloraConfig(target_modules=BOTH),
        "gralora": lambda: peft.GraloraConfig(target_modules=BOTH),
        "hira": lambda: peft.HiraConfig(target_modules=BOTH),
        "hra": lambda: peft.HRAConfig(target_modules=BOTH),
        "ia3": lambda: peft.IA3Config(target_modules=BOTH, feedforward_modules=["down_proj"]),
        "lily": lambda: peft.LilyConfig(target_modules=BOTH),
        "loha": lambda: peft.LoHaConfig(target_modules=BOTH),
        "lokr": lambda: peft.LoKrConfig(target_modules=BOTH),
        "miss": lambda: peft.MissConfig(target_modules=BOTH, r=8),
        "oft": lambda: peft.OFTConfig(target_modules=BOTH, oft_block_size=4),
        "peanut": lambda: peft.PeanutConfig(target_modules=BOTH),
        "psoft": lambda: peft.PsoftConfig(target_modules=BOTH),
        "pvera": lambda: peft.PveraConfig(target_modules=BOTH),
        "randlora": lambda: peft.RandLoraConfig(target_modules=BOTH),
        "road": lambda: peft.RoadConfig(target_modules=BOTH, group_size=8),
        "shira": lambda: peft.ShiraConfig(target_modules=BOTH, r=2),
        "supertuning": lambda: peft.SupertuningConfig(target_modules=BOTH),
        "tinylora": lambda: peft.TinyLoraConfig(target_modules=BOTH),
        "unilora": lambda: peft.UniLoraConfig(target_modules=BOTH),
        "vblora": lambda: peft.VBLoRAConfig(target_modules=BOTH, vector_length=4, num_vectors=8),
        "vera": lambda: peft.VeraConfig(target_modules=BOTH),
        "waveft": lambda: peft.WaveFTConfig(target_modules=BOTH, n_frequency=5),
    }


KINDS = (
    "lora",
    "rslora and dora",
    "adalora",
    "beft",
    "deft",
    "delora",
    "fourierft",
    "frod",
    "glora",
    "gralora",
    "hira",
    "hra",
    "ia3",
    "lily",
    "loha",
    "lokr",
    "miss",
    "oft",
    "peanut",
    "psoft",
    "pvera",
    "randlora",
    "road",
    "shira",
    "supertuning",
    "tinylora",
    "unilora",
    "vblora",
    "vera",
    "waveft",
)


@pytest.mark.parametrize("kind", KINDS)
def test_two_of_a_kind_that_goes_together(zoo: Zoo, kind: str) -> None:
    """Both take part: the outputs of the two together are those of neither alone."""
    config = together_kinds()[kind]
    one, two = zoo.make(llama, config(), seed=1), zoo.make(llama, config(), seed=2)
    both = accepted_by_both(zoo, llama, [one, two])
    assert difference(both, logits(attach(llama, [one]))) > 1e-6
    assert difference(both, logits(attach(llama, [two]))) > 1e-6


def test_several_loras_of_several_shapes(zoo: Zoo) -> None:
    from peft import LoraConfig

    adapters = [
        zoo.make(llama, lora()),
        zoo.make(llama, LoraConfig(r=2, target_modules=["v_proj"], rank_pattern={"v_proj": 3})),
        zoo.make(llama, lora(["q_proj", "lm_head"], task_type="CAUSAL_LM")),
    ]
    accepted_by_both(zoo, llama, adapters)


def test_kinds_do_not_mix(zoo: Zoo) -> None:
    from peft import IA3Config

    ia3 = zoo.make(llama, IA3Config(target_modules=BOTH, feedforward_modules=["down_proj"]))
    message = refused_by_both(zoo, llama, [zoo.make(llama, lora()), ia3])
    assert "'slot0' is of kind LORA" in message
    assert "'slot1' of kind IA3" in message


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p-tuning", "adaption", "layer norms", "c3a"])
def test_kinds_of_which_one_is_active(zoo: Zoo, kind: str) -> None:
    import peft

    config = {
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "p-tuning": lambda: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
        ),
        "adaption": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=1),
        "layer norms": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
        "c3a": lambda: peft.C3AConfig(target_modules=BOTH, block_size=16),
    }[kind]
    one, two = zoo.make(llama, config(), seed=1), zoo.make(llama, config(), seed=2)
    accepted_by_both(zoo, llama, [one])
    assert "only one adapter of kind" in refused_by_both(zoo, llama, [one, two])


def test_a_second_osf_is_not_applied(zoo: Zoo) -> None:
    """Silently: peft takes both and computes with the first."""
    from peft import OSFConfig

    one, two = (
        zoo.make(llama, OSFConfig(target_modules=BOTH), seed=1),
        zoo.make(llama, OSFConfig(target_modules=BOTH), seed=2),
    )
    with pytest.raises(UnloadableError):
        check(zoo, llama, [one, two])
    assert difference(logits(attach(llama, [one, two])), logits(attach(llama, [one]))) == 0


def test_one_with_bias(zoo: Zoo) -> None:
    one, two = zoo.make(bert, lora(["value"], bias="all")), zoo.make(bert, lora(["query"], bias="lora_only"))
    assert "both train biases" in refused_by_both(zoo, bert, [one, two])
    accepted_by_both(zoo, bert, [one, zoo.make(bert, lora(["query"]))])


def test_a_bias_that_comes_after_its_module_is_wrapped(zoo: Zoo) -> None:
    """Silently: the file's query.bias finds no query.bias any more, only query.base_layer.bias."""
    biased, plain = zoo.make(bert, lora(["value"], bias="all")), zoo.make(bert, lora(["query"]))
    with pytest.raises(UnloadableError, match=r"query.bias whole, which peft drops"):
        check(zoo, bert, [plain, biased])
    query = "bert.encoder.layer.0.attention.self.query"
    from safetensors.torch import load_file

    wanted = load_file(biased.file)[f"base_model.model.{query}.bias"]
    for order, lost in (([plain, biased], True), ([biased, plain], False)):
        found = attach(bert, order).state_dict()[f"base_model.model.{query}.base_layer.bias"]
        assert torch.equal(found, wanted) is not lost


def test_parts_of_the_base_taken_away_twice(zoo: Zoo) -> None:
    """Silently: the second PiSSA decomposes what the first has left. One beside a plain LoRA is right."""
    one = zoo.make(llama, lora(init_lora_weights="pissa"), seed=1)
    two = zoo.make(llama, lora(init_lora_weights="olora"), seed=2)
    plain = zoo.make(llama, lora(), seed=3)
    with pytest.raises(UnloadableError, match="changes the base weights"):
        check(zoo, llama, [one, two])

    def weight(adapters: list[Adapter]) -> torch.Tensor:
        merged = attach(llama, adapters).merge_and_unload()
        return merged.state_dict()["model.layers.0.self_attn.q_proj.weight"].double()

    base = llama().state_dict()["model.layers.0.self_attn.q_proj.weight"].double()
    changes = {name: weight([adapter]) - base for name, adapter in (("one", one), ("two", two), ("plain", plain))}
    assert difference(weight([one, two]) - base, changes["one"] + changes["two"]) > 1e-3
    check(zoo, llama, [one, plain])
    check(zoo, llama, [plain, one])
    for order in ([one, plain], [plain, one]):
        assert difference(weight(order) - base, changes["one"] + changes["plain"]) < 1e-6


def test_kasa_stands_alone(zoo: Zoo) -> None:
    from peft.tuners.lora.config import KasaConfig

    kasa = zoo.make(llama, lora(kasa_config=KasaConfig()))
    accepted_by_both(zoo, llama, [kasa])
    refused_by_both(zoo, llama, [kasa, zoo.make(llama, lora())])
    refused_by_both(zoo, llama, [zoo.make(llama, lora()), kasa])


def test_one_copy_of_a_saved_module(zoo: Zoo) -> None:
    head = lora(["query"], modules_to_save=["classifier"])
    one, two = zoo.make(bert, head, seed=1), zoo.make(bert, head, seed=2)
    assert "both save the module classifier" in refused_by_both(zoo, bert, [one, two])
    pooler = zoo.make(bert, lora(["value"], modules_to_save=["pooler"]))
    accepted_by_both(zoo, bert, [one, pooler])
    accepted_by_both(zoo, bert, [pooler, one])


def test_a_saved_module_that_another_changes(zoo: Zoo) -> None:
    saves = zoo.make(llama, lora(["q_proj"], modules_to_save=["lm_head"]))
    changes = zoo.make(llama, lora(["q_proj", "lm_head"]))
    for order in ([saves, changes], [changes, saves]):
        assert "lm_head.weight" in refused_by_both(zoo, llama, order)


def test_trained_tokens_come_last(zoo: Zoo) -> None:
    trains = zoo.make(llama, lora(["q_proj"], trainable_token_indices=[1, 2]))
    again = zoo.make(llama, lora(["q_proj"], trainable_token_indices=[3]))
    plain, embedding = zoo.make(llama, lora()), zoo.make(llama, lora(["embed_tokens"]))
    accepted_by_both(zoo, llama, [plain, trains])
    assert "after such a one" in refused_by_both(zoo, llama, [trains, plain])
    refused_by_both(zoo, llama, [trains, again])
    refused_by_both(zoo, llama, [trains, embedding])
    assert "changes model.embed_tokens.weight" in refused_by_both(zoo, llama, [embedding, trains])
    saves = zoo.make(llama, lora(["q_proj"], modules_to_save=["embed_tokens"]))
    refused_by_both(zoo, llama, [saves, trains])


def test_adapters_of_trained_tokens(zoo: Zoo) -> None:
    from peft import TrainableTokensConfig

    def tokens(*indices: int) -> Adapter:
        return zoo.make(llama, TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=list(indices)))

    accepted_by_both(zoo, llama, [tokens(1, 2), tokens(3)])
    assert "both train token 2" in refused_by_both(zoo, llama, [tokens(1, 2), tokens(2, 3)])


def test_a_head_by_task_comes_after(zoo: Zoo) -> None:
    classifier, plain = zoo.make(bert, lora(["query"], task_type="SEQ_CLS")), zoo.make(bert, lora(["query"]))
    assert "SEQ_CLS" in refused_by_both(zoo, bert, [classifier, plain])
    both = accepted_by_both(zoo, bert, [plain, classifier])
    assert difference(both, logits(attach(bert, [classifier]))) > 1e-6


@pytest.mark.parametrize("name", ["classifier", "my-classifier", "score"])
def test_names_that_peft_takes_for_a_saved_module(zoo: Zoo, name: str) -> None:
    classifier, plain = zoo.make(bert, lora(["query"], task_type="SEQ_CLS")), zoo.make(bert, lora(["query"]))
    refused_by_both(zoo, bert, [classifier], [name])
    refused_by_both(zoo, bert, [plain, classifier], [name, "other"])
    accepted_by_both(zoo, bert, [plain], [name])
    accepted_by_both(zoo, bert, [classifier], [name + "s"])


def test_an_embedding_with_more_tokens(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora(["v_proj"]), seed=11, save_embedding_layers=True)
    name = "base_model.model.model.embed_tokens.weight"
    adapter.edit(lambda tensors: tensors.update({name: torch.cat([tensors[name], tensors[name][:3]])}))
    assert "[67, 32] where the base has [64, 32]" in refused_by_both(zoo, llama, [adapter])


def test_target_parameters(zoo: Zoo) -> None:
    query = zoo.make(llama, lora([], target_parameters=["q_proj.weight"]), seed=1)
    again = zoo.make(llama, lora([], target_parameters=["q_proj.weight"]), seed=2)
    key = zoo.make(llama, lora([], target_parameters=["k_proj.weight"]))
    accepted_by_both(zoo, llama, [query, again])
    assert "different parameters" in refused_by_both(zoo, llama, [query, key])
    assert "as a parameter" in refused_by_both(zoo, llama, [zoo.make(llama, lora()), query])
    accepted_by_both(zoo, llama, [zoo.make(llama, lora(["v_proj"])), query])


def test_shared_projections(zoo: Zoo) -> None:
    from peft import VeraConfig

    def vera(target: list[str] = BOTH, key: int = 1, **arguments: Any) -> Adapter:
        return zoo.make(llama, VeraConfig(target_modules=target, projection_prng_key=key, **arguments))

    accepted_by_both(zoo, llama, [vera(), vera(["down_proj"])])
    assert "projection_prng_key" in refused_by_both(zoo, llama, [vera(), vera(key=2)])
    assert "save_projection" in refused_by_both(zoo, llama, [vera(), vera(save_projection=False)])
    assert "differ in r" in refused_by_both(zoo, llama, [vera(), vera(r=8)])
    assert "different sizes" in refused_by_both(zoo, llama, [vera(), vera(["q_proj"])])
    assert "different sizes" in refused_by_both(zoo, llama, [vera(["q_proj"]), vera()])


def test_replicated_layers_are_not_attached(zoo: Zoo) -> None:
    """peft builds another model for them, once more for every such adapter."""
    adapter = zoo.make(llama, lora(["q_proj"], layer_replication=[(0, 1), (0, 1)]))
    with pytest.raises(UnloadableError, match="layer_replication"):
        check(zoo, llama, [adapter])
    twice = attach(llama, [adapter, adapter])
    assert len(twice.base_model.model.model.layers) == 2
    again = sum("q_proj.lora_A.slot1" in name for name in twice.state_dict())
    assert again == 2


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha", "adalora"])
def test_weights_scale_the_update(zoo: Zoo, kind: str) -> None:
    """A weight multiplies peft's own scaling, and the change of the weight with it."""
    adapter = zoo.make(llama, together_kinds()[kind](), seed=1)
    check(zoo, llama, [adapter], weight=0.5)
    model = attach(llama, [adapter])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    before = layer.get_delta_weight("slot0").detach().clone()
    layer.scaling["slot0"] *= 0.5
    assert difference(layer.get_delta_weight("slot0"), before * 0.5) < 1e-7


@pytest.mark.parametrize("kind", ["ia3", "rslora and dora", "oft", "fourierft", "vera"])
def test_weights_that_nothing_scales(zoo: Zoo, kind: str) -> None:
    adapter = zoo.make(llama, together_kinds()[kind](), seed=1)
    check(zoo, llama, [adapter])
    with pytest.raises(WeightRefusedError) as caught:
        check(zoo, llama, [adapter], weight=0.5)
    assert caught.value.exit_code == 2


def test_an_adapter_that_replaces_takes_no_weight(zoo: Zoo) -> None:
    with pytest.raises(WeightRefusedError):
        check(zoo, bert, [zoo.make(bert, lora(["query"], bias="all"))], weight=2.0)


def test_a_later_copy_of_the_embedding_is_caught_by_its_ground(zoo: Zoo) -> None:
    """Silently in peft: the second file's unchanged base_layer.weight goes over the first one's edited embedding."""
    edited = zoo.make(llama, lora(["q_proj"]), seed=12, save_embedding_layers=True)
    name = "base_model.model.model.embed_tokens.weight"
    edited.edit(lambda tensors: tensors.update({name: tensors[name] + 1}))
    plain = zoo.make(llama, lora(["embed_tokens"]), seed=12)
    from rblstore.errors import ConflictError

    for order in ([edited, plain], [plain, edited]):
        slots = [(f"slot{at}", zoo.bind(llama, adapter), 1.0) for at, adapter in enumerate(order)]
        with pytest.raises(ConflictError):
            check_composition(zoo.base(llama), {}, slots)
        found = attach(llama, order).state_dict()
        embedding = found["base_model.model.model.embed_tokens.base_layer.weight"]
        assert difference(embedding, llama().state_dict()["model.embed_tokens.weight"]) == 0


def test_nothing_and_one_are_attachable(zoo: Zoo) -> None:
    check_attachable([])
    check(zoo, llama, [zoo.make(llama, lora())])


def test_shadow_and_cached_starts_are_not_attached(zoo: Zoo) -> None:
    from rblstore.checkpoints.adapter_config import parse_adapter_config

    behavior = zoo.bind(llama, zoo.make(llama, lora()))
    for members in ({"peft_type": "SHADOW"}, {"peft_type": "LORA", "corda_config": {"cache_file": "x"}}):
        config = parse_adapter_config(json.dumps(members).encode())
        with pytest.raises(UnloadableError):
            check_attachable([("x", config, behavior, 1.0)])
