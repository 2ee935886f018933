"""``identify`` where a repository holds many models, and where what is looked at is hostile or partial."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny
from test_operations_identify import (
    NAMES,
    SIDE,
    adapter_tensors,
    base_tensors,
    drawn,
    floats,
    made,
    merged,
    only,
    repo,
    stored,
    write,
    write_lora,
    write_model,
)
from tiny_checkpoints import Tensor

import rblstore
from rblstore.operations import identify, identify_adapters
from rblstore.operations.holders import History
from rblstore.operations.identify_candidates import Known

__all__ = ["made", "repo"]  # fixtures

ADAPTERS = 12


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """More adapters of the same names and shapes on one base than are ever compared."""
    folder = tmp_path_factory.mktemp("many")
    write_model(folder / "base", base_tensors())
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=folder / "base", author="Ada")
        for seed in range(1, ADAPTERS + 1):
            repo.commit(str(seed), behaviors={"own": write_lora(folder / str(seed), seed)}, author="Ada")
        yield repo


def calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Grows with every call of a function."""
    found: list[None] = []
    function = getattr(owner, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        found.append(None)
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)
    return found


# -- many models --------------------------------------------------------------------------------------------------


def test_a_cast_adapter_is_found_among_many_of_its_shapes(many: Any, tmp_path: Path) -> None:
    cast = {name: stored(floats(one), "F16") for name, one in adapter_tensors(ADAPTERS).items()}
    tiny.write_safetensors(tmp_path / "adapter_model.safetensors", cast)
    model = only(many, tmp_path)
    assert model.verdict == "cast"
    assert (model.fitting, model.compared) == (ADAPTERS, 8)
    assert model.resembling[0].commits.newest == (many.show("HEAD").id,)


