"""What a checkpoint does to what lies beneath it, as records alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from rblstore.checkpoints.composition_ground import (
    LogicalState,
    OverlapError,
    WeightRefusedError,
    WrongBaseError,
    check_composition,
)
from rblstore.checkpoints.overlay_effects import contradictions, overlay_effects, put_back, removed_files
from rblstore.errors import NothingChangedError
from rblstore.objects.content_records import Behavior, Ground, StoredTensor
from rblstore.objects.ids import ContentId
from rblstore.objects.kinds import parse_record


def content(text: str) -> ContentId:
    return ContentId(hashlib.sha256(text.encode()).hexdigest())


def tensor(text: str, *shape: int, dtype: str = "F32") -> StoredTensor:
    return StoredTensor(dtype, shape or (2,), content(text))


BASE = {"a": tensor("a"), "b": tensor("b"), "c": tensor("c")}
FILES = {"config.json": content("config"), "tokenizer.json": content("tokenizer")}


def overlay(tensors: dict[str, StoredTensor], files: dict[str, ContentId], *below: tuple[str, Behavior]) -> Behavior:
    state = LogicalState(dict(BASE), dict(FILES))
    for name, behavior in below:
        state.apply(name, behavior)
    return Behavior("overlay", (), overlay_effects("ft", tensors, files, state))


def told(behavior: Behavior) -> list[tuple[str, str, str]]:
    return [(effect.on, effect.target, effect.action) for effect in behavior.effects]


def test_only_what_differs_is_an_effect_and_nothing_is_ground() -> None:
    made = overlay(
        {"a": BASE["a"], "b": tensor("b2"), "d": tensor("d")}, {"config.json": content("c2"), "x/new.txt": content("n")}
    )
    assert told(made) == [
        ("file", "config.json", "replaces"),
        ("file", "tokenizer.json", "removes"),
        ("file", "x/new.txt", "adds"),
        ("tensor", "b", "replaces"),
        ("tensor", "c", "removes"),
        ("tensor", "d", "adds"),
    ]
    effects = {effect.target: effect for effect in made.effects}
    assert effects["b"].beneath == Ground.tensor("b", BASE["b"])
    assert effects["b"].value == Ground.tensor("b", tensor("b2"))
    assert (effects["d"].beneath, effects["c"].value) == (None, None)
    assert made.ground == ()
    assert removed_files(made.effects) == ("tokenizer.json",)
    assert parse_record(made.encode()) == made


@pytest.mark.parametrize("other", [tensor("b", dtype="I32"), tensor("b", 1, 2), tensor("b", 2, 1)])
def test_the_same_bytes_of_another_type_or_shape_differ(other: StoredTensor) -> None:
    assert told(overlay({**BASE, "b": other}, FILES)) == [("tensor", "b", "replaces")]


def test_what_differs_in_nothing_is_refused() -> None:
    with pytest.raises(NothingChangedError) as caught:
        overlay(dict(BASE), dict(FILES))
    assert caught.value.object == "ft"


def test_another_model_is_refused_and_a_prefix_makes_none() -> None:
    with pytest.raises(WrongBaseError, match="'ft' shares no tensor's name"):
        overlay({"x": tensor("x"), "y.z": tensor("z")}, FILES)
    assert ("tensor", "model.a", "adds") in told(overlay({"model.a": tensor("a")}, FILES))
    state = LogicalState({"model.a": tensor("a")}, {})
    assert {effect.action for effect in overlay_effects("ft", {"a": tensor("a")}, {}, state)} == {"adds", "removes"}


def test_what_a_sibling_takes_back_is_named() -> None:
    first = overlay({**BASE, "a": tensor("a1"), "b": tensor("b1")}, FILES)
    state = LogicalState(dict(BASE), dict(FILES))
    state.apply("first", first)
    second = overlay({**BASE, "b": tensor("b2")}, FILES, ("first", first))
    assert put_back(second, state, BASE) == {"first": ("a",)}


def test_stacked_side_by_side_and_in_conflict() -> None:
    sft = overlay({**BASE, "a": tensor("a1"), "b": tensor("b1")}, FILES)
    dpo = overlay({**BASE, "a": tensor("a2"), "b": tensor("b1")}, FILES, ("sft", sft))
    apart = overlay({**BASE, "c": tensor("c1")}, FILES)
    other = overlay({**BASE, "a": tensor("a3")}, FILES)
    check_composition(BASE, FILES, [("sft", sft, 1.0), ("dpo", dpo, 1.0), ("apart", apart, 1.0)])
    check_composition({**BASE, "c": tensor("elsewhere")}, {}, [("sft", sft, 1.0)])
    with pytest.raises(OverlapError, match="'sft' and 'other' both write a"):
        check_composition(BASE, FILES, [("sft", sft, 1.0), ("other", other, 1.0)])
    with pytest.raises(WrongBaseError, match=r"'sft'.*: a"):
        check_composition({**BASE, "a": tensor("elsewhere")}, FILES, [("sft", sft, 1.0)])
    with pytest.raises(WeightRefusedError):
        check_composition(BASE, FILES, [("sft", sft, 0.5)])


def test_two_that_add_or_remove_one_thing_conflict() -> None:
    for one, other in (
        (overlay({**BASE, "d": tensor("d1")}, FILES), overlay({**BASE, "d": tensor("d2")}, FILES)),
        (overlay(BASE, {**FILES, "n": content("1")}), overlay(BASE, {**FILES, "n": content("2")})),
        (overlay({"a": BASE["a"]}, FILES), overlay({**BASE, "b": tensor("b1")}, FILES)),
        (overlay({"a": BASE["a"]}, FILES), overlay({"a": BASE["a"]}, FILES)),
    ):
        with pytest.raises(OverlapError):
            check_composition(BASE, FILES, [("one", one, 1.0), ("other", other, 1.0)])


def test_effects_that_the_files_do_not_bear_out_are_named() -> None:
    tensors = {"a": BASE["a"], "b": tensor("b1")}
    made = overlay(tensors, {"config.json": content("c2")})
    assert contradictions(made, tensors, {"config.json": content("c2")}) == ()
    assert contradictions(made, {**tensors, "c": BASE["c"]}, {"config.json": content("c2")}) == ("c",)
    assert contradictions(made, tensors, FILES) == ("config.json", "tokenizer.json")
    lora = replace(made, effects=(replace(made.effects[-1], action="modifies"),))
    assert contradictions(lora, tensors, {}) == (made.effects[-1].target,)
