"""``rbl identify``: what it prints, its document, and its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tiny_checkpoints as tiny
from cli_story import Story
from safetensors.torch import load_file, save_file
from test_tidiness import _tidy


def test_a_checkout_is_known_by_its_digests(story: Story, tmp_path: Path) -> None:
    story.ok("checkout", "main", tmp_path / "out")
    (tmp_path / "out" / "rbl-composition.json").unlink()
    document = story.json("identify", tmp_path / "out")
    assert {model["verdict"] for model in document["models"]} == {"exact"}
    head = story.json("log")[0]["commit"]
    assert document["commits"] == {"newest": [head], "first": head, "count": 1}
    text = story.ok("identify", tmp_path / "out")
    assert text.split()[0] == "exact"
    assert f"all together: the weights of commit {head[:12]}" in text
    _tidy(text)


def test_a_relative_path_is_read_from_where_the_command_was_given(story: Story) -> None:
    shutil.copytree(story.models / "base", story.store / "copy")
    assert story.json("identify", "copy")["models"][0]["verdict"] == "exact"


def test_what_it_resembles_is_no_exact_answer(story: Story, tmp_path: Path) -> None:
    tensors = load_file(story.models / "base" / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "half.safetensors")
    document = story.json("identify", tmp_path / "half.safetensors")
    (model,) = document["models"]
    assert (model["verdict"], model["exact"], document["commits"]["count"]) == ("cast", [], 0)
    text = story.ok("identify", tmp_path / "half.safetensors")
    assert "like identity base" in text
    assert "cast from F32 to F16" in text
    assert " is identity" not in text
    _tidy(text)


def test_what_was_not_compared_is_not_said_to_be_changed_or_unlike(story: Story, tmp_path: Path) -> None:
    tensors = load_file(story.models / "base" / "model.safetensors")
    quantized = {name: tensor.char() for name, tensor in tensors.items()}
    first = next(iter(tensors))
    for name, several in (("some", quantized | {first: tensors[first]}), ("all", quantized)):
        (tmp_path / name).mkdir()
        save_file(several, tmp_path / name / "model.safetensors")
    some = " ".join(story.ok("identify", tmp_path / "some").split())
    assert "in part" in some
    assert f"{len(tensors) - 1} not compared" in some
    assert "none is found to be like it" in " ".join(story.run("identify", tmp_path / "all").stdout.split())


def test_something_unknown_exits_with_1(story: Story, tmp_path: Path) -> None:
    tiny.write_safetensors(tmp_path / "m" / "model.safetensors", tiny.base_tensors(seed=9))
    (tmp_path / "m" / "notes.txt").write_text("?")
    document = story.json("identify", tmp_path / "m", code=1)
    assert document["models"][0]["verdict"] == "unknown"
    text = story.run("identify", tmp_path / "m")
    assert text.exit_code == 1
    assert text.stdout.split()[0] == "unknown"
    assert "notes.txt" in text.stdout
    _tidy(text.stdout)
    assert story.json("identify", tmp_path / "m" / "notes.txt", code=1)["models"] == []


def test_what_is_lacking_and_what_was_not_looked_at_is_said(story: Story, tmp_path: Path) -> None:
    tensors = load_file(story.models / "base" / "model.safetensors")
    name = next(iter(tensors))
    (tmp_path / "m").mkdir()
    save_file({name: tensors[name]}, tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "more.safetensors").symlink_to(tmp_path / "gone")
    document = story.json("identify", tmp_path / "m", code=1)
    assert document["unread"] == [{"path": "more.safetensors", "reason": "a link that leads nowhere"}]
    assert document["models"][0]["exact"][0]["lacking"] == len(tensors) - 1
    text = story.run("identify", tmp_path / "m").stdout
    assert f"{len(tensors) - 1} of its tensors lacking" in " ".join(text.split())
    assert "more.safetensors: not looked at, a link that leads nowhere" in text
    _tidy(text)


def test_what_an_unknown_adapter_would_fit_is_said(story: Story, tmp_path: Path) -> None:
    source = next(path for path in sorted(story.models.iterdir()) if (path / "adapter_config.json").exists())
    shutil.copytree(source, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    save_file({name: -3 * tensor for name, tensor in tensors.items()}, tmp_path / "a" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "who/knows"
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(settings))
    text = " ".join(story.run("identify", tmp_path / "a").stdout.split())
    assert "would fit identity base" in text
    assert "its settings say that it was made for who/knows" in text
    assert " none is found to be like it" in text
    assert story.json("identify", tmp_path / "a", code=1)["models"][0]["base_named"] == "who/knows"


def test_bad_input_is_said_to_be(story: Story, tmp_path: Path) -> None:
    assert story.json("identify", tmp_path / "none", code=1)["hint"]
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    refused = story.json("identify", tmp_path, code=1)
    assert refused["code"] == "bad_safetensors"
    assert story.run("identify").exit_code == 2
