"""Merging plain LoRA in numpy, against peft's own merge in fp32 and double precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from adapters_tiny import BOTH, Adapter, Zoo, attach, bert, difference, gpt2, is_close, llama, tied_llama
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rblstore.checkpoints.adapter_config import parse_adapter_config
from rblstore.checkpoints.merging import (
    CannotMergeError,
    bf16_to_fp32,
    can_merge_plain,
    fp32_to_bf16,
    lora_scaling,
    merge_block,
    merge_tensor,
    oriented,
    plan_plain_merge,
    read_floats,
    write_floats,
)
from rblstore.errors import InputError, RblError
from rblstore.objects.content_records import StoredTensor

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


def lora(target: Any = BOTH, **arguments: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": target, **arguments})


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def merged(
    zoo: Zoo, make: Callable[[], Any], adapters: list[Adapter], *, dtype: str = "F32", rows: int = 7
) -> dict[str, torch.Tensor]:
    """Every tensor that the adapters change, merged by our code."""
    base = {name: tensor.to(DTYPES[dtype]) for name, tensor in load_file(zoo.base_file(make)).items()}
    deltas: dict[str, list[Any]] = {}
    for adapter in adapters:
        values = {name: tensor.float().numpy() for name, tensor in load_file(adapter.file).items()}
        for delta in plan_plain_merge(adapter.config, adapter.tensors, zoo.base(make)):
            first, second = oriented(values[delta.first], values[delta.second], swapped=delta.swapped)
            deltas.setdefault(delta.target, []).append((first, second, delta.scale))
    found = {}
    for name, parts in deltas.items():
        tensor = base[name]
        data = raw(tensor)
        width = len(data) // tensor.shape[0]

        def read(start: int, count: int, data: bytes = data, width: int = width) -> bytes:
            return data[start * width : (start + count) * width]

        out = b"".join(merge_tensor(read, dtype, tuple(tensor.shape), parts, rows))
        found[name] = torch.frombuffer(bytearray(out), dtype=DTYPES[dtype]).reshape(tensor.shape)
    return found


def exact(zoo: Zoo, make: Callable[[], Any], adapters: list[Adapter], *, dtype: str) -> dict[str, torch.Tensor]:
    """The same by peft's own deltas, in double precision, not rounded."""
    base = load_file(zoo.base_file(make))
    model = attach(lambda: make().double(), adapters)
    found = {}
    for module_name, module in model.base_model.model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        name = f"{module_name}.weight"
        total = base[name].to(DTYPES[dtype]).double()
        for slot in [f"slot{at}" for at in range(len(adapters))]:
            if slot in {**module.lora_A, **module.lora_embedding_A}:
                total = total + module.get_delta_weight(slot).double()
        found[name] = total.detach()
    return found


