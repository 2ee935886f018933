"""Measuring tiny models of every kind: shapes, bits, modes, alignment, and outputs as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from rblstore.divergence.measure import (
    BadValuesError,
    PromptMeasurement,
    UnmeasurableModelError,
    aligned,
    context_of,
    dtype_name,
    measure,
    tensor_from_bytes,
    values_bytes,
    values_digest,
    vocabulary_of,
)
from rblstore.divergence.metrics import NanOutputError
from rblstore.divergence.probe_file import RawPrompt
from rblstore.divergence.probes import make_probe
from rblstore.objects.evidence_records import Probe

VOCABULARY = 32
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def probe_of(*lengths: int, positions: str = "all", batches: tuple[tuple[int, ...], ...] | None = None) -> Probe:
    raw = [
        RawPrompt(f"p{n:02d}", tokens=tuple(3 + (n + k) % 25 for k in range(size))) for n, size in enumerate(lengths)
    ]
    probe = make_probe(raw, None, None, positions)  # type: ignore[arg-type]
    return probe if batches is None else replace(probe, batches=batches)


def gpt2(kind: type = transformers.GPT2LMHeadModel, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32, "initializer_range": 0.5}
    return kind(transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **SPECIAL, **options))


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, **sizes, **SPECIAL, initializer_range=0.5)
    return transformers.LlamaForCausalLM(config)


def bert(kind: type, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return kind(transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes, **options))


def t5(kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return kind(transformers.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes))


def rows(model: torch.nn.Module, tokens: tuple[int, ...], **options: object) -> torch.Tensor:
    """What a plain call gives, as a user would make it."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), **options).logits[0]


@pytest.mark.parametrize(
    ("make", "shapes", "output"),
    [
        (gpt2, [(4, 32), (6, 32)], "logits"),
        (llama, [(4, 32), (6, 32)], "logits"),
        (lambda: bert(transformers.BertForMaskedLM), [(4, 32), (6, 32)], "logits"),
        (lambda: bert(transformers.BertForPreTraining), [(4, 32), (6, 32)], "logits"),
        (lambda: bert(transformers.BertForTokenClassification, num_labels=5), [(4, 5), (6, 5)], "logits"),
        (lambda: bert(transformers.BertForSequenceClassification, num_labels=3), [(1, 3), (1, 3)], "logits"),
        (lambda: gpt2(transformers.GPT2ForSequenceClassification, num_labels=3), [(1, 3), (1, 3)], "logits"),
        (lambda: bert(transformers.BertForSequenceClassification, num_labels=1), [(1, 1), (1, 1)], "embedding"),
        (
            lambda: bert(
                transformers.BertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"
            ),
            [(1, 3), (1, 3)],
            "embedding",
        ),
        (lambda: bert(transformers.BertModel), [(4, 16), (6, 16)], "embedding"),
        (lambda: gpt2(transformers.GPT2Model), [(4, 16), (6, 16)], "embedding"),
        (lambda: t5(transformers.T5ForConditionalGeneration), [(1, 32), (1, 32)], "logits"),
        (lambda: t5(transformers.T5Model), [(1, 16), (1, 16)], "embedding"),
        (lambda: t5(transformers.T5EncoderModel), [(4, 16), (6, 16)], "embedding"),
        (lambda: torch.nn.Embedding(VOCABULARY, 7), [(4, 7), (6, 7)], "logits"),
    ],
)
def test_every_kind_of_model_is_measured_twice_alike(
    make: Callable[[], torch.nn.Module], shapes: list[tuple[int, int]], output: str
) -> None:
    model, probe = make(), probe_of(4, 6)
    first, second = list(measure(model, probe)), list(measure(model, probe))
    assert [found.id for found in first] == ["p00", "p01"]
    assert [found.shape for found in first] == shapes
    assert {found.output for found in first} == {output}
    assert [values_digest(found.values) for found in first] == [values_digest(found.values) for found in second]
    assert values_digest(first[0].values) != values_digest(first[1].values)
    last = list(measure(model, probe_of(4, 6, positions="last")))
    assert [found.shape for found in last] == [(1, shapes[0][1])] * 2
    for one, whole in zip(last, first, strict=True):
        torch.testing.assert_close(one.values[0], whole.values[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_are_the_models_own_in_its_own_dtype(dtype: torch.dtype) -> None:
    model, probe = llama().to(dtype), probe_of(5)
    (found,) = measure(model, probe)
    assert found.values.dtype == dtype
    assert found.values.is_contiguous()
    assert torch.equal(found.values, rows(model, probe.prompts[0].tokens))
    assert found.dtype == {2: "BF16" if dtype == torch.bfloat16 else "F16", 4: "F32", 8: "F64"}[dtype.itemsize]


def test_seq2seq_gives_the_row_of_the_start_token() -> None:
    model, probe = t5(transformers.T5ForConditionalGeneration), probe_of(5)
    (found,) = measure(model, probe)
    expected = rows(model, probe.prompts[0].tokens, decoder_input_ids=torch.tensor([[0]]))
    assert torch.equal(found.values, expected)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(UnmeasurableModelError, match="decoder"):
        list(measure(model, probe))


@pytest.mark.parametrize("make", [gpt2, llama, lambda: bert(transformers.BertForMaskedLM)])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_padded_batches_give_the_same_rows_in_the_probes_order(
    make: Callable[[], torch.nn.Module], positions: str
) -> None:
    model = make()
    alone = list(measure(model, probe_of(4, 7, 2, positions=positions)))
    together = list(measure(model, probe_of(4, 7, 2, positions=positions, batches=((2, 1), (0,)))))
    assert [found.id for found in together] == ["p00", "p01", "p02"]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.values, other.values)
        assert other.values.untyped_storage().nbytes() == other.values.numel() * other.values.element_size()


def test_sequence_classifiers_are_measured_in_batches() -> None:
    model = gpt2(transformers.GPT2ForSequenceClassification, num_labels=3)
    alone, together = list(measure(model, probe_of(4, 7))), list(measure(model, probe_of(4, 7, batches=((0, 1),))))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.values, other.values)


