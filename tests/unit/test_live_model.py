"""A model in memory bound to a commit: what it may be, and that every change gives what a fresh load gives."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from live_stories import NAMES, Story, assert_fresh, weights

import rblstore
from rblstore.checkpoints import plain_view


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    made = Story(tmp_path_factory.mktemp("live"))
    yield made
    made.repo.close()


def by_peft(story: Story, *names: str) -> Any:
    """A base with adapters that peft itself put on."""
    model: Any = story.load("base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, name in enumerate(names):
            live = f"rbl__{name}"  # peft tells tensors' names apart by their ends, which these names would be
            if place == 0:
                model = peft.PeftModel.from_pretrained(model, story.folder / name, adapter_name=live)
            else:
                model.load_adapter(story.folder / name, live)
        if len(names) > 1:
            model.base_model.set_adapter([f"rbl__{name}" for name in names], inference_mode=True)
    return model.eval()


def merged(story: Story, name: str, folder: Path) -> Any:
    story.repo.checkout(story.commits[name], folder, form="merged")
    return rblstore.load_checkout(folder)


class TestBinding:
    @pytest.mark.parametrize("name", NAMES)
    def test_what_load_gave(self, story: Story, name: str) -> None:
        model = story.load(name)
        before = weights(model)
        with story.repo.attach(model, story.commits[name]) as live:
            assert (live.model, live.commit, live.form) == (model, story.commits[name], "adapters")
            assert weights(live.model) == before
            assert live.residue() == []

    @pytest.mark.parametrize("name", ["a", "ab", "abf", "bias"])
    def test_a_bare_base_gets_what_the_commit_has(self, story: Story, name: str) -> None:
        model = story.load("base")
        own = {key: (id(one), one.data_ptr()) for key, one in model.named_parameters()}
        with story.repo.attach(model, story.commits[name]) as live:
            assert_fresh(live, story.load(name))
            assert live.plain is model
            live.switch(story.commits["base"])
            assert own == {key: (id(one), one.data_ptr()) for key, one in model.named_parameters()}

    @pytest.mark.parametrize("names", [("a",), ("a", "b"), ("bias",)])
    def test_adapters_that_peft_put_on(self, story: Story, names: tuple[str, ...]) -> None:
        model = by_peft(story, *names)
        out = tiny_models.outputs(model)
        with story.repo.attach(model, story.commits["".join(names)]) as live:
            assert live.model is model
            assert torch.equal(tiny_models.outputs(model), out)
            live.switch(story.commits["base"])
            assert_fresh(live, story.load("base"))
            assert live.residue() == []

    def test_a_merged_checkout(self, story: Story, tmp_path: Path) -> None:
        model = merged(story, "abf", tmp_path / "out")
        with story.repo.attach(model, story.commits["abf"]) as live:
            assert (live.form, live.model, live.behaviors) == ("merged", model, ("a", "b", "ft"))
            live.unmerge()
            assert_fresh(live, story.load("abf"))

    def test_a_model_in_another_dtype(self, story: Story) -> None:
        model = story.load("base", dtype=torch.bfloat16)
        with story.repo.attach(model, story.commits["abf"]) as live:
            assert_fresh(live, story.load("abf", dtype=torch.bfloat16))

    def test_any_module_whose_names_match(self, tmp_path: Path) -> None:
        def net() -> Any:
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)).eval()

        model, tuned = net(), net()
        with torch.no_grad():
            tuned[2].weight.add_(1.0)
            tuned[1].running_mean.add_(1.0)
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("net", identity=dict(model.state_dict()))
            repo.commit("tuned", behaviors={"tuned": dict(tuned.state_dict())})
            before = {name: value.clone() for name, value in model.state_dict().items()}
            with repo.attach(model, "HEAD~1") as live:
                live.attach("tuned", "HEAD")
                assert all(torch.equal(one, tuned.state_dict()[name]) for name, one in model.state_dict().items())
                live.detach("tuned")
                assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


class TestRefusedModels:
    def refused(self, story: Story, model: Any, name: str, code: str) -> rblstore.RblError:
        with pytest.raises(rblstore.RblError) as caught:
            story.repo.attach(model, story.commits[name])
        assert caught.value.code == code, caught.value
        return caught.value

    def test_another_base_names_what_differs(self, story: Story) -> None:
        model = story.load("base")
        with torch.no_grad():
            model.model.layers[1].self_attn.q_proj.weight[0, 0] += 1
        before = weights(model)
        error = self.refused(story, model, "ab", "other_model")
        assert error.object == "model.layers.1.self_attn.q_proj.weight"
        assert weights(model) == before

    def test_what_it_looks_like_is_said(self, story: Story) -> None:
        model = story.load("base")
        with torch.no_grad():
            model.model.embed_tokens.weight[0, 0] += 1
        assert "1 differ from the bare identity" in self.refused(story, model, "abf", "other_model").message

    @pytest.mark.parametrize(
        ("make", "code"),
        [
            (tiny_models.gpt2, "unmapped_tensor"),
            (lambda: tiny_models.llama(tied=True, layers=3), "other_model"),
            (lambda: tiny_models.llama(tied=True, layers=1), "unmapped_tensor"),
            (lambda: "a model", "no_model"),
            (lambda: tiny_models.llama(tied=True).to("meta"), "unbindable"),
        ],
        ids=["architecture", "more layers", "fewer layers", "no model", "meta"],
    )
    def test_another_model(self, story: Story, make: Any, code: str) -> None:
        self.refused(story, make(), "ab", code)

    def test_quantized_offloaded_hooked_and_sharded_ones(self, story: Story) -> None:
        model = story.load("base")
        for place, name, value in (
            (model, "is_quantized", True),
            (model, "is_loaded_in_4bit", True),
            (model, "hf_device_map", {"model": 0, "lm_head": "disk"}),
            (model.model.layers[0], "_hf_hook", object()),
            (model.config, "quantization_config", {"quant_method": "gguf"}),
        ):
            setattr(place, name, value)
            self.refused(story, model, "base", "unbindable")
            delattr(place, name)

        class Packed(torch.nn.Parameter):
            pass

        weight = model.model.norm.weight
        model.model.norm._parameters["weight"] = Packed(weight.data, requires_grad=False)
        self.refused(story, model, "base", "unbindable")
        model.model.norm._parameters["weight"] = weight
        story.repo.attach(model, story.commits["base"]).close()

    def test_adapters_that_are_not_the_commits(self, story: Story) -> None:
        self.refused(story, by_peft(story, "a"), "ab", "other_adapters")
        self.refused(story, by_peft(story, "b"), "a", "other_adapters")
        model = by_peft(story, "a")
        with torch.no_grad():
            next(one for name, one in model.named_parameters() if "lora_A" in name)[0, 0] += 1
        assert "1 tensors differ" in self.refused(story, model, "a", "other_adapters").message
        scaled = by_peft(story, "a")
        scaled.peft_config["rbl__a"].lora_alpha = 99
        assert "lora_alpha" in self.refused(story, scaled, "a", "other_adapters").message
        self.refused(story, by_peft(story, "a").base_model.model, "a", "other_adapters")

    def test_what_is_no_revision_and_no_size(self, story: Story) -> None:
        model = story.repo.load("main")
        with pytest.raises(rblstore.UsageError, match="NoneType"):
            story.repo.attach(model, None)
        for size in ("1G", -1, True, 1.5):
            with pytest.raises(rblstore.UsageError, match="cache_bytes"):
                story.repo.attach(model, "main", cache_bytes=size)

    def test_an_unknown_revision(self, story: Story) -> None:
        with pytest.raises(rblstore.NotFoundError):
            story.repo.attach(story.load("base"), "nowhere")

    def test_twice(self, story: Story) -> None:
        model = story.load("base")
        with story.repo.attach(model, story.commits["base"]):
            self.refused(story, model, "a", "already_bound")
        story.repo.attach(model, story.commits["base"]).close()

    def test_one_that_trains_where_something_would_be_put_on(self, story: Story) -> None:
        model = story.load("base").train()
        self.refused(story, model, "a", "model_trains")
        with story.repo.attach(model, story.commits["base"]) as live, pytest.raises(rblstore.ConflictError) as caught:
            live.switch(story.commits["a"])
        assert caught.value.code == "model_trains"


class TestChanges:
    def test_every_switch_gives_a_fresh_load(self, story: Story) -> None:
        model = story.load("base")
        own = {key: (id(one), one.data_ptr()) for key, one in model.named_parameters()}
        handle = model.model.norm.register_forward_hook(lambda *_: None)
        with story.repo.attach(model, story.commits["base"]) as live:
            for name in ("a", "ab", "abf", "bf", "bias", "a", "f", "bias", "base", "ab", "base"):
                live.switch(story.commits[name])
                assert live.commit == story.commits[name]
                assert_fresh(live, story.load(name))
                assert live.residue() == [] or all("hook" in str(found) for found in live.residue())
            assert own == {key: (id(one), one.data_ptr()) for key, one in model.named_parameters()}
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert all(one.requires_grad for one in model.parameters())
            assert handle.id in model.model.norm._forward_hooks

    def test_coming_back_puts_the_very_wrappers_on(self, story: Story) -> None:
        with story.repo.attach(story.load("a"), story.commits["a"]) as live:
            model = live.model
            wrappers = [id(one) for one in model.modules()]
            live.switch(story.commits["base"])
            live.switch(story.commits["a"])
            assert live.model is model
            assert [id(one) for one in model.modules()] == wrappers
            assert not any(one.requires_grad for one in model.parameters())

    def test_between_parked_adapters_nothing_goes_through_the_model(
        self, story: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with story.repo.attach(story.load("a"), story.commits["a"]) as live:
            for name in ("ab", "a", "ab"):
                live.switch(story.commits[name])
            with monkeypatch.context() as patched:
                patched.setattr(plain_view, "unwrapped", None)  # every way through a model's modules takes it
                live.switch(story.commits["a"])
            assert_fresh(live, story.load("a"))

    def test_no_room_to_park(self, story: Story) -> None:
        with story.repo.attach(story.load("a"), story.commits["a"], cache_bytes=0) as live:
            live.switch(story.commits["ab"])
            assert live._state.parked_bytes == 0
            live.switch(story.commits["a"])
            assert_fresh(live, story.load("a"))

    def test_parked_adapters_that_were_written_to_are_loaded_anew(self, story: Story) -> None:
        with story.repo.attach(story.load("a"), story.commits["a"]) as live:
            held = [one for name, one in live.model.named_parameters() if "lora_B" in name]
            live.switch(story.commits["base"])
            with torch.no_grad():
                held[0].add_(1)
            live.switch(story.commits["a"])
            assert_fresh(live, story.load("a"))

    def test_taken_off_and_put_on_it_is_the_commit_again(self, story: Story) -> None:
        with story.repo.attach(story.load("abf"), story.commits["abf"]) as live:
            live.detach("a")
            assert (live.commit, live.bound_to, live.behaviors) == (None, story.commits["abf"], ("b", "ft"))
            assert_fresh(live, story.fresh(live.composition))
            live.attach("a")
            assert live.commit == story.commits["abf"]
            assert_fresh(live, story.load("abf"))

    def test_weights(self, story: Story) -> None:
        with story.repo.attach(story.load("a"), story.commits["a"]) as live:
            live.attach("a", weight=0.25)
            assert_fresh(live, story.fresh(live.composition))
            live.attach("b", story.commits["ab"], weight=-2)
            assert_fresh(live, story.fresh(live.composition))
            for weight in (float("nan"), float("inf"), "1", True):
                with pytest.raises(rblstore.UsageError) as caught:
                    live.attach("b", weight=weight)
                assert caught.value.code == "bad_weight"
            with pytest.raises(rblstore.UsageError):
                live.attach("ft", story.commits["f"], weight=0.5)
            assert_fresh(live, story.fresh(live.composition))

    def test_what_is_refused_before_anything_is_loaded(self, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        with story.repo.attach(story.load("a"), story.commits["a"]) as live:
            before = weights(live.model)
            monkeypatch.setattr("rblstore.operations.live_switch.laid_out_behaviors", None)
            for action, code in (
                (lambda: live.attach("nothing"), "no_such_behavior"),
                (lambda: live.attach("a"), "already_attached"),
                (lambda: live.detach("b"), "not_attached"),
                (lambda: live.switch("nowhere"), "unknown_revision"),
                (lambda: live.switch(story.commits["ab"], form="glued"), "usage"),
            ):
                with pytest.raises(rblstore.RblError) as caught:
                    action()
                assert caught.value.code == code
            assert weights(live.model) == before

    def test_kinds_that_peft_does_not_compose_are_refused_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_models.save(tiny_models.llama(), tmp_path / "base")
        for kind in ("lora", "ia3"):
            tiny_models.save_adapter(tiny_models.llama(), tmp_path / kind, kind)
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=model)
            repo.commit("lora", behaviors={"lora": tmp_path / "lora"})
            repo.commit("ia3", behaviors={"ia3": tmp_path / "ia3"}, remove=["lora"])
            both = repo.commit("both", behaviors={"lora": tmp_path / "lora"}, unloadable=True).commit
            with repo.attach(repo.load("HEAD~2"), "HEAD~2") as live:
                monkeypatch.setattr("rblstore.operations.live_switch.laid_out_behaviors", None)
                for action in (lambda: live.attach("ia3", "HEAD~1"), lambda: live.switch(both)):
                    with pytest.raises(rblstore.ConflictError) as caught:
                        action()
                    assert caught.value.code == "unloadable"
                assert live.behaviors == ("lora",)

    def test_merged_and_apart(self, story: Story, tmp_path: Path) -> None:
        with story.repo.attach(story.load("ab"), story.commits["ab"]) as live:
            live.merge()
            assert (live.form, live.model) == ("merged", live.plain)
            assert weights(live.model) == weights(merged(story, "ab", tmp_path / "ab"))
            live.detach("a")
            live.switch(story.commits["abf"])
            assert weights(live.model) == weights(merged(story, "abf", tmp_path / "abf"))
            live.unmerge()
            assert_fresh(live, story.load("abf"))

    @pytest.mark.skipif(
        not hasattr(torch.compiler, "is_exporting"), reason="transformers asks for what this torch lacks"
    )
    def test_compiled_graphs_stay_valid_over_merged_switches(self, story: Story) -> None:
        model, compiled = story.load("a"), []

        def count(graph: Any, _: Any) -> Any:
            compiled.append(graph)
            return graph.forward

        with story.repo.attach(model, story.commits["a"], form="merged") as live:
            fast = torch.compile(live.model, backend=count)
            with torch.no_grad():
                found = [fast(tiny_models.PROMPT).logits.clone()]
                made = len(compiled)
                for name in ("ab", "abf", "base", "a"):
                    live.switch(story.commits[name])
                    found.append(fast(tiny_models.PROMPT).logits.clone())
        assert made > 0
        assert len(compiled) == made
        assert torch.equal(found[0], found[-1])
        assert not torch.equal(found[0], found[1])

    def test_a_compiled_model_is_bound_by_what_it_wraps(self, story: Story) -> None:
        model = story.load("base")
        fast = torch.compile(model, backend="eager")
        with story.repo.attach(fast, story.commits["base"]) as live:
            assert (live.model, live.plain) == (fast, model)
            live.switch(story.commits["a"])
            assert_fresh(live, story.load("a"))


class TestKeepingOut:
    @pytest.mark.parametrize(("name", "part"), [("a", "lora_B"), ("bias", "bias")])
    def test_what_was_trained_is_not_lost_without_a_word(self, story: Story, name: str, part: str) -> None:
        with story.repo.attach(story.load(name), story.commits[name]) as live:
            trained = next(one for full, one in live.model.named_parameters() if part in full)
            with torch.no_grad():
                trained.add_(1)
            for action in (lambda: live.detach(name), live.merge, lambda: live.switch(story.commits["ab"])):
                with pytest.raises(rblstore.ConflictError) as caught:
                    action()
                assert caught.value.code == "uncommitted"
            live.switch(story.commits["base"], discard=True)
            live.switch(story.commits[name])
            assert_fresh(live, story.load(name))

    def test_a_second_thread(self, story: Story) -> None:
        found: list[BaseException] = []
        with story.repo.attach(story.load("a"), story.commits["a"]) as live:

            def meddle() -> None:
                try:
                    live.switch(story.commits["base"])
                except rblstore.RblError as error:
                    found.append(error)

            with live.changing():
                thread = threading.Thread(target=meddle)
                thread.start()
                thread.join()
            assert [error.code for error in found] == ["live_busy"]  # type: ignore[attr-defined]
            assert live.behaviors == ("a",)

    def test_closed(self, story: Story) -> None:
        model = story.load("a")
        live = story.repo.attach(model, story.commits["a"])
        live.close()
        live.close()
        with pytest.raises(rblstore.UsageError) as caught:
            live.switch(story.commits["base"])
        assert caught.value.code == "live_closed"
        assert_fresh(live, story.load("a"))

    def test_nobody_holds_a_model_whose_binding_is_gone(self, story: Story) -> None:
        model = story.load("a")
        story.repo.attach(model, story.commits["a"])
        story.repo.attach(model, story.commits["a"]).close()


def test_a_behavior_that_brings_a_head_is_held_apart_and_not_merged(tmp_path: Path) -> None:
    tiny_models.save(tiny_models.bert("BertModel"), tmp_path / "base")
    classifier = tiny_models.bert("BertForSequenceClassification", labels=5)
    tiny_models.save_adapter(classifier, tmp_path / "topic")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "base")
        repo.commit("topic", behaviors={"topic": tmp_path / "topic"})
        with repo.attach(repo.load("HEAD~1"), "HEAD~1") as live:
            bare = weights(live.model)
            live.switch("HEAD")
            before = weights(live.model)
            with pytest.raises(rblstore.ConflictError, match="'topic' adds 'classifier") as caught:
                live.merge()
            assert (caught.value.code, caught.value.object, live.form) == ("cannot_merge", "topic", "adapters")
            assert "form='adapters'" in str(caught.value.hint)
            assert weights(live.model) == before
            live.switch("HEAD~1", form="merged")
            with pytest.raises(rblstore.ConflictError, match="'topic' adds 'classifier"):
                live.attach("topic", "HEAD")
            assert (live.behaviors, weights(live.model)) == ((), bare)
            live.switch("HEAD", form="adapters")
            assert weights(live.model) == before
        with pytest.raises(rblstore.ConflictError) as caught:
            repo.attach(merged_checkout(repo, tmp_path / "out"), "HEAD")
        assert caught.value.code == "other_model"
        assert "merged checkout of this commit is nothing to bind: 'topic' adds" in str(caught.value.hint)


def merged_checkout(repo: Any, folder: Path) -> Any:
    repo.checkout("HEAD", folder, form="merged")
    return rblstore.load_checkout(folder)