def test_a_merged_adapter_is_found_among_many_and_each_is_planned_once(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = calls(monkeypatch, identify_adapters, "plan_plain_merge")
    tensors = merged(base_tensors(), {ADAPTERS: 1.0}, "BF16")
    for name in NAMES:  # a bit beside what a merged checkout holds
        tensors[name] = tensors[name]._replace(data=bytes([tensors[name].data[0] ^ 1]) + tensors[name].data[1:])
    model = only(many, write(tmp_path, tensors))
    difference = model.resembling[0].difference
    assert difference is not None
    assert difference.commits.newest == (many.show("HEAD").id,)
    assert len(planned) == ADAPTERS


def test_the_best_of_more_adapters_than_are_considered_are_named(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rblstore.operations.identify_thin._CONSIDERED", 2)
    model = only(many, write(tmp_path, merged(base_tensors(), {5: 1.0, 9: 0.5}, "F32")))
    difference = model.resembling[0].difference
    assert difference is not None
    assert [one.weight for one in difference.behaviors] == pytest.approx([1, 0.5], abs=0.01)


def test_a_merged_checkout_is_found_among_many(many: Any, tmp_path: Path) -> None:
    many.checkout("HEAD~3", tmp_path / "out", form="merged")
    (match,) = only(many, tmp_path / "out").exact
    assert (match.how, match.commits.newest) == ("merged", (many.show("HEAD~3").id,))


def test_no_adapter_is_looked_at_where_none_can_have_been_merged(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = calls(monkeypatch, identify_adapters, "plan_plain_merge")
    tuned = {
        name: stored(floats(one) + drawn(7, *one.shape, size=0.002), "BF16") for name, one in base_tensors().items()
    }
    assert only(many, write(tmp_path / "tuned", tuned)).verdict == "relative"
    assert only(many, write(tmp_path / "other", base_tensors(seed=900))).verdict == "unknown"
    assert not planned


def test_many_parts_that_match_read_the_history_once(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composing = calls(monkeypatch, History, "composing")
    assert only(many, write(tmp_path, {NAMES[0]: base_tensors()[NAMES[0]]})).verdict == "exact"
    assert only(many, write(tmp_path, base_tensors())).verdict == "exact"
    assert len(composing) == 2  # once for each that was asked for


def test_stored_models_are_read_once_for_all_models_of_a_directory(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many.checkout("HEAD", tmp_path / "out")
    shutil.copytree(tmp_path / "out" / "behaviors" / "own", tmp_path / "out" / "behaviors" / "again")
    read = calls(monkeypatch, Known, "candidates")
    assert [model.verdict for model in many.identify(tmp_path / "out").models] == ["exact"] * 3
    assert len(read) == 1


def test_names_are_not_gone_through_for_candidates_that_cannot_have_them(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paired, summed = (calls(monkeypatch, identify, name) for name in ("pair_up", "merged_matches"))
    tensors = {f"x.{number}": tiny.values(3, seed=number) for number in range(100)}
    assert only(many, write(tmp_path / "shapes", tensors)).verdict == "unknown"
    tensors = {f"y.{number}": tiny.values(4, SIDE, seed=number) for number in range(1000)}
    assert only(many, write(tmp_path / "sizes", tensors)).verdict == "unknown"
    assert (len(paired), len(summed)) == (0, 0)


def test_overlays_on_one_another_are_one_model_whatever_adapters_are_on_them(tmp_path: Path) -> None:
    base = base_tensors()
    first = base | {NAMES[0]: stored(drawn(70, SIDE, SIDE), "BF16")}
    second = first | {NAMES[1]: stored(drawn(71, SIDE, SIDE), "BF16")}
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=write_model(tmp_path / "base", base), author="Ada")
        repo.commit("first", behaviors={"first": write_model(tmp_path / "first", first)}, author="Ada")
        # On the first it says what differs from that alone.
        tiny.write_safetensors(tmp_path / "second" / "model.safetensors", second, metadata={"format": "pt"})
        shutil.copy(tmp_path / "base" / "config.json", tmp_path / "second")
        repo.commit("second", behaviors={"second": tmp_path / "second"}, author="Ada")
        repo.commit("own", behaviors={"own": write_lora(tmp_path / "own", 1)}, author="Ada")
        repo.commit("else", behaviors={"own": write_lora(tmp_path / "else", 2)}, author="Ada")
        found = repo.identify(write(tmp_path / "loose", second))
        composed = [match for match in found.models[0].exact if match.role == "composition"]
        assert [(match.whole, match.commits.count) for match in composed] == [(True, 3)]
        assert found.commits.newest == (repo.show("HEAD~2").id,)


# -- what differs -------------------------------------------------------------------------------------------------


def test_a_strong_adapter_is_recognised_though_little_correlates(repo: Any, tmp_path: Path) -> None:
    model = only(repo, write(tmp_path, merged(base_tensors(), {1: 8.0}, "F32")))
    like = model.resembling[0]
    assert (model.verdict, like.close, like.unlike) == ("merged", 4, 0)
    assert like.correlation is not None
    assert like.correlation < 0.5
    assert like.difference is not None
    assert [(one.name, round(one.weight, 2)) for one in like.difference.behaviors] == [("warm", 8.0)]


def test_no_commit_is_named_for_an_adapter_where_something_else_differs_too(repo: Any, tmp_path: Path) -> None:
    tensors = merged(base_tensors(), {1: 1.0}, "F32") | {"model.norm.weight": stored(drawn(3, SIDE), "F32")}
    model = only(repo, write(tmp_path, tensors))
    like = model.resembling[0]
    assert (model.verdict, like.other) == ("relative", 1)
    assert like.difference is not None
    assert [one.name for one in like.difference.behaviors] == ["warm"]
    assert like.difference.commits.count == 0


def test_an_adapter_and_training_of_other_matrices_are_no_low_rank_difference(repo: Any, tmp_path: Path) -> None:
    tensors, tuned = merged(base_tensors(), {1: 1.0}, "F32"), floats(base_tensors()[NAMES[1]])
    tensors[NAMES[1]] = stored(tuned + drawn(4, SIDE, SIDE, size=0.002), "F32")
    model = only(repo, write(tmp_path, tensors))
    assert (model.verdict, model.resembling[0].close, model.resembling[0].difference) == ("relative", 4, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_hide_no_relative(repo: Any, tmp_path: Path, value: float) -> None:
    tensors = {}
    for name, one in base_tensors().items():
        changed = floats(one).copy()
        changed.flat[3] = value
        tensors[name] = stored(changed, "BF16")
    model = only(repo, write(tmp_path, tensors))
    assert (model.verdict, model.resembling[0].close, model.resembling[0].difference) == ("relative", 5, None)


@pytest.mark.filterwarnings("error")
def test_values_too_large_to_be_squared_are_compared(repo: Any, tmp_path: Path) -> None:
    tensors = {}
    for name, one in base_tensors().items():
        tensors[name] = Tensor("F64", one.shape, (floats(one).astype("<f8") * 1e200).tobytes())
    assert only(repo, write(tmp_path, tensors)).verdict == "relative"


def test_a_part_says_how_much_is_lacking(repo: Any, tmp_path: Path) -> None:
    part = only(repo, write(tmp_path / "part", {NAMES[1]: base_tensors()[NAMES[1]]}))
    assert {match.lacking for match in part.exact} == {5}
    (whole,) = only(repo, write(tmp_path / "whole", base_tensors())).exact
    assert whole.lacking == 0


def test_tensors_without_bytes_prove_nothing(tmp_path: Path) -> None:
    empty = {"model.cache": Tensor("F32", (0, 4), b"")}
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=write_model(tmp_path / "base", base_tensors() | empty), author="Ada")
        assert only(repo, write(tmp_path / "loose", empty)).verdict == "unknown"


# -- adapters -----------------------------------------------------------------------------------------------------


def test_an_unknown_adapter_is_said_to_fit_what_it_fits(tmp_path: Path) -> None:
    write_lora(tmp_path / "loose", 9)
    settings = tmp_path / "loose" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "who/knows"}))
    narrow = {name: tiny.values(8, 8) if len(one.shape) == 2 else one for name, one in base_tensors().items()}
    with rblstore.init(tmp_path / "store") as repo:
        first = repo.commit("base", identity=write_model(tmp_path / "base", base_tensors()), author="Ada")
        repo.switch("narrow", create=True, orphan=True)
        repo.commit("narrow", identity=write_model(tmp_path / "narrow", narrow), author="Ada")
        found = repo.identify(tmp_path / "loose")
        (model,) = found.models
        assert (model.verdict, model.base_named) == ("unknown", "who/knows")
        assert [one.id for one in model.fits] == [repo.show(first.commit).identity.identity]
        assert found.unknown
        settings.write_text('{"peft_type": "NONE"}')
        model = only(repo, tmp_path / "loose")
        assert (model.verdict, model.fits, model.base_named) == ("unknown", (), None)


def test_changed_settings_of_an_adapter_beside_other_weights_are_named(repo: Any, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "base", tmp_path / "out")
    shutil.copy(made / "warm" / "adapter_model.safetensors", tmp_path / "out")
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    found = {model.path: model.exact[0].differing for model in repo.identify(tmp_path / "out").models}
    assert found == {".": (), "adapter_model.safetensors": ("adapter_config.json",)}


# -- what cannot be read ------------------------------------------------------------------------------------------


def test_what_was_not_looked_at_is_named(repo: Any, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "base", out)
    (out / ".git").mkdir()
    (out / ".git" / "link").symlink_to(made / "base" / "model.safetensors")
    assert not repo.identify(out).unknown
    (out / "a.safetensors").symlink_to(tmp_path / "gone")
    (out / "b").symlink_to(made / "other")
    (out / "c").symlink_to("c")
    os.mkfifo(out / "d.safetensors")
    found = repo.identify(out)
    assert [(one.path, one.reason) for one in found.unread] == [
        ("a.safetensors", "a link that leads nowhere"), ("b", "a link to a folder"),
        ("c", "a link that leads to itself"), ("d.safetensors", "no regular file"),
    ]  # fmt: skip
    assert found.models[0].verdict == "exact"
    assert found.unknown
    gaps = [one.message for one in repo.audit_path(out).findings if one.rule == "gap.unknown-file"]
    assert any(message.startswith("a.safetensors (a link that leads nowhere)") for message in gaps)
