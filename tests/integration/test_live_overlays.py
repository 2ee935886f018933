"""Full fine-tunes from memory: committed, put on a live model, taken off and reverted, bit-equal to a fresh load."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch

import rblstore

PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]


def tuned(model: Any, *names: str, seed: int = 5) -> Any:
    """The model with the named parameters changed, or all of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not names or name in names:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_((parameter.float() + noise).to(parameter.dtype))
    return model


def resized(model: Any) -> Any:
    model.resize_token_embeddings(tiny_models.VOCABULARY + 5, mean_resizing=False)
    return tuned(model)


def untied(model: Any, *names: str) -> Any:
    """A model whose head was trained apart from the embedding that it was tied to."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return tuned(model, *names)


def classifier(model: Any) -> Any:
    from transformers import LlamaForSequenceClassification

    config = copy.deepcopy(model.config)
    config.num_labels = 3
    torch.manual_seed(0)
    found = LlamaForSequenceClassification(config)
    found.model = model.model
    return found.eval()


def other_rotations(model: Any) -> Any:
    config = copy.deepcopy(model.config)
    config.rope_parameters["rope_theta"] = 500.0
    found = type(model)(config).eval()
    found.load_state_dict(model.state_dict())
    return found


class Case(NamedTuple):
    """A base and its fine-tune; ``kept`` is whether the live model stays the object that it was."""

    base: Callable[[], Any]
    fine_tune: Callable[[], Any]
    kept: bool
    distributions: bool = True


def _llama(**options: Any) -> Callable[[], Any]:
    return lambda: tiny_models.llama(**options)


CASES = {
    "every weight": Case(_llama(tied=True), lambda: tuned(tiny_models.llama(tied=True)), True),
    "in bf16": Case(_llama(dtype=torch.bfloat16), lambda: tuned(tiny_models.llama(dtype=torch.bfloat16)), True),
    "fused experts": Case(tiny_models.mixtral, lambda: tuned(tiny_models.mixtral()), True),
    "more tokens": Case(_llama(), lambda: resized(tiny_models.llama()), True, False),
    "more tokens, tied": Case(_llama(tied=True), lambda: resized(tiny_models.llama(tied=True)), True, False),
    "ties broken": Case(_llama(tied=True), lambda: untied(tiny_models.llama(tied=True)), False),
    "the embedding alone, untied": Case(
        _llama(tied=True), lambda: untied(tiny_models.llama(tied=True), "model.embed_tokens.weight"), False
    ),
    "another head": Case(_llama(), lambda: tuned(classifier(tiny_models.llama())), False, False),
    "another head, the body untouched": Case(_llama(), lambda: classifier(tiny_models.llama()), False, False),
    "a head on a bare encoder": Case(
        tiny_models.bert, lambda: tiny_models.bert("BertForSequenceClassification", seed=4), False, False
    ),
    "more classes": Case(
        lambda: tiny_models.bert("BertForSequenceClassification"),
        lambda: tiny_models.bert("BertForSequenceClassification", labels=5, seed=4),
        False,
        False,
    ),
    "another configuration": Case(_llama(), lambda: other_rotations(tiny_models.llama()), False),
}


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_is(live: Any, repo: Any, revision: str) -> None:
    """The live model is what a fresh load gives: class, tensors bit for bit, outputs bit for bit."""
    fresh = repo.load(revision)
    assert type(live.model) is type(fresh)
    here, there = live.model.state_dict(), fresh.state_dict()
    assert here.keys() == there.keys()
    assert all(here[name].dtype == there[name].dtype and torch.equal(here[name], there[name]) for name in there)
    shared = {name for name, one in fresh.named_parameters(remove_duplicate=False)}
    assert shared == {name for name, one in live.model.named_parameters(remove_duplicate=False)}
    assert len(list(live.model.parameters())) == len(list(fresh.parameters()))  # the same ones are tied
    assert torch.equal(tiny_models.outputs(live.model), tiny_models.outputs(fresh))


@pytest.mark.parametrize("name", CASES)
def test_on_and_off_and_reverted(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    base = case.base()
    tiny_models.save(base, tmp_path / "base")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "base")
        repo.add_probe("two", PROMPTS)
        repo.commit("ft", behaviors={"ft": case.fine_tune()})
        first = repo.load("HEAD~1")
        before = state(first)
        live = repo.attach(first, "HEAD~1")
        body = list(first.base_model.parameters())
        live.attach("ft", "HEAD")
        assert_is(live, repo, "HEAD")
        assert (live.model is first) == case.kept
        held = {id(one) for one in live.model.parameters()}
        assert all(id(one) in held for one in body)  # optimizers hold on to these
        live.detach("ft")
        assert live.model is first
        assert all(torch.equal(one, before[name]) for name, one in first.state_dict().items())
        live.switch("HEAD")
        assert live.verify().verdict == "exact"
        result = live.revert("ft")
        evidence = result.verification
        assert (result.verdict, evidence.bit_equal, evidence.removed) == ("exact", True, ("ft",))
        assert evidence.rf == (1.0 if case.distributions else None)
        assert live.model is first
        assert live.residue() == []
        assert_is(live, repo, "HEAD")


def test_a_failure_half_way_into_another_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_models.save(tiny_models.llama(), tmp_path / "base")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "base")
        repo.commit("ft", behaviors={"ft": tuned(classifier(tiny_models.llama()))})
        first = repo.load("HEAD~1")
        live = repo.attach(first, "HEAD~1")
        from rblstore.operations.live_values import LiveValues

        write = LiveValues.write

        def fails_once(values: Any, before: Any, after: Any) -> None:
            monkeypatch.setattr(LiveValues, "write", write)
            write(values, before, dict(list(after.items())[:5]))
            raise OSError("the disk went away")

        monkeypatch.setattr(LiveValues, "write", fails_once)
        with pytest.raises(OSError, match="went away"):
            live.attach("ft", "HEAD")
        assert (live.model is first, live.behaviors) == (True, ())
        assert_is(live, repo, "HEAD~1")
        live.attach("ft", "HEAD")
        assert_is(live, repo, "HEAD")


def test_an_adapter_over_a_fine_tune_with_another_head(tmp_path: Path) -> None:
    tiny_models.save(tiny_models.llama(), tmp_path / "base")
    fine = tuned(classifier(tiny_models.llama()))
    adapter = tiny_models.save_adapter(fine, tmp_path / "a", task_type="SEQ_CLS")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "base")
        repo.commit("ft", behaviors={"ft": fine})
        repo.commit("a", behaviors={"a": adapter})
        first = repo.load("HEAD~2")
        live = repo.attach(first, "HEAD~2")
        for revision in ("HEAD", "HEAD~1", "HEAD~2", "HEAD", "HEAD~2"):
            live.switch(revision)
            assert torch.equal(tiny_models.outputs(live.model), tiny_models.outputs(repo.load(revision)))
        assert live.model is first


@pytest.mark.parametrize("name", ["ties broken", "another configuration"])
def test_a_base_gets_a_fine_tune_of_another_class_as_it_is_bound(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tiny_models.save(case.base(), tmp_path / "base"))
        repo.commit("ft", behaviors={"ft": case.fine_tune()})
        first = repo.load("HEAD~1")
        live = repo.attach(first, "HEAD")
        assert_is(live, repo, "HEAD")
        for held in (first, live.model):
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.attach(held, "HEAD")
            assert caught.value.code == "already_bound"
        live.switch("HEAD~1")
        assert live.model is first
        assert_is(live, repo, "HEAD~1")


def test_a_fine_tune_that_is_configured_as_its_base(tmp_path: Path) -> None:
    tiny_models.save(tiny_models.llama(), tmp_path / "base")
    fine = tuned(other_rotations(tiny_models.llama()))
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "base")
        repo.commit("ft", behaviors={"ft": fine})
        repo.commit("a", behaviors={"a": tiny_models.save_adapter(fine, tmp_path / "a")})
        model = repo.load("HEAD~2")
        model.load_state_dict(fine.state_dict())
        for revision in ("HEAD~1", "HEAD"):
            with pytest.raises(rblstore.ConflictError) as caught:
                repo.attach(model, revision)
            assert (caught.value.code, caught.value.object) == ("other_model", "rope_parameters")
        assert repo.attach(repo.load("HEAD~1"), "HEAD").behaviors == ("ft", "a")


class TestAnyModule:
    def module(self) -> Any:
        torch.manual_seed(0)
        found = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
        return found.eval()

    def test_by_its_state_dict(self, tmp_path: Path) -> None:
        base, fine = self.module(), tuned(self.module(), "2.weight")
        fine[1].running_mean.add_(1.0)
        before = state(base)
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            repo.commit("ft", behaviors={"ft": fine})
            (shown,) = repo.show("HEAD").behaviors
            assert (shown.form, shown.tensors) == ("overlay", {"replaces": 2})
            live = repo.attach(base, "HEAD~1")
            live.attach("ft", "HEAD")
            assert all(torch.equal(one, fine.state_dict()[name]) for name, one in base.state_dict().items())
            live.switch("HEAD")
            live.revert("ft")
            assert all(torch.equal(one, before[name]) for name, one in base.state_dict().items())

    def test_one_that_was_compiled(self, tmp_path: Path) -> None:
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=torch.compile(self.module()))
            repo.commit("ft", behaviors={"ft": torch.compile(tuned(self.module()))})
            assert repo.show("HEAD").behaviors[0].tensors == {"replaces": 6}

    @pytest.mark.parametrize("what", ["nothing", "meta", "extra", "adapters"])
    def test_what_cannot_be_one(self, what: str, tmp_path: Path) -> None:
        import peft

        class Extra(torch.nn.Linear):
            def get_extra_state(self) -> Any:
                return {"not": "a tensor"}

        config = peft.LoraConfig(target_modules=["0"])
        with_adapters = lambda: peft.inject_adapter_in_model(config, self.module())  # noqa: E731
        made: dict[str, Callable[[], Any]] = {
            "nothing": torch.nn.ReLU,
            "meta": lambda: torch.nn.Linear(2, 2, device="meta"),
            "extra": lambda: Extra(2, 2),
            "adapters": with_adapters,
        }
        with rblstore.init(tmp_path / "store") as repo:
            for options in ({"identity": made[what]()}, {"behaviors": {"x": made[what]()}}):
                with pytest.raises(rblstore.RblError) as caught:
                    repo.commit("no", **options)
                assert caught.value.code in ("unsavable", "no_identity")
            assert repo.head is None
