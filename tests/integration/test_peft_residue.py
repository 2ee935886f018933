"""What others reported of adapters that do not come out again, with peft alone and with rblstore.

Each case has two tests: what the installed peft leaves (where it was mended since, the test says so and asserts that it
is), and that a live model of rblstore's is clean, or refuses by name.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import rblstore
from rblstore.checkpoints.attaching import LoadMismatchError
from rblstore.live.residue import Finding, ModelState, mend, residue

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = (
    "lora",
    "dora",
    "ia3",
    "vera",
    "bias_all",
    "modules_to_save",
    "lora_tokens",
    "trainable_tokens",
    "prompt_tuning",
)


@dataclass(frozen=True)
class Place:
    """A tied bf16 model, committed on main, and a branch for every kind of adapter, with it on top."""

    repo: Any
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def fresh(self) -> Any:
        return LlamaForCausalLM.from_pretrained(self.base, dtype=torch.bfloat16).eval()

    def adapted(self, kind: str) -> Any:
        """The model with the adapter, by peft's own loader."""
        return peft.PeftModel.from_pretrained(self.fresh(), self.folder / kind)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("residue")
    model = tiny_models.llama(tied=True, dtype=torch.bfloat16)
    tiny_models.save(model, folder / "base")
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=folder / "base")
        for kind in KINDS:
            tiny_models.save_adapter(model, folder / kind, kind)
            repo.create_branch(kind)
            repo.commit(kind, behaviors={slot(kind): folder / kind}, branch=kind)
        tiny_models.save_adapter(model, folder / "other", "lora", seed=5)
        repo.create_branch("both", "modules_to_save")
        repo.commit("both", behaviors={"other": folder / "other"}, branch="both")
        yield Place(repo, folder)


def slot(kind: str) -> str:
    """The behavior's name on the branch of a kind."""
    return kind.replace("_", "-")


def changed(model: Any, fresh: Any) -> list[str]:
    """Names of tensors that differ, by bits; of a name that only one has, too."""
    one, other = model.state_dict(), fresh.state_dict()
    return sorted(
        name
        for name in {*one, *other}
        if name not in one
        or name not in other
        or not torch.equal(one[name].view(torch.int16), other[name].view(torch.int16))
    )


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


def train_a_step(model: Any) -> None:
    """One step of everything that wants gradients, as a training loop does."""
    model.train()
    model(input_ids=tiny_models.PROMPT, labels=tiny_models.PROMPT).loss.backward()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.optim.SGD(wanted, lr=1.0).step()
    model.eval()


def generate(model: Any) -> None:
    model.generate(input_ids=tiny_models.PROMPT, max_new_tokens=2, do_sample=False)


class TestMergingAndUnmergingDrifts:
    """huggingface/trl#6688: in bf16 every cycle of merging and unmerging rounds, and the roundings add up."""

    CYCLES = 8

    def test_peft_alone(self, place: Place) -> None:
        model, fresh = place.adapted("lora"), place.fresh()
        weight = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
        was = fresh.model.layers[0].self_attn.q_proj.weight
        drift = []
        for cycle in range(self.CYCLES):
            model.merge_adapter()
            model.unmerge_adapter()
            if cycle in (0, self.CYCLES - 1):
                drift.append((weight - was).abs().max().item())
        assert 0 < drift[0] < drift[1]

    def test_ours(self, place: Place) -> None:
        model = place.fresh()
        before = ModelState.of(model)
        with place.repo.attach(model, "main") as live:
            live.attach("lora", "lora")
            for _ in range(self.CYCLES):
                live.merge()
                assert changed(live.plain, place.fresh())
                live.unmerge()
            assert live.residue() == []
            live.detach("lora")
        assert changed(model, place.fresh()) == []
        assert residue(model, before) == []