def test_adapters_count_and_taking_them_out_gives_the_bits_back() -> None:
    model, probe = gpt2(), probe_of(4, 6)
    before = [values_digest(found.values) for found in measure(model, probe)]
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], init_lora_weights=False)
    )
    during = [values_digest(found.values) for found in measure(adapted, probe)]
    after = [values_digest(found.values) for found in measure(adapted.unload(), probe)]
    assert after == before
    assert during[0] != before[0]
    assert vocabulary_of(adapted) == VOCABULARY
    assert context_of(adapted) == 32


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.parametrize("batches", [None, ((0, 1),)])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_virtual_tokens_have_no_rows(config: type, batches: tuple[tuple[int, ...], ...] | None, positions: str) -> None:
    torch.manual_seed(1)
    model = get_peft_model(gpt2(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    probe = probe_of(4, 6, positions=positions, batches=batches)
    found = list(measure(model, probe))
    for measured, prompt in zip(found, probe.prompts, strict=True):
        expected = rows(model, prompt.tokens)[-len(prompt.tokens) :]
        torch.testing.assert_close(measured.values, expected if positions == "all" else expected[-1:])


@pytest.mark.parametrize(("positions", "computed"), [("all", 6), ("last", 1)])
def test_only_the_wanted_rows_are_computed(positions: str, computed: int) -> None:
    model, seen = llama(), []
    model.register_forward_hook(lambda module, arguments, result: seen.append(result))
    list(measure(model, probe_of(6, positions=positions)))
    assert seen[0].logits.shape[1] == computed
    assert seen[0].past_key_values is None


def test_modes_gradients_and_autocast_are_as_they_were() -> None:
    model, probe = gpt2(), probe_of(4, 6)
    model.train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    plain = [values_digest(found.values) for found in measure(model, probe)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = []
        for measurement in measure(model, probe):
            assert [module.training for module in model.modules()] == modes
            assert torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
            found.append(values_digest(measurement.values))
    assert found == plain


def test_what_a_module_keeps_from_a_measurement_can_still_be_trained_with() -> None:
    class Caching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))
            self.cached: torch.Tensor | None = None

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            if self.cached is None:
                self.cached = torch.arange(4.0)
            return (self.weight * self.cached).expand(1, input_ids.shape[1], 4)

    model = Caching()
    list(measure(model, probe_of(3)))
    model(torch.tensor([[1, 2]])).sum().backward()
    assert model.weight.grad is not None


def test_a_failing_forward_pass_names_the_prompt_and_restores_the_modes() -> None:
    model = gpt2().train()
    with pytest.raises(UnmeasurableModelError, match=r"prompt 'p01': the model's forward pass failed") as caught:
        list(measure(model, probe_of(4, 40)))
    assert (caught.value.object, caught.value.code) == ("p01", "unmeasurable_model")
    assert model.training


def test_nan_is_refused_by_prompt() -> None:
    model = gpt2(tie_word_embeddings=False)
    with torch.no_grad():
        model.transformer.wte.weight[3 + 7] = torch.nan
    measured = measure(model, probe_of(4, 8))
    assert next(measured).id == "p00"
    with pytest.raises(NanOutputError, match="prompt 'p01'") as caught:
        next(measured)
    assert (caught.value.object, caught.value.code) == ("p01", "nan_output")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_distribution_are_refused(bad: float) -> None:
    model = torch.nn.Embedding(VOCABULARY, 4)
    with torch.no_grad():
        model.weight[4, 1] = bad
    with pytest.raises(NanOutputError, match="prompt 'p00'"):
        list(measure(model, probe_of(3)))


def test_hidden_states_with_nan_are_refused_and_infinity_is_not() -> None:
    class Encoder(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(last_hidden_state=torch.full((1, input_ids.shape[1], 2), self.value))

    with pytest.raises(NanOutputError, match="prompt 'p00'"):
        list(measure(Encoder(torch.nan), probe_of(3)))
    assert next(measure(Encoder(torch.inf), probe_of(3))).output == "embedding"


@pytest.mark.parametrize(
    "result",
    [
        None,
        SimpleNamespace(logits=None),
        torch.zeros(3),
        torch.zeros(1, 2, 5),
        torch.zeros(1, 3, 5, dtype=torch.long),
        SimpleNamespace(start_logits=torch.zeros(1, 3)),
    ],
)
def test_outputs_of_no_known_kind_are_refused(result: object) -> None:
    class Odd(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> object:
            return result

    with pytest.raises(UnmeasurableModelError):
        list(measure(Odd(), probe_of(3)))


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values at an address that is no multiple of 64."""
    room = torch.empty(tensor.numel() + 128, dtype=tensor.dtype)
    offset = next(start for start in range(1, 65) if room[start:].data_ptr() % 64)
    moved = room[offset : offset + tensor.numel()].view(tensor.shape)
    moved.copy_(tensor.detach())
    assert moved.data_ptr() % 64
    return moved


def test_aligned_moves_tensors_and_keeps_values_objects_and_ties() -> None:
    model = gpt2()
    model.register_buffer("table", misaligned(torch.arange(5.0)))
    values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data = misaligned(parameter)
    kept = dict(model.named_parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert aligned(model) is model
    assert all(tensor.data_ptr() % 64 == 0 for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter is kept[name] for name, parameter in model.named_parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name])
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    aligned(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses


def test_aligned_keeps_views_of_one_memory_together() -> None:
    model = torch.nn.Module()
    shared = misaligned(torch.arange(12.0).view(3, 4))
    model.first, model.second = torch.nn.Parameter(shared), torch.nn.Parameter(shared)
    model.overlapping = torch.nn.Parameter(misaligned(torch.arange(8.0)))
    model.part = torch.nn.Parameter(model.overlapping.data[2:6])
    aligned(model)
    assert model.first.data_ptr() % 64 == 0
    with torch.no_grad():
        model.first[0, 0] = 99.0
        model.overlapping[2] = 77.0
    assert model.second[0, 0].item() == 99.0
    assert model.part[0].item() == 77.0


def test_aligned_leaves_strides_and_tensors_without_memory_alone() -> None:
    model = torch.nn.Module()
    model.transposed = torch.nn.Parameter(misaligned(torch.arange(12.0).view(3, 4)).T)
    model.empty = torch.nn.Parameter(torch.empty(0))
    model.meta = torch.nn.Parameter(torch.empty(3, device="meta"))
    aligned(model)
    assert model.transposed.stride() == (1, 4)
    assert model.transposed.data_ptr() % 64 == 0
    assert torch.equal(model.transposed.detach(), torch.arange(12.0).view(3, 4).T)


def test_a_measured_model_is_aligned_so_where_it_came_from_does_not_matter() -> None:
    copied, mapped, probe = llama(), llama(), probe_of(5)
    for parameter in mapped.parameters():
        parameter.data = misaligned(parameter)
    digests = [values_digest(next(measure(model, probe)).values) for model in (copied, mapped)]
    assert digests[0] == digests[1]
    assert all(parameter.data_ptr() % 64 == 0 for parameter in mapped.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    values[0, 0], values[0, 1], values[0, 2] = -0.0, torch.nan, -torch.inf
    data = bytes(values_bytes(values))
    assert len(data) == 15 * dtype.itemsize
    assert values_digest(values) == hashlib.sha256(data).hexdigest()
    back = tensor_from_bytes(memoryview(data), dtype_name(values), (3, 5))
    assert (back.dtype, tuple(back.shape)) == (dtype, (3, 5))
    assert bytes(values_bytes(back)) == data
    back[0, 0] = 1.0
    assert bytes(values_bytes(values)) == data


def test_bytes_are_little_endian_and_row_major_whatever_the_strides() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, -0.5]])
    assert bytes(values_bytes(values)) == np.array([1, 2, 3, -0.5], dtype="<f4").tobytes()
    assert bytes(values_bytes(values.T)) == np.array([1, 3, 2, -0.5], dtype="<f4").tobytes()
    assert bytes(values_bytes(torch.tensor(1.0, dtype=torch.bfloat16))) == b"\x80\x3f"
    assert tensor_from_bytes(b"", "F32", (0, 7)).shape == (0, 7)
    with pytest.raises(TypeError):
        values_bytes(values)[0] = 1


@pytest.mark.parametrize(
    ("size", "dtype", "shape"), [(7, "F32", (2,)), (9, "F32", (2,)), (8, "I64", (1,)), (8, "x" * 99, (1,))]
)
def test_bytes_of_another_size_or_type_are_refused(size: int, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadValuesError) as caught:
        tensor_from_bytes(b"\0" * size, dtype, shape)
    assert caught.value.code == "bad_values"


def test_limits_are_none_where_nothing_says_so() -> None:
    assert vocabulary_of(torch.nn.Linear(2, 2)) is None
    assert context_of(torch.nn.Linear(2, 2)) is None
    assert context_of(t5(transformers.T5Model)) is None
    assert isinstance(next(measure(gpt2(), probe_of(2))), PromptMeasurement)
