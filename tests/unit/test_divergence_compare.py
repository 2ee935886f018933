"""Comparing outputs with recorded ones: bits first, divergences where they differ, a reason where there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch

from rblstore.divergence.compare import BaselineMismatchError, Comparison, Reference, compare, compare_measurements
from rblstore.divergence.measure import BadValuesError, PromptMeasurement, values_bytes, values_digest
from rblstore.divergence.metrics import NanOutputError, divergences
from rblstore.divergence.verdict import decide
from rblstore.objects.evidence_records import Output


def unread() -> bytes:
    raise AssertionError("the stored values were read")


def outputs(seed: int, *, rows: tuple[int, ...] = (3, 5), width: int = 20, output: Output = "logits") -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        PromptMeasurement(f"p{place:02d}", torch.randn(count, width, generator=generator).bfloat16(), output)
        for place, count in enumerate(rows)
    ]


def recorded(measurements: list[PromptMeasurement], read: Callable[[], bytes] | None = None) -> list[Reference]:
    def reader(values: torch.Tensor) -> Callable[[], bytes]:
        return lambda: bytes(values_bytes(values))

    return [
        Reference(found.id, found.shape, found.dtype, values_digest(found.values), read or reader(found.values))
        for found in measurements
    ]


def changed(measurements: list[PromptMeasurement], place: int, values: torch.Tensor) -> list[PromptMeasurement]:
    entry = measurements[place]
    return [*measurements[:place], PromptMeasurement(entry.id, values, entry.output), *measurements[place + 1 :]]


def both_ways(
    reference: list[PromptMeasurement], measured: list[PromptMeasurement], output: Output | None = None
) -> Comparison:
    stored, live = (
        compare(recorded(reference), iter(measured), output=output),
        compare_measurements(reference, measured),
    )
    assert stored == live
    return stored


def test_equal_digests_prove_zero_without_reading() -> None:
    found = compare(recorded(outputs(1), unread), outputs(1))
    assert (found.kl, found.js, found.bit_equal, found.comparable, found.reason) == (0.0, 0.0, True, True, None)
    assert [(prompt.id, prompt.kl, prompt.js, prompt.bit_equal) for prompt in found.prompts] == [
        ("p00", 0.0, 0.0, True),
        ("p01", 0.0, 0.0, True),
    ]
    assert decide(found) == "exact"
    plain = [tuple(entry) for entry in recorded(outputs(1), unread)]
    assert compare(plain, outputs(1)) == found  # type: ignore[arg-type]


def test_means_are_over_prompts_of_means_over_positions() -> None:
    reference, measured = outputs(1), outputs(2)
    found = both_ways(reference, measured)
    pairs = [divergences(a.values, b.values) for a, b in zip(reference, measured, strict=True)]
    assert found.kl == pytest.approx(sum(pair.kl.mean().item() for pair in pairs) / 2, rel=1e-14)
    assert found.js == pytest.approx(sum(pair.js.mean().item() for pair in pairs) / 2, rel=1e-14)
    assert found.prompts[1].kl == pytest.approx(pairs[1].kl.mean().item(), rel=1e-14)
    assert not found.bit_equal
    assert decide(found) == "diverged"
    assert both_ways(measured, reference).kl != found.kl


def test_one_prompt_that_differs_is_found_and_read_alone() -> None:
    reference = outputs(1)
    values = reference[1].values.clone()
    values[4, 7] += 1.0
    references = [recorded(reference, unread)[0], recorded(reference)[1]]
    found = compare(references, changed(reference, 1, values))
    assert [prompt.bit_equal for prompt in found.prompts] == [True, False]
    assert not found.bit_equal
    assert found.kl == found.prompts[1].kl / 2 > 0


def test_what_was_read_ahead_in_vain_does_no_harm() -> None:
    reference = outputs(1)
    values = reference[0].values.clone()
    values[0, 0] += 1
    references = recorded(reference[:1]) + recorded(reference[1:], unread)
    found = compare(references, changed(reference, 0, values))
    assert [prompt.bit_equal for prompt in found.prompts] == [False, True]
    # What is needed and cannot be read is still an error of its own kind.
    with pytest.raises(AssertionError):
        compare(references, changed(changed(reference, 0, values), 1, reference[1].values + 1))


def noted(references: list[Reference], asked: list[str]) -> list[Reference]:
    """References that say when they are read."""

    def reader(one: Reference) -> Callable[[], bytes]:
        def read() -> bytes:
            asked.append(one.id)
            return bytes(one.read())

        return read

    return [one._replace(read=reader(one)) for one in references]


def test_once_outputs_differed_equal_ones_are_told_by_what_is_read() -> None:
    reference, asked = outputs(1, rows=(3, 5, 2, 4)), []
    measured = changed(changed(reference, 0, reference[0].values + 1), 2, reference[2].values + 1)
    found = compare(noted(recorded(reference), asked), measured)
    assert [prompt.bit_equal for prompt in found.prompts] == [False, True, False, True]
    assert found == compare_measurements(reference, measured)
    assert sorted(asked) == ["p00", "p01", "p02", "p03"]  # each once
    # The bytes say that they are equal, where the record has another digest.
    lying = [one._replace(digest="0" * 64) for one in recorded(reference)]
    assert [prompt.bit_equal for prompt in compare(lying, measured).prompts] == [False, True, False, True]


@pytest.mark.parametrize(("most", "early"), [(5 * 20 * 2, ["p00", "p01"]), (5 * 20 * 2 - 1, ["p00"])])
def test_a_large_reference_is_not_read_before_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, most: int, early: list[str]
) -> None:
    monkeypatch.setattr("rblstore.divergence.compare._AHEAD_BYTES", most)
    reference, asked = outputs(1, rows=(3, 5)), []

    def measured() -> Iterator[PromptMeasurement]:
        yield changed(reference, 0, reference[0].values + 1)[0]
        assert sorted(asked) == early
        yield reference[1]

    found = compare(noted(recorded(reference), asked), measured())
    assert [prompt.bit_equal for prompt in found.prompts] == [False, True]


def test_zeros_of_either_sign_and_other_dtypes_are_not_bit_equal() -> None:
    reference = outputs(1)
    values = reference[0].values.clone()
    values[0, 0] = 0.0
    reference = changed(reference, 0, values)
    negative = values.clone()
    negative[0, 0] = -0.0
    for other in (negative, values.float()):
        found = both_ways(reference, changed(reference, 0, other))
        assert (found.kl, found.js, found.bit_equal) == (0.0, 0.0, False)
        assert decide(found) == "within_tolerance"


@pytest.mark.parametrize(
    ("reference", "measured", "reason"),
    [
        (outputs(1, width=20), outputs(2, width=24), "has 20 entries, the measured model's 24"),
        (outputs(1), outputs(2, rows=(3, 4)), "prompt 'p01': the reference has 5 positions, the measured model 4"),
        (
            outputs(1, output="embedding", width=20),
            outputs(2, output="embedding", width=24),
            "embeddings have 20 entries, the measured model's 24",
        ),
    ],
)
def test_what_cannot_be_compared_says_why_and_is_not_read(
    reference: list[PromptMeasurement], measured: list[PromptMeasurement], reason: str
) -> None:
    found = both_ways(reference, measured)
    assert compare(recorded(reference[-1:], unread), measured[-1:]).comparable is False
    assert (found.kl, found.js, found.bit_equal, found.comparable) == (None, None, False, False)
    assert reason in str(found.reason)
    assert found.prompts[-1].kl is None
    assert decide(found) == "diverged"


def test_embeddings_have_a_distance_and_a_cosine_that_decide_nothing() -> None:
    reference, measured = outputs(1, output="embedding"), outputs(2, output="embedding")
    found = both_ways(reference, measured, "embedding")
    assert (found.kl, found.js, found.bit_equal, found.comparable) == (None, None, False, False)
    assert "an embedding, not a distribution" in str(found.reason)
    for prompt, ours, theirs in zip(found.prompts, reference, measured, strict=True):
        a, b = ours.values.double(), theirs.values.double()
        distance = ((a - b).norm(dim=1) / a.norm(dim=1)).mean().item()
        assert prompt.values == {
            "relative_l2": pytest.approx(distance, rel=1e-12),
            "cosine": pytest.approx(torch.cosine_similarity(a, b, dim=1).mean().item(), rel=1e-12),
        }
    assert decide(found) == "diverged"
    # Not even a distance of 0: equal numbers of another type.
    assert decide(both_ways(reference, changed(reference, 0, reference[0].values.double()), "embedding")) == "diverged"


def test_equal_embeddings_are_exact_without_divergences() -> None:
    found = both_ways(outputs(1, output="embedding"), outputs(1, output="embedding"), "embedding")
    assert all(prompt.values == {"relative_l2": 0.0, "cosine": 1.0} for prompt in found.prompts)
    assert (found.kl, found.js, found.bit_equal, found.comparable) == (None, None, True, False)
    assert "embedding" in str(found.reason)
    assert decide(found) == "exact"


def test_values_of_another_kind_are_not_equal_although_their_bytes_are() -> None:
    found = compare(recorded(outputs(1), unread), outputs(1, output="embedding"), output="logits")
    assert (found.kl, found.bit_equal, found.comparable) == (None, False, False)
    assert found.reason == "prompt 'p00': the reference gives logits, the measured model embedding"
    assert compare_measurements(outputs(1), outputs(1, output="embedding")) == found


def test_infinite_kl_is_none_with_a_reason_and_js_stays() -> None:
    reference = outputs(1)
    values = reference[0].values.clone()
    values[1, 2] = -math.inf
    found = both_ways(reference, changed(reference, 0, values))
    assert (found.kl, found.prompts[0].kl, found.comparable) == (None, None, True)
    assert found.js is not None
    assert 0 < found.js < math.log(2)
    assert "KL is infinite" in str(found.reason)
    assert decide(found) == "diverged"
    # The other way round the token is merely one that the reference never gives.
    assert both_ways(changed(reference, 0, values), reference).kl is not None


@pytest.mark.parametrize(
    ("reference", "measured"),
    [
        (outputs(1), outputs(1)[:1]),
        (outputs(1)[:1], outputs(1)),
        (outputs(1), outputs(1)[::-1]),
        ([], []),
    ],
)
def test_other_prompts_are_refused(reference: list[PromptMeasurement], measured: list[PromptMeasurement]) -> None:
    for run in (lambda: compare(recorded(reference), measured), lambda: compare_measurements(reference, measured)):
        with pytest.raises(BaselineMismatchError) as caught:
            run()
        assert (caught.value.code, caught.value.exit_code) == ("baseline_mismatch", 4)


def test_bad_values_name_the_prompt() -> None:
    with pytest.raises(BadValuesError, match="prompt 'p00': recorded values of 3 bytes"):
        compare(recorded(outputs(1), lambda: b"abc"), outputs(2))
    reference = outputs(1)
    values = reference[1].values.clone()
    values[0, 0] = math.nan
    with pytest.raises(NanOutputError, match="prompt 'p01': the reference's logits at position 0") as caught:
        compare_measurements(changed(reference, 1, values), outputs(2))
    assert caught.value.object == "p01"


def test_a_running_measurement_is_taken_one_at_a_time() -> None:
    taken: list[str] = []

    def running():
        for found in outputs(1):
            taken.append(found.id)
            yield found

    def reader(place: int) -> Callable[[], bytes]:
        def read() -> bytes:
            # One reference is read ahead of its measurement, no more; and no measurement is taken ahead.
            assert place <= len(taken) <= place + 1
            return bytes(values_bytes(outputs(2)[place].values))

        return read

    references = [entry._replace(read=reader(place)) for place, entry in enumerate(recorded(outputs(2)))]
    assert compare(references, running()).kl is not None
