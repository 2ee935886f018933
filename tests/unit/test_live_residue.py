"""A scan names what a model has that it had not, and mending undoes it by reference or leaves it named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from rblstore.checkpoints.attaching import AttachSpec
from rblstore.checkpoints.ledger import ledger_of
from rblstore.live.attach import attach
from rblstore.live.residue import Finding, ModelState, mend, residue

NORM = "model.norm"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


class _Counting(nn.Linear):
    """A module with extra state."""

    count = 0

    def get_extra_state(self) -> Any:
        return {"count": self.count, "seen": torch.tensor([self.count])}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]


class _Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class _OtherNorm(nn.Module):
    pass


def _model(*, tied: bool = False, dtype: torch.dtype = torch.bfloat16) -> Any:
    model = tiny_models.llama(tied=tied, dtype=dtype).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _state_values(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _cast(model: Any, dtype: torch.dtype, change: float = 0.0) -> None:
    weight = model.model.norm.weight
    weight.data = weight.data.to(dtype)
    if change:
        weight.data += change


def _set(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


def _own(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())


def _apart(model: Any) -> None:
    model.lm_head.weight = _own(model.lm_head.weight)


def _apart_and_changed(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)
    model.model.embed_tokens.weight = _own(model.model.embed_tokens.weight)


def _parametrized(model: Any) -> None:
    nn.utils.parametrize.register_parametrization(model.model.norm, "weight", _Doubled())


def _peft_hook(model: Any) -> None:
    from peft.tuners.lora.model import _adapter_names_pre_forward_hook

    model.model.norm.register_forward_pre_hook(_adapter_names_pre_forward_hook, with_kwargs=True)


def _peft_method(model: Any) -> None:
    from peft.tuners.lora.layer import LoraLayer

    model.model.norm.forward = LoraLayer.update_layer.__get__(model.model.norm)


def _rotated(model: Any) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 2


CHANGES: dict[str, tuple[Callable[[Any], object], str, str, bool]] = {
    "training": (lambda m: m.model.norm.train(), NORM, "training", True),
    "frozen": (lambda m: m.lm_head.weight.requires_grad_(False), HEAD, "requires_grad", True),
    "gradient": (lambda m: _set(m.lm_head.weight, "grad", torch.ones_like(m.lm_head.weight)), HEAD, "gradient", True),
    "widened": (lambda m: _cast(m, torch.float32), f"{NORM}.weight", "dtype", True),
    "widened and written": (lambda m: _cast(m, torch.float32, 1e-6), f"{NORM}.weight", "dtype", False),
    "narrowed": (lambda m: _cast(m, torch.float8_e4m3fn), f"{NORM}.weight", "dtype", False),
    "resized": (lambda m: _set(m.lm_head.weight, "data", m.lm_head.weight.data[:5]), HEAD, "shape", False),
    "replaced module": (lambda m: _set(m.model, "norm", _OtherNorm()), NORM, "module", True),
    "removed module": (lambda m: m.model._modules.pop("norm"), NORM, "module", True),
    "added module": (lambda m: m.model.add_module("more", nn.Linear(2, 2)), "model.more", "module", True),
    "class": (lambda m: _set(m.model.norm, "__class__", _OtherNorm), NORM, "class", True),
    "added parameter": (
        lambda m: m.model.norm.register_parameter("bias", nn.Parameter(torch.zeros(2))),
        f"{NORM}.bias",
        "parameter",
        True,
    ),
    "removed parameter": (lambda m: m.model.norm._parameters.pop("weight"), f"{NORM}.weight", "parameter", True),
    "added buffer": (
        lambda m: m.model.norm.register_buffer("mean", torch.zeros(2), persistent=False),
        f"{NORM}.mean",
        "buffer",
        True,
    ),
    "replaced buffer": (_rotated, "model.rotary_emb.inv_freq", "buffer", True),
    "written buffer": (lambda m: m.model.rotary_emb.inv_freq.mul_(2), "model.rotary_emb.inv_freq", "buffer", False),
    "rounded buffer": (
        lambda m: m.model.rotary_emb._buffers.update(inv_freq=m.model.rotary_emb.inv_freq.bfloat16()),
        "model.rotary_emb.inv_freq",
        "buffer",
        True,
    ),
    "forward": (lambda m: _set(m.model.norm, "forward", lambda x: x), NORM, "method", False),
    "peft's forward": (_peft_method, NORM, "method", True),
    "peft's hook": (_peft_hook, NORM, "hook", True),
    "own hook": (lambda m: m.model.norm.register_forward_hook(lambda *_: None), NORM, "hook", False),
    "state dict hook": (lambda m: m.model.norm.register_state_dict_post_hook(lambda *_: None), NORM, "hook", False),
    "load hook": (lambda m: m.model.norm.register_load_state_dict_pre_hook(lambda *_: None), NORM, "hook", False),
    "tensor hook": (lambda m: m.lm_head.weight.register_hook(lambda g: g), HEAD, "hook", False),
    "attribute": (lambda m: _set(m.model.norm, "variance_epsilon", 1.0), NORM, "attribute", True),
    "vocabulary": (lambda m: _set(m.config, "vocab_size", 7), "", "config", True),
    "pretraining_tp": (lambda m: _set(m.config, "pretraining_tp", 2), "", "config", True),
    "ties of the config": (lambda m: _set(m.config, "tie_word_embeddings", True), "", "config", True),
    "member of the config": (lambda m: _set(m.config, "of_an_adapter", [1, 2]), "", "config", True),
    "generation config": (lambda m: _set(m.generation_config, "temperature", 9.0), "", "generation_config", True),
    "peft_config": (lambda m: _set(m, "peft_config", {"a": nn}), "", "attribute", True),
    "tied anew": (lambda m: _set(m.lm_head, "weight", m.model.embed_tokens.weight), HEAD, "tie", True),
}


@pytest.mark.parametrize(("act", "module", "kind", "mendable"), CHANGES.values(), ids=CHANGES)
def test_every_difference_is_named_and_mended_where_that_invents_nothing(
    act: Callable[[Any], object], module: str, kind: str, mendable: bool
) -> None:
    model = _model()
    values = _state_values(model)
    before = ModelState.of(model)
    assert residue(model, before) == []
    act(model)
    changed = _state_values(model)
    (found,) = residue(model, before)
    assert (found.module, found.kind, found.mendable, found.mended) == (module, kind, mendable, False)
    assert str(found).startswith(f"{module or 'the model'}: ")
    (outcome,) = mend(model, before)
    assert (outcome.detail, outcome.mended) == (found.detail, mendable)
    after = model.state_dict()
    if mendable:
        assert residue(model, before) == []
        assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in values.items()}
        assert all(torch.equal(after[name], values[name]) for name in values)
    else:
        assert residue(model, before) == [found]
        assert all(after[name].dtype == changed[name].dtype for name in changed)


def test_a_parametrization_goes_and_the_weight_is_the_one_that_was() -> None:
    model = _model()
    before, weight = ModelState.of(model), model.model.norm.weight
    _parametrized(model)
    assert {finding.kind for finding in residue(model, before)} == {"class", "module", "parameter"}
    assert [str(finding) for finding in residue(model)] == ["model.norm: has parametrizations"]
    assert all(finding.mended for finding in mend(model, before))
    assert model.model.norm.weight is weight


@pytest.mark.parametrize("changed", [False, True], ids=["equal", "changed"])
def test_a_broken_tie_goes_to_the_tensor_that_was_shared(changed: bool) -> None:
    model = _model(tied=True)
    before, shared = ModelState.of(model), model.model.embed_tokens.weight
    assert before.ties == ((EMBEDDING, HEAD),) or before.ties == ((HEAD, EMBEDDING),)
    _apart(model)
    if changed:
        with torch.no_grad():
            model.lm_head.weight.add_(1)
    (found,) = residue(model, before)
    assert str(found) == f"{HEAD}: no longer shares memory with {EMBEDDING}"
    assert str(residue(model)[0]).startswith(f"{HEAD}: does not share memory with {EMBEDDING}")
    assert mend(model, before)[0].mended
    assert model.lm_head.weight is shared
    assert model.model.embed_tokens.weight is shared
    assert residue(model) == residue(model, before) == []


def test_a_tie_of_which_no_tensor_is_left_is_named_where_the_values_differ() -> None:
    model = _model(tied=True)
    before = ModelState.of(model)
    _apart_and_changed(model)
    head = model.lm_head.weight
    found = mend(model, before)
    assert [(finding.kind, finding.mendable, finding.mended) for finding in found] == [("tie", False, False)]
    assert model.lm_head.weight is head


def test_a_replaced_module_unties_what_it_held() -> None:
    model = _model(tied=True)
    before = ModelState.of(model)
    model.lm_head = nn.Linear(32, tiny_models.VOCABULARY, bias=False, dtype=torch.bfloat16).eval()
    assert {(finding.module, finding.kind) for finding in residue(model, before)} == {
        ("lm_head", "module"),
        (HEAD, "tie"),
    }
    assert all(finding.mended for finding in mend(model, before))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_extra_state_comes_back() -> None:
    model = _model()
    model.model.add_module("counting", _Counting(2, 2))
    before = ModelState.of(model)
    model.model.counting.count = 5
    found = {finding.kind for finding in residue(model, before)}
    assert found == {"extra_state", "attribute"}
    assert all(finding.mended for finding in mend(model, before))
    assert model.model.counting.count == 0


def _asks_by_hand(model: Any) -> None:
    model.enable_input_require_grads()


def _asks_through_peft(model: Any) -> None:
    import peft

    model.gradient_checkpointing_enable()
    peft.get_peft_model(model, tiny_models._config(model, "lora")).unload()


@pytest.mark.parametrize("act", [_asks_by_hand, _asks_through_peft])
@pytest.mark.filterwarnings("ignore")
def test_what_asks_for_gradients_at_the_embeddings_goes(act: Callable[[Any], None]) -> None:
    model = _model()
    before = ModelState.of(model)
    act(model)
    assert ("model.embed_tokens", "hook") in {(finding.module, finding.kind) for finding in residue(model, before)}
    assert [finding for finding in mend(model, before) if not finding.mended] == []
    assert not model.model.embed_tokens._forward_hooks
    assert not model.is_gradient_checkpointing


@pytest.mark.filterwarnings("ignore")
def test_what_was_cast_to_fp32_for_training_comes_back() -> None:
    import peft

    model = _model()
    values, before = _state_values(model), ModelState.of(model)
    peft.prepare_model_for_kbit_training(model)
    assert {finding.kind for finding in residue(model, before)} == {"dtype", "requires_grad"}
    assert all(finding.mended for finding in mend(model, before))
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


def test_using_a_model_leaves_nothing() -> None:
    model = _model()
    before = ModelState.of(model)
    with torch.no_grad():
        model(input_ids=tiny_models.PROMPT, output_hidden_states=True)
        model.generate(input_ids=tiny_models.PROMPT, max_new_tokens=2, do_sample=False)
        model.generate(input_ids=tiny_models.PROMPT, max_new_tokens=2, num_beams=2)
    assert residue(model, before) == residue(model) == []


def test_values_of_weights_and_a_move_of_all_are_no_residue() -> None:
    model = _model(tied=True)
    before = ModelState.of(model)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    assert residue(model, before) == []


def test_a_part_that_went_to_another_device_is_named() -> None:
    model = _model()
    before = ModelState.of(model)
    model.model.norm.to(device="meta")
    (found,) = residue(model, before)
    assert str(found) == "model.norm.weight: is on meta, was on cpu"
    assert not found.mendable


def test_the_state_of_one_model_says_nothing_about_another() -> None:
    before = ModelState.of(_model())
    (found,) = residue(_model(), before)
    assert (found.kind, found.mendable) == ("module", False)


def test_a_hook_that_is_gone_is_named() -> None:
    model = _model()
    handle = model.model.norm.register_forward_hook(lambda *_: None)
    before = ModelState.of(model)
    handle.remove()
    assert residue(model, before) == [Finding("model.norm", "hook", "lacks 1 of the forward hooks it had", False)]


@pytest.mark.parametrize("kind", ["lora", "dora", "modules_to_save", "lora_tokens", "bias_all", "prompt_tuning", "ia3"])
def test_what_rblstore_attached_is_no_residue_and_what_else_is_there_is(kind: str, tmp_path: Path) -> None:
    import peft

    model = _model()
    before = ModelState.of(model)
    adapter = tiny_models.save_adapter(model, tmp_path / "a", kind)
    wrapped: Any = attach(model, [AttachSpec("polite", adapter)])
    ledger = ledger_of(wrapped)
    assert ledger is not None
    assert residue(wrapped) == residue(wrapped, before) == residue(wrapped, ledger.plain) == []
    if kind in ("lora", "dora"):
        wrapped.add_adapter("stray", peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        found = residue(wrapped, before)
        assert {finding.kind for finding in found} == {"adapter"}
        assert "holds the adapter 'stray', which is not attached" in found[0].detail
        assert all(finding.mended for finding in mend(wrapped, before))
        assert residue(wrapped, before) == []
    model.model.norm.forward = lambda x: x
    assert [finding.kind for finding in residue(wrapped, before)] == ["method"]


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "trainable_tokens", "modules_to_save"])
def test_somebody_elses_wrappers_are_findings_and_come_off_with_and_without_a_state(kind: str) -> None:
    import peft

    model = _model()
    values, before = _state_values(model), ModelState.of(model)
    peft.get_peft_model(model, tiny_models._config(model, kind))
    found = residue(model)
    assert {finding.kind for finding in found} == {"wrapper", "attribute"}
    assert any("'default'" in finding.detail for finding in found)
    assert all(finding.mended for finding in mend(model))
    assert residue(model) == []
    assert {finding.kind for finding in residue(model, before)} == {"requires_grad"}
    assert all(finding.mended for finding in mend(model, before))
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


def test_a_state_taken_through_adapters_is_that_of_the_model_beneath() -> None:
    import peft

    model = _model()
    plain = [name for name, _ in model.named_modules()]
    wrapped = peft.get_peft_model(model, tiny_models._config(model, "modules_to_save"))
    before = ModelState.of(wrapped)
    assert before.model is model
    assert before.wrapped
    assert sorted(state.name for state in before.modules) == sorted(plain)
    assert {finding.kind for finding in residue(wrapped)} == {"wrapper", "attribute"}
    wrapped.unload()
    # Unloading leaves the trained copy in the model, and freezes everything; the latter this state cannot tell.
    assert {(finding.module, finding.kind) for finding in residue(model, before)} == {("lm_head", "module")}
    assert all(finding.mended for finding in mend(model, before))
    assert [name for name, _ in model.named_modules()] == plain


def test_a_merged_adapter_is_named_and_its_values_are_left_to_the_store() -> None:
    import peft

    model = _model()
    wrapped = peft.get_peft_model(model, tiny_models._config(model, "lora"))
    wrapped.merge_adapter()
    merged = [finding for finding in residue(model) if finding.kind == "merged"]
    assert merged
    assert not any(finding.mendable for finding in merged)
    assert "'default' merged into its weights" in merged[0].detail
