"""KL, JS and entropy against independent references, block by block, and at their edges."""

from __future__ import annotations

import math
import subprocess
import sys
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rblstore.divergence import blocks, metrics
from rblstore.divergence.metrics import (
    DivergenceSum,
    NanOutputError,
    PositionsMismatchError,
    VocabularyMismatchError,
    divergences,
    entropy,
    js_divergence,
    kl_divergence,
    recovery_fidelity,
)

INF = math.inf


def exact(p_logits: list[float], q_logits: list[float]) -> tuple[float, float, float]:
    """KL, JS and the entropy of p by their textbook definitions in 60-digit arithmetic."""
    with localcontext() as context:
        context.prec = 60
        p = [Decimal(0) if x == -INF else Decimal(x).exp() for x in p_logits]
        q = [Decimal(0) if x == -INF else Decimal(x).exp() for x in q_logits]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]

        def kl(a: list[Decimal], b: list[Decimal]) -> Decimal:
            return sum((x * (x / y).ln() for x, y in zip(a, b, strict=True) if x), Decimal(0))

        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        forbidden = any(x and not y for x, y in zip(p, q, strict=True))
        return (
            INF if forbidden else float(kl(p, q)),
            float((kl(p, m) + kl(q, m)) / 2),
            float(-sum((x * x.ln() for x in p if x), Decimal(0))),
        )


