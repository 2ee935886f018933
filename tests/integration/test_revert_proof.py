"""Reverts that are proved on the live model, and those that the proof refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny_models
import torch
from tiny_checkpoints import checked_out, digests

import rblstore
from rblstore.live import recompose as recomposing
from rblstore.live import shells

if TYPE_CHECKING:
    from conftest import Story

PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]


def assert_exact(result: Any) -> None:
    evidence = result.verification
    assert (result.verdict, evidence.verdict, evidence.bit_equal) == ("exact", "exact", True)
    assert (evidence.kl, evidence.js, evidence.rf, evidence.reason) == (0.0, 0.0, 1.0, None)
    assert evidence.kl_adapted > 1e-6
    assert all(prompt.bit_equal and prompt.kl == 0 for prompt in evidence.prompts)


class TestExact:
    def test_one_of_three(self, probed: Story) -> None:
        repo = probed.repo
        head = repo.log(limit=1)[0]
        result = repo.revert(behavior="b")
        assert_exact(result)
        evidence = result.verification
        assert (evidence.commit, evidence.composition, evidence.adapted) == (
            result.commit,
            result.composition,
            head.composition,
        )
        assert evidence.removed == ("b",)
        assert evidence.environment["threads"] == "1"
        assert (result.same_composition_as, [one.composition for one in repo.baselines()]) == (
            None,
            [result.composition],
        )
        (shown,) = repo.log(limit=1)[0].verifications
        assert (shown.id, shown.verdict, shown.rf) == (result.verification_id, "exact", 1.0)
        assert repo.show("HEAD").verifications == (shown,)
        assert repo.show(result.verification_id[:12]).record["verdict"] == "exact"
        assert repo.audit().verifications == (shown,)
        assert repo.fsck(full=True).damages == ()
        assert repo.verify("HEAD").verification.bit_equal

    def test_the_reference_is_the_recorded_baseline(self, probed: Story) -> None:
        repo = probed.repo
        recorded = repo.baseline("HEAD~1")
        result = repo.revert(behavior="c")
        assert_exact(result)
        assert result.verification.baseline == recorded.baseline
        assert result.same_composition_as == repo.resolve("HEAD~2")
        assert len(repo.baselines()) == 1

    def test_by_commit(self, probed: Story) -> None:
        repo = probed.repo
        assert_exact(repo.revert("HEAD~1"))
        assert_exact(repo.revert("HEAD"))  # what was taken out comes back, on the live model
        assert [slot.name for slot in repo.log()[0].slots] == ["a", "b", "c"]
        assert torch.equal(tiny_models.outputs(repo.load("HEAD")), tiny_models.outputs(repo.load("HEAD~2")))

    def test_replaced_and_reweighted(self, probed: Story, tmp_path: Path) -> None:
        repo = probed.repo
        other = tiny_models.save_adapter(probed.model, tmp_path / "other", seed=9)
        repo.commit("another a", behaviors={"a": other})
        result = repo.revert("HEAD")
        assert_exact(result)
        assert result.restored == ("a",)
        repo.commit("louder", weights={"b": 2.5})
        assert_exact(repo.revert("HEAD"))
        assert repo.log()[0].slots[1].weight == 1.0

    def test_another_identity(self, probed: Story, tmp_path: Path) -> None:
        repo = probed.repo
        tuned = tiny_models.llama()
        with torch.no_grad():
            tuned.model.norm.weight.mul_(1.5)
        tiny_models.save(tuned, tmp_path / "tuned")
        tiny_models.save_tokenizer(tmp_path / "tuned")
        adapter = tiny_models.save_adapter(tiny_models.llama(), tmp_path / "d", seed=9)
        repo.commit("tuned", identity=tmp_path / "tuned", behaviors={"d": adapter})
        result = repo.revert("HEAD")
        assert_exact(result)
        assert repo.log()[0].identity == repo.log("HEAD~2")[0].identity
        # The evidence names only what was taken out of a live model, and another identity is loaded afresh.
        assert result.removed == ("d",)
        assert result.verification is not None
        assert result.verification.removed == ()

    def test_to_the_base_one_after_another(self, probed: Story) -> None:
        for name in "bca":
            assert_exact(probed.repo.revert(behavior=name))
        result = probed.repo.log(limit=1)[0]
        assert result.slots == ()
        assert result.composition == probed.repo.log("HEAD~6")[0].composition

    def test_last_positions_alone(self, story: Story) -> None:
        story.repo.add_probe("last", PROMPTS, positions="last")
        assert_exact(story.repo.revert(behavior="a"))


class TestWhichProbe:
    def test_the_only_one(self, probed: Story) -> None:
        assert probed.repo.revert(behavior="a").verdict == "exact"

    def test_of_several_the_default(self, probed: Story) -> None:
        default = probed.repo.add_probe("one", PROMPTS[:1], default=True)
        result = probed.repo.revert(behavior="a")
        assert result.verification.probe == default.probe
        named = probed.repo.revert(behavior="b", probe="two")
        assert named.verification.probe != default.probe
        assert {one.name: one.default for one in probed.repo.probes()} == {"one": True, "two": False}

    def test_of_several_without_default_none(self, probed: Story) -> None:
        probed.repo.add_probe("one", PROMPTS[:1])
        assert probed.repo.revert(behavior="a").verdict == "unverified"
        with pytest.raises(rblstore.RblError) as caught:
            probed.repo.revert(behavior="b", require_verified=True)
        assert caught.value.code == "unverified"


def leaving(change: Callable[[Any], None]) -> Callable[..., Any]:
    """A recompose that leaves something behind in the live model."""
    original = recomposing.recompose

    def recompose(*arguments: Any, **options: Any) -> Any:
        model = original(*arguments, **options)
        with torch.no_grad():
            change(model)
        return model

    return recompose


class TestDiverged:
    def test_residue_moves_nothing_and_leaves_evidence(
        self, probed: Story, unmoved: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repo = probed.repo
        operations = repo.operations()
        monkeypatch.setattr(
            recomposing,
            "recompose",
            leaving(lambda model: next(model.parameters()).mul_(1.1)),
        )
        with pytest.raises(rblstore.DivergedError) as caught:
            repo.revert(behavior="b")
        error: Any = caught.value
        assert (error.exit_code, error.code) == (5, "diverged")
        assert error.object == error.verification_id
        evidence = error.verification
        assert (evidence.verdict, evidence.bit_equal, evidence.commit) == ("diverged", False, None)
        assert evidence.kl > 1e-6
        assert evidence.rf == 1 - evidence.kl / evidence.kl_adapted
        assert not any(prompt.bit_equal for prompt in evidence.prompts)
        assert repo.operations() == operations
        unmoved()
        shown = repo.show(error.verification_id)
        assert (shown.kind, shown.record["verdict"], shown.record["commit"]) == ("verification", "diverged", None)
        assert str(error.verification_id.short) in error.hint
        assert repo.fsck(full=True).damages == ()

    def test_a_little_is_within_tolerance_and_says_so(self, probed: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            recomposing,
            "recompose",
            leaving(lambda model: next(model.parameters()).mul_(1 + 1e-4)),
        )
        repo = probed.repo
        head = repo.head
        with pytest.raises(rblstore.DivergedError):
            repo.revert(behavior="b", tolerance=0.0)
        assert repo.head == head
        result = repo.revert(behavior="b")
        evidence = result.verification
        assert (result.verdict, evidence.bit_equal) == ("within_tolerance", False)
        assert 0 < evidence.kl < 1e-6
        assert 0.9 < evidence.rf < 1
        assert repo.head == result.commit

    def test_an_adapter_that_was_subtracted_is_not_exact(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What merging and unmerging leave in bf16 is what the store is there to prevent."""
        model = tiny_models.llama(dtype=torch.bfloat16)
        base = tiny_models.save(model, tmp_path / "base")
        adapter = tiny_models.save_adapter(model, tmp_path / "a")

        def subtract(live: Any, *_: Any, **__: Any) -> Any:
            live.merge_adapter()
            live.unmerge_adapter()
            return live.unload()

        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.commit("a", behaviors={"a": adapter})
            repo.add_probe("two", PROMPTS)
            with monkeypatch.context() as patched:
                patched.setattr(recomposing, "recompose", subtract)
                with pytest.raises(rblstore.DivergedError):
                    repo.revert(behavior="a", tolerance=0.0)
            assert repo.revert(behavior="a", tolerance=0.0).verdict == "exact"

    def test_what_peft_leaves_of_saved_modules_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_models.llama()
        base = tiny_models.save(model, tmp_path / "base")
        adapter = tiny_models.save_adapter(model, tmp_path / "a", "modules_to_save")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.commit("a", behaviors={"a": adapter})
            repo.add_probe("two", PROMPTS)
            with monkeypatch.context() as patched:
                patched.setattr(recomposing, "recompose", lambda live, *_, **__: live.unload())
                with pytest.raises(rblstore.DivergedError):
                    repo.revert(behavior="a")
            assert_exact(repo.revert(behavior="a"))


