"""Probes: what makes one, what it fits, and what it would cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny_models

import rblstore

if TYPE_CHECKING:
    from conftest import Story

TEXTS = ["w5 w17 w80", "w3"]


def refused(story: Story, act: Callable[[], Any], family: type[rblstore.RblError], code: str) -> Any:
    before = story.repo.operations()
    with pytest.raises(family) as caught:
        act()
    assert caught.value.code == code, caught.value
    assert story.repo.operations() == before
    return caught.value


def prompts_of(story: Story, name: str) -> list[tuple[str, list[int], str | None]]:
    return [(one["id"], one["tokens"], one["text"]) for one in story.repo.show(name).record["prompts"]]


class TestFiles:
    TOKENS = ([1, 5, 17, 80], [1, 3])  # the tokenizer puts <s> first

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("p.txt", "w5 w17 w80\n\nw3\n"),
            ("p.prompts", "w5 w17 w80\nw3"),
            ("p.json", json.dumps(TEXTS)),
            ("p.json", json.dumps([{"text": text} for text in TEXTS])),
            ("p.jsonl", "\n".join(json.dumps(text) for text in TEXTS)),
            ("p.jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS)),
        ],
    )
    def test_text_is_tokenized_once_and_kept_for_people(
        self, story: Story, tmp_path: Path, name: str, text: str
    ) -> None:
        (tmp_path / name).write_text(text)
        info = story.repo.add_probe("ten", tmp_path / name)
        assert (info.prompts, info.tokens, info.measured_positions) == (2, 6, 6)
        assert info.baseline_bytes == 6 * tiny_models.VOCABULARY * 4
        assert prompts_of(story, "ten") == [
            ("p00", self.TOKENS[0], TEXTS[0]),
            ("p01", self.TOKENS[1], TEXTS[1]),
        ]

    def test_from_the_api_with_ids_and_tokens(self, story: Story) -> None:
        story.repo.add_probe("mixed", ["w5", {"id": "mine", "tokens": [7, 8]}, {"id": "t", "text": "w3"}])
        assert prompts_of(story, "mixed") == [("p00", [1, 5], "w5"), ("mine", [7, 8], None), ("t", [1, 3], "w3")]

    def test_token_ids_alone_name_no_tokenizer(self, story: Story) -> None:
        story.repo.add_probe("ids", [{"id": "a", "tokens": [7, 8]}])
        story.repo.add_probe("texts", ["w5"])
        assert story.repo.show("ids").record["tokenizer"] is None
        assert story.repo.show("texts").record["tokenizer"] is not None

    def test_last_positions(self, story: Story) -> None:
        info = story.repo.add_probe("last", TEXTS, positions="last")
        assert (info.tokens, info.measured_positions, info.baseline_bytes) == (6, 2, 2 * tiny_models.VOCABULARY * 4)
        assert story.repo.baseline(probe="last").bytes == info.baseline_bytes

    def test_the_bytes_of_a_baseline_are_those_foretold(self, story: Story) -> None:
        info = story.repo.add_probe("ten", TEXTS)
        assert story.repo.baseline().bytes == info.baseline_bytes

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("p.json", "{"),
            ("p.json", "[]"),
            ("p.json", '["a", "a"'),
            ("p.json", '[{"tokens": []}]'),
            ("p.json", '[{"tokens": [-1]}]'),
            ("p.json", '[{"tokens": [1.5]}]'),
            ("p.json", '[{"tokens": [2147483648]}]'),
            ("p.json", '[{"text": "a", "text": "b"}]'),
            ("p.json", '[{"id": "x", "tokens": [1]}, {"id": "x", "tokens": [2]}]'),
            ("p.json", '[{"id": "x"}]'),
            ("p.json", "[1]"),
            ("p.jsonl", '"a"\n{'),
            ("p.txt", "\n \n"),
        ],
    )
    def test_files_that_hold_none(self, story: Story, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        refused(story, lambda: story.repo.add_probe("ten", tmp_path / name), rblstore.InputError, "bad_probe")

    def test_files_that_cannot_be_read(self, story: Story, tmp_path: Path) -> None:
        for path in (tmp_path / "nowhere.json", tmp_path):
            refused(story, lambda path=path: story.repo.add_probe("ten", path), rblstore.InputError, "bad_input")
        (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
        refused(story, lambda: story.repo.add_probe("ten", tmp_path / "p.txt"), rblstore.InputError, "bad_probe")

    @pytest.mark.parametrize("prompts", [[range(3)], [{1, 2}], [None], [["a"]], [b"x"]])
    def test_prompts_that_are_none(self, story: Story, prompts: list[Any]) -> None:
        before = story.repo.operations()
        with pytest.raises(rblstore.InputError):
            story.repo.add_probe("ten", prompts)
        assert story.repo.operations() == before


class TestNames:
    def test_a_probe_does_not_change(self, story: Story) -> None:
        story.repo.add_probe("ten", TEXTS)
        refused(story, lambda: story.repo.add_probe("ten", ["w3"]), rblstore.ConflictError, "ref_exists")

    @pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
    def test_names_that_are_none(self, story: Story, name: str) -> None:
        refused(story, lambda: story.repo.add_probe(name, TEXTS), rblstore.UsageError, "usage")

    def test_a_probe_that_is_not_there(self, story: Story) -> None:
        for act in (
            lambda: story.repo.baseline(probe="ten"),
            lambda: story.repo.baseline(),
            lambda: story.repo.verify(probe="ten"),
        ):
            refused(story, act, rblstore.NotFoundError, "no_such_probe")

    def test_undo_takes_a_probe_and_the_default_back(self, story: Story) -> None:
        story.repo.add_probe("one", TEXTS, default=True)
        story.repo.add_probe("two", ["w3"], default=True)
        story.repo.undo()
        assert [(one.name, one.default) for one in story.repo.probes()] == [("one", True)]
        story.repo.undo()
        assert story.repo.probes() == []

    def test_without_an_identity_there_is_nothing_to_tokenize_for(self, tmp_path: Path) -> None:
        with rblstore.init(tmp_path / "empty") as repo, pytest.raises(rblstore.NotFoundError):
            repo.add_probe("ten", TEXTS)


class TestFit:
    def test_another_tokenizer(self, story: Story, tmp_path: Path) -> None:
        story.repo.add_probe("ten", TEXTS)
        other = tiny_models.save(tiny_models.llama(seed=4), tmp_path / "other")
        tiny_models.save_tokenizer(other)
        text = (other / "tokenizer.json").read_text()
        (other / "tokenizer.json").write_text(text.replace('"w5": 5', '"w5": 17').replace('"w17": 17', '"w17": 5'))
        assert (other / "tokenizer.json").read_text() != text
        story.repo.commit("other", identity=other, branch="other")
        error = refused(story, lambda: story.repo.baseline("other"), rblstore.ConflictError, "probe_mismatch")
        assert error.exit_code == 4
        assert "'ten'" in error.message
        adapter = tiny_models.save_adapter(tiny_models.llama(seed=4), tmp_path / "x")
        story.repo.commit("x", behaviors={"x": adapter}, branch="other")
        story.repo.switch("other")
        refused(story, lambda: story.repo.revert(behavior="x"), rblstore.ConflictError, "probe_mismatch")
        assert story.repo.revert(behavior="x", verify=False).verdict == "unverified"

    def test_an_identity_without_a_tokenizer(self, story: Story, tmp_path: Path) -> None:
        plain = tiny_models.save(tiny_models.llama(seed=4), tmp_path / "plain")
        story.repo.commit("plain", identity=plain, branch="plain")
        with pytest.raises(rblstore.InputError):
            story.repo.add_probe("ten", TEXTS, revision="plain")
        story.repo.add_probe("ids", [{"tokens": [1, 2]}], revision="plain")
        assert not story.repo.baseline("plain").reused

    def test_token_ids_beyond_the_vocabulary(self, story: Story, tmp_path: Path) -> None:
        far = [{"id": "x", "tokens": [1, tiny_models.VOCABULARY]}]
        error = refused(story, lambda: story.repo.add_probe("far", far), rblstore.ConflictError, "probe_mismatch")
        assert error.object == "x"
        wide = tiny_models.llama(seed=4)
        wide.resize_token_embeddings(tiny_models.VOCABULARY + 8, mean_resizing=False)
        story.repo.commit("wide", identity=tiny_models.save(wide, tmp_path / "wide"), branch="wide")
        story.repo.add_probe("far", far, revision="wide")
        error = refused(story, lambda: story.repo.baseline(), rblstore.ConflictError, "probe_mismatch")
        assert "96" in error.message
        assert error.object == "x"
        refused(story, lambda: story.repo.revert(behavior="a"), rblstore.ConflictError, "probe_mismatch")

    def test_a_prompt_that_is_too_long(self, story: Story) -> None:
        long = [{"id": "x", "tokens": [5] * 65}]
        error = refused(story, lambda: story.repo.add_probe("long", long), rblstore.ConflictError, "probe_mismatch")
        assert "65 tokens" in error.message
        story.repo.add_probe("fits", [{"id": "x", "tokens": [5] * 64}], default=True)
        story.repo.baseline()

    def test_outputs_that_are_not_numbers(self, story: Story, tmp_path: Path) -> None:
        import torch

        broken = tiny_models.llama()
        with torch.no_grad():
            broken.model.norm.weight[0] = float("nan")
        result = story.repo.commit("nan", identity=tiny_models.save(broken, tmp_path / "nan"), branch="nan")
        assert any("NaN" in warning for warning in result.warnings)
        story.repo.add_probe("ids", [{"id": "x", "tokens": [1, 2]}])
        error = refused(story, lambda: story.repo.baseline("nan"), rblstore.RblError, "nan_output")
        assert error.object == "x"
        assert story.repo.baselines() == []


class TestCost:
    MANY = tuple({"id": f"p{at}", "tokens": [1] * 64} for at in range(50))

    def test_more_than_a_gibibyte_is_refused(self, story: Story, tmp_path: Path) -> None:
        """With a vocabulary of two million 3,200 positions take 26 GB."""
        base = tiny_models.save(tiny_models.llama(seed=4), tmp_path / "wide")
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "vocab_size": 2_000_000}))
        story.repo.commit("wide", identity=base, branch="wide")

        def add(**options: Any) -> Any:
            return story.repo.add_probe("many", self.MANY, revision="wide", **options)

        error = refused(story, add, rblstore.UsageError, "baseline_too_large")
        assert "GiB" in error.message
        assert "--positions last" in error.hint
        assert add(positions="last").baseline_bytes == 50 * 2_000_000 * 4
        story.repo.undo()
        assert add(force=True).baseline_bytes == 3200 * 2_000_000 * 4

    def test_a_config_that_says_nothing_of_a_vocabulary(self, story: Story, tmp_path: Path) -> None:
        for at, config in enumerate(('{"model_type": "llama"}', '{"vocab_size": "many"}', "[1]", None)):
            base = tiny_models.save(tiny_models.llama(seed=4), tmp_path / str(at))
            (base / "config.json").unlink()
            if config is not None:
                (base / "config.json").write_text(config)
            story.repo.commit("odd", identity=base, branch=f"odd{at}")
            info = story.repo.add_probe(f"p{at}", self.MANY, revision=f"odd{at}")
            assert info.baseline_bytes is None
