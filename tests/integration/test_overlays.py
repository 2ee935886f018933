"""Overlays: whole checkpoints committed as what they change, checked out byte for byte, taken out with proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from tiny_checkpoints import checked_out, digests

import rblstore

PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]
LAYER = "model.layers.0.self_attn.q_proj.weight"
OTHER = "model.layers.1.mlp.down_proj.weight"


def tuned(model: Any, *names: str, seed: int = 5) -> Any:
    """The model with the named parameters changed, or all of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not names or name in names:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_((parameter.float() + noise).to(parameter.dtype))
    return model


def write(model: Any, folder: Path, *, tokenizer: bool = True) -> Path:
    """A checkpoint, with its tokenizer and a card."""
    tiny_models.save(model, folder)
    if tokenizer:
        tiny_models.save_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    return folder


def commit_base(repo: Any, base: Path) -> None:
    repo.commit("base", identity=base)
    repo.add_probe("two", PROMPTS)


def assert_exact(result: Any, *, live: bool = True) -> None:
    evidence = result.verification
    assert (result.verdict, evidence.bit_equal) == ("exact", True)
    assert evidence.kl in (0.0, None)  # embeddings have none
    assert evidence.removed == (result.removed if live else ())


class TestWholeFineTune:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("tied", [False, True])
    def test_it_comes_back_and_it_goes(self, tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
        base = write(tiny_models.llama(dtype=dtype, tied=tied), tmp_path / "base")
        model = tuned(tiny_models.llama(dtype=dtype, tied=tied))
        fine = write(model, tmp_path / "ft")
        (fine / "README.md").write_text("---\nlicense: mit\n---\nTuned.\n")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            result = repo.checkout("HEAD", tmp_path / "out")
            assert checked_out(tmp_path / "out") == digests(fine)
            assert repo.status(tmp_path / "out").clean
            (shown,) = repo.show("HEAD").behaviors
            assert (shown.form, shown.type) == ("overlay", None)
            loaded = rblstore.load_checkout(tmp_path / "out")
            assert torch.equal(tiny_models.outputs(loaded), tiny_models.outputs(repo.load("HEAD")))
            assert torch.equal(tiny_models.outputs(loaded), tiny_models.outputs(model))
            reverted = repo.revert(behavior="ft")
            assert_exact(reverted)
            assert reverted.verification.kl_adapted > 1e-6
            assert reverted.verification.rf == 1.0
            repo.checkout("HEAD", tmp_path / "plain")
            assert checked_out(tmp_path / "plain") == digests(base)
            assert_exact(repo.revert("HEAD"))  # it comes back, on the live model
            repo.checkout("HEAD", tmp_path / "again")
            assert checked_out(tmp_path / "again") == digests(fine)
            assert_exact(repo.revert("HEAD"))
            assert repo.fsck(full=True).damages == ()
        assert result.form == "adapters"

    def test_of_it_the_files_alone_are_said_to_be_changed(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        fine = write(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        (fine / "README.md").write_text("---\nlicense: mit\n---\nTuned.\n")
        (fine / "notes").mkdir()
        (fine / "notes" / "run.txt").write_text("40 steps\n")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            made = repo.commit("ft", behaviors={"ft": fine})
            (shown,) = repo.show("HEAD").behaviors
            assert shown.effects == {"adds": 1, "replaces": 2}
            assert (shown.tensors, shown.files) == ({"replaces": 1}, {"adds": 1, "replaces": 1})
            change = repo.diff()
            assert [(one.target, one.change, one.behaviors) for one in change.tensors] == [(LAYER, "replaced", ("ft",))]
            assert [(one.path, one.change, one.behaviors) for one in change.files] == [
                ("README.md", "replaced", ("ft",)),
                ("notes/run.txt", "added", ("ft",)),
            ]
            assert [(part.name, part.license) for part in repo.audit().components][1] == ("ft", ("mit",))
            assert made.added_contents == 3  # a tensor and two files
            repo.checkout("HEAD", tmp_path / "out")
            assert checked_out(tmp_path / "out") == digests(fine)
            assert_exact(repo.revert(behavior="ft"))
            assert repo.fsck(full=True).damages == ()


class TestOtherShapes:
    """Where names, shapes, element types or the config differ there is no live step; the store gives the base back."""

    def comes_back(self, repo: Any, folder: Path, fine: Path) -> None:
        repo.commit("ft", behaviors={"ft": fine})
        repo.checkout("HEAD", folder / "out")
        assert checked_out(folder / "out") == digests(fine)
        loaded = tiny_models.outputs(rblstore.load_checkout(folder / "out"))
        assert torch.equal(loaded, tiny_models.outputs(repo.load("HEAD")))
        result = repo.revert(behavior="ft")
        assert_exact(result, live=False)
        repo.checkout("HEAD", folder / "plain")
        assert checked_out(folder / "plain") == digests(folder / "base")
        assert repo.fsck(full=True).damages == ()

    def test_resized_embeddings(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        model = tiny_models.llama()
        torch.manual_seed(3)
        model.resize_token_embeddings(tiny_models.VOCABULARY + 8, mean_resizing=False)
        fine = write(model, tmp_path / "ft")
        (fine / "added_tokens.json").write_text('{"<new>": 96}')
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            self.comes_back(repo, tmp_path, fine)
            effects = repo.show("HEAD~1").behaviors[0]
            assert effects.tensors == {"replaces": 2}
            assert effects.files == {"adds": 1, "replaces": 1}

    def test_a_classifier_on_a_causal_base(self, tmp_path: Path) -> None:
        from transformers import LlamaForSequenceClassification

        model = tiny_models.llama()
        base = write(model, tmp_path / "base")
        model.config.num_labels = 5
        torch.manual_seed(4)
        classifier = LlamaForSequenceClassification(model.config).eval()
        classifier.model.load_state_dict(model.model.state_dict())
        fine = write(classifier, tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            self.comes_back(repo, tmp_path, fine)
            assert repo.show("HEAD~1").behaviors[0].tensors == {"adds": 1, "removes": 1}
            assert type(repo.load("HEAD~1")).__name__ == "LlamaForSequenceClassification"

    def test_another_number_of_labels(self, tmp_path: Path) -> None:
        base = write(tiny_models.bert("BertForSequenceClassification", labels=3), tmp_path / "base")
        fine = write(tiny_models.bert("BertForSequenceClassification", labels=4), tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            self.comes_back(repo, tmp_path, fine)

    def test_a_head_whose_names_have_another_prefix(self, tmp_path: Path) -> None:
        encoder = tiny_models.bert()
        base = write(encoder, tmp_path / "base")
        classifier = tiny_models.bert("BertForSequenceClassification")
        classifier.bert.load_state_dict(encoder.state_dict())
        fine = write(classifier, tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            self.comes_back(repo, tmp_path, fine)

    def test_another_element_type(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(dtype=torch.bfloat16), tmp_path / "base")
        fine = write(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            self.comes_back(repo, tmp_path, fine)

    def test_another_element_type_that_the_config_does_not_tell(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(dtype=torch.bfloat16), tmp_path / "base")
        fine = write(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        (fine / "config.json").write_bytes((base / "config.json").read_bytes())
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            self.comes_back(repo, tmp_path, fine)

    def test_a_config_that_changes_what_is_computed(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        model = tiny_models.llama()
        model.config.rms_norm_eps = 0.01
        fine = write(model, tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            self.comes_back(repo, tmp_path, fine)

    def test_a_config_that_says_the_same_is_no_other_model(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        fine = write(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        config = json.loads((fine / "config.json").read_text())
        (fine / "config.json").write_text(json.dumps({**config, "transformers_version": "4.0.0"}))
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            assert_exact(repo.revert(behavior="ft"))


class TestLayouts:
    @pytest.mark.parametrize("sharded", ["base", "ft", "both"])
    def test_shards(self, tmp_path: Path, sharded: str) -> None:
        model = tiny_models.llama()
        base, fine = tmp_path / "base", tmp_path / "ft"
        (tiny_models.save_sharded(model, base, 3) if sharded != "ft" else tiny_models.save(model, base))
        changed = tuned(tiny_models.llama(), LAYER, OTHER)
        (tiny_models.save_sharded(changed, fine, 2) if sharded != "base" else tiny_models.save(changed, fine))
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            assert repo.show("HEAD").behaviors[0].tensors == {"replaces": 2}
            repo.checkout("HEAD", tmp_path / "out")
            assert checked_out(tmp_path / "out") == digests(fine)
            assert_exact(repo.revert(behavior="ft"))
            repo.checkout("HEAD", tmp_path / "plain")
            assert checked_out(tmp_path / "plain") == digests(base)
            assert repo.fsck(full=True).damages == ()

    def test_an_identity_that_changes_elsewhere(self, tmp_path: Path) -> None:
        """The overlay's ground is untouched, so it stays; the layout is the new identity's, by rule."""
        base = write(tiny_models.llama(), tmp_path / "base")
        fine = write(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        other = tmp_path / "other"
        moved = tuned(tiny_models.llama(), OTHER, seed=8)
        tiny_models.save_sharded(moved, other, 3)
        tiny_models.save_tokenizer(other)
        (other / "README.md").write_text("Another.\n")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            repo.commit("other", identity=other)
            repo.checkout("HEAD", tmp_path / "out")
            expected = tuned(moved, seed=9)
            expected.load_state_dict(
                {**tiny_models.llama().state_dict(), **safetensors_of(other), LAYER: safetensors_of(fine)[LAYER]}
            )
            loaded = rblstore.load_checkout(tmp_path / "out")
            assert torch.equal(tiny_models.outputs(loaded), tiny_models.outputs(expected))
            assert torch.equal(tiny_models.outputs(repo.load()), tiny_models.outputs(expected))
            out, whole = checked_out(tmp_path / "out"), digests(other)
            assert out.keys() == whole.keys()
            assert sum(out[path] != whole[path] for path in out) == 1  # the shard that holds the tensor
            assert repo.status(tmp_path / "out").clean
            assert_exact(repo.revert("HEAD"), live=False)
            assert repo.fsck(full=True).damages == ()

    def test_an_identity_that_changes_beneath_is_refused_by_name(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        fine = write(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        other = write(tuned(tiny_models.llama(), LAYER, seed=8), tmp_path / "other")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.commit("other", identity=other)
            assert (caught.value.code, caught.value.object) == ("wrong_base", "ft")
            assert LAYER in caught.value.message

    def test_removed_files_are_named_and_come_back(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        fine = tiny_models.save(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            made = repo.commit("ft", behaviors={"ft": fine})
            assert any("README.md" in warning and "tokenizer.json" in warning for warning in made.warnings)
            repo.checkout("HEAD", tmp_path / "out")
            assert checked_out(tmp_path / "out") == digests(fine)
            assert_exact(repo.revert(behavior="ft"))
            repo.checkout("HEAD", tmp_path / "plain")
            assert checked_out(tmp_path / "plain") == digests(base)


def safetensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


class TestStacks:
    def test_sft_then_dpo(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        sft_model = tuned(tiny_models.llama())
        sft = write(sft_model, tmp_path / "sft")
        dpo = write(tuned(sft_model, LAYER, OTHER, seed=6), tmp_path / "dpo")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("sft", behaviors={"sft": sft})
            repo.commit("dpo", behaviors={"dpo": dpo})
            assert repo.show("HEAD").behaviors[1].tensors == {"replaces": 2}
            repo.checkout("HEAD", tmp_path / "out")
            assert checked_out(tmp_path / "out") == digests(dpo)
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.revert(behavior="sft")
            assert (caught.value.code, caught.value.object) == ("stands_on", "sft")
            assert "'dpo'" in caught.value.message
            assert_exact(repo.revert(behavior="dpo"))
            repo.checkout("HEAD", tmp_path / "below")
            assert checked_out(tmp_path / "below") == digests(sft)
            assert_exact(repo.revert(behavior="sft"))
            assert repo.fsck(full=True).damages == ()

    def test_two_that_neither_stands_on_the_other(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        one = write(tuned(tiny_models.llama(), LAYER), tmp_path / "one")
        two = write(tuned(tiny_models.llama(), LAYER, OTHER, seed=6), tmp_path / "two")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("one", behaviors={"one": one})
            gone = repo.commit("without", remove=["one"])
            repo.commit("two", behaviors={"two": two})
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.revert(str(gone.commit))
            assert caught.value.code == "overlap"
            assert all(word in caught.value.message for word in ("'one'", "'two'", LAYER))

    def test_two_that_touch_different_tensors(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        one = write(tuned(tiny_models.llama(), LAYER), tmp_path / "one")
        two = write(tuned(tiny_models.llama(), OTHER, seed=6), tmp_path / "two")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("one", behaviors={"one": one})
            gone = repo.commit("without", remove=["one"])
            repo.commit("two", behaviors={"two": two})
            assert_exact(repo.revert(str(gone.commit)))
            assert [slot.name for slot in repo.log()[0].slots] == ["one", "two"]
            repo.checkout("HEAD", tmp_path / "out")
            found = safetensors_of(tmp_path / "out")
            assert torch.equal(found[LAYER], safetensors_of(one)[LAYER])
            assert torch.equal(found[OTHER], safetensors_of(two)[OTHER])
            assert_exact(repo.revert(behavior="one"))

    def test_a_sibling_on_top_takes_back_and_says_so(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        one = write(tuned(tiny_models.llama(), LAYER), tmp_path / "one")
        two = write(tuned(tiny_models.llama(), OTHER, seed=6), tmp_path / "two")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("one", behaviors={"one": one})
            made = repo.commit("two", behaviors={"two": two})
            assert made.warnings == (f"two: it takes back what 'one' changed: {LAYER}",)
            repo.checkout("HEAD", tmp_path / "out")
            assert checked_out(tmp_path / "out") == digests(two)

    def test_an_adapter_made_on_it(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        model = tuned(tiny_models.llama())
        fine = write(model, tmp_path / "ft")
        adapter = tiny_models.save_adapter(model, tmp_path / "a", "bias_lora_only")
        plain = tiny_models.save_adapter(model, tmp_path / "b", seed=3)
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            repo.commit("a", behaviors={"a": adapter})
            repo.commit("b", behaviors={"b": plain})
            repo.checkout("HEAD", tmp_path / "out")
            out = checked_out(tmp_path / "out")
            assert {path: out[path] for path in digests(fine)} == digests(fine)
            loaded = tiny_models.outputs(rblstore.load_checkout(tmp_path / "out"))
            assert torch.equal(loaded, tiny_models.outputs(repo.load()))
            repo.checkout("HEAD", tmp_path / "merged", form="merged")
            merged = rblstore.load_checkout(tmp_path / "merged")
            assert (tiny_models.outputs(merged) - loaded).abs().max() < 1e-4
            assert not torch.equal(tiny_models.outputs(merged), tiny_models.outputs(model))
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.revert(behavior="ft")
            assert (caught.value.code, caught.value.object) == ("stands_on", "ft")
            assert_exact(repo.revert(behavior="a"))
            repo.checkout("HEAD", tmp_path / "plain", form="merged")
            assert_exact(repo.revert(behavior="b"))
            assert_exact(repo.revert(behavior="ft"))
            assert repo.fsck(full=True).damages == ()

    def test_an_adapter_beside_it_stays_live(self, tmp_path: Path) -> None:
        model = tiny_models.llama()
        base = write(model, tmp_path / "base")
        adapter = tiny_models.save_adapter(model, tmp_path / "a")  # on q_proj and v_proj
        fine = write(tuned(tiny_models.llama(), OTHER), tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("a", behaviors={"a": adapter})
            repo.commit("ft", behaviors={"ft": fine})
            assert_exact(repo.revert(behavior="ft"))
            assert_exact(repo.revert("HEAD"))
            assert_exact(repo.revert(behavior="a"))

    def test_over_an_adapter_of_the_same_tensors_is_refused(self, tmp_path: Path) -> None:
        model = tiny_models.llama()
        base = write(model, tmp_path / "base")
        adapter = tiny_models.save_adapter(model, tmp_path / "a")
        fine = write(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("a", behaviors={"a": adapter})
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.commit("ft", behaviors={"ft": fine})
            assert caught.value.code == "stands_on"
            assert all(word in caught.value.message for word in ("'a'", "'ft'", LAYER))

    def test_merged_alone_is_the_checkpoint(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        fine = write(tuned(tiny_models.llama()), tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            repo.checkout("HEAD", tmp_path / "out", form="merged")
            assert checked_out(tmp_path / "out") == digests(fine)

    def test_experts_that_are_fused_when_loaded(self, tmp_path: Path) -> None:
        base = tiny_models.save(tiny_models.mixtral(), tmp_path / "base")
        fine = tiny_models.save(tuned(tiny_models.mixtral()), tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            assert_exact(repo.revert(behavior="ft"))


class TestTokenizer:
    def test_a_probe_of_the_base_s_tokenizer_does_not_fit_another(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        fine = write(tuned(tiny_models.llama(), LAYER), tmp_path / "ft")
        settings = json.loads((fine / "tokenizer_config.json").read_text())
        (fine / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 64}))
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.add_probe("old", ["w5 w17"])
            repo.commit("ft", behaviors={"ft": fine})
            with pytest.raises(rblstore.RblError, match="tokenizer"):
                repo.baseline("HEAD", probe="old")
            repo.add_probe("new", ["w5 w17"])
            repo.baseline("HEAD", probe="new")
            result = repo.revert(behavior="ft", probe="old")
            assert_exact(result)
            assert result.verification.rf is None
            assert "tokenizer" in result.verification.reason


class TestRefused:
    def refused(self, repo: Any, code: str, **options: Any) -> Any:
        before = repo.head
        with pytest.raises(rblstore.RblError) as caught:
            repo.commit("no", **options)
        assert (caught.value.code, repo.head) == (code, before)
        return caught.value

    def test_a_weight(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        fine = write(tuned(tiny_models.llama()), tmp_path / "ft")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            self.refused(repo, "weight_refused", behaviors={"ft": fine}, weights={"ft": 0.5})

    def test_another_model(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(), tmp_path / "base")
        other = write(tiny_models.gpt2(), tmp_path / "gpt2")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            assert "'ft'" in self.refused(repo, "wrong_base", behaviors={"ft": other}).message

    def test_nothing_that_differs(self, tmp_path: Path) -> None:
        model = tiny_models.llama()
        base = tiny_models.save(model, tmp_path / "base")
        resharded = tiny_models.save_sharded(model, tmp_path / "shards", 2)
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            for same in (base, resharded):
                error = self.refused(repo, "nothing_changed", behaviors={"ft": same})
                assert (error.object, "'ft'" in error.message) == ("ft", True)


class TestFromMemory:
    def test_a_model_of_which_one_tensor_was_trained(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(dtype=torch.bfloat16, tied=True), tmp_path / "base")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            model = repo.load(dtype=torch.float32)
            name = "model.layers.1.mlp.up_proj.weight"
            with torch.no_grad():
                model.get_parameter(name).mul_(2.0)  # exact in bfloat16
            repo.commit("ft", behaviors={"ft": model})
            (shown,) = repo.show("HEAD").behaviors
            assert (shown.tensors, shown.files) == ({"replaces": 1}, {})
            repo.checkout("HEAD", tmp_path / "out")
            expected = safetensors_of(base)
            expected[name] *= 2
            found = safetensors_of(tmp_path / "out")
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[one], expected[one]) for one in expected)
            assert (tmp_path / "out" / "README.md").read_bytes() == (base / "README.md").read_bytes()
            assert_exact(repo.revert(behavior="ft"))

    def test_tensors(self, tmp_path: Path) -> None:
        base = write(tiny_models.llama(tied=True), tmp_path / "base")
        model = tuned(tiny_models.llama(tied=True), LAYER)
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": model.state_dict()})
            (shown,) = repo.show("HEAD").behaviors
            assert (shown.tensors, shown.files) == ({"replaces": 1}, {})
            assert torch.equal(tiny_models.outputs(repo.load()), tiny_models.outputs(model))
            assert_exact(repo.revert(behavior="ft"))
            with pytest.raises(rblstore.UsageError) as caught:
                repo.commit("part", behaviors={"ft": {LAYER: model.state_dict()[LAYER]}})
            assert caught.value.code == "unsavable"

    def test_an_adapter_that_was_trained_on_a_loaded_overlay(self, tmp_path: Path) -> None:
        import peft

        base = write(tiny_models.llama(), tmp_path / "base")
        fine = write(tuned(tiny_models.llama()), tmp_path / "ft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("ft", behaviors={"ft": fine})
            live = peft.get_peft_model(repo.load(), config).eval()
            repo.commit("a", behaviors={"a": live})
            assert torch.equal(tiny_models.outputs(repo.load()), tiny_models.outputs(live))
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.commit("on the base", remove=["ft", "a"], behaviors={"b": live})
            assert caught.value.code == "wrong_base"
            repo.commit("a again", behaviors={"a": repo.load()}, allow_empty=True)
            assert repo.diff().slots == ()
            assert_exact(repo.revert(behavior="a"))

    def test_an_overlay_in_the_place_of_an_adapter(self, tmp_path: Path) -> None:
        model = tiny_models.llama()
        base = write(model, tmp_path / "base")
        adapter = tiny_models.save_adapter(model, tmp_path / "a")
        with rblstore.init(tmp_path / "store") as repo:
            commit_base(repo, base)
            repo.commit("a", behaviors={"a": adapter})
            repo.commit("whole", behaviors={"a": tuned(tiny_models.llama())})
            assert repo.show().behaviors[0].form == "overlay"
            assert_exact(repo.revert("HEAD"))
            assert repo.show().behaviors[0].form == "adapter"
