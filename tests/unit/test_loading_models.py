"""Loading gives what transformers and PEFT give, from local safetensors alone, and refuses the rest."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from rblstore.checkpoints.attaching import AttachSpec, LoadMismatchError, UnattachableError
from rblstore.checkpoints.live_names import live_name, slot_name
from rblstore.checkpoints.loading import UnloadableModelError, load_directory
from rblstore.checkpoints.saving import adapter_tensors, live_tensor_digest
from rblstore.checkpoints.tokenizing import UnusableTokenizerError, load_tokenizer, tokenizer_digest
from rblstore.errors import InputError, RblError


def digests(model: Any) -> dict[str, str]:
    return {name: live_tensor_digest(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_models.save(tiny_models.llama(), tmp_path / "base")


def edit(directory: Path, file: str = "config.json", **members: Any) -> Path:
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "make",
    [
        tiny_models.llama,
        tiny_models.gpt2,
        tiny_models.t5,
        lambda **options: tiny_models.bert("BertModel", **options),
        lambda **options: tiny_models.bert("BertForMaskedLM", **options),
        lambda **options: tiny_models.bert("BertForSequenceClassification", **options),
    ],
)
def test_a_directory_loads_to_the_stored_bits(make: Callable[..., Any], dtype: torch.dtype, tmp_path: Path) -> None:
    original = make(dtype=dtype)
    model = load_directory(tiny_models.save(original, tmp_path / "base"))
    assert type(model) is type(original)
    assert digests(model) == digests(original)
    assert not model.training


def test_sharded_and_tied(tmp_path: Path) -> None:
    original = tiny_models.llama(tied=True, dtype=torch.bfloat16)
    directory = tiny_models.save_sharded(original, tmp_path / "base", 5)
    assert len(list(directory.glob("*.safetensors"))) == 5
    model = load_directory(directory)
    assert digests(model) == digests(original)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_an_adapter_loads_to_pefts_own_bits(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    original = tiny_models.llama(dtype=dtype)
    directory = tiny_models.save(original, tmp_path / "base")
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter", kind)
    ours = load_directory(directory, [AttachSpec("default", adapter)])
    theirs = peft.PeftModel.from_pretrained(load_directory(directory), adapter, autocast_adapter_dtype=True)
    assert type(ours) is type(theirs)
    assert digests(ours) == digests(theirs)
    assert {n: t.dtype for n, t in ours.state_dict().items()} == {n: t.dtype for n, t in theirs.state_dict().items()}
    assert torch.equal(tiny_models.outputs(ours), tiny_models.outputs(theirs))
    assert ours.active_adapters == theirs.active_adapters


def test_several_in_order_as_peft_activates_them(base: Path, tmp_path: Path) -> None:
    original = tiny_models.llama()
    specs = [AttachSpec(n, tiny_models.save_adapter(original, tmp_path / n, seed=i)) for i, n in enumerate("xyz")]
    ours = load_directory(base, specs)
    theirs = peft.PeftModel.from_pretrained(load_directory(base), specs[0].directory, adapter_name="one")
    theirs.load_adapter(specs[1].directory, "two")
    theirs.load_adapter(specs[2].directory, "three")
    theirs.base_model.set_adapter(["one", "two", "three"])
    assert torch.equal(tiny_models.outputs(ours), tiny_models.outputs(theirs))


def test_a_weight_multiplies_pefts_scaling(base: Path, tmp_path: Path) -> None:
    adapter = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a", "rslora")
    ours = load_directory(base, [AttachSpec("polite", adapter, 0.25)])
    theirs = peft.PeftModel.from_pretrained(load_directory(base), adapter)
    for module in theirs.modules():
        if isinstance(getattr(module, "scaling", None), dict) and module.scaling:
            module.scaling["default"] *= 0.25
    assert torch.equal(tiny_models.outputs(ours), tiny_models.outputs(theirs))
    ia3 = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "i", "ia3")
    with pytest.raises(UnattachableError, match="weight"):
        load_directory(base, [AttachSpec("i", ia3, 0.5)])


@pytest.mark.parametrize("slot", ["a", "a.b", "weight", "q_proj", "keys", "type", "lora", "rbl__x", "A-0.-1", "0"])
def test_any_slot_name_works_and_comes_back(slot: str, base: Path, tmp_path: Path) -> None:
    live = live_name(slot, {"q_proj", "weight"})
    assert slot_name(live) == slot
    assert "." not in live
    adapter = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "adapter", "modules_to_save")
    expected = load_directory(base, [AttachSpec("polite", adapter)])
    assert torch.equal(
        tiny_models.outputs(load_directory(base, [AttachSpec(slot, adapter)])), tiny_models.outputs(expected)
    )


@pytest.mark.parametrize(
    "slots",
    [("polite2", "polite"), ("first", "q"), ("lora_A", "lora_B"), ("x.lora_A", "x"), ("modules_to_save", "base_layer")],
)
@pytest.mark.parametrize("kind", ["lora", "modules_to_save"])
def test_any_two_names_are_told_apart(slots: tuple[str, str], kind: str, base: Path, tmp_path: Path) -> None:
    made = [
        tiny_models.save_adapter(tiny_models.llama(), tmp_path / name, each, seed=seed)
        for seed, (name, each) in enumerate((("one", kind), ("two", "lora")), start=1)
    ]
    expected = load_directory(base, [AttachSpec(name, adapter) for name, adapter in zip("xy", made, strict=True)])
    model = load_directory(base, [AttachSpec(name, adapter) for name, adapter in zip(slots, made, strict=True)])
    assert torch.equal(tiny_models.outputs(model), tiny_models.outputs(expected))
    for slot, adapter in zip(slots, made, strict=True):
        stored = load_file(adapter / "adapter_model.safetensors")
        saved = adapter_tensors(model, live_name(slot, {"q_proj"}))
        assert saved.keys() == stored.keys()
        assert all(torch.equal(saved[name], stored[name]) for name in stored)


def test_a_tensor_that_is_missing_is_missed_whatever_the_names(base: Path, tmp_path: Path) -> None:
    adapter = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a")
    less = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "less")
    tensors = load_file(less / "adapter_model.safetensors")
    del tensors[lacking := min(tensors)]
    save_file(tensors, less / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadMismatchError, match="1 tensors that the model needs are missing") as caught:
        load_directory(base, [AttachSpec("polite2", adapter), AttachSpec("polite", less)])
    assert lacking.removesuffix(".weight") in caught.value.message


def test_a_plain_slot_keeps_its_name_and_no_two_share_one() -> None:
    assert live_name("polite") == "polite"
    assert live_name("q_proj", {"q_proj"}) != "q_proj"  # a part of tensor names, by which PEFT tells them apart
    slots = ["a", "a.b", "a-1b", "a-b", "rbl__a", "rbl__a.b", "rbl__rbl__a", "a-0", "a.0", "a--", "-".join("a.b")]
    assert len({live_name(slot) for slot in slots}) == len(set(slots))


def test_a_head_that_the_identity_lacks_is_filled_by_the_adapter(tmp_path: Path) -> None:
    classifier = tiny_models.bert("BertForSequenceClassification", labels=5)
    adapter = tiny_models.save_adapter(classifier, tmp_path / "adapter")
    masked = tiny_models.bert("BertForMaskedLM")
    bare = tiny_models.bert("BertModel")
    for name, identity in (("masked", masked), ("bare", bare)):
        directory = tiny_models.save(identity, tmp_path / name)
        torch.manual_seed(11)
        before = torch.random.get_rng_state()
        one = load_directory(directory, [AttachSpec("topic", adapter)])
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(12)
        two = load_directory(directory, [AttachSpec("topic", adapter)])
        assert type(one.get_base_model()).__name__ == "BertForSequenceClassification"
        assert tiny_models.outputs(one).shape == (2, 5)
        assert torch.equal(tiny_models.outputs(one), tiny_models.outputs(two))
        stored = load_file(adapter / "adapter_model.safetensors")["base_model.model.classifier.weight"]
        assert torch.equal(one.get_base_model().classifier.weight, stored)


def test_an_adapter_of_the_bare_model_on_a_language_model(tmp_path: Path) -> None:
    full = tiny_models.llama()
    adapter = tiny_models.save_adapter(full.model, tmp_path / "adapter")
    directory = tiny_models.save(full, tmp_path / "base")
    model = load_directory(directory, [AttachSpec("embed", adapter)])
    assert type(model.get_base_model()).__name__ == "LlamaModel"


def test_an_adapter_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = tiny_models.save_adapter(tiny_models.gpt2(), tmp_path / "gpt2")
    with pytest.raises(UnattachableError, match="polite"):
        load_directory(base, [AttachSpec("polite", adapter)])
    deeper = tiny_models.save_adapter(tiny_models.llama(layers=3), tmp_path / "deep")
    with pytest.raises(LoadMismatchError, match=r"layers\.2"):
        load_directory(base, [AttachSpec("polite", deeper)])


def test_missing_adapter_tensors_are_named(base: Path, tmp_path: Path) -> None:
    adapter = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(LoadMismatchError, match=r"layers\.1\.self_attn\.v_proj\.lora_B"):
        load_directory(base, [AttachSpec("polite", adapter)])


@pytest.mark.parametrize(
    "kinds",
    [("lora", "ia3"), ("modules_to_save", "modules_to_save"), ("bias_all", "bias_lora_only"), ("prompt_tuning",) * 2],
)
def test_what_peft_cannot_combine_is_refused(kinds: tuple[str, str], base: Path, tmp_path: Path) -> None:
    model = tiny_models.llama()
    specs = [AttachSpec(f"s{i}", tiny_models.save_adapter(model, tmp_path / f"{i}", k)) for i, k in enumerate(kinds)]
    with pytest.raises(UnattachableError):
        load_directory(base, specs)


def test_two_slots_of_one_name(base: Path, tmp_path: Path) -> None:
    spec = AttachSpec("a", tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a"))
    with pytest.raises(UnattachableError, match="already"):
        load_directory(base, [spec, spec])


def test_missing_and_unexpected_weights_are_named(base: Path) -> None:
    file = base / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if n != "model.norm.weight"}, file, metadata={"format": "pt"})
    with pytest.raises(LoadMismatchError, match=r"missing model\.norm\.weight"):
        load_directory(base)
    save_file({**tensors, "model.extra": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(LoadMismatchError, match=r"left over model\.extra"):
        load_directory(base)
    save_file({**tensors, "model.norm.weight": torch.zeros(7)}, file, metadata={"format": "pt"})
    with pytest.raises(LoadMismatchError, match="norm"):
        load_directory(base)


def test_code_beside_the_weights_is_never_run(base: Path) -> None:
    trap = base.parent / "trap"
    for name in ("modeling_evil.py", "configuration_evil.py"):
        (base / name).write_text(f"open({str(trap)!r}, 'w')\nclass Evil: pass\nclass EvilConfig: pass\n")
    auto = {"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit(base, auto_map=auto)
    assert type(load_directory(base)).__name__ == "LlamaForCausalLM"
    edit(base, architectures=["Evil"])
    with pytest.raises(UnloadableModelError, match="Evil"):
        load_directory(base)
    edit(base, architectures=["LlamaForCausalLM"], model_type="evil")
    with pytest.raises(UnloadableModelError, match="evil"):
        load_directory(base)
    assert not trap.exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_pickles_are_never_read(base: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    adapter = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a")
    for directory, weights, pickled in (
        (adapter, "adapter_model.safetensors", "adapter_model.bin"),
        (base, "model.safetensors", "pytorch_model.bin"),
    ):
        (directory / weights).unlink()
        (directory / pickled).write_bytes(pickle.dumps(_Trap(str(trap))))
    with pytest.raises(RblError):
        load_directory(base)
    with pytest.raises(RblError):
        load_directory(tiny_models.save(tiny_models.llama(), tmp_path / "good"), [AttachSpec("a", adapter)])
    assert not trap.exists()


@pytest.mark.parametrize(
    "members",
    [
        {"attn_implementation": "someone/kernel"},
        {"transformers_weights": "../elsewhere.safetensors"},
        {"transformers_weights": "adapter_model.bin"},
        {"model_type": None},
        {"model_type": 7},
        {"architectures": ["os"]},
        {"architectures": "LlamaForCausalLM", "model_type": "nothing"},
    ],
)
def test_configs_that_reach_elsewhere(members: dict[str, Any], base: Path) -> None:
    with pytest.raises(UnloadableModelError):
        load_directory(edit(base, **members))


def test_hostile_values_in_a_config_are_typed_errors(base: Path) -> None:
    good = (base / "config.json").read_text()
    for members in (
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"vocab_size": -4},
        {"hidden_act": "os.system"},
    ):
        (base / "config.json").write_text(good)
        with pytest.raises(RblError):
            load_directory(edit(base, **members))
    for text in ("", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}'):
        (base / "config.json").write_text(text)
        with pytest.raises(InputError):
            load_directory(base)


@pytest.mark.parametrize(
    "members",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"peft_type": "XLORA"},
        {"peft_type": "NOTHING"},
        {"peft_type": None},
        {"peft_type": ["LORA"]},
        {"layer_replication": [[0, 1]]},
        {"r": "four"},
        {"target_modules": 7},
        {"target_modules": "("},
        {"task_type": "NOTHING"},
        {"r": 0},
    ],
)
def test_hostile_adapter_configs(members: dict[str, Any], base: Path, tmp_path: Path) -> None:
    adapter = edit(tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a"), "adapter_config.json", **members)
    with pytest.raises(RblError):
        load_directory(base, [AttachSpec("a", adapter)])


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"peft_type": "XLORA"}, "load other models"),
        ({"peft_type": "SHADOW"}, "load other models"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"corda_config": {"cache_file": "x.pt"}}, "corda_config"),
    ],
)
def test_configs_that_import_or_read_elsewhere_never_reach_peft(
    members: dict[str, Any], why: str, base: Path, tmp_path: Path
) -> None:
    adapter = edit(tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a"), "adapter_config.json", **members)
    with pytest.raises(UnattachableError, match=why):
        load_directory(base, [AttachSpec("a", adapter)])


def test_a_prompt_made_from_text_reads_no_tokenizer(base: Path, tmp_path: Path) -> None:
    adapter = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a", "prompt_tuning")
    edit(
        adapter,
        "adapter_config.json",
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="be polite",
        tokenizer_name_or_path="someone/tokenizer",
    )
    load_directory(base, [AttachSpec("a", adapter)])


def test_loading_is_silent_and_leaves_settings_alone(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    adapter = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_directory(base, [AttachSpec("a", adapter)])
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_a_model_with_an_adapter_inside_is_refused(base: Path) -> None:
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(UnloadableModelError, match="adapter"):
        load_directory(base)


def test_dtype_and_attention_are_passed_on(base: Path) -> None:
    model = load_directory(base, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_tokenizer_digest_is_of_the_tokenizer_alone() -> None:
    files = {"tokenizer.json": "a" * 64, "vocab.txt": "b" * 64}
    digest = tokenizer_digest(files)
    assert digest == tokenizer_digest(
        {"vocab.txt": "b" * 64, "model.safetensors": "c" * 64, "tokenizer.json": "a" * 64}
    )
    assert digest != tokenizer_digest({"tokenizer.json": "a" * 64, "vocab.txt": "c" * 64})
    assert digest != tokenizer_digest({"tokenizer.json": "a" * 64})
    assert tokenizer_digest({"model.safetensors": "c" * 64, "sub/tokenizer.json": "a" * 64}) is None


def test_a_tokenizer_encodes_with_its_own_special_tokens(tmp_path: Path) -> None:
    encode = load_tokenizer(tiny_models.save_tokenizer(tmp_path / "t"))
    assert encode("w5 w6 nothing") == [1, 5, 6, 3]


def test_tokenizers_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UnusableTokenizerError, match="no tokenizer files"):
        load_tokenizer(tmp_path)
    directory = tiny_models.save_tokenizer(tmp_path / "t")
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UnusableTokenizerError):
        load_tokenizer(directory)


@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_there(base: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RblError, match=f"cannot be put on '{device}'"):
        load_directory(base, device=device)
