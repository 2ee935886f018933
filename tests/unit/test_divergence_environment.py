"""What a baseline records about where it was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from rblstore.divergence.environment import current_environment, environment_differences
from rblstore.divergence.probe_file import RawPrompt
from rblstore.divergence.probes import make_probe

PROBE = make_probe([RawPrompt("a", tokens=(1, 2)), RawPrompt("b", tokens=(3,))], None, None)


def model(attention: str = "eager") -> torch.nn.Module:
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8, attn_implementation=attention, eos_token_id=0,
        bos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def test_names_what_decides_the_bits() -> None:
    found = current_environment(model(), PROBE)
    assert found["device"] == "cpu"
    assert found["dtype"] == "float32"
    assert found["attention"] == "eager"
    assert found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
    assert found["threads"] == str(torch.get_num_threads())
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["deterministic"] == "off"
    assert {"peft", "machine", "matmul_precision", "mkldnn", "mkldnn_deterministic", "sdp", "batch_plan"} <= set(found)
    assert list(found) == sorted(found)
    assert all(type(value) is str and value for value in found.values())


def test_is_the_same_twice_and_for_an_adapted_model() -> None:
    base = model().to(torch.bfloat16)
    before = current_environment(base, PROBE)
    assert before["dtype"] == "bfloat16"
    adapted = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=1, fan_in_fan_out=True)
    )
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16, torch.float32}
    assert current_environment(adapted, PROBE) == before


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("attention", lambda: current_environment(model("sdpa"), PROBE)),
        ("dtype", lambda: current_environment(model().double(), PROBE)),
        ("batch_plan", lambda: current_environment(model(), replace(PROBE, batches=((0, 1),)))),
        ("batch_plan", lambda: current_environment(model(), replace(PROBE, positions="last"))),
    ],
)
def test_what_differs_is_named_alone(name: str, changed: object) -> None:
    before = current_environment(model(), PROBE)
    after = changed()  # type: ignore[operator]
    assert environment_differences(before, after) == {name: (before[name], after[name])}


def test_settings_of_the_process_count() -> None:
    before = current_environment(model(), PROBE)
    torch.use_deterministic_algorithms(True)
    try:
        differences = environment_differences(before, current_environment(model(), PROBE))
    finally:
        torch.use_deterministic_algorithms(False)
    assert differences == {"deterministic": ("off", "on")}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        differences = environment_differences(before, current_environment(model(), PROBE))
    finally:
        torch.set_num_threads(threads)
    assert differences == {"threads": (str(threads), str(threads + 1))}


@pytest.mark.parametrize(("many", "few"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_the_dtype_is_that_of_most_elements(many: torch.dtype, few: torch.dtype) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(9, 9, dtype=many), *(torch.nn.Linear(1, 1, dtype=few) for _ in "abc"))
    assert current_environment(layers, PROBE)["dtype"] == str(many).removeprefix("torch.")


def test_a_value_that_one_lacks_is_none() -> None:
    assert environment_differences({"a": "1", "b": "2"}, {"a": "1", "c": "3"}) == {"b": ("2", None), "c": (None, "3")}


def test_modules_without_parameters_or_config_have_one() -> None:
    found = current_environment(torch.nn.Identity(), PROBE)
    assert (found["device"], found["dtype"], found["attention"]) == ("cpu", "none", "none")
