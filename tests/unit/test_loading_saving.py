"""What is saved from memory is what PEFT and transformers save, and what was stored where nothing changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from rblstore.checkpoints.attaching import AttachSpec
from rblstore.checkpoints.loading import load_directory
from rblstore.checkpoints.saving import (
    UnsavableError,
    keep_stored_dtypes,
    keep_stored_form,
    live_tensor_digest,
    save_adapter,
    save_model,
    save_source,
    save_tensor_mapping,
)
from rblstore.errors import InputError


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def values(directory: Path) -> dict[str, str]:
    return {n: live_tensor_digest(t) for n, t in load_file(directory / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_saved_from_memory_loads_to_the_same_outputs(kind: str, tmp_path: Path) -> None:
    original = tiny_models.llama()
    base = tiny_models.save(original, tmp_path / "base")
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter", kind)
    live = load_directory(base, [AttachSpec("polite.one", adapter)])
    save_adapter(live, tmp_path / "saved")
    assert sorted(content(tmp_path / "saved")) == ["adapter_config.json", "adapter_model.safetensors"]
    again = load_directory(base, [AttachSpec("polite", tmp_path / "saved")])
    if kind == "edited_base":
        # PEFT does not save base weights that an adapter file edited: they are the file's, not the adapter's.
        assert not torch.equal(tiny_models.outputs(again), tiny_models.outputs(live))
        return
    assert torch.equal(tiny_models.outputs(again), tiny_models.outputs(live))


# Of a wrapped head PEFT saves the biases once more each time, and it knows a BERT's embeddings by no name.
NOT_REPEATED = {("bert", "bias_all"), ("bert", "lora_embedding")}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (model, kind)
        for model in ("llama", "bert")
        for kind in tiny_models.KINDS
        if kind not in ("edited_base", "pissa") and (model, kind) not in NOT_REPEATED
    ],
)
def test_the_stored_form_comes_back_where_nothing_changed(model: str, kind: str, tmp_path: Path) -> None:
    dtype = torch.bfloat16
    original = tiny_models.llama(dtype=dtype) if model == "llama" else tiny_models.bert("BertForSequenceClassification")
    base = tiny_models.save(original, tmp_path / "base")
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter", kind)
    live = load_directory(base, [AttachSpec("polite", adapter)])
    save_adapter(live, tmp_path / "saved")
    keep_stored_form(tmp_path / "saved", adapter)
    assert content(tmp_path / "saved") == content(adapter)


def test_a_trained_adapter_keeps_the_stored_dtype_of_what_did_not_change(tmp_path: Path) -> None:
    original = tiny_models.llama(dtype=torch.bfloat16)
    base = tiny_models.save(original, tmp_path / "base")
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    narrow = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_tensor_mapping(narrow, json.loads((adapter / "adapter_config.json").read_text()), adapter)
    live = load_directory(base, [AttachSpec("polite", adapter)])
    changed = next(name for name, _ in live.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        live.get_parameter(changed).add_(1e-5)
    save_adapter(live, tmp_path / "saved")
    assert {t.dtype for t in load_file(tmp_path / "saved/adapter_model.safetensors").values()} == {torch.float32}
    keep_stored_form(tmp_path / "saved", adapter)
    saved = load_file(tmp_path / "saved/adapter_model.safetensors")
    wide = [name for name, tensor in saved.items() if tensor.dtype == torch.float32]
    assert wide == [changed.replace(".polite", "")]
    for name, tensor in saved.items():
        assert name in wide or live_tensor_digest(tensor) == live_tensor_digest(narrow[name])
    assert (tmp_path / "saved/adapter_config.json").read_bytes() == (adapter / "adapter_config.json").read_bytes()


def test_a_changed_config_is_kept(tmp_path: Path) -> None:
    original = tiny_models.llama()
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter")
    other = tiny_models.save_adapter(original, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 9}))
    before = content(other)["adapter_config.json"]
    keep_stored_form(other, adapter)
    assert content(other)["adapter_config.json"] == before
    (other / "adapter_config.json").write_text(json.dumps({**config, "inference_mode": False, "peft_version": "0"}))
    keep_stored_form(other, adapter)
    assert content(other) == content(adapter)
    with pytest.raises(InputError):
        keep_stored_form(other, tmp_path)


def test_dtypes_are_narrowed_only_where_nothing_is_lost() -> None:
    exact, odd = torch.tensor([1.5, -0.0, float("inf")]), torch.tensor([1.0 + 2**-20])
    kept = keep_stored_dtypes(
        {"exact": exact, "odd": odd, "new": odd}, {"exact": torch.bfloat16, "odd": torch.bfloat16}
    )
    assert {name: tensor.dtype for name, tensor in kept.items()} == {
        "exact": torch.bfloat16,
        "odd": torch.float32,
        "new": torch.float32,
    }
    assert torch.signbit(kept["exact"][1])


def test_saving_the_same_adapter_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "k_proj", "o_proj", "down_proj"])
    model = peft.get_peft_model(tiny_models.llama(), settings)
    save_adapter(model, tmp_path / "one")
    model.peft_config["default"].target_modules = {"down_proj", "o_proj", "k_proj", "v_proj", "q_proj"}
    save_adapter(model, tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    config = json.loads(content(tmp_path / "one")["adapter_config.json"])
    assert config["target_modules"] == sorted(config["target_modules"])


def test_saving_reaches_for_no_hub_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def reached(*args: Any, **options: Any) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "file_exists", reached)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", reached)
    model = peft.get_peft_model(tiny_models.llama(), peft.LoraConfig(base_model_name_or_path="someone/model"))
    before = copy.deepcopy(model.peft_config["default"].to_dict())
    save_adapter(model, tmp_path / "saved")
    assert model.peft_config["default"].to_dict() == before


def test_one_of_several_adapters(tmp_path: Path) -> None:
    original = tiny_models.llama()
    base = tiny_models.save(original, tmp_path / "base")
    specs = [
        AttachSpec(n, tiny_models.save_adapter(original, tmp_path / n, seed=i)) for i, n in enumerate(["a", "b.c"])
    ]
    live = load_directory(base, specs)
    for spec in specs:
        save_adapter(live, tmp_path / "out", spec.name)
        assert values(tmp_path / "out") == values(spec.directory)
    with pytest.raises(UnsavableError, match=r"'a', 'b\.c'; say which one"):
        save_adapter(live, tmp_path / "out")
    with pytest.raises(UnsavableError, match="none is 'd'"):
        save_adapter(live, tmp_path / "out", "d")


def test_a_model_as_an_identity(tmp_path: Path) -> None:
    model = tiny_models.llama(tied=True, dtype=torch.bfloat16)
    save_source(model, tmp_path / "base", identity=True)
    again = load_directory(tmp_path / "base")
    assert torch.equal(tiny_models.outputs(again), tiny_models.outputs(model))
    wrapped = peft.get_peft_model(model, peft.LoraConfig())
    for source in (wrapped, wrapped.get_base_model(), torch.nn.Linear(2, 2)):
        with pytest.raises(UnsavableError):
            save_model(source, tmp_path / "refused")


def test_tensors_as_an_adapter(tmp_path: Path) -> None:
    original = tiny_models.llama()
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    save_source((tensors, config), tmp_path / "saved")
    assert content(tmp_path / "saved")["adapter_model.safetensors"] == content(adapter)["adapter_model.safetensors"]
    shared = torch.zeros(4, 4)
    save_tensor_mapping({"a": shared, "b": shared.t()}, config, tmp_path / "shared")


@pytest.mark.parametrize(
    "source",
    [
        {"a": torch.zeros(2)},
        ({"a": torch.zeros(2)}, {}),
        ({"a": "zeros"}, {"peft_type": "LORA"}),
        ({}, {"peft_type": "LORA"}),
        ({"a": torch.zeros(2)}, {"peft_type": "LORA", "r": float("nan")}),
        ({"a": torch.zeros(2)}, {"peft_type": "LORA", "r": object()}),
        (1, 2),
        7,
        torch.nn.Linear(2, 2),
    ],
)
def test_what_cannot_be_saved(source: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsavableError):
        save_source(source, tmp_path / "out")
