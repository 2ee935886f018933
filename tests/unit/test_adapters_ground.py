"""Whether behaviors stand on what they were bound to."""

from __future__ import annotations

import pytest
from adapters_tiny import content

from rblstore.checkpoints.composition_ground import (
    OverlapError,
    StandsOnError,
    WeightRefusedError,
    WrongBaseError,
    check_composition,
    logical_state,
)
from rblstore.objects.content_records import Behavior, Effect, Form, Ground, StoredTensor
from rblstore.objects.ids import ContentId

BASE = {name: StoredTensor("F32", (2, 2), content(name)) for name in ("a.weight", "b.weight", "c.weight")}
FILES = {"config.json": content("config"), "tokenizer.json": content("tokenizer")}


def value(text: str) -> StoredTensor:
    return StoredTensor("F32", (2, 2), content(text))


def modifies(name: str, on: StoredTensor) -> Effect:
    return Effect("tensor", name, "modifies", Ground.tensor(name, on), None)


def replaces(name: str, on: StoredTensor, by: StoredTensor) -> Effect:
    return Effect("tensor", name, "replaces", Ground.tensor(name, on), Ground.tensor(name, by))


def adds(name: str, tensor: StoredTensor) -> Effect:
    return Effect("tensor", name, "adds", None, Ground.tensor(name, tensor))


def removes(name: str, on: StoredTensor) -> Effect:
    return Effect("tensor", name, "removes", Ground.tensor(name, on), None)


def file_replaced(path: str, by: ContentId) -> Effect:
    return Effect("file", path, "replaces", Ground("file", path, FILES[path]), Ground("file", path, by))


def behavior(*effects: Effect, form: Form = "adapter", ground: tuple[Ground, ...] = ()) -> Behavior:
    return Behavior(form, (), tuple(sorted(effects, key=lambda effect: (effect.on, effect.target))), ground)


def check(*slots: tuple[str, Behavior], removed: tuple[tuple[str, Behavior], ...] = ()) -> None:
    check_composition(BASE, FILES, [(name, record, 1.0) for name, record in slots], removed=removed)


LORA = behavior(modifies("a.weight", BASE["a.weight"]))
SFT = behavior(replaces("a.weight", BASE["a.weight"], value("sft")), form="overlay")
DPO = behavior(replaces("a.weight", value("sft"), value("dpo")), form="overlay")
ON_SFT = behavior(modifies("a.weight", value("sft")))
PROMPT = behavior(ground=(Ground("file", "tokenizer.json", FILES["tokenizer.json"]),))


def test_the_state_is_what_lies_there() -> None:
    state = logical_state(
        BASE,
        FILES,
        [
            ("sft", SFT),
            ("more", behavior(adds("d.weight", value("d")), removes("b.weight", BASE["b.weight"]), form="overlay")),
            ("files", behavior(file_replaced("config.json", content("new")), form="overlay")),
            ("lora", LORA),
        ],
    )
    assert state.tensors == {"a.weight": value("sft"), "c.weight": BASE["c.weight"], "d.weight": value("d")}
    assert state.files == {**FILES, "config.json": content("new")}
    assert state.writers[("tensor", "a.weight")] == "sft"
    assert ("tensor", "c.weight") not in state.writers
    assert "d.weight" not in BASE


def test_additive_adapters_commute() -> None:
    other = behavior(modifies("a.weight", BASE["a.weight"]), modifies("b.weight", BASE["b.weight"]))
    check(("x", LORA), ("y", other))
    check(("y", other), ("x", LORA))


def test_another_base_is_named() -> None:
    wrong = behavior(modifies("a.weight", value("other")), modifies("b.weight", BASE["b.weight"]))
    with pytest.raises(WrongBaseError, match=r"'x'.*: a.weight$") as caught:
        check(("x", wrong))
    assert caught.value.code == "wrong_base"
    assert caught.value.object == "x"


def test_many_tensors_are_counted() -> None:
    wrong = behavior(*(modifies(f"t{at}", value("x")) for at in range(9)))
    with pytest.raises(WrongBaseError, match="t0, t1, t2, t3, t4 and 4 more"):
        check(("x", wrong))


