"""What was done to the adapters of a live model from outside, or around it, does not decide what a change gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import tiny_models
import torch
from live_stories import Story, assert_fresh

import rblstore
from rblstore.checkpoints.quiet import quiet


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    made = Story(tmp_path_factory.mktemp("use"))
    yield made
    made.repo.close()


def scaled(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)


USES: dict[str, Callable[[Any], None]] = {
    "merged": lambda model: model.merge_adapter(),
    "disabled": lambda model: model.disable_adapter_layers(),
    "scaled": scaled,
}


class TestUsedOtherwise:
    @pytest.mark.parametrize("use", USES)
    def test_what_stays_on_is_put_on_anew(self, story: Story, use: str) -> None:
        with story.repo.attach(story.load("ab"), story.commits["ab"]) as live:
            USES[use](live.model)
            live.switch(story.commits["abf"], allow_no_effect=True)
            assert_fresh(live, story.load("abf"))
            live.switch(story.commits["ab"])
            assert_fresh(live, story.load("ab"))

    @pytest.mark.parametrize("use", ["disabled", "scaled"])
    def test_is_not_the_commit(self, story: Story, use: str) -> None:
        with quiet():
            by_peft = peft.PeftModel.from_pretrained(story.load("base"), story.folder / "a", adapter_name="a")
        for model in (story.load("a"), by_peft):
            USES[use](model)
            with pytest.raises(rblstore.ConflictError) as caught:
                story.repo.attach(model, story.commits["a"])
            assert (caught.value.code, caught.value.object) == ("other_adapters", "a")
            assert use in caught.value.message


class TestInferenceMode:
    def test_nothing_that_stays_is_made_in_it(self, story: Story) -> None:
        model = story.load("base")
        with torch.inference_mode():
            live = story.repo.attach(model, story.commits["base"])
            for name in ("a", "bias", "abf"):
                live.switch(story.commits[name], allow_no_effect=True)
            live.merge()
        held = [*live.model.parameters(), *live.model.buffers()]
        assert not any(one.is_inference() for one in held)
        for name in ("bias", "a", "base", "abf"):
            live.switch(story.commits[name], form="adapters", allow_no_effect=True)
            assert not any(one.is_inference() for one in live.model.parameters())
            assert_fresh(live, story.load(name))
        live.close()

    def test_a_model_that_was_made_in_it(self, story: Story) -> None:
        with torch.inference_mode():
            model = tiny_models.llama(tied=True)
        with pytest.raises(rblstore.ConflictError) as caught:
            story.repo.attach(model, story.commits["base"])
        assert caught.value.code == "unbindable"
        assert "inference_mode" in str(caught.value.hint)


def test_weights_that_an_adapter_replaced_are_compared_too(tmp_path: Any) -> None:
    model = tiny_models.llama()
    name = "model.layers.0.self_attn.q_proj.weight"
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tiny_models.save(model, tmp_path / "base"))
        repo.commit("pissa", behaviors={"p": tiny_models.save_adapter(model, tmp_path / "p", "pissa")})
        live = repo.attach(repo.load(), "HEAD")
        assert live.verify().verdict == "unverified"
        with torch.no_grad():
            live.plain.model.layers[0].self_attn.q_proj.base_layer.weight[0, 0] += 1
        with pytest.raises(rblstore.DivergedError) as caught:
            live.verify()
        assert caught.value.names == (name,)  # type: ignore[attr-defined]
        assert "live.repair()" in str(caught.value.hint)


def test_nothing_changes_the_model_of_a_training_run(tmp_path: Any) -> None:
    tiny_models.save(tiny_models.llama(), tmp_path / "base")
    tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "base")
        repo.commit("a", behaviors={"a": tmp_path / "a"})
        live = repo.attach(repo.load(), "HEAD")
        trained = [one for name, one in live.model.named_parameters() if "lora_" in name]
        for one in trained:
            one.requires_grad_(True)
        with repo.training(live.model, "a", every=1) as run:
            live.model.eval()  # as for an evaluation between two steps
            for action in (lambda: live.switch("HEAD~1"), lambda: live.detach("a"), live.merge, live.repair):
                with pytest.raises(rblstore.ConflictError, match="training run") as caught:
                    action()
                assert caught.value.code == "model_trains"
            with torch.no_grad():
                for one in trained:
                    one.add_(0.5)
            run.step(loss=1.0)
            run.wait()
        assert [str(made.commit) for made in run.commits] == [repo.head]
        live.switch("HEAD~1")  # what was trained is committed, and nothing is lost
        assert_fresh(live, repo.load("HEAD~1"))
        live.switch("HEAD")
        assert_fresh(live, repo.load())
        live.close()


class TestChangedInMemory:
    def change(self, live: Any, part: str) -> None:
        with torch.no_grad():
            next(one for name, one in live.model.named_parameters() if part in name).add_(1)

    def test_discard_gives_the_stored_values_back_where_the_commit_is_the_same(self, story: Story) -> None:
        with story.repo.attach(story.load("a"), story.commits["a"]) as live:
            for part in ("lora_B", "embed_tokens", "norm"):
                self.change(live, part)
            live.switch(story.commits["a"], discard=True)
            assert_fresh(live, story.load("a"))

    @pytest.mark.parametrize("to", ["base", "f", "abf"])
    def test_discard_gives_the_stored_values_back_elsewhere(self, story: Story, to: str) -> None:
        with story.repo.attach(story.load("a"), story.commits["a"]) as live:
            for part in ("lora_B", "embed_tokens", "norm"):
                self.change(live, part)
            live.switch(story.commits[to], discard=True, allow_no_effect=True)
            assert_fresh(live, story.load(to))

    @pytest.mark.parametrize(("name", "to"), [("ab", "ab"), ("ab", "abf")])
    def test_adapters_that_stay_are_not_passed_over(self, story: Story, name: str, to: str) -> None:
        with story.repo.attach(story.load(name), story.commits[name]) as live:
            self.change(live, "lora_B")
            with pytest.raises(rblstore.ConflictError) as caught:
                live.switch(story.commits[to])
            assert (caught.value.code, str(live.commit)) == ("uncommitted", story.commits[name])
            live.switch(story.commits[to], discard=True, allow_no_effect=True)
            assert_fresh(live, story.load(to))

    def test_what_a_branch_has_is_not_lost(self, tmp_path: Any) -> None:
        tiny_models.save(tiny_models.llama(), tmp_path / "base")
        tiny_models.save_adapter(tiny_models.llama(), tmp_path / "a")
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=tmp_path / "base")
            first = str(repo.commit("a", behaviors={"a": tmp_path / "a"}).commit)
            with repo.attach(repo.load(), "HEAD") as live:
                self.change(live, "lora_B")
                repo.create_branch("other")
                repo.commit("better", behaviors={"a": live.model}, branch="other")
                # The model is the first commit still, and becomes it: what it holds is on the other branch.
                live.switch(first)
                assert_fresh(live, repo.load(first))
                live.switch("other")
                assert_fresh(live, repo.load("other"))
                self.change(live, "lora_A")
                with pytest.raises(rblstore.ConflictError, match="would be lost"):
                    live.detach("a")

    def test_a_full_fine_tune_goes_back_to_what_was_bound(self, tmp_path: Any) -> None:
        tiny_models.save(tiny_models.llama(), tmp_path / "base")
        with rblstore.init(tmp_path / "store") as repo:
            base = str(repo.commit("base", identity=tmp_path / "base").commit)
            for straight in (True, False):
                with repo.attach(repo.load(base), base) as live:
                    live.plain.requires_grad_(True)
                    with repo.training(live.model, "ft", every=1) as run:
                        with torch.no_grad():
                            live.plain.model.norm.weight.add_(1 + straight)
                        run.step(loss=1.0)
                    if not straight:
                        live.switch("HEAD")
                        assert_fresh(live, repo.load())
                    live.switch(base, discard=straight)
                    assert_fresh(live, repo.load(base))
                repo.create_branch(f"next{straight}", base)
                repo.switch(f"next{straight}")
