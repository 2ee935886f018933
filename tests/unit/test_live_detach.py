"""Taking behaviors out of a live model leaves the model that a fresh load gives, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from rblstore.checkpoints.attaching import AttachSpec, UnattachableError
from rblstore.checkpoints.ledger import ledger_of
from rblstore.checkpoints.loading import load_directory
from rblstore.checkpoints.plain_view import plain_tensors
from rblstore.checkpoints.saving import live_tensor_digest
from rblstore.divergence.alignment import aligned
from rblstore.live.attach import attach, attached
from rblstore.live.binding import bind
from rblstore.live.detach import NotAttachedError, UnrestorableError, detach
from rblstore.live.residue import residue

MODELS: dict[str, Callable[[torch.dtype], Any]] = {
    "llama": lambda dtype: tiny_models.llama(dtype=dtype),
    "llama_tied": lambda dtype: tiny_models.llama(tied=True, dtype=dtype),
    "gpt2": lambda dtype: tiny_models.gpt2(dtype=dtype),
    "bert": lambda dtype: tiny_models.bert("BertForSequenceClassification", dtype=dtype),
}
# PEFT has no LoHa, LoKr or OFT for the Conv1D layers of GPT-2.
IMPOSSIBLE = {("gpt2", kind) for kind in ("loha", "lokr", "oft")}
REPLACING = ("bias_all", "bias_lora_only", "edited_base", "pissa")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, torch.dtype], tuple[Any, Path]]:
    """A tiny model and the directory that it is saved in, each made once."""
    found: dict[tuple[str, torch.dtype], tuple[Any, Path]] = {}

    def make(name: str, dtype: torch.dtype) -> tuple[Any, Path]:
        if (name, dtype) not in found:
            model = MODELS[name](dtype)
            found[name, dtype] = model, tiny_models.save(model, tmp_path_factory.mktemp(name) / "base")
        return found[name, dtype]

    return make


def load(directory: Path, *adapters: AttachSpec) -> Any:
    return aligned(load_directory(directory, adapters))


def restorer(model: Any, directory: Path) -> Callable[[str], torch.Tensor | None]:
    stored = load_file(directory / "model.safetensors")
    return bind(model, stored).restorer(stored.get)


def digests(model: Any) -> dict[str, str]:
    return {name: live_tensor_digest(tensor) for name, tensor in model.state_dict().items()}


def taken_out(model: Any, base: Path, *names: str) -> Any:
    """The model without behaviors, of which nothing may be left that the state before them does not have."""
    ledger = ledger_of(model)
    assert ledger is not None
    before = ledger.plain
    plain = detach(model, names, restore=restorer(model, base))
    assert residue(plain, before) == []
    return plain


def assert_same_model(model: Any, fresh: Any) -> None:
    assert residue(model) == []
    assert vars(model).keys() == vars(fresh).keys()
    assert type(model) is type(fresh)
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert digests(model) == digests(fresh)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in fresh.named_modules()]
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in fresh.named_parameters()
    }
    assert torch.equal(tiny_models.outputs(model), tiny_models.outputs(fresh))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in MODELS for kind in tiny_models.KINDS if (name, kind) not in IMPOSSIBLE]
)
def test_after_the_last_detach_the_model_is_the_base(
    name: str, kind: str, dtype: torch.dtype, made: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    original, base = made(name, dtype)
    adapter = tiny_models.save_adapter(original, tmp_path / "adapter", kind)
    fresh = load(base)
    model = load(base, AttachSpec("polite", adapter))
    assert not torch.equal(tiny_models.outputs(model), tiny_models.outputs(fresh))
    assert_same_model(taken_out(model, base, "polite"), fresh)


@pytest.mark.parametrize("kind", REPLACING)
def test_what_was_replaced_needs_a_stored_value(
    kind: str, made: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    original, base = made("llama", torch.float32)
    model = load(base, AttachSpec("polite", tiny_models.save_adapter(original, tmp_path / "adapter", kind)))
    before = tiny_models.outputs(model)
    with pytest.raises(UnrestorableError):
        detach(model, ["polite"], restore=lambda name: None)
    assert torch.equal(tiny_models.outputs(model), before)
    assert attached(model) == ("polite",)


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bf16"])
@pytest.mark.parametrize("gone", [0, 1, 2])
@pytest.mark.parametrize(
    "kinds",
    [
        ("lora", "rslora", "dora"),
        ("lora", "modules_to_save", "rank_pattern"),
        ("bias_all", "lora", "lora_embedding"),
        ("edited_base", "rank_pattern", "lora_tokens"),
        ("ia3", "ia3", "ia3"),
        ("loha", "loha", "loha"),
        ("lokr", "lokr", "lokr"),
        ("vera", "vera", "vera"),
    ],
    ids="-".join,
)
def test_taking_one_of_three_out_leaves_the_other_two(
    kinds: tuple[str, ...], gone: int, dtype: torch.dtype, made: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    original, base = made("llama", dtype)
    specs = [
        AttachSpec(f"slot.{i}", tiny_models.save_adapter(original, tmp_path / str(i), kind, seed=i + 1))
        for i, kind in enumerate(kinds)
    ]
    kept = [spec for i, spec in enumerate(specs) if i != gone]
    model = load(base, *specs)
    before = tiny_models.outputs(model)
    same = detach(model, [specs[gone].name], restore=restorer(model, base))
    expected = load(base, *kept)
    assert same is model
    assert attached(model) == tuple(spec.name for spec in kept)
    assert torch.equal(tiny_models.outputs(model), tiny_models.outputs(expected))
    assert not torch.equal(tiny_models.outputs(model), before)
    assert set(model.state_dict()) == set(expected.state_dict())
    assert residue(model) == []
    assert_same_model(taken_out(model, base, *(spec.name for spec in kept)), load(base))


def test_weights_stay_and_do_not_compound(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    original, base = made("llama", torch.bfloat16)
    one = AttachSpec("one", tiny_models.save_adapter(original, tmp_path / "one", seed=1), 0.3)
    two = AttachSpec("two", tiny_models.save_adapter(original, tmp_path / "two", seed=2), 1.7)
    three = AttachSpec("three", tiny_models.save_adapter(original, tmp_path / "three", seed=3), -0.5)
    model = load(base, one, two, three)
    restore = restorer(model, base)
    detach(model, ["two"], restore=restore)
    detach(model, ["one"], restore=restore)
    assert torch.equal(tiny_models.outputs(model), tiny_models.outputs(load(base, three)))
    assert not torch.equal(
        tiny_models.outputs(model), tiny_models.outputs(load(base, AttachSpec("x", three.directory)))
    )


def test_behaviors_can_be_attached_and_taken_out_again_and_again(
    made: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    original, base = made("llama_tied", torch.bfloat16)
    specs = [
        AttachSpec(kind, tiny_models.save_adapter(original, tmp_path / kind, kind))
        for kind in ("lora", "edited_base", "modules_to_save", "trainable_tokens", "prompt_tuning", "oft")
    ]
    fresh, model = load(base), load(base)
    for spec in specs * 2:
        wrapped = attach(model, [spec])
        model = taken_out(wrapped, base, spec.name)
        assert_same_model(model, fresh)


def test_generating_leaves_nothing_behind(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    original, base = made("llama", torch.float32)
    for kind in ("lora", "prompt_tuning"):
        adapter = tiny_models.save_adapter(original, tmp_path / kind, kind)
        model = load(base, AttachSpec("polite", adapter))
        model.generate(input_ids=tiny_models.PROMPT, max_new_tokens=2, do_sample=False)
        assert_same_model(taken_out(model, base, "polite"), load(base))


def test_a_merged_adapter_comes_out_too(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    original, base = made("llama", torch.bfloat16)
    model = load(base, AttachSpec("polite", tiny_models.save_adapter(original, tmp_path / "a")))
    model.merge_adapter()
    assert_same_model(taken_out(model, base, "polite"), load(base))


@pytest.mark.parametrize(
    "kind", ["lora", "modules_to_save", "bias_all", "trainable_tokens", "lora_tokens", "ia3", "oft", "prompt_tuning"]
)
def test_a_model_that_somebody_else_wrapped(kind: str, made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    import peft

    original, base = made("llama", torch.bfloat16)
    adapter = tiny_models.save_adapter(original, tmp_path / "a", kind)
    model = aligned(peft.PeftModel.from_pretrained(load_directory(base), adapter))
    assert residue(model)
    with pytest.raises(UnattachableError):
        attach(model, [AttachSpec("more", adapter)])
    assert_same_model(detach(model, ["default"], restore=restorer(model, base)), load(base))


def test_a_resized_embedding_gets_its_rows_back(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    import peft

    original, base = made("llama_tied", torch.float32)
    adapter = tiny_models.save_adapter(original, tmp_path / "a")
    plain = load_directory(base)
    plain.resize_token_embeddings(tiny_models.VOCABULARY + 7)
    model = aligned(peft.PeftModel.from_pretrained(plain, adapter))
    back = detach(model, ["default"], restore=restorer(model, base))
    assert_same_model(back, load(base))
    assert back.config.vocab_size == tiny_models.VOCABULARY
    assert back.get_input_embeddings().num_embeddings == tiny_models.VOCABULARY


def test_trainable_flags_come_back(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    original, base = made("llama", torch.float32)
    model = load(base)
    model.lm_head.weight.requires_grad_(False)
    before = {name: tensor.requires_grad for name, tensor in model.named_parameters()}
    wrapped = attach(model, [AttachSpec("a", tiny_models.save_adapter(original, tmp_path / "a"))])
    assert not any(tensor.requires_grad for tensor in wrapped.parameters())
    model = detach(wrapped, ["a"], restore=lambda name: None)
    assert {name: tensor.requires_grad for name, tensor in model.named_parameters()} == before


def test_hooks_that_peft_left_go_and_others_stay(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    from peft.tuners.lora.model import _adapter_names_pre_forward_hook

    original, base = made("llama", torch.float32)
    model = load(base, AttachSpec("a", tiny_models.save_adapter(original, tmp_path / "a")))
    norm = model.get_base_model().model.norm
    norm.register_forward_pre_hook(_adapter_names_pre_forward_hook)
    mine = norm.register_forward_hook(lambda module, inputs, output: None)
    plain = detach(model, ["a"], restore=lambda name: None)
    assert residue(plain) == []
    assert list(plain.model.norm._forward_hooks) == [mine.id]
    norm.register_forward_pre_hook(_adapter_names_pre_forward_hook)
    assert [str(one) for one in residue(plain)] == ["model.norm: has a hook of peft.tuners.lora.model"]


def test_gradient_hooks_of_a_checkpointed_model_go(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    original, base = made("llama", torch.float32)
    model = load(base)
    model.gradient_checkpointing_enable()
    before = set(model.get_input_embeddings()._forward_hooks)
    wrapped = attach(model, [AttachSpec("a", tiny_models.save_adapter(original, tmp_path / "a"))])
    plain = detach(wrapped, ["a"], restore=lambda name: None)
    assert set(plain.get_input_embeddings()._forward_hooks) == before


def test_an_unknown_name_changes_nothing(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    original, base = made("llama", torch.float32)
    model = load(base, AttachSpec("a", tiny_models.save_adapter(original, tmp_path / "a")))
    before = tiny_models.outputs(model)
    with pytest.raises(NotAttachedError, match="'b'"):
        detach(model, ["a", "b"], restore=lambda name: None)
    assert torch.equal(tiny_models.outputs(model), before)


def test_two_that_replace_one_tensor(made: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    original, base = made("llama", torch.float32)
    under = AttachSpec("under", tiny_models.save_adapter(original, tmp_path / "u", "edited_base", seed=1))
    over = AttachSpec("over", tiny_models.save_adapter(original, tmp_path / "o", "edited_base", seed=2))
    model = load(base, under, over)
    restore = restorer(model, base)
    with pytest.raises(UnrestorableError, match="over 'under'"):
        detach(model, ["over"], restore=restore)
    detach(model, ["under"], restore=restore)
    assert torch.equal(tiny_models.outputs(model), tiny_models.outputs(load(base, over)))


def test_the_tensors_of_the_plain_model_are_seen_through_every_wrapper(
    made: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    original, base = made("bert", torch.float32)
    fresh = load(base)
    names = list(fresh.state_dict())
    for kind in ("lora", "modules_to_save", "lora_tokens", "prompt_tuning", "trainable_tokens"):
        model = load(base, AttachSpec("a", tiny_models.save_adapter(original, tmp_path / kind, kind)))
        seen = plain_tensors(model)
        assert list(seen) == names
        assert {n: live_tensor_digest(t) for n, t in seen.items()} == digests(fresh)