def test_the_same_content_in_another_shape_is_another_tensor() -> None:
    reshaped = StoredTensor("F32", (4, 1), BASE["a.weight"].content)
    with pytest.raises(WrongBaseError):
        check(("x", behavior(modifies("a.weight", reshaped))))


def test_overlays_stack() -> None:
    check(("sft", SFT), ("dpo", DPO), ("lora", behavior(modifies("a.weight", value("dpo")))))


def test_an_adapter_on_the_base_does_not_stand_on_an_overlay() -> None:
    with pytest.raises(WrongBaseError, match=r"'lora' does not stand on what 'sft' writes: a.weight"):
        check(("sft", SFT), ("lora", LORA))


def test_an_overlay_may_not_pull_the_ground_away() -> None:
    with pytest.raises(StandsOnError, match=r"'sft' writes what 'lora' stands on: a.weight") as caught:
        check(("lora", LORA), ("sft", SFT))
    assert caught.value.object == "lora"


def test_an_overlay_elsewhere_may_come_after() -> None:
    check(("lora", LORA), ("o", behavior(replaces("b.weight", BASE["b.weight"], value("b2")), form="overlay")))


def test_two_that_write_one_tensor() -> None:
    with pytest.raises(OverlapError, match=r"'sft' and 'other' both write a.weight"):
        check(("sft", SFT), ("other", behavior(replaces("a.weight", BASE["a.weight"], value("y")), form="overlay")))
    head = behavior(adds("head.weight", value("h")))
    with pytest.raises(OverlapError, match=r"'one' and 'two' both write head.weight"):
        check(("one", head), ("two", behavior(adds("head.weight", value("g")))))


def test_nothing_may_lie_where_one_adds() -> None:
    with pytest.raises(WrongBaseError, match=r"a.weight"):
        check(("x", behavior(adds("a.weight", value("h")))))


def test_removing_what_another_stands_on() -> None:
    with pytest.raises(StandsOnError, match=r"'lora' stands on what 'sft' wrote: a.weight") as caught:
        check(("lora", ON_SFT), removed=(("sft", SFT),))
    assert caught.value.object == "sft"
    assert "lora" in (caught.value.hint or "")
    with pytest.raises(WrongBaseError):
        check(("lora", ON_SFT))


def test_replacing_what_another_stands_on() -> None:
    changed = behavior(replaces("a.weight", BASE["a.weight"], value("sft2")), form="overlay")
    with pytest.raises(StandsOnError, match="'lora' stands on what 'sft' wrote"):
        check(("sft", changed), ("lora", ON_SFT), removed=(("sft", SFT),))


def test_the_wrong_order_is_said() -> None:
    with pytest.raises(WrongBaseError, match="which comes after it") as caught:
        check(("dpo", DPO), ("sft", SFT))
    assert caught.value.hint == "Put 'sft' before 'dpo'."


def test_an_overlay_that_removes() -> None:
    gone = behavior(removes("b.weight", BASE["b.weight"]), form="overlay")
    check(("gone", gone), ("new", behavior(adds("b.weight", value("n")))))
    with pytest.raises(WrongBaseError, match="'lora' does not stand on what 'gone' writes"):
        check(("gone", gone), ("lora", behavior(modifies("b.weight", BASE["b.weight"]))))


def test_files_are_ground_too() -> None:
    check(("p", PROMPT))
    tokenizer = behavior(file_replaced("tokenizer.json", content("new")), form="overlay")
    with pytest.raises(WrongBaseError, match=r"tokenizer.json"):
        check(("t", tokenizer), ("p", PROMPT))
    with pytest.raises(StandsOnError, match="'t' writes what 'p' stands on"):
        check(("p", PROMPT), ("t", tokenizer))


def test_weights_scale_only_what_adds() -> None:
    check_composition(BASE, FILES, [("x", LORA, 0.5)])
    for record in (SFT, PROMPT, behavior(adds("h", value("h")), modifies("a.weight", BASE["a.weight"]))):
        with pytest.raises(WeightRefusedError) as caught:
            check_composition(BASE, FILES, [("x", record, 0.5)])
        assert caught.value.exit_code == 2
