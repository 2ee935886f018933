"""Stored names are bound to live tensors through every renaming, fusing and wrapping."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rblstore.checkpoints.attaching import AttachSpec
from rblstore.checkpoints.loading import load_directory
from rblstore.checkpoints.saving import live_tensor_digest
from rblstore.live.binding import (
    FusedTensorError,
    UnboundNameError,
    UnmappedTensorError,
    bind,
    differing_ground,
    same_bits,
)
from rblstore.objects.content_records import Ground, StoredTensor
from rblstore.objects.ids import ContentId


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(directory.glob("*.safetensors")) for name, value in load_file(file).items()}


def digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: live_tensor_digest(tensor) for name, tensor in tensors.items()}


MODELS = {
    "llama": lambda: tiny_models.llama(dtype=torch.bfloat16),
    "tied": lambda: tiny_models.llama(tied=True),
    "gpt2": tiny_models.gpt2,
    "bert": tiny_models.bert,
    "masked": lambda: tiny_models.bert("BertForMaskedLM"),
    "t5": tiny_models.t5,
    "mixtral": tiny_models.mixtral,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_load_holds_what_is_stored(name: str, tmp_path: Path) -> None:
    base = tiny_models.save(MODELS[name](), tmp_path / "base")
    tensors = stored(base)
    model = load_directory(base)
    binding = bind(model, tensors)
    assert binding.check(digests(tensors), tensors.get) == []
    assert binding.unbound == ()
    assert binding.passed_over == frozenset()


@pytest.mark.parametrize("name", MODELS)
def test_every_changed_tensor_is_named(name: str, tmp_path: Path) -> None:
    base = tiny_models.save(MODELS[name](), tmp_path / "base")
    tensors = stored(base)
    model = load_directory(base)
    binding = bind(model, tensors)
    for live_name, tensor in list(model.named_parameters())[::5]:
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[-1:].neg_()
        found = binding.check(digests(tensors), tensors.get)
        assert found, live_name
        assert all(binding.direct.get(entry, live_name) == live_name for entry in found)
        with torch.no_grad():
            tensor.copy_(kept)
    assert binding.check(digests(tensors), tensors.get) == []


@pytest.mark.parametrize("kind", ["lora", "modules_to_save", "lora_tokens", "prompt_tuning", "dora"])
def test_bound_through_adapters(kind: str, tmp_path: Path) -> None:
    original = tiny_models.bert("BertForSequenceClassification")
    base = tiny_models.save(original, tmp_path / "base")
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter", kind)
    tensors = stored(base)
    model = load_directory(base, [AttachSpec("a", adapter)])
    binding = bind(model, tensors)
    assert binding.check(digests(tensors)) == []
    assert binding.live("classifier.weight").shape == (3, 32)
    words = "bert.embeddings.word_embeddings.weight"
    assert same_bits(binding.live(words), tensors[words])


def test_an_adapter_that_edits_the_base_is_seen(tmp_path: Path) -> None:
    original = tiny_models.llama()
    base = tiny_models.save(original, tmp_path / "base")
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter", "edited_base")
    tensors = stored(base)
    model = load_directory(base, [AttachSpec("a", adapter)])
    assert bind(model, tensors).check(digests(tensors)) == ["model.layers.0.self_attn.q_proj.weight"]


def test_the_prefix_of_the_bare_model_is_added_and_removed(tmp_path: Path) -> None:
    headless = tiny_models.save(tiny_models.bert("BertModel"), tmp_path / "headless")
    headed = tiny_models.bert("BertForSequenceClassification")
    names = stored(headless)
    assert "embeddings.word_embeddings.weight" in names
    binding = bind(headed, names)
    assert binding.live_name("embeddings.word_embeddings.weight") == "bert.embeddings.word_embeddings.weight"
    assert binding.unbound == ("classifier.weight", "classifier.bias")
    base = tiny_models.save(headed, tmp_path / "headed")
    bare = tiny_models.bert("BertModel")
    with pytest.raises(UnmappedTensorError, match="classifier"):
        bind(bare, stored(base))
    binding = bind(bare, stored(base), absent={"classifier.bias", "classifier.weight"})
    assert binding.live_name("bert.embeddings.word_embeddings.weight") == "embeddings.word_embeddings.weight"


def test_a_cast_of_the_whole_model_is_compared_after_the_cast(tmp_path: Path) -> None:
    for name, model in (("llama", tiny_models.llama()), ("mixtral", tiny_models.mixtral())):
        base = tiny_models.save(model, tmp_path / name)
        tensors = stored(base)
        cast = load_directory(base, dtype=torch.bfloat16)
        binding = bind(cast, tensors)
        assert binding.check(digests(tensors), tensors.get) == []
        assert set(binding.check(digests(tensors))) == set(tensors)
        tensors[next(iter(tensors))] = tensors[next(iter(tensors))] + 1
        assert len(binding.check(dict.fromkeys(tensors, "0" * 64), tensors.get)) >= 1


def test_experts_are_fused_and_restored(tmp_path: Path) -> None:
    base = tiny_models.save(tiny_models.mixtral(), tmp_path / "base")
    tensors = stored(base)
    model = load_directory(base)
    binding = bind(model, tensors)
    part = next(name for name in tensors if "experts.2." in name)
    with pytest.raises(FusedTensorError):
        binding.live(part)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj.view(-1)[0] += 1
    changed = binding.check(digests(tensors), tensors.get)
    assert len(changed) == 4
    assert all(".experts." in name for name in changed)
    model = load_directory(base)
    restore = bind(model, tensors).restorer(tensors.get)
    for name, tensor in model.state_dict().items():
        value = restore(name)
        assert value is not None, name
        assert same_bits(value, tensor), name


def test_an_unknown_name(tmp_path: Path) -> None:
    model = tiny_models.llama()
    binding = bind(model, model.state_dict())
    with pytest.raises(UnboundNameError):
        binding.live("model.layers.9.mlp.up_proj.weight")
    with pytest.raises(UnmappedTensorError, match=r"layers\.9"):
        bind(model, ["model.layers.9.mlp.up_proj.weight"])


def test_old_tables_are_passed_over() -> None:
    model = tiny_models.llama()
    binding = bind(model, ["model.layers.0.self_attn.rotary_emb.inv_freq", *model.state_dict()])
    assert binding.passed_over == {"model.layers.0.self_attn.rotary_emb.inv_freq"}


def test_binding_changes_nothing_on_the_model(tmp_path: Path) -> None:
    base = tiny_models.save(tiny_models.mixtral(), tmp_path / "base")
    model = load_directory(base)
    for _ in range(2):
        bind(model, stored(base)).check(digests(stored(base)), stored(base).get)
    tiny_models.save(model, tmp_path / "again")
    assert digests(stored(tmp_path / "again")) == digests(stored(base))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64,
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (4, 6)])
def test_live_digests_are_those_of_the_stored_bytes(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(3)
    tensor = (torch.randn(shape) * 5).to(dtype) if dtype != torch.bool else torch.randn(shape) > 0
    save_file({"t": tensor}, tmp_path / "t.safetensors")
    data = (tmp_path / "t.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert live_tensor_digest(tensor) == hashlib.sha256(data[8 + length :]).hexdigest()
    if len(shape) == 2:
        assert live_tensor_digest(tensor.t().contiguous().t()) == live_tensor_digest(tensor)
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert same_bits(file.get_tensor("t"), tensor)


def test_equal_is_not_the_same_bits() -> None:
    nan = torch.tensor([float("nan")])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))


def grounds(tensors: dict[str, torch.Tensor], kind: str) -> list[Ground]:
    return [
        Ground.tensor(name, StoredTensor(kind, tuple(tensor.shape), ContentId(live_tensor_digest(tensor))))
        for name, tensor in tensors.items()
    ]


def wrapped(model: Any, kind: str = "lora") -> Any:
    import peft

    return peft.get_peft_model(copy.deepcopy(model), tiny_models._config(model, kind))


@pytest.mark.parametrize("kind", ["lora", "bias_all", "pissa", "modules_to_save"])
def test_a_model_trained_on_its_base_agrees_with_the_ground(kind: str, tmp_path: Path) -> None:
    model = tiny_models.llama(dtype=torch.bfloat16)
    tensors = stored(tiny_models.save(model, tmp_path / "base"))
    live = wrapped(model, kind)
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert differing_ground(live, grounds(tensors, "BF16")) == []
    other = wrapped(tiny_models.llama(dtype=torch.bfloat16, seed=5), kind)
    found = differing_ground(other, grounds(tensors, "BF16"))
    assert "model.norm.weight" in found or kind == "pissa"
    assert "model.embed_tokens.weight" in found or kind == "pissa"


def test_a_widened_base_agrees_and_a_narrowed_one_needs_the_stored_tensors(tmp_path: Path) -> None:
    model = tiny_models.llama(dtype=torch.bfloat16)
    tensors = stored(tiny_models.save(model, tmp_path / "base"))
    wide = wrapped(model).float()
    assert differing_ground(wide, grounds(tensors, "BF16")) == []
    with torch.no_grad():
        wide.get_base_model().model.norm.weight[0] += 1e-4  # no longer a bf16 value
    assert differing_ground(wide, grounds(tensors, "BF16")) == ["model.norm.weight"]
    full = tiny_models.llama()
    stored_full = stored(tiny_models.save(full, tmp_path / "full"))
    narrow = wrapped(full).bfloat16()
    assert differing_ground(narrow, grounds(stored_full, "F32")) == []
    assert differing_ground(narrow, grounds(stored_full, "F32"), stored_full.get) == []
    other = wrapped(tiny_models.llama(seed=4)).bfloat16()
    assert "model.norm.weight" in differing_ground(other, grounds(stored_full, "F32"), stored_full.get)


def test_tensors_contradict_no_ground(tmp_path: Path) -> None:
    tensors = stored(tiny_models.save(tiny_models.llama(), tmp_path / "base"))
    assert differing_ground(({}, {}), grounds(tensors, "F32")) == []
    missing = grounds({"model.layers.7.mlp.up_proj.weight": torch.zeros(2)}, "F32")
    assert differing_ground(wrapped(tiny_models.llama()), missing) == ["model.layers.7.mlp.up_proj.weight"]
