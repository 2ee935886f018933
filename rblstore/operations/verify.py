"""``verify``: compare a commit's outputs with a recorded baseline, and keep the evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rblstore.divergence.verdict import DEFAULT_TOLERANCE, check_tolerance, decide
from rblstore.errors import DivergedError, NotFoundError
from rblstore.objects.evidence_records import Probe, Verification
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import VerificationId
from rblstore.operations.baseline import check_fit, find_baseline, references
from rblstore.operations.evidence_time import evidence_time
from rblstore.operations.load import load_composition
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.result import Result
from rblstore.repository import Store
from rblstore.revisions import resolve


class NoBaselineError(NotFoundError):
    """Nothing to compare with."""

    code = "no_baseline"


class VerificationDivergedError(DivergedError):
    """The outputs differ from the baseline by more than the tolerance.

    Attributes:
        verification: The evidence, which is stored.
        verification_id: Its id.
    """

    def __init__(self, message: str, verification_id: VerificationId, verification: Verification, hint: str) -> None:
        super().__init__(message, object=verification_id, hint=hint)
        self.verification_id = verification_id
        self.verification = verification


@dataclass(frozen=True)
class VerificationResult(Result):
    """A comparison with a baseline.

    Attributes:
        verdict: ``exact`` or ``within_tolerance``; a diverged one is raised.
        verification_id: The stored evidence's id.
        verification: The evidence.
        probe_name: The probe's name.
        drift: Environment settings that differ from the baseline's, (here, there) by name; bit equality is asked for
            only where there are none.
    """

    verdict: str
    verification_id: VerificationId
    verification: Verification
    probe_name: str
    drift: dict[str, tuple[str | None, str | None]]

    def as_json(self) -> dict[str, Any]:
        return {
            **self.verification.body(),
            "drift": {key: list(pair) for key, pair in self.drift.items()},
            "probe_name": self.probe_name,
            "verification": str(self.verification_id),
        }


def verify(
    store: Store,
    revision: str = "HEAD",
    probe: str | None = None,
    *,
    against: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    author: str,
    progress: Progress | None = None,
) -> VerificationResult:
    """Loads a commit, measures it, and compares it with the baseline of its composition, or of another commit's.

    Args:
        store: The repository.
        revision: Which commit to measure.
        probe: The probe's name; None for the default one.
        against: The commit whose baseline is the reference; None for the same commit's. Evidence against another
            composition is about this commit's composition alone.
        tolerance: KL and JS (nats) below which the verdict is within tolerance.
        author: Who.
        progress: Is told bytes read.

    Raises:
        NoBaselineError: The reference has no baseline under the probe.
        VerificationDivergedError: The outputs differ; the evidence is stored.
        ProbeMismatchError: The probe was made for another tokenizer.
        BadToleranceError: The tolerance is not a finite number of at least 0.
    """
    from rblstore.divergence.compare import compare
    from rblstore.divergence.environment import current_environment, environment_differences
    from rblstore.divergence.measure import measure

    check_tolerance(tolerance)
    commit = resolve(store, revision).commit
    composition_id = store.record(commit, Commit).composition
    composition = store.record(composition_id, Composition)
    reference_commit = commit if against is None else resolve(store, against).commit
    reference_id = store.record(reference_commit, Commit).composition
    name, probe_id = require_probe(store, probe)
    probe_record = store.record(probe_id, Probe)
    elsewhere = find_baseline(store, reference_id, probe_id, None)
    if elsewhere is None:
        raise NoBaselineError(
            f"commit {reference_commit.short} has no baseline under probe {name!r}",
            object=reference_commit,
            hint=f"Record one: rbl baseline {reference_commit.short} --probe {name}",
        )
    model = load_composition(store, composition, progress)
    check_fit(store, composition, probe_record, name, model)
    environment = current_environment(model, probe_record)
    baseline_id, baseline_record = find_baseline(store, reference_id, probe_id, environment) or elsewhere
    comparison = compare(
        references(store, baseline_record), measure(model, probe_record), output=baseline_record.output
    )
    record = Verification(
        # Near to another commit, or far from it: neither is a verdict on this one, and the log must not show it as one.
        commit if reference_id == composition_id else None,
        composition_id,
        None,
        (),
        probe_id,
        baseline_id,
        environment,
        decide(comparison, tolerance),
        tolerance,
        comparison.bit_equal,
        comparison.kl,
        comparison.js,
        None,
        None,
        None,
        comparison.reason or "nothing was reverted",
        comparison.prompts,
        author,
        evidence_time(store, commit, Verification),
    )
    with store.transaction(author) as transaction:
        verification_id = VerificationId(transaction.add_record(record))
    drift = environment_differences(environment, baseline_record.environment)
    result = VerificationResult(record.verdict, verification_id, record, name, drift)
    if record.verdict == "diverged":
        raise VerificationDivergedError(
            f"commit {commit.short} diverged from baseline {baseline_id.short}: {divergence_text(record)}",
            verification_id,
            record,
            f"The evidence is stored: rbl show {verification_id.short}",
        )
    return result


def divergence_text(record: Verification) -> str:
    """KL and JS in a few words."""
    if record.kl is None or record.js is None:
        return record.reason or "no finite divergence"
    return f"KL {record.kl:.3g}, JS {record.js:.3g} nats (tolerance {record.tolerance:g})"
