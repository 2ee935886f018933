"""The rules of verdicts and of RF, and that nothing near them needs torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from rblstore.divergence.verdict import DEFAULT_TOLERANCE, BadToleranceError, decide, decided_by, recovery
from rblstore.objects.evidence_records import Verdict


@dataclass(frozen=True)
class OfPrompt:
    kl: float | None
    js: float | None
    values: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Numbers:
    bit_equal: bool
    kl: float | None
    js: float | None
    verdict: Verdict = "diverged"
    tolerance: float = 1e-6
    many: tuple[OfPrompt, ...] = ()

    @property
    def prompts(self) -> tuple[OfPrompt, ...]:
        return self.many or (OfPrompt(self.kl, self.js),)


def spread(kl: list[float], js: list[float], verdict: Verdict, tolerance: float = 1e-6) -> Numbers:
    means = sum(kl) / len(kl), sum(js) / len(js)
    return Numbers(False, *means, verdict, tolerance, tuple(OfPrompt(*pair) for pair in zip(kl, js, strict=True)))


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        (Numbers(True, 0.0, 0.0), "exact"),
        (Numbers(True, None, None), "exact"),
        (Numbers(False, 0.0, 0.0), "within_tolerance"),
        (Numbers(False, 9e-7, 9e-7), "within_tolerance"),
        (Numbers(False, 1e-6, 1e-7), "diverged"),
        (Numbers(False, 1e-7, 1e-6), "diverged"),
        (Numbers(False, None, None), "diverged"),
        (Numbers(False, None, 1e-9), "diverged"),
        (Numbers(False, float("inf"), 0.1), "diverged"),
        (Numbers(False, float("nan"), 0.0), "diverged"),
    ],
)
def test_verdicts_at_the_default_tolerance(numbers: Numbers, verdict: str) -> None:
    assert DEFAULT_TOLERANCE == 1e-6
    assert decide(numbers) == verdict


def test_a_tolerance_of_zero_passes_exact_alone() -> None:
    assert decide(Numbers(True, 0.0, 0.0), 0.0) == "exact"
    assert decide(Numbers(False, 0.0, 0.0), 0.0) == "diverged"
    assert decide(Numbers(False, 0.5, 0.1), 1.0) == "within_tolerance"


@pytest.mark.parametrize("tolerance", [-1e-9, 1e20, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(BadToleranceError) as caught:
        decide(Numbers(True, 0.0, 0.0), tolerance)
    assert (caught.value.exit_code, caught.value.code) == (2, "bad_tolerance")


def test_the_upper_end_of_the_interval_decides_not_the_mean() -> None:
    # The mean of nine prompts without a trace and one with some is below the bound, and what it stands for is not.
    uneven = spread([0.0] * 9 + [9e-6], [0.0] * 10, "diverged")
    assert (uneven.kl or 0) < DEFAULT_TOLERANCE
    assert decide(uneven) == "diverged"
    assert decided_by(uneven) == "upper_95"
    assert decide(spread([0.0] * 10, [0.0] * 9 + [9e-6], "diverged")) == "diverged"
    even = spread([3e-7] * 9 + [9e-7], [1e-8] * 10, "within_tolerance")
    assert (decide(even), decided_by(even)) == ("within_tolerance", "upper_95")


def test_what_decided_is_told_of_old_records_too() -> None:
    # Before intervals were asked for, the means decided. Such a record is read, and says so.
    assert decided_by(spread([0.0] * 9 + [9e-6], [0.0] * 10, "within_tolerance")) == "mean"
    assert decided_by(Numbers(False, 1e-7, 1e-7, "within_tolerance")) == "mean"
    assert decided_by(Numbers(False, 1.0, 0.1)) == "mean"
    assert decided_by(Numbers(True, 0.0, 0.0, "exact")) == "bits"
    assert decided_by(Numbers(False, None, 0.1)) == "bits"


def test_recovery_is_a_number_or_a_reason() -> None:
    assert recovery(0.0, 0.25) == (1.0, None)
    assert recovery(0.5, 0.25) == (-1.0, None)
    assert recovery(0.0, 0.0) == (None, "the adapted model does not differ from the reference")
    fidelity, reason = recovery(0.0, None, adapted_reason="another vocabulary")
    assert fidelity is None
    assert reason == "the adapted model cannot be compared with the reference: another vocabulary"
    fidelity, reason = recovery(None, 0.25, recovered_reason="it is an embedding")
    assert fidelity is None
    assert reason is not None
    assert reason.endswith("it is an embedding")
    assert recovery(None, None)[1] is not None
    fidelity, reason = recovery(1.0, 5e-324)
    assert fidelity is None
    assert reason is not None


def test_probes_and_verdicts_import_no_torch() -> None:
    modules = "rblstore.divergence.verdict, rblstore.divergence.probes, rblstore.divergence.probe_file"
    code = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
