"""What is proved of a live model: its weights, its outputs, that what was put on does something, that it is gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import rblstore
from rblstore.divergence.locality import BadThresholdError
from rblstore.operations.revert import record_revert
from rblstore.operations.verify import VerificationDivergedError

PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]
UNSAID = 95  # a token that no prompt has
Q = "model.layers.0.self_attn.q_proj.weight"


def edited(folder: Path, change: Any) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base <- a <- b <- full (HEAD): two LoRA and a fine-tune of one layer."""
    folder = tmp_path_factory.mktemp("proof")
    tiny_models.save(tiny_models.llama(), folder / "base")
    for seed, name in enumerate("ab", start=1):
        tiny_models.save_adapter(tiny_models.llama(), folder / name, seed=seed)
    tuned = tiny_models.llama()
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=folder / "base")
        repo.commit("a", behaviors={"a": folder / "a"})
        repo.commit("b", behaviors={"b": folder / "b"})
        repo.commit("full", behaviors={"full": tuned})
    return folder


@pytest.fixture
def repo(_made: Path, tmp_path: Path) -> Iterator[Any]:
    shutil.copytree(_made / "store", tmp_path / "store")
    with rblstore.open(tmp_path / "store") as found:
        yield found


@pytest.fixture
def probed(repo: Any) -> Any:
    repo.add_probe("two", PROMPTS)
    return repo


def bits(model: Any) -> list[bytes]:
    return [one.detach().contiguous().view(torch.uint8).numpy().tobytes() for one in model.state_dict().values()]


