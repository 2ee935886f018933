"""Committing what is in memory, and refusing what was made on another base."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import checked_out, digests

import rblstore
from rblstore.checkpoints.live_names import slot_name
from rblstore.checkpoints.quiet import quiet

if TYPE_CHECKING:
    from conftest import Story


def trained(base: Any, *, seed: int = 5, **config: Any) -> Any:
    """A live PEFT model over a copy of a base, its adapter's values random."""
    torch.manual_seed(seed)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    with quiet():
        model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


class TestFromMemory:
    @pytest.mark.parametrize(
        "config", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"use_rslora": True, "r": 3}], ids=str
    )
    def test_a_live_adapter(self, story: Story, config: Any) -> None:
        live = trained(story.model, **config)
        before = tiny_models.outputs(live)
        story.repo.commit("live", behaviors={"live": live}, remove=["a", "b", "c"])
        assert torch.equal(tiny_models.outputs(story.repo.load()), before)
        assert torch.equal(tiny_models.outputs(live), before)
        assert not list((story.repo.path / ".rbl" / "tmp").iterdir())

    def test_the_same_adapter_twice_is_the_same_behavior(self, story: Story) -> None:
        first = story.repo.commit("live", behaviors={"live": trained(story.model)})
        with pytest.raises(rblstore.NothingChangedError):
            story.repo.commit("again", behaviors={"live": trained(story.model)})
        other = story.repo.commit("other", behaviors={"live": trained(story.model, seed=6)})
        assert other.slots[-1].behavior != first.slots[-1].behavior

    def test_an_adapter_as_tensors(self, story: Story, tmp_path: Path) -> None:
        tensors = load_file(story.source("a") / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        for name, source in {"named": rblstore.AdapterTensors(tensors, config), "pair": (tensors, config)}.items():
            result = story.repo.commit(
                name, behaviors={name: source}, remove=["a", "b", "c"] if name == "named" else []
            )
        assert result.slots[0].behavior == result.slots[1].behavior
        story.repo.commit("one", remove=["pair"])
        reference = story.repo.load("HEAD~5")  # the commit of "a" alone
        assert torch.equal(tiny_models.outputs(story.repo.load()), tiny_models.outputs(reference))

    def test_a_live_identity(self, story: Story, tmp_path: Path) -> None:
        other = tiny_models.llama(seed=3, tied=True, dtype=torch.bfloat16)
        story.repo.switch("other", orphan=True)
        story.repo.commit("other", identity=other)
        assert torch.equal(tiny_models.outputs(story.repo.load()), tiny_models.outputs(other))
        saved = tiny_models.save(other, tmp_path / "saved")
        story.repo.checkout("HEAD", tmp_path / "out")
        assert checked_out(tmp_path / "out") == digests(saved)

    @pytest.mark.parametrize(
        "source",
        [42, object(), [], torch.nn.ReLU(), {"peft_type": "LORA"}, ({}, {})],
        ids=lambda source: type(source).__name__,
    )
    def test_what_is_neither(self, story: Story, unmoved: Callable[[], None], source: Any) -> None:
        for options in ({"behaviors": {"x": source}}, {"identity": source}):
            with pytest.raises(rblstore.RblError):
                story.repo.commit("no", **options)
            unmoved()

    def test_an_adapted_model_is_no_identity(self, story: Story, unmoved: Callable[[], None]) -> None:
        with pytest.raises(rblstore.UsageError) as caught:
            story.repo.commit("no", identity=trained(story.model))
        assert caught.value.code == "unsavable"
        unmoved()

    def test_a_model_that_nobody_trained_is_no_behavior(self, story: Story, unmoved: Callable[[], None]) -> None:
        with pytest.raises(rblstore.NothingChangedError) as caught:
            story.repo.commit("no", behaviors={"x": story.model})
        assert caught.value.object == "x"
        unmoved()


class TestFromLoaded:
    def test_what_nobody_trained_is_what_was_stored(self, story: Story, unmoved: Callable[[], None]) -> None:
        model = story.repo.load()
        for name in "abc":
            with pytest.raises(rblstore.NothingChangedError):
                story.repo.commit("again", behaviors={name: model})
            unmoved()

    def test_one_of_three_that_was_trained_on(self, story: Story, tmp_path: Path) -> None:
        model = story.repo.load()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name and slot_name(name.split(".")[-2]) == "b":
                    parameter.add_(0.05)
        after = tiny_models.outputs(model)
        result = story.repo.commit("b, trained on", behaviors={"b": model})
        assert [change.name for change in story.repo.diff().slots] == ["b"]
        assert [slot.name for slot in result.slots] == ["a", "b", "c"]
        assert torch.equal(tiny_models.outputs(story.repo.load()), after)

    def test_a_bf16_adapter_is_not_widened(self, tmp_path: Path) -> None:
        model = tiny_models.llama(dtype=torch.bfloat16)
        adapter = tiny_models.save_adapter(model, tmp_path / "a")
        narrow = {name: tensor.bfloat16() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
        save_file(narrow, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tiny_models.save(model, tmp_path / "base"))
            repo.commit("a", behaviors={"a": adapter})
            with pytest.raises(rblstore.NothingChangedError):
                repo.commit("again", behaviors={"a": repo.load()})


class TestAnotherBase:
    @pytest.fixture
    def tuned(self, tmp_path: Path) -> Path:
        """A fine-tune of the base: its attention has moved."""
        model = tiny_models.llama()
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.add_(0.01)
        return tiny_models.save(model, tmp_path / "tuned")

    def test_a_live_adapter_over_a_fine_tune(self, story: Story, tuned: Path, unmoved: Callable[[], None]) -> None:
        model = type(story.model).from_pretrained(tuned)
        live = trained(model)
        with pytest.raises(rblstore.ConflictError) as caught:
            story.repo.commit("no", behaviors={"x": live})
        assert (caught.value.code, caught.value.exit_code) == ("wrong_base", 4)
        assert "model.layers.0.self_attn.q_proj.weight" in caught.value.message
        assert "v_proj" not in caught.value.message
        unmoved()

    def test_a_live_adapter_over_a_fine_tune_by_rebind(self, story: Story, tuned: Path) -> None:
        live = trained(type(story.model).from_pretrained(tuned))
        assert story.repo.commit("yes", behaviors={"x": live}, rebind=True).slots[-1].name == "x"

    def test_a_live_adapter_over_the_base_in_another_dtype_is_let_through(self, story: Story) -> None:
        assert story.repo.commit("half", behaviors={"x": trained(tiny_models.llama(dtype=torch.bfloat16))}).slots

    def test_an_adapter_whose_config_names_the_fine_tune(
        self, story: Story, tuned: Path, tmp_path: Path, unmoved: Callable[[], None]
    ) -> None:
        model = type(story.model).from_pretrained(tuned)
        for named in (str(tuned), "somewhere/else/tuned"):  # a folder of that name lies beside the adapter
            adapter = tiny_models.save_adapter(model, tmp_path / "x", base_model_name_or_path=named)
            with pytest.raises(rblstore.ConflictError) as caught:
                story.repo.commit("no", behaviors={"x": adapter})
            assert caught.value.code == "wrong_base"
            assert "model.layers.0.self_attn.q_proj.weight" in caught.value.message
            assert "--rebind" in caught.value.hint
            unmoved()

    def test_an_adapter_whose_config_names_the_fine_tune_by_rebind(
        self, story: Story, tuned: Path, tmp_path: Path
    ) -> None:
        model = type(story.model).from_pretrained(tuned)
        adapter = tiny_models.save_adapter(model, tmp_path / "x", base_model_name_or_path=str(tuned))
        story.repo.commit("yes", behaviors={"x": adapter}, rebind=True)

    def test_an_adapter_whose_config_names_the_base_itself(self, story: Story, tmp_path: Path) -> None:
        base = story.source("base")
        adapter = tiny_models.save_adapter(story.model, tmp_path / "x", base_model_name_or_path=str(base))
        story.repo.commit("yes", behaviors={"x": adapter})

    @pytest.mark.parametrize(
        ("make", "named"),
        [
            (lambda: tiny_models.llama(layers=3), "layers.2"),
            (tiny_models.gpt2, "c_attn"),
            (tiny_models.bert, "encoder.layer.0"),
        ],
        ids=["more layers", "gpt2", "bert"],
    )
    def test_another_architecture(
        self, story: Story, tmp_path: Path, make: Callable[[], Any], named: str, unmoved: Callable[[], None]
    ) -> None:
        adapter = tiny_models.save_adapter(make(), tmp_path / "x")
        for rebind in (False, True):
            with pytest.raises(rblstore.ConflictError) as caught:
                story.repo.commit("no", behaviors={"x": adapter}, rebind=rebind)
            assert caught.value.code == "wrong_base"
            assert named in caught.value.message
            unmoved()

    def test_other_widths(self, story: Story, tmp_path: Path, unmoved: Callable[[], None]) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        wide = LlamaConfig(
            vocab_size=96, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
        adapter = tiny_models.save_adapter(LlamaForCausalLM(wide), tmp_path / "x")
        with pytest.raises(rblstore.ConflictError) as caught:
            story.repo.commit("no", behaviors={"x": adapter})
        assert "does not fit model.layers.0.self_attn.q_proj.weight of shape [32, 32]" in caught.value.message
        unmoved()


class TestStacks:
    """An adapter that was trained over an adapter which edits the weights beneath."""

    @pytest.fixture
    def stacked(self, tmp_path: Path) -> Any:
        model = tiny_models.llama()
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tiny_models.save(model, tmp_path / "base"))
            lower = tiny_models.save_adapter(model, tmp_path / "lower", "edited_base")
            repo.commit("lower", behaviors={"lower": lower})
            upper = tiny_models.save_adapter(model, tmp_path / "upper", seed=2)
            repo.commit("upper", behaviors={"upper": upper})
            repo.add_probe("ids", [{"id": "p", "tokens": tiny_models.PROMPT[0].tolist()}])
            yield repo

    def test_the_lower_stays_while_the_upper_is_there(self, stacked: Any) -> None:
        head = stacked.head
        for act in (
            lambda: stacked.commit("no", remove=["lower"]),
            lambda: stacked.revert(behavior="lower"),
            lambda: stacked.revert("HEAD~1"),
        ):
            with pytest.raises(rblstore.ConflictError) as caught:
                act()
            assert caught.value.code == "stands_on"
            assert "'lower'" in caught.value.message
            assert "'upper'" in caught.value.message
            assert stacked.head == head

    def test_from_the_top_both_go_exactly(self, stacked: Any) -> None:
        for name in ("upper", "lower"):
            result = stacked.revert(behavior=name)
            assert (result.verdict, result.verification.rf) == ("exact", 1.0)
        assert stacked.log()[0].composition == stacked.log("HEAD~4")[0].composition

    def test_the_upper_alone_was_made_for_something_else(self, stacked: Any) -> None:
        """What the upper one stands on is the edited weight, and not the base's."""
        effects = {
            effect["target"]: effect["beneath"]["content"]
            for effect in stacked.show(stacked.log()[0].slots[1].behavior).record["effects"]
        }
        (edited,) = [
            effect
            for effect in stacked.show(stacked.log()[0].slots[0].behavior).record["effects"]
            if effect["action"] == "replaces"
        ]
        assert effects[edited["target"]] == edited["value"]["content"]


class TestLoading:
    def test_load_and_load_checkout_agree_for_several_behaviors(self, story: Story, tmp_path: Path) -> None:
        story.repo.commit("softer", weights={"b": 0.25})
        story.repo.checkout("HEAD", tmp_path / "out")
        loaded = tiny_models.outputs(story.repo.load())
        assert torch.equal(loaded, tiny_models.outputs(rblstore.load_checkout(tmp_path / "out")))
        assert not torch.equal(loaded, tiny_models.outputs(story.repo.load("HEAD~1")))

    def test_another_dtype(self, story: Story) -> None:
        model = story.repo.load("HEAD~3", dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    def test_a_checkout_that_was_edited_or_is_none(self, story: Story, tmp_path: Path) -> None:
        with pytest.raises(rblstore.InputError, match="is not a checkout"):
            rblstore.load_checkout(story.source("base"))
        story.repo.checkout("HEAD", tmp_path / "out")
        manifest = tmp_path / "out" / "rbl-composition.json"
        manifest.write_text(manifest.read_text().replace("behaviors/a", "../../a"))
        with pytest.raises(rblstore.InputError):
            rblstore.load_checkout(tmp_path / "out")

    def test_weights_that_are_not_those_of_the_config(self, story: Story, tmp_path: Path) -> None:
        odd = tiny_models.save(tiny_models.llama(layers=1), tmp_path / "odd")
        (odd / "config.json").write_text((story.source("base") / "config.json").read_text())
        story.repo.switch("odd", orphan=True)
        story.repo.commit("odd", identity=odd)
        with pytest.raises(rblstore.ConflictError) as caught:
            story.repo.load()
        assert caught.value.code == "load_mismatch"
        assert "layers.1" in caught.value.message
        assert not list((story.repo.path / ".rbl" / "tmp").iterdir())