class TestUnloadLeavesTheConfig:
    """huggingface/peft#3025: after ``unload`` the model still had ``peft_config``, and wrapping it again warned."""

    def test_peft_alone_takes_the_config_off_and_leaves_everything_frozen(self, place: Place) -> None:
        # The config goes since peft#3067. What training needs gradients for does not come back.
        model = place.fresh()
        before = ModelState.of(model)
        assert peft.PeftModel.from_pretrained(model, place.folder / "lora").unload() is model
        assert not hasattr(model, "peft_config")
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert kinds(residue(model, before)) == {"requires_grad"}

    def test_peft_alone_leaves_what_generating_put_on_the_model(self, place: Place) -> None:
        model = place.fresh()
        generate(peft.PeftModel.from_pretrained(model, place.folder / "prompt_tuning"))
        assert [str(finding) for finding in residue(model)] == [
            "the model: has the attribute prepare_inputs_for_generation",
            "model: has the attribute generation_config, and does not generate",
        ]

    @pytest.mark.parametrize("kind", KINDS)
    def test_ours(self, place: Place, kind: str) -> None:
        model = place.fresh()
        before = ModelState.of(model)
        with place.repo.attach(model, "main") as live:
            live.attach(slot(kind), kind)
            generate(live.model)
            assert live.residue() == []
            live.detach(slot(kind))
            assert live.residue() == []
        assert residue(model) == residue(model, before) == []
        assert changed(model, place.fresh()) == []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=FutureWarning)
            peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))


class TestDeletingLeavesModules:
    """huggingface/peft#2381: deleting an adapter left its copy of the modules that it trains whole."""

    def test_peft_alone_drops_the_copy_and_leaves_the_wrapper(self, place: Place) -> None:
        # The copy goes since peft#2466. Its wrapper stays, around a head that no adapter has.
        model = place.adapted("modules_to_save")
        model.load_adapter(place.folder / "other", "other")
        assert "default" in model.base_model.model.lm_head.modules_to_save
        model.set_adapter("other")
        model.delete_adapter("default")
        assert "default" not in model.base_model.model.lm_head.modules_to_save
        found = [finding for finding in residue(model.base_model.model) if finding.module == "lm_head"]
        assert [finding.detail for finding in found] == ["is a ModulesToSaveWrapper of peft"]

    def test_ours(self, place: Place) -> None:
        model = place.fresh()
        with place.repo.attach(model, "both") as live:
            assert live.behaviors == ("modules-to-save", "other")
            live.detach("modules-to-save")
            assert live.residue() == []
            assert type(live.model.get_base_model().lm_head) is torch.nn.Linear
            assert not [name for name in live.model.state_dict() if "modules_to_save" in name]
            assert live.plain.lm_head.weight is live.plain.model.embed_tokens.weight


class TestUnloadingModulesThatWereTrained:
    """huggingface/peft#3455: ``unload`` failed where the active adapter had no copy of a module that another has."""

    def test_peft_alone_puts_the_base_back_where_the_active_adapter_has_no_copy(self, place: Place) -> None:
        # It does not fail any more since that change.
        model = place.adapted("modules_to_save")
        model.load_adapter(place.folder / "other", "other")
        model.set_adapter("other")
        assert changed(model.unload(), place.fresh()) == []

    def test_peft_alone_leaves_the_trained_module_where_it_has_one(self, place: Place) -> None:
        model, fresh = place.fresh(), place.fresh()
        before = ModelState.of(model)
        plain = peft.PeftModel.from_pretrained(model, place.folder / "modules_to_save").unload()
        assert changed(plain, fresh) == ["lm_head.weight"]
        assert plain.config.tie_word_embeddings
        assert plain.lm_head.weight is not plain.model.embed_tokens.weight
        found = {(finding.module, finding.kind) for finding in residue(plain, before)}
        assert {("lm_head", "module"), ("lm_head.weight", "tie")} <= found
        assert [finding.kind for finding in residue(plain)] == ["tie"]  # told from the model's own config
        assert all(finding.mended for finding in mend(plain, before))
        assert changed(plain, fresh) == []

    @pytest.mark.parametrize("names", [("modules-to-save", "other"), ("other", "modules-to-save")])
    def test_ours(self, place: Place, names: tuple[str, ...]) -> None:
        model = place.fresh()
        before, tensors = ModelState.of(model), list(model.parameters())
        with place.repo.attach(model, "both") as live:
            for name in names:
                live.detach(name)
                assert live.residue() == []
        assert changed(model, place.fresh()) == []
        assert residue(model, before) == []
        assert all(one is other for one, other in zip(model.parameters(), tensors, strict=True))