class TestVerify:
    def test_weights_alone_without_a_probe(self, repo: Any) -> None:
        live = repo.attach(repo.load(), "HEAD")
        result = live.verify()
        tensors = len(tiny_models.llama().state_dict()) + 16  # two factors of two projections in two layers, twice
        assert (result.verdict, result.verification, result.weights) == ("unverified", None, tensors)
        assert result.commit == repo.head

    @pytest.mark.parametrize("form", ["adapters", "merged"])
    def test_exact_in_both_forms_each_with_a_baseline_of_its_own(self, probed: Any, form: Any) -> None:
        live = probed.attach(probed.load(), "HEAD", form=form)
        result = live.verify()
        assert (result.verdict, result.form, result.verification.bit_equal) == ("exact", form, True)
        assert result.verification.environment.get("form") == ("merged" if form == "merged" else None)
        assert len(probed.baselines()) == 1
        assert live.verify().verification.baseline == result.verification.baseline
        live.switch("HEAD", form="adapters")
        live.verify()
        assert len(probed.baselines()) == (2 if form == "merged" else 1)
        (shown, *_) = probed.log(limit=1)[0].verifications
        assert shown.verdict == "exact"
        assert set(result.as_json()) >= {
            "verdict",
            "weights",
            "form",
            "commit",
            "bit_equal",
            "kl",
            "js",
            "verification",
        }

    def test_prompts_are_flagged_above_a_threshold_of_its_own(self, probed: Any) -> None:
        live = probed.attach(probed.load(), "HEAD")
        assert live.verify().as_json()["local"]["threshold"] == 1e-6

        def doubled(_: Any, __: Any, output: Any) -> None:
            output.logits.mul_(2.0)

        live.model.register_forward_hook(doubled)
        with pytest.raises(VerificationDivergedError) as caught:
            live.verify(threshold=1e-9)
        assert caught.value.threshold == 1e-9
        result = live.verify(tolerance=10.0, threshold=1e-9)
        assert result.as_json()["local"]["threshold"] == 1e-9
        assert len(result.as_json()["local"]["flagged"]) == len(PROMPTS)
        assert not live.verify(tolerance=10.0).as_json()["local"]["flagged"]
        with pytest.raises(BadThresholdError):
            live.verify(threshold=-1.0)

    def test_the_baseline_is_the_one_of_rbl_verify(self, probed: Any) -> None:
        recorded = probed.baseline("HEAD~1")
        live = probed.attach(probed.load("HEAD~1"), "HEAD~1")
        assert live.verify().verification.baseline == recorded.baseline
        assert probed.verify("HEAD~1").verification.bit_equal

    def test_a_weight_that_somebody_wrote_into(self, probed: Any) -> None:
        live = probed.attach(probed.load(), "HEAD")
        with torch.no_grad():
            live.plain.model.norm.weight[0] += 0.25
        with pytest.raises(rblstore.DivergedError) as caught:
            live.verify()
        error: Any = caught.value
        assert (error.code, error.names) == ("weights_differ", ("model.norm.weight",))
        assert error.verification.verdict == "diverged"
        assert probed.show(error.verification_id).record["verdict"] == "diverged"

    def test_a_weight_that_no_prompt_reads_leaves_no_evidence(self, probed: Any) -> None:
        live = probed.attach(probed.load("HEAD~3"), "HEAD~3")
        with torch.no_grad():
            live.plain.model.embed_tokens.weight[UNSAID] += 1
        with pytest.raises(rblstore.DivergedError, match="equal under the probe") as caught:
            live.verify()
        error: Any = caught.value
        assert (error.names, error.verification_id) == (("model.embed_tokens.weight",), None)
        assert probed.log("HEAD~3")[0].verifications == ()

    def test_an_adapter_s_tensor(self, repo: Any) -> None:
        live = repo.attach(repo.load("HEAD~1"), "HEAD~1")
        place = "layers.0.self_attn.q_proj.lora_B"
        written = [one for name, one in live.model.named_parameters() if place in name]
        with torch.no_grad():
            written[-1].zero_()
        with pytest.raises(rblstore.DivergedError) as caught:
            live.verify()
        names = getattr(caught.value, "names")  # noqa: B009
        assert names == ("b: base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",)

    def test_a_hook_changes_outputs_though_every_weight_is_right(self, probed: Any) -> None:
        live = probed.attach(probed.load(), "HEAD")
        live.plain.model.norm.register_forward_hook(lambda module, given, out: out * 1.5)
        with pytest.raises(rblstore.DivergedError, match="every weight is as stored") as caught:
            live.verify()
        assert caught.value.code == "diverged"

    def test_what_no_commit_is(self, probed: Any) -> None:
        live = probed.attach(probed.load(), "HEAD")
        live.detach("a")
        result = live.verify()
        assert (result.verdict, result.commit, result.verification.commit) == ("exact", None, None)

    def test_a_module_that_no_configuration_describes(self, tmp_path: Path) -> None:
        module = _Words().eval()
        tuned = _Words().eval()
        with torch.no_grad():
            tuned.out.weight.mul_(2)
        with rblstore.init(tmp_path / "plain") as repo:
            repo.commit("base", identity=module)
            repo.add_probe("two", PROMPTS)
            repo.commit("ft", behaviors={"ft": tuned})
            live = repo.attach(module, "HEAD~1")
            assert live.verify().verdict == "exact"
            live.attach("ft", "HEAD")
            assert bits(module) == bits(tuned)
            assert live.verify().verdict == "exact"
            live.switch("HEAD")
            assert live.revert("ft").verification.rf == 1.0
            assert bits(module) == bits(_Words())