CASES: dict[str, tuple[Callable[[], Any], Callable[[], list[Any]]]] = {
    "one": (llama, lambda: [lora()]),
    "three in order": (llama, lambda: [lora(), lora(["q_proj"], r=2), lora(["k_proj", "down_proj"], lora_alpha=3)]),
    "rslora": (llama, lambda: [lora(use_rslora=True)]),
    "ranks and alphas by layer": (
        llama,
        lambda: [lora(rank_pattern={"q_proj": 3, "mlp.down_proj": 5}, alpha_pattern={"down_proj": 11})],
    ),
    "conv1d": (gpt2, lambda: [lora(["c_attn", "c_proj"]), lora(["c_fc", "c_proj"])]),
    "untied embeddings": (llama, lambda: [lora(["embed_tokens", "lm_head", "q_proj"])]),
    "an encoder": (bert, lambda: [lora(["query", "dense"])]),
}


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("case", list(CASES))
def test_merges_as_peft_does(zoo: Zoo, case: str, dtype: str) -> None:
    make, configs = CASES[case]
    adapters = [zoo.make(make, config, seed=at) for at, config in enumerate(configs())]
    for adapter in adapters:
        assert can_merge_plain(adapter.config, zoo.bind(make, adapter))
    ours, wanted = merged(zoo, make, adapters, dtype=dtype), exact(zoo, make, adapters, dtype=dtype)
    assert set(ours) == set(wanted)
    for name, value in wanted.items():
        if dtype in ("F32", "F64"):
            # peft keeps adapters in fp32, so even its double sums carry fp32 scales.
            assert difference(ours[name].double(), value) < 2e-7
        else:
            once = value.to(DTYPES[dtype])
            # Rounded once: the nearest value, or its neighbour where the fp32 sum fell on the other side of a tie.
            steps = (bits(ours[name]) - bits(once)).abs()
            assert int(steps.max()) <= 1
            assert float((steps > 0).double().mean()) < 0.01


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The order of a 16-bit float among all, so that neighbours differ by one."""
    whole = tensor.view(torch.int16).to(torch.int32)
    return torch.where(whole < 0, -32768 - whole, whole)


def test_fp32_matches_pefts_merge_and_unload(zoo: Zoo) -> None:
    adapters = [zoo.make(llama, lora(), seed=1), zoo.make(llama, lora(["q_proj"]), seed=2)]
    theirs = attach(llama, adapters).merge_and_unload().state_dict()
    for name, value in merged(zoo, llama, adapters).items():
        assert difference(value, theirs[name]) <= 3e-8


def test_rounding_once_is_closer_than_pefts_rounding_of_each(zoo: Zoo) -> None:
    adapters = [zoo.make(llama, lora(), seed=at) for at in range(4)]
    wanted = exact(zoo, llama, adapters, dtype="BF16")
    ours = merged(zoo, llama, adapters, dtype="BF16")
    theirs = attach(lambda: llama().to(torch.bfloat16), adapters).merge_and_unload().state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    mine, others = ((one[name].double() - wanted[name]).abs().sum() for one in (ours, theirs))
    assert mine < others


@pytest.mark.parametrize("rows", [1, 3, 32, 1000, None])
def test_blocks_do_not_change_the_bytes(rows: int | None) -> None:
    generator = np.random.default_rng(0)
    base = generator.standard_normal((32, 5)).astype("<f4")
    parts = [(generator.standard_normal((2, 5)).astype("f4"), generator.standard_normal((32, 2)).astype("f4"), 0.5)]
    sizes = []

    def read(start: int, count: int) -> bytes:
        sizes.append(count)
        return base[start : start + count].tobytes()

    out = np.frombuffer(b"".join(merge_tensor(read, "F32", (32, 5), parts, rows)), "<f4").reshape(32, 5)
    np.testing.assert_allclose(out, base + 0.5 * (parts[0][1] @ parts[0][0]), rtol=0, atol=1e-6)
    assert sum(sizes) == 32
    assert max(sizes) <= (rows or 32)


def test_a_convolution_is_merged_as_its_flattened_rows() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), LoraConfig(r=2, target_modules=["0"]))
    layer = model.base_model.model[0]
    layer.lora_B["default"].weight.data += 0.1
    first = layer.lora_A["default"].weight.detach().numpy()
    second = layer.lora_B["default"].weight.detach().numpy()
    data = raw(layer.base_layer.weight.detach())
    parts = [(*oriented(first, second, swapped=False), layer.scaling["default"])]
    out = b"".join(
        merge_tensor(lambda start, count: data[start * 108 : (start + count) * 108], "F32", (8, 3, 3, 3), parts)
    )
    wanted = layer.base_layer.weight + layer.get_delta_weight("default")
    assert difference(torch.frombuffer(bytearray(out), dtype=torch.float32).reshape(8, 3, 3, 3), wanted) < 1e-7


def test_bf16_rounds_as_torch_does_for_every_half() -> None:
    highs = np.arange(0, 1 << 16, dtype=np.uint32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (highs | np.uint32(low)).view(np.float32)
        ours = fp32_to_bf16(values)
        theirs = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        numbers = ~np.isnan(values)
        assert np.array_equal(ours[numbers], theirs[numbers])
        assert np.isnan(bf16_to_fp32(ours[~numbers])).all()


def test_bf16_comes_back_bit_for_bit() -> None:
    every = np.arange(0, 1 << 16, dtype=np.uint32).astype(np.uint16)
    back = fp32_to_bf16(bf16_to_fp32(every))
    signaling = (every & 0x7F80 == 0x7F80) & (every & 0x7F != 0) & (every & 0x40 == 0)
    assert np.array_equal(back[~signaling], every[~signaling])
    assert np.array_equal(back[signaling], every[signaling] | 0x40)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_floats_come_back(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    for dtype in ("F32", "F64"):
        data = write_floats(array, dtype)
        assert np.array_equal(read_floats(data, dtype, (len(values),)).astype(np.float32), array)


def test_f64_is_summed_in_f64() -> None:
    base = np.full((1, 1), 1.0, dtype=np.float64)
    first, second = np.full((1, 1), 1e-9, dtype=np.float32), np.ones((1, 1), dtype=np.float32)
    assert merge_block(base, [(first, second, 1.0)])[0, 0] > 1.0
    assert base[0, 0] == 1.0


@pytest.mark.parametrize(
    ("members", "module", "scale"),
    [
        ({"r": 8, "lora_alpha": 16}, "a.q_proj", 2.0),
        ({"r": 16, "lora_alpha": 8, "use_rslora": True}, "a.q_proj", 2.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4}}, "a.q_proj", 4.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4}}, "a.xq_proj", 2.0),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"layers.1.q": 4}}, "m.layers.1.q", 0.5),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {r".*\.1\.q": 4}}, "m.layers.1.q", 0.5),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"^m.q": 4}}, "m.q", 0.5),
    ],
)
def test_scaling(members: dict[str, Any], module: str, scale: float) -> None:
    config = parse_adapter_config(json.dumps({"peft_type": "LORA", **members}).encode())
    assert is_close(lora_scaling(config, module), scale)
    assert is_close(lora_scaling(config, module, -0.25), -0.25 * scale)


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*.*.*q", "(q|q)*", "a" * 300, "[", "*"])
def test_patterns_that_could_run_for_ever_are_not_run(pattern: str) -> None:
    members = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "rank_pattern": {pattern: 4}}
    config = parse_adapter_config(json.dumps(members).encode())
    with pytest.raises(RblError):
        lora_scaling(config, "a" * 1000 + "!")


def test_what_is_not_plain(zoo: Zoo) -> None:
    from peft import IA3Config

    for make, config in (
        (llama, lora(use_dora=True)),
        (llama, lora(["q_proj"], modules_to_save=["lm_head"])),
        (llama, lora(["q_proj"], trainable_token_indices=[1])),
        (llama, lora(init_lora_weights="olora")),
        (llama, lora([], target_parameters=["q_proj.weight"])),
        (llama, IA3Config(target_modules=BOTH, feedforward_modules=["down_proj"])),
        (bert, lora(["query"], bias="lora_only")),
        (gpt2, lora(["c_attn"], lora_bias=True)),
    ):
        adapter = zoo.make(make, config)
        assert not can_merge_plain(adapter.config, zoo.bind(make, adapter))


def test_a_tied_embedding_is_not_merged(zoo: Zoo) -> None:
    for target in ("lm_head", "embed_tokens"):
        adapter = zoo.make(tied_llama, lora([target, "q_proj"]))
        with pytest.raises(CannotMergeError, match=r"model.embed_tokens.weight"):
            plan_plain_merge(adapter.config, adapter.tensors, zoo.base(tied_llama))


def test_square_weights_need_evidence(zoo: Zoo) -> None:
    """peft sets fan_in_fan_out anew at every module; a config that the other weights contradict tells nothing."""
    adapter = zoo.make(gpt2, lora(["attn.c_proj", "c_attn"]))
    said = json.loads((adapter.directory / "adapter_config.json").read_text())
    plan = {delta.target: delta.swapped for delta in plan_plain_merge(adapter.config, adapter.tensors, zoo.base(gpt2))}
    assert plan == {"transformer.h.0.attn.c_attn.weight": True, "transformer.h.0.attn.c_proj.weight": True}
    said["fan_in_fan_out"] = False
    with pytest.raises(CannotMergeError, match="c_proj"):
        plan_plain_merge(parse_adapter_config(json.dumps(said).encode()), adapter.tensors, zoo.base(gpt2))


def test_types_that_are_not_summed(zoo: Zoo) -> None:
    adapter = zoo.make(llama, lora())
    base = {name: StoredTensor("F8_E4M3", tensor.shape, tensor.content) for name, tensor in zoo.base(llama).items()}
    with pytest.raises(CannotMergeError, match="F8_E4M3"):
        plan_plain_merge(adapter.config, adapter.tensors, base)
    with pytest.raises(CannotMergeError):
        read_floats(b"\0", "I8", (1,))


def test_a_reader_that_lies_and_factors_that_do_not_fit() -> None:
    first, second = np.zeros((1, 4), dtype=np.float32), np.zeros((4, 1), dtype=np.float32)
    with pytest.raises(InputError):
        list(merge_tensor(lambda start, count: b"", "F32", (4, 4), [(first, second, 1.0)]))
    with pytest.raises(CannotMergeError):
        list(merge_tensor(lambda start, count: bytes(64), "F32", (4, 4), [(first, second[:3], 1.0)]))