def in_numpy(reference: torch.Tensor, other: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    log_p, log_q = (log_softmax(t.double().numpy()) for t in (reference, other))
    p, q = np.exp(log_p), np.exp(log_q)
    log_m = np.log((p + q) / 2)
    kl = (p * (log_p - log_q)).sum(axis=1)
    return kl, ((p * (log_p - log_m)).sum(axis=1) + (q * (log_q - log_m)).sum(axis=1)) / 2


def logits(positions: int, vocabulary: int, seed: int, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)).mul_(scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_agrees_with_numpy_in_every_dtype(dtype: torch.dtype) -> None:
    reference, other = logits(5, 3000, 1).to(dtype), logits(5, 3000, 2).to(dtype)
    found = divergences(reference, other)
    kl, js = in_numpy(reference, other)
    np.testing.assert_allclose(found.kl.numpy(), kl, rtol=1e-9)
    np.testing.assert_allclose(found.js.numpy(), js, rtol=1e-9)
    assert found.kl.dtype == found.js.dtype == torch.float64
    assert torch.equal(kl_divergence(reference, other), found.kl)
    assert torch.equal(js_divergence(reference, other), found.js)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_any_block_size_gives_the_same_numbers(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, other = logits(9, 100, 3), logits(9, 100, 4)
    reference[2, 5], other[2, 6], other[3, 7] = -INF, -INF, 700.0
    whole, whole_entropy = divergences(reference, other), entropy(reference)
    monkeypatch.setattr(blocks, "_BLOCK", block)
    monkeypatch.setattr(blocks, "_PIECE", min(block, 3))
    torch.testing.assert_close(divergences(reference, other).kl, whole.kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(divergences(reference, other).js, whole.js, rtol=1e-12, atol=0)
    torch.testing.assert_close(entropy(reference), whole_entropy, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4, 1e-6])
def test_small_divergences_keep_their_digits(distance: float) -> None:
    reference = logits(1, 40, 5).double()
    other = reference + logits(1, 40, 6, distance).double()
    kl, js, _ = exact(reference[0].tolist(), other[0].tolist())
    found = divergences(reference, other)
    assert found.kl.item() == pytest.approx(kl, rel=1e-9)
    assert found.js.item() == pytest.approx(js, rel=1e-9)


@pytest.mark.parametrize(
    ("reference", "other"),
    [
        ([0.0, 800.0, -300.0], [600.0, 0.0, 10.0]),
        ([1e4, 0.0], [0.0, 1e4]),
        ([0.0, 1.0, -INF], [0.5, 0.0, -INF]),
        ([0.0, 1.0, -INF], [0.5, 0.0, 3.0]),
        ([0.0, 1.0, 2.0], [0.5, 0.0, -INF]),
        ([0.0, -INF], [-INF, 0.0]),
        ([0.0], [5.0]),
    ],
)
def test_far_apart_and_forbidden_tokens(reference: list[float], other: list[float]) -> None:
    kl, js, bits = exact(reference, other)
    found = divergences(torch.tensor([reference]), torch.tensor([other]))
    assert found.kl.item() == pytest.approx(kl, rel=1e-12)
    assert found.js.item() == pytest.approx(js, rel=1e-12)
    assert entropy(torch.tensor([reference])).item() == pytest.approx(bits, rel=1e-12, abs=1e-300)


def test_extreme_finite_logits_stay_numbers() -> None:
    reference = torch.tensor([[1e308, -1e308], [0.0, -1e308]], dtype=torch.float64)
    found = divergences(reference, reference.flip(1))
    assert not found.kl.isnan().any()
    torch.testing.assert_close(found.js, torch.full((2,), math.log(2), dtype=torch.float64))


@pytest.mark.parametrize("special", [0.0, -INF])
def test_equal_inputs_give_exact_positive_zeros(special: float) -> None:
    values = logits(3, 500, 7).bfloat16()
    values[1, 4] = special
    found = divergences(values, values.clone())
    assert found.kl.tolist() == found.js.tolist() == [0.0] * 3
    assert not torch.signbit(torch.stack([found.kl, found.js])).any()
    # The same values in a wider dtype are the same distribution.
    assert divergences(values, values.double()).kl.tolist() == [0.0] * 3


def test_what_rounding_leaves_below_zero_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def below(*_: object, **__: object) -> metrics.PositionDivergences:
        return metrics.PositionDivergences(torch.tensor([-1e-18], dtype=torch.float64), torch.tensor([-1e-18]).double())

    monkeypatch.setattr(metrics._Workspace, "terms", below)
    found = divergences(torch.zeros(1, 4), torch.zeros(1, 4))
    assert (found.kl.item(), found.js.item()) == (0.0, 0.0)


def test_entropy_of_known_distributions() -> None:
    flat, certain = torch.zeros(1, 1000), torch.tensor([[0.0, -INF, -INF]])
    assert entropy(flat).item() == pytest.approx(math.log(1000), rel=1e-14)
    assert entropy(certain).item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("side", ["reference", "other"])
@pytest.mark.parametrize("block", [6, 1 << 17])
def test_no_distribution_is_refused_by_side_and_position(
    bad: float, side: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", block)
    pair = {"reference": torch.zeros(4, 6), "other": torch.zeros(4, 6)}
    pair[side][2, 3] = bad
    with pytest.raises(NanOutputError, match=f"the {side}'s logits at position 2") as caught:
        divergences(**pair)
    assert caught.value.code == "nan_output"


def test_all_forbidden_or_no_vocabulary_is_no_distribution() -> None:
    with pytest.raises(NanOutputError, match="position 1"):
        entropy(torch.tensor([[0.0, 0.0], [-INF, -INF]]))
    with pytest.raises(NanOutputError, match="size 0"):
        divergences(torch.zeros(2, 0), torch.zeros(2, 0))


def test_other_shapes_are_refused_naming_both() -> None:
    with pytest.raises(VocabularyMismatchError, match=r"has 10 entries, the other's 12") as caught:
        divergences(torch.zeros(2, 10), torch.zeros(2, 12))
    assert (caught.value.code, caught.value.exit_code) == ("vocabulary_mismatch", 4)
    with pytest.raises(PositionsMismatchError, match="2 positions, the other 3"):
        divergences(torch.zeros(2, 10), torch.zeros(3, 10))
    with pytest.raises(PositionsMismatchError, match=r"\(10,\)"):
        divergences(torch.zeros(10), torch.zeros(10))


def test_no_positions_sum_to_nothing() -> None:
    found = divergences(torch.zeros(0, 10), torch.zeros(0, 10)).sum()
    assert found == DivergenceSum(0.0, 0.0, 0)
    assert math.isnan(found.mean()[0])


def test_sums_add_up_over_blocks_of_positions() -> None:
    reference, other = logits(8, 50, 8), logits(8, 50, 9)
    whole = divergences(reference, other).sum()
    parts = divergences(reference[:3], other[:3]).sum() + divergences(reference[3:], other[3:]).sum()
    assert parts.count == whole.count == 8
    assert parts.kl == pytest.approx(whole.kl, rel=1e-15)
    assert whole.mean()[1] == pytest.approx(divergences(reference, other).js.mean().item(), rel=1e-14)


def test_memory_does_not_grow_with_positions_and_inputs_stay() -> None:
    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                    self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
            return result

    reference, other = logits(6, 262_144, 10).bfloat16(), logits(6, 262_144, 11).bfloat16()
    before = reference.clone(), other.clone()
    with Largest() as largest:
        divergences(reference, other)
        entropy(reference)
    assert 0 < largest.bytes <= 10 << 20  # what six positions would take is 60 MiB
    assert torch.equal(reference, before[0])
    assert torch.equal(other, before[1])


def test_the_number_of_threads_changes_no_bit() -> None:
    reference, other = logits(3, 70_000, 14).bfloat16(), logits(3, 70_000, 15).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            pair = divergences(reference, other)
            found.append((pair.kl.tolist(), pair.js.tolist(), entropy(reference).tolist()))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads of a process through /proc")
def test_entropy_starts_no_threads() -> None:
    # Thousands of small operations whose threads wait for one another take minutes on busy cores, not seconds.
    code = """
import os, sys, torch
torch.set_num_threads(1)
logits = torch.randn(4, 262_144).bfloat16()
torch.set_num_threads(2)
from rblstore.divergence.metrics import entropy
before = len(os.listdir("/proc/self/task"))
entropy(logits)
quiet = len(os.listdir("/proc/self/task")) == before
torch.exp(logits.double())
sys.exit(0 if quiet and len(os.listdir("/proc/self/task")) > before else 1)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_strided_inputs_and_gradients_do_not_matter() -> None:
    reference, other = logits(20, 4, 12).T.requires_grad_(), logits(4, 20, 13)
    found = divergences(reference, other)
    np.testing.assert_allclose(found.kl.numpy(), in_numpy(reference.detach(), other)[0], rtol=1e-9)


def test_recovery_fidelity_is_the_papers() -> None:
    assert recovery_fidelity(0.0, 0.5) == 1.0
    assert recovery_fidelity(0.5, 0.5) == 0.0
    assert recovery_fidelity(1.0, 0.5) == -1.0
    assert recovery_fidelity(0.0, 0.0) is None
    assert recovery_fidelity(1.0, INF) == 1.0
    assert recovery_fidelity(INF, INF) is None
    assert recovery_fidelity(1.0, 5e-324) is None
    assert recovery_fidelity(math.nan, 1.0) is None