class TestDeletingWhatIsMerged:
    """huggingface/peft#3498: deleting a merged adapter left the weights with it, and nothing to take it out by."""

    def test_peft_alone_refuses_to_delete_it_and_unloads_it_without_a_word(self, place: Place) -> None:
        # Deleting is refused since peft#3504. Unloading is not, and the sum stays in the weights.
        model = place.adapted("lora")
        model.load_adapter(place.folder / "other", "other")
        model.merge_adapter(["default"])
        with pytest.raises(ValueError, match="merged"):
            model.delete_adapter("default")
        assert {"merged"} <= kinds(residue(model.base_model.model))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain = model.unload()
        assert residue(plain) == []
        assert len(changed(plain, place.fresh())) == 4

    @pytest.mark.parametrize("by_peft", [False, True], ids=["merged by us", "merged by peft behind our back"])
    def test_ours(self, place: Place, *, by_peft: bool) -> None:
        model = place.fresh()
        before = ModelState.of(model)
        with place.repo.attach(model, "main") as live:
            live.attach("lora", "lora")
            if by_peft:
                live.model.merge_adapter()
                assert kinds(live.residue()) == {"merged"}
            else:
                live.merge()
            live.detach("lora")
            assert live.residue() == []
        assert changed(model, place.fresh()) == []
        assert residue(model, before) == []


class TestNamesThatDoNotMatch:
    """vllm-project/vllm#34186: an adapter of another class of model, whose names match nothing, changes nothing."""

    @pytest.fixture
    def adapter(self, place: Place, tmp_path: Path) -> Callable[[str], Path]:
        def make(prefix: str) -> Path:
            copied = shutil.copytree(place.folder / "lora", tmp_path / "adapter")
            tensors = load_file(copied / "adapter_model.safetensors")
            renamed = {name.replace("base_model.model.model.", prefix): tensor for name, tensor in tensors.items()}
            assert renamed.keys().isdisjoint(tensors)
            save_file(renamed, copied / "adapter_model.safetensors", metadata={"format": "pt"})
            return copied

        return make

    def test_peft_alone(self, place: Place, adapter: Callable[[str], Path]) -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(place.fresh(), adapter("base_model.model.language_model."))
        assert any("missing adapter keys" in str(one.message) for one in said)  # and nothing more
        assert torch.equal(tiny_models.outputs(model), tiny_models.outputs(place.fresh()))

    def test_ours_refuses_what_lies_nowhere_at_commit(self, place: Place, adapter: Callable[[str], Path]) -> None:
        head = place.repo.head
        with pytest.raises(rblstore.RblError, match="encoder"):
            place.repo.commit("lost", behaviors={"lost": adapter("base_model.model.encoder.")})
        assert place.repo.head == head

    def test_ours_refuses_what_peft_would_pass_over_at_load(self, place: Place, adapter: Callable[[str], Path]) -> None:
        repo = place.repo
        if "wrapped" not in {branch.name for branch in repo.branches()}:
            repo.create_branch("wrapped", "main")
        source = adapter("base_model.model.model.language_model.")
        commit = repo.commit("wrapped", behaviors={"wrapped": source}, branch="wrapped").commit
        with pytest.raises(LoadMismatchError, match=r"8 tensors that the model needs are missing"):
            repo.load(str(commit))
        model = place.fresh()
        before = ModelState.of(model)
        with repo.attach(model, "main") as live:
            with pytest.raises(LoadMismatchError, match="lora_A"):
                live.attach("wrapped", "wrapped")
            assert live.behaviors == ()
            assert live.residue() == []
        assert residue(model, before) == []
        assert changed(model, place.fresh()) == []


