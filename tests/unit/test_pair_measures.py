"""Every measure against numpy, written as its definition says; and the edge cases of docs/measures.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_models
import torch

from rblstore.divergence import blocks, metrics
from rblstore.divergence import pair_measures as pair_measures_module
from rblstore.divergence.embeddings import embedding_measures
from rblstore.divergence.measure import PromptMeasurement, measure
from rblstore.divergence.metrics import (
    NanOutputError,
    PositionsMismatchError,
    VocabularyMismatchError,
    divergences,
    entropy,
)
from rblstore.divergence.pair_measures import MEASURES, measure_prompt, pair_measures, top_agreement
from rblstore.objects.evidence_records import Probe, Prompt

INF = math.inf


def logits(rows: int, width: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


def in_numpy(reference: torch.Tensor, other: torch.Tensor) -> dict[str, np.ndarray]:
    """The definitions, in float64."""

    def logs(values: torch.Tensor) -> np.ndarray:
        found = values.double().numpy()
        found = found - found.max(axis=1, keepdims=True)
        return found - np.log(np.exp(found).sum(axis=1, keepdims=True))

    log_p, log_q = logs(reference), logs(other)
    p, q = np.exp(log_p), np.exp(log_q)
    log_m = np.log((p + q) / 2)
    likeliest = [np.argsort(-values.double().numpy(), axis=1, kind="stable") for values in (reference, other)]
    shared = [len(set(ours[:5]) & set(theirs[:5])) / min(5, len(ours)) for ours, theirs in zip(*likeliest, strict=True)]
    return {
        "kl": (p * (log_p - log_q)).sum(axis=1),
        "kl_reverse": (q * (log_q - log_p)).sum(axis=1),
        "js": (p * (log_p - log_m)).sum(axis=1) / 2 + (q * (log_q - log_m)).sum(axis=1) / 2,
        "tv": np.abs(p - q).sum(axis=1) / 2,
        "top1_agreement": (likeliest[0][:, 0] == likeliest[1][:, 0]).astype(float),
        "top5_agreement": np.array(shared),
        "entropy": -(q * log_q).sum(axis=1),
    }


@pytest.mark.parametrize(("rows", "width"), [(7, 11), (3, 3), (40, 1000), (2, 70_000)])
@pytest.mark.parametrize("distance", [None, 0.5, 0.05])
def test_every_measure_is_its_definition(rows: int, width: int, distance: float | None) -> None:
    reference = logits(rows, width, 1)
    other = logits(rows, width, 2) if distance is None else reference + logits(rows, width, 3, distance)
    found, wanted = pair_measures(reference, other), in_numpy(reference, other)
    assert tuple(found) == MEASURES
    for name, values in found.items():
        assert values.dtype == torch.float64
        np.testing.assert_allclose(values.numpy(), wanted[name], rtol=1e-9, err_msg=name)


def test_the_same_numbers_as_the_faster_pass() -> None:
    reference, other = logits(9, 100, 3), logits(9, 100, 4)
    reference[2, 5], other[2, 6], other[3, 7], reference[4, 1], other[4, 1] = -INF, -INF, 700.0, -INF, -INF
    found, known = pair_measures(reference, other), divergences(reference, other)
    torch.testing.assert_close(found["kl"], known.kl, rtol=1e-13, atol=0)
    torch.testing.assert_close(found["js"], known.js, rtol=1e-13, atol=0)
    torch.testing.assert_close(found["kl_reverse"], divergences(other, reference).kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["entropy"], entropy(other), rtol=1e-13, atol=0)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_any_block_size_gives_the_same_numbers(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, other = logits(9, 100, 3), logits(9, 100, 4)
    reference[2, 5], other[3, 6] = -INF, -INF
    whole = pair_measures(reference, other)
    monkeypatch.setattr(blocks, "_BLOCK", block)
    for name, values in pair_measures(reference, other).items():
        torch.testing.assert_close(values, whole[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_inputs_give_exact_zeros_and_ones(dtype: torch.dtype) -> None:
    values = logits(6, 3000, 5).to(dtype)
    values[1, :7], values[2, 1:] = -INF, -INF
    found = pair_measures(values, values.clone())
    for name in ("kl", "kl_reverse", "js", "tv"):
        assert found[name].tolist() == [0.0] * 6, name
    assert found["top1_agreement"].tolist() == found["top5_agreement"].tolist() == [1.0] * 6
    assert found["entropy"][2] == 0


def test_a_forbidden_token_is_infinite_in_one_direction_alone() -> None:
    reference = torch.tensor([[0.0, 1.0, 2.0, -INF], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, -INF, -INF]])
    other = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, -INF, 2.0, 3.0], [1.0, 1.0, -INF, -INF]])
    found = pair_measures(reference, other)
    assert [math.isinf(value) for value in found["kl"].tolist()] == [False, True, False]
    assert [math.isinf(value) for value in found["kl_reverse"].tolist()] == [True, False, False]
    for name in ("js", "tv", "entropy", "top1_agreement", "top5_agreement"):
        assert bool(torch.isfinite(found[name]).all()), name
    assert found["top5_agreement"].tolist() == [0.75, 0.75, 1.0]


def test_disjoint_distributions_reach_the_bounds() -> None:
    reference, other = torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]])
    found = pair_measures(reference, other)
    assert found["js"].item() == pytest.approx(math.log(2), rel=1e-15)
    assert (found["tv"].item(), found["top1_agreement"].item(), found["entropy"].item()) == (1.0, 0.0, 0.0)


def test_of_equally_likely_tokens_the_lowest_count() -> None:
    flat = torch.zeros(2, 20)
    first, last = flat.clone(), flat.clone()
    first[:, :5], last[:, 15:] = 1.0, 1.0
    assert top_agreement(flat, first, 5).tolist() == [1.0, 1.0]
    assert top_agreement(flat, last, 5).tolist() == [0.0, 0.0]
    last[1, 2] = 1.0
    assert top_agreement(flat, last, 5).tolist() == [0.0, 0.2]
    assert top_agreement(flat, last, 100).tolist() == [1.0, 1.0]
    mixed = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert top_agreement(mixed, torch.tensor([[0.0, 4.0, 1.0, 0.0]]), 1).item() == 1.0
    assert top_agreement(mixed, torch.tensor([[0.0, 1.0, 4.0, 0.0]]), 1).item() == 0.0


def test_positions_that_a_mask_leaves_out_are_not_looked_at() -> None:
    reference, other = logits(4, 30, 6), logits(4, 30, 7)
    whole = pair_measures(reference, other)
    reference[1], other[3, 0] = math.nan, INF
    mask = torch.tensor([True, False, True, False])
    for name, values in pair_measures(reference, other, mask=mask).items():
        assert torch.equal(values, whole[name][mask]), name
    with pytest.raises(NanOutputError, match="other's logits at position 3 "):
        pair_measures(reference, other, mask=torch.tensor([True, False, True, True]))
    nothing = pair_measures(reference, other, mask=torch.zeros(4, dtype=torch.bool))
    assert all(values.shape == (0,) for values in nothing.values())
    for bad in (torch.ones(3, dtype=torch.bool), torch.ones(4)):
        with pytest.raises(PositionsMismatchError, match="4 positions"):
            pair_measures(reference, other, mask=bad)


def test_other_shapes_are_refused_with_both_sizes() -> None:
    with pytest.raises(VocabularyMismatchError, match=r"30 entries.* 31"):
        pair_measures(logits(4, 30, 1), logits(4, 31, 1))
    with pytest.raises(PositionsMismatchError, match="4 positions, the other 5"):
        pair_measures(logits(4, 30, 1), logits(5, 30, 1))
    with pytest.raises(VocabularyMismatchError, match=r"30 entries.* 31"):
        embedding_measures(logits(4, 30, 1), logits(4, 31, 1))
    with pytest.raises(PositionsMismatchError, match="4 positions, the other 5"):
        embedding_measures(logits(4, 30, 1), logits(5, 30, 1))


def test_a_prompt_is_named_where_it_cannot_be_measured() -> None:
    values = logits(4, 30, 1)
    broken = values.clone()
    broken[2, 3] = math.nan
    with pytest.raises(NanOutputError, match=r"prompt 'p7': the reference's logits at position 2"):
        measure_prompt(broken, PromptMeasurement("p7", values, "logits"))
    with pytest.raises(NanOutputError, match=r"prompt 'p7': the other's embedding at position 2"):
        measure_prompt(values, PromptMeasurement("p7", broken, "embedding"))
    with pytest.raises(VocabularyMismatchError, match=r"prompt 'p7'.*29 entries.* 30") as caught:
        measure_prompt(values[:, 1:], PromptMeasurement("p7", values, "logits"))
    assert caught.value.object == "p7"


def test_embeddings_are_measured_by_distance_and_cosine() -> None:
    reference, other = logits(5, 40, 1), logits(5, 40, 2)
    found = embedding_measures(reference, other)
    a, b = reference.double().numpy(), other.double().numpy()
    size_a, size_b = np.sqrt((a * a).sum(axis=1)), np.sqrt((b * b).sum(axis=1))
    np.testing.assert_allclose(found["relative_l2"].numpy(), np.sqrt(((b - a) ** 2).sum(axis=1)) / size_a, rtol=1e-9)
    np.testing.assert_allclose(found["cosine"].numpy(), (a * b).sum(axis=1) / size_a / size_b, rtol=1e-9)
    mask = torch.tensor([False, True, True, False, True])
    broken = other.clone()
    broken[0] = math.nan
    assert torch.equal(embedding_measures(reference, broken, mask=mask)["cosine"], found["cosine"][mask])


def test_edges_of_embeddings() -> None:
    rows = [([1.0, 2.0], [1.0, 2.0]), ([0.0, 0.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0])]
    rows += [([1e308, 1e308], [-1e308, 1e308]), ([3e-320, 1e-320], [3e-320, 1e-320]), ([1e-300, 0.0], [1e300, 0.0])]
    rows += [([INF, 1.0], [INF, 1.0]), ([INF, 1.0], [1.0, 1.0]), ([1e-300, 1e-300], [1e-300, -1e-300])]
    reference, other = (torch.tensor(side, dtype=torch.float64) for side in zip(*rows, strict=True))
    found = embedding_measures(reference, other)
    distance, cosine = found["relative_l2"].tolist(), found["cosine"].tolist()
    assert [distance[place] for place in (0, 1, 5, 7)] == [0.0] * 4
    assert [cosine[place] for place in (0, 1, 5, 7)] == [1.0] * 4
    assert (distance[2], distance[3], distance[6]) == (INF, 1.0, INF)
    assert math.isnan(cosine[2])
    assert math.isnan(cosine[3])
    assert (distance[4], cosine[4]) == (pytest.approx(math.sqrt(2)), pytest.approx(0, abs=1e-15))
    assert cosine[6] == pytest.approx(1.0)
    assert math.isnan(distance[8])
    assert math.isnan(cosine[8])
    assert (distance[9], cosine[9]) == (pytest.approx(math.sqrt(2)), pytest.approx(0, abs=1e-15))


MODELS = [
    (tiny_models.llama, "logits", 8),
    (lambda **options: tiny_models.bert("BertForMaskedLM", **options), "logits", 8),
    (lambda **options: tiny_models.bert("BertForSequenceClassification", **options), "logits", 1),
    (tiny_models.bert, "embedding", 8),
]


@pytest.mark.parametrize(("make", "output", "rows"), MODELS, ids=["causal", "masked", "classifier", "encoder"])
def test_models_of_every_kind_are_measured(make: object, output: str, rows: int) -> None:
    assert callable(make)
    tokens = [tuple(row) for row in tiny_models.PROMPT.tolist()]
    probe = Probe((Prompt("a", tokens[0], None), Prompt("b", tokens[1], None)), ((0,), (1,)), "all", None)
    model, nearby = make(), make()
    with torch.no_grad():
        for parameter in nearby.parameters():
            parameter.mul_(1.01)
    for ours, theirs in zip(measure(model, probe), measure(nearby, probe), strict=True):
        assert (ours.output, len(ours.values)) == (output, rows)
        equal, same = measure_prompt(ours.values.clone(), ours)
        differ, far = measure_prompt(ours.values, theirs)
        assert (equal, differ) == (True, False)
        if output == "embedding":
            assert same == {"relative_l2": 0.0, "cosine": 1.0}
            assert set(far) == {"relative_l2", "cosine"}
            assert 0 < (far["relative_l2"] or 0) < 1
            continue
        assert {name: same[name] for name in ("kl", "kl_reverse", "js", "tv")} == dict.fromkeys(
            ("kl", "kl_reverse", "js", "tv"), 0.0
        )
        assert same["top1_agreement"] == same["top5_agreement"] == 1.0
        wanted = in_numpy(ours.values, theirs.values)
        for name in MEASURES:
            assert far[name] == pytest.approx(float(wanted[name].mean()), rel=1e-9), name
        assert same["entropy"] == pytest.approx(float(in_numpy(ours.values, ours.values)["entropy"].mean()), rel=1e-9)


def test_an_infinite_mean_is_none() -> None:
    values = logits(2, 5, 1)
    other = values.clone()
    other[0, 1] = -INF
    equal, found = measure_prompt(values, PromptMeasurement("p", other, "logits"))
    assert (equal, found["kl"]) == (False, None)
    assert found["kl_reverse"] is not None
    assert found["js"] is not None


def test_threads_change_no_number_and_name_the_lowest_position(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows are shared out among threads; small blocks make many of them.
    monkeypatch.setattr(blocks, "_BLOCK", 40)
    reference, other = logits(30, 100, 1), logits(30, 100, 2)
    reference[7, 3], other[20, 1] = -INF, -900.0
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3, 7):
            torch.set_num_threads(threads)
            assert torch.is_grad_enabled()
            pair = divergences(reference.clone().requires_grad_(), other)
            found.append(
                (pair.kl.tolist(), pair.js.tolist(), [one.tolist() for one in pair_measures(reference, other).values()])
            )
        other[25, 0], reference[12, 0], other[29, 0] = math.nan, math.nan, INF
        for measured in (divergences, pair_measures):
            with pytest.raises(NanOutputError, match="the reference's logits at position 12 "):
                measured(reference, other)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_the_faster_form_and_the_one_for_tiny_probabilities_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for distance in (20.0, 1.0, 1e-3):
        reference = logits(6, 500, 1, 8.0).double()
        other = reference + logits(6, 500, 2, distance).double()
        faster = pair_measures(reference, other), divergences(reference, other)
        with monkeypatch.context() as patched:
            for module in (metrics, pair_measures_module):
                patched.setattr(module, "ORDINARY", 0.0)
            other_form = pair_measures(reference, other), divergences(reference, other)
        for name, values in faster[0].items():
            torch.testing.assert_close(values, other_form[0][name], rtol=1e-10, atol=0)
        torch.testing.assert_close(faster[1].kl, other_form[1].kl, rtol=1e-10, atol=0)
        torch.testing.assert_close(faster[1].js, other_form[1].js, rtol=1e-10, atol=0)