class TestVerify:
    def test_a_commit_against_its_own_baseline(self, probed: Story) -> None:
        repo = probed.repo
        with pytest.raises(rblstore.NotFoundError) as caught:
            repo.verify()
        assert caught.value.code == "no_baseline"
        first = repo.baseline()
        assert not first.reused
        assert repo.baseline().reused
        result = repo.verify()
        assert (result.verification.verdict, result.verification.bit_equal, result.drift) == ("exact", True, {})
        assert (result.verification.rf, result.verification.reason) == (None, "nothing was reverted")
        assert result.verification.baseline == first.baseline
        assert [one.verdict for one in repo.log()[0].verifications] == ["exact"]

    def test_a_commit_against_another(self, probed: Story) -> None:
        repo = probed.repo
        repo.baseline("HEAD~3")
        operations = repo.operations()
        with pytest.raises(rblstore.DivergedError) as caught:
            repo.verify("HEAD", against="HEAD~3")
        error: Any = caught.value
        assert error.verification.kl > 0
        assert error.verification.commit is None
        assert repo.operations() == operations
        assert repo.verify("HEAD", against="HEAD~3", tolerance=1e9).verdict == "within_tolerance"
        composition = repo.log()[0].composition
        assert error.verification.composition == composition
        assert [one.verdict for one in repo.show(composition).verifications] == ["diverged", "within_tolerance"]
        assert repo.log()[0].verifications == ()  # the commit itself was not put to the test

    def test_a_baseline_of_another_vocabulary_is_an_error_and_leaves_no_evidence(self, tmp_path: Path) -> None:
        model = tiny_models.llama()
        tiny_models.save(model, tmp_path / "base")
        model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
        tiny_models.save(model, tmp_path / "wide")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tmp_path / "base")
            repo.add_probe("two", PROMPTS[:2])
            repo.baseline()
            repo.commit("wide", behaviors={"wide": tmp_path / "wide"})
            with pytest.raises(
                rblstore.ConflictError, match=r"a vocabulary of 96 entries, the model has 104"
            ) as caught:
                repo.verify("HEAD", against="HEAD~1")
            assert caught.value.code == "baseline_mismatch"
            assert [repo.show(one.composition).verifications for one in repo.log()] == [(), ()]

    def test_a_baseline_of_another_kind_of_model_is_an_error_and_leaves_no_evidence(self, tmp_path: Path) -> None:
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tiny_models.save(tiny_models.llama(), tmp_path / "base"))
            repo.add_probe("two", PROMPTS[:2])
            repo.baseline()
            repo.switch("embedding", orphan=True)
            commit = repo.commit("bert", identity=tiny_models.save(tiny_models.bert(), tmp_path / "bert"))
            with pytest.raises(rblstore.ConflictError, match="holds logits, the model gives embeddings") as caught:
                repo.verify("HEAD", against="main")
            assert caught.value.code == "baseline_mismatch"
            assert repo.show(commit.composition).verifications == ()

    def test_drift_between_environments_is_shown_apart(self, probed: Story) -> None:
        repo = probed.repo
        threads = torch.get_num_threads()
        first = repo.baseline()
        torch.set_num_threads(threads + 1)
        try:
            result = repo.verify()
            assert result.drift == {"threads": (str(threads + 1), str(threads))}
            assert result.verification.environment["threads"] == str(threads + 1)
            again = repo.baseline()
            assert (again.reused, again.baseline == first.baseline) == (False, False)
            assert repo.verify().drift == {}
        finally:
            torch.set_num_threads(threads)
        assert repo.verify().verification.baseline == first.baseline

    def test_a_lost_baseline_is_named(self, probed: Story) -> None:
        repo = probed.repo
        before = {path.name for path in (repo.path / ".rbl" / "packs").rglob("*.pack")}
        repo.baseline()
        for path in (repo.path / ".rbl" / "packs").rglob("*.pack"):
            if path.name not in before and path.read_bytes()[8:9] == b"C":
                path.chmod(0o644)
                data = bytearray(path.read_bytes())
                data[100] ^= 1
                path.write_bytes(data)
        result = repo.verify()  # digests are recorded, so equality needs no values
        assert result.verification.bit_equal
        assert not repo.fsck().ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_whole_story_of_five_shards_with_tied_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_models.llama(tied=True, dtype=dtype)
    base = tiny_models.save_sharded(model, tmp_path / "base", 5)
    tiny_models.save_tokenizer(base)
    adapters = {name: tiny_models.save_adapter(model, tmp_path / name, seed=at) for at, name in enumerate("abc", 1)}
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base, license="gemma")
        repo.add_probe("ten", ["w5 w17 w80", "w3 w42 w11 w64"])
        repo.baseline()
        for name, folder in adapters.items():
            repo.commit(name, behaviors={name: folder})
        assert_exact(repo.revert(behavior="b", probe="ten"))
        repo.checkout("HEAD", tmp_path / "out")
        repo.checkout("HEAD~4", tmp_path / "plain")
        assert checked_out(tmp_path / "plain") == digests(base)
        assert len(list((tmp_path / "plain").glob("model-*.safetensors"))) == 5
        loaded = tiny_models.outputs(rblstore.load_checkout(tmp_path / "out"))
        assert torch.equal(loaded, tiny_models.outputs(repo.load("HEAD")))
        assert not torch.equal(loaded, tiny_models.outputs(repo.load("HEAD~1")))
        repo.undo()
        assert [slot.name for slot in repo.log()[0].slots] == ["a", "b", "c"]
        assert repo.fsck(full=True).damages == ()