class TestUnloadingAgain:
    """What comes off by reference is looked at each time: using an adapter leaves things behind, too."""

    @pytest.mark.parametrize("kind", ["prompt_tuning", "lora"])
    def test_every_time_is_clean(self, place: Place, kind: str) -> None:
        model = place.fresh()
        before = ModelState.of(model)
        with place.repo.attach(model, "main") as live:
            for _ in range(3):
                live.attach(slot(kind), kind)
                generate(live.model)
                next(iter(live.plain.modules())).register_forward_hook(_hook_of_peft())
                live.detach(slot(kind))
                assert residue(model, before) == []

    def test_what_a_person_set_meanwhile_stays(self, place: Place) -> None:
        model = place.fresh()
        with place.repo.attach(model, "main") as live:
            live.attach("lora", "lora")
            model.generation_config.max_new_tokens = 7
            model.note = "ours"
            live.detach("lora")
            assert (model.generation_config.max_new_tokens, model.note) == (7, "ours")
            assert kinds(live.residue()) == {"attribute", "generation_config"}


def _hook_of_peft() -> Callable[..., None]:
    """A hook whose code says that it is PEFT's."""
    made: Callable[..., None] = type("Hook", (), {"__module__": "peft.tuners", "__call__": lambda *_: None})()
    return made


class TestTrainingLeavesMore:
    """What a training run with peft leaves behind after ``unload``, by kind; ours, after the same run."""

    LEAVES: ClassVar = {
        "lora": {"requires_grad"},
        "dora": {"requires_grad"},
        "ia3": {"requires_grad"},
        "vera": {"requires_grad"},
        "trainable_tokens": {"requires_grad"},
        "lora_tokens": {"requires_grad"},
        "bias_all": {"requires_grad", "gradient"},
        "modules_to_save": {"requires_grad", "module", "tie"},
    }

    @pytest.mark.parametrize(("kind", "left"), LEAVES.items(), ids=LEAVES)
    def test_peft_alone(self, place: Place, kind: str, left: set[str]) -> None:
        model, fresh = place.fresh(), place.fresh()
        before = ModelState.of(model)
        wrapped = peft.get_peft_model(model, tiny_models._config(model, kind))
        train_a_step(wrapped)
        plain = wrapped.unload()
        assert kinds(residue(plain, before)) == left
        # Biases that were trained stay trained: they are the model's own.
        assert bool(changed(plain, fresh)) is (kind in ("bias_all", "modules_to_save"))
        assert all(finding.mended for finding in mend(plain, before))
        assert residue(plain, before) == []

    def test_peft_alone_with_activation_checkpointing(self, place: Place) -> None:
        model = place.fresh()
        model.gradient_checkpointing_enable()
        before, hooks = ModelState.of(model), list(model.model.embed_tokens._forward_hooks)
        peft.get_peft_model(model, tiny_models._config(model, "lora")).unload()
        assert kinds(residue(model, before)) == {"requires_grad", "hook"}
        assert all(finding.mended for finding in mend(model, before))
        assert list(model.model.embed_tokens._forward_hooks) == hooks

    def test_peft_alone_with_target_parameters(self, place: Place) -> None:
        model = place.fresh()
        before = ModelState.of(model)
        config = peft.LoraConfig(target_modules=[], target_parameters=["q_proj.weight"], task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(model, config)
        assert kinds(residue(model)) == {"wrapper", "attribute"}
        wrapped.unload()
        assert kinds(residue(model, before)) == {"requires_grad"}

    @pytest.mark.parametrize("kind", ["lora", "bias_all", "modules_to_save"])
    def test_ours(self, place: Place, kind: str) -> None:
        model = place.fresh()
        before = ModelState.of(model)
        with place.repo.attach(model, "main") as live:
            live.attach(slot(kind), kind)
            for name, parameter in live.model.named_parameters():
                parameter.requires_grad_("lora_" in name or ".bias" in name or "modules_to_save" in name)
            train_a_step(live.model)
            live.detach(slot(kind), discard=True)
            live.switch("main")
            assert live.residue() == []
        assert residue(model, before) == []