class _Words(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.words = torch.nn.Embedding(tiny_models.VOCABULARY, 8)
        self.out = torch.nn.Linear(8, tiny_models.VOCABULARY)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(self.words(input_ids))
        return found


class TestRevert:
    @pytest.mark.parametrize("form", ["adapters", "merged"])
    @pytest.mark.parametrize("name", ["a", "full"])
    def test_a_behavior_leaves_the_live_model_and_history(self, probed: Any, form: Any, name: str) -> None:
        live = probed.attach(probed.load(), "HEAD", form=form)
        parameters = dict(live.plain.named_parameters()) if form == "merged" else {}
        result = live.revert(name)
        evidence = result.verification
        assert (result.verdict, evidence.bit_equal, evidence.rf, evidence.removed) == ("exact", True, 1.0, (name,))
        assert evidence.kl_adapted > 0
        assert (live.commit, probed.head, live.form) == (result.commit, result.commit, form)
        assert name not in live.behaviors
        assert all(dict(live.plain.named_parameters())[one] is value for one, value in parameters.items())
        assert live.verify().verdict == "exact"

    def test_by_commit_and_back(self, probed: Any) -> None:
        live = probed.attach(probed.load(), "HEAD")
        live.revert("HEAD")
        assert live.behaviors == ("a", "b")
        result = live.revert("HEAD")
        assert (live.behaviors, result.restored, result.verification.rf) == (("a", "b", "full"), ("full",), 1.0)

    def test_without_a_probe_the_weights_are_proved(self, repo: Any) -> None:
        live = repo.attach(repo.load(), "HEAD")
        assert live.revert("b").verdict == "unverified"
        with pytest.raises(rblstore.RblError) as caught:
            live.revert("a", require_verified=True)
        assert (caught.value.code, live.behaviors) == ("unverified", ("a", "full"))

    def test_a_live_model_that_is_not_head(self, probed: Any) -> None:
        live = probed.attach(probed.load("HEAD~1"), "HEAD~1")
        with pytest.raises(rblstore.ConflictError) as caught:
            live.revert("a")
        assert (caught.value.code, live.behaviors) == ("not_head", ("a", "b"))

    def test_diverged_moves_nothing_and_leaves_the_model_as_it_was(self, probed: Any) -> None:
        live = probed.attach(probed.load(), "HEAD")
        live.plain.lm_head.register_forward_hook(lambda module, given, out: out * 1.5)
        before, head = bits(live.model), probed.head
        with pytest.raises(rblstore.DivergedError) as caught:
            live.revert("a")
        assert (probed.head, live.behaviors, bits(live.model)) == (head, ("a", "b", "full"), before)
        assert probed.show(getattr(caught.value, "verification_id")).record["verdict"] == "diverged"  # noqa: B009

    @pytest.mark.parametrize("form", ["adapters", "merged"])
    @pytest.mark.parametrize("made", [True, False])
    def test_interrupted_the_model_is_what_history_says(
        self, repo: Any, form: Any, made: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live = repo.attach(repo.load(), "HEAD", form=form)
        before, head = bits(live.model), repo.head

        def interrupted(*arguments: Any) -> None:
            if made:
                record_revert(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("rblstore.operations.live_proof.record_revert", interrupted)
            with pytest.raises(KeyboardInterrupt):
                live.revert("b")
        assert (repo.head != head, live.commit) == (made, repo.head)
        assert live.behaviors == (("a", "full") if made else ("a", "b", "full"))
        assert (bits(live.model) == before) == (not made)
        assert live.verify().verdict == "unverified"  # without a probe; every tensor was compared
        live.switch("HEAD~1" if made else "HEAD")
        assert bits(live.model) == before

    def test_no_second_model_where_there_is_a_baseline(self, probed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        live = probed.attach(probed.load(), "HEAD")
        live.detach("full")
        live.verify()
        live.attach("full")

        def no_load(*_: Any, **__: Any) -> None:
            raise AssertionError("a model was loaded")

        for module in ("live_measuring", "revert_proof", "load"):
            monkeypatch.setattr(f"rblstore.operations.{module}.load_composition", no_load)
        assert live.revert("full").verification.rf == 1.0


class TestEffect:
    def zeros(self, folder: Path) -> Path:
        made = tiny_models.save_adapter(tiny_models.llama(), folder)
        return edited(made, lambda found: {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in found.items()})

    def unsaid(self) -> Any:
        model = tiny_models.llama()
        with torch.no_grad():
            model.model.embed_tokens.weight[UNSAID] += 1
        return model

    def test_zeros_are_found_without_a_probe(self, repo: Any, tmp_path: Path) -> None:
        repo.commit("zero", behaviors={"zero": self.zeros(tmp_path / "zero")}, remove=["a", "b", "full"])
        live = repo.attach(repo.load("HEAD~4"), "HEAD~4")
        before = bits(live.model)
        for change in (lambda: live.attach("zero", "HEAD"), lambda: live.switch("HEAD")):
            with pytest.raises(rblstore.ConflictError) as caught:
                change()
            assert (caught.value.code, live.behaviors, bits(live.model)) == ("no_effect", (), before)
        live.attach("zero", "HEAD", allow_no_effect=True)
        assert live.behaviors == ("zero",)
        with pytest.raises(rblstore.ConflictError):
            repo.attach(tiny_models.llama(), "HEAD")
        repo.attach(tiny_models.llama(), "HEAD", allow_no_effect=True)

    def test_no_output_on_the_probe_changes(self, probed: Any) -> None:
        probed.commit("unsaid", behaviors={"unsaid": self.unsaid()}, remove=["a", "b", "full"])
        live = probed.attach(tiny_models.llama(), "HEAD~4")
        before = bits(live.model)
        with pytest.raises(rblstore.ConflictError, match="changes no output under the probe 'two'") as caught:
            live.attach("unsaid", "HEAD")
        assert (caught.value.code, live.behaviors, bits(live.model)) == ("no_effect", (), before)
        live.attach("unsaid", "HEAD", allow_no_effect=True)
        assert (
            live.model.model.embed_tokens.weight[UNSAID, 0] != tiny_models.llama().model.embed_tokens.weight[UNSAID, 0]
        )

    def test_of_several_that_come_each_is_proved(self, probed: Any) -> None:
        probed.commit("unsaid too", behaviors={"unsaid": self.unsaid()}, remove=["full"])
        live = probed.attach(probed.load("HEAD~1"), "HEAD~1")
        before = bits(live.model)
        with pytest.raises(rblstore.ConflictError, match="'unsaid' changes no output"):
            live.switch("HEAD")
        assert (live.behaviors, bits(live.model)) == (("a", "b", "full"), before)
        assert live.commit == probed.resolve("HEAD~1")

    def test_it_is_measured_once(self, probed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from rblstore.divergence import measure as measuring

        live = probed.attach(tiny_models.llama(), "HEAD~3")
        counted = []
        measure = measuring.measure
        monkeypatch.setattr(measuring, "measure", lambda *given: counted.append(1) or measure(*given))
        for _ in range(3):
            live.switch("HEAD")
            live.switch("HEAD~3")
        assert len(counted) == 4  # the base, and it with one, two and three behaviors

    def test_tensors_that_peft_passes_over_in_silence(self, repo: Any, tmp_path: Path) -> None:
        made = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "p", "prompt_tuning")
        edited(made, lambda found: {**found, "extra": torch.ones(3)})
        repo.commit("p", behaviors={"p": made}, remove=["a", "b", "full"])
        live = repo.attach(tiny_models.llama(), "HEAD~4")
        with pytest.raises(rblstore.ConflictError, match="extra") as caught:
            live.attach("p", "HEAD")
        assert (caught.value.code, live.behaviors) == ("unused_tensors", ())

    def test_tensors_of_modules_that_the_adapter_does_not_name(self, repo: Any, tmp_path: Path) -> None:
        made = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "q")
        config = json.loads((made / "adapter_config.json").read_text())
        (made / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
        repo.commit("q", behaviors={"q": made}, remove=["a", "b", "full"])
        live = repo.attach(tiny_models.llama(), "HEAD~4")
        with pytest.raises(rblstore.ConflictError, match="v_proj") as caught:
            live.attach("q", "HEAD")
        assert (caught.value.code, live.behaviors) == ("unused_tensors", ())
        assert bits(live.model) == bits(tiny_models.llama())