class TestOtherHeads:
    """Where adapted and reference models give other things, RF is null with a reason, and equality is still proved."""

    def test_a_classifier_on_an_encoder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base = tiny_models.save(tiny_models.bert(), tmp_path / "base")
        classifier = tiny_models.bert("BertForSequenceClassification")
        adapter = tiny_models.save_adapter(classifier, tmp_path / "a", "modules_to_save")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.commit("sentiment", behaviors={"sentiment": adapter})
            assert type(repo.load().get_base_model()).__name__ == "BertForSequenceClassification"
            repo.add_probe("two", PROMPTS)
            move = shells.share_modules

            def leaving_body(live: Any, into: Any) -> Any:
                next(live.parameters()).data.mul_(1.01)
                return move(live, into)

            with monkeypatch.context() as patched:
                patched.setattr(shells, "share_modules", leaving_body)
                with pytest.raises(rblstore.DivergedError):
                    repo.revert(behavior="sentiment")
            result = repo.revert(behavior="sentiment")
        evidence = result.verification
        assert (result.verdict, evidence.bit_equal, evidence.rf) == ("exact", True, None)
        assert evidence.reason

    def test_a_classifier_on_a_masked_language_model(self, tmp_path: Path) -> None:
        """The head in memory is not the stored one; what comes back has the stored one, tied as before."""
        base = tiny_models.save(tiny_models.bert("BertForMaskedLM"), tmp_path / "base")
        classifier = tiny_models.bert("BertForSequenceClassification", labels=5)
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.add_probe("two", PROMPTS)
            for kind in ("modules_to_save", "bias_lora_only", "lora_tokens"):
                adapter = tiny_models.save_adapter(classifier, tmp_path / kind, kind)
                repo.commit(kind, behaviors={"sentiment": adapter})
                plain = repo.load().get_base_model()
                assert (type(plain).__name__, plain.config.num_labels) == ("BertForSequenceClassification", 5)
                result = repo.revert(behavior="sentiment")
                assert (result.verdict, result.verification.rf) == ("exact", None)
                assert result.verification.reason
            assert type(repo.load()).__name__ == "BertForMaskedLM"

    def test_a_classifier_that_comes_back(self, tmp_path: Path) -> None:
        base = tiny_models.save(tiny_models.bert(), tmp_path / "base")
        heads = {}
        for labels in (3, 5):
            classifier = tiny_models.bert("BertForSequenceClassification", labels=labels)
            heads[labels] = tiny_models.save_adapter(classifier, tmp_path / str(labels), "modules_to_save")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.commit("three", behaviors={"sentiment": heads[3]})
            repo.commit("five", behaviors={"sentiment": heads[5]})
            repo.commit("none", remove=["sentiment"])
            repo.add_probe("two", PROMPTS)
            for labels in (5, 3):
                result = repo.revert(f"HEAD{'~2' if labels == 3 else ''}")
                assert (result.verdict, result.restored) == ("exact", ("sentiment",))
                assert repo.load().get_base_model().config.num_labels == labels

    def test_an_adapter_that_changes_nothing(self, tmp_path: Path) -> None:
        model = tiny_models.llama()
        base = tiny_models.save(model, tmp_path / "base")
        adapter = tiny_models.save_adapter(model, tmp_path / "a")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.add_probe("two", PROMPTS)
            repo.commit("silent", behaviors={"silent": adapter}, weights={"silent": 0.0})
            evidence = repo.revert(behavior="silent").verification
        assert (evidence.verdict, evidence.rf) == ("exact", None)
        assert evidence.reason == "the adapted model does not differ from the reference"

    def test_t5(self, tmp_path: Path) -> None:
        model = tiny_models.t5()
        base = tiny_models.save(model, tmp_path / "base")
        adapter = tiny_models.save_adapter(model, tmp_path / "a")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.commit("a", behaviors={"a": adapter})
            repo.add_probe("two", PROMPTS)
            assert_exact(repo.revert(behavior="a"))

    def test_experts_that_are_fused_when_loaded(self, tmp_path: Path) -> None:
        model = tiny_models.mixtral()
        base = tiny_models.save(model, tmp_path / "base")
        adapter = tiny_models.save_adapter(model, tmp_path / "a", "edited_base")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.commit("a", behaviors={"a": adapter})
            repo.add_probe("two", PROMPTS)
            assert_exact(repo.revert(behavior="a"))
