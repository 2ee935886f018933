"""``verify``: compare a commit's outputs with a recorded baseline, and keep the evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rblstore.divergence.intervals import Interval
from rblstore.divergence.locality import check_threshold
from rblstore.divergence.uncertainty import intervals_of
from rblstore.divergence.verdict import DEFAULT_TOLERANCE, check_tolerance, decide
from rblstore.errors import DivergedError, NotFoundError
from rblstore.objects.evidence_records import Baseline, Probe, Verification
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import BaselineId, CommitId, CompositionId, ProbeId, VerificationId
from rblstore.operations.baseline import check_fit, find_baseline, references
from rblstore.operations.evidence_time import evidence_time
from rblstore.operations.load import load_composition
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.result import Result
from rblstore.operations.verification_document import verification_document
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rblstore.divergence.compare import Comparison
    from rblstore.divergence.measure import PromptMeasurement


class NoBaselineError(NotFoundError):
    """Nothing to compare with."""

    code = "no_baseline"


class VerificationDivergedError(DivergedError):
    """The outputs differ from the baseline by more than the tolerance.

    Attributes:
        verification: The evidence, which is stored.
        verification_id: Its id.
        threshold: Above which its prompts are flagged (nats); None for the verification's tolerance.
    """

    def __init__(
        self,
        message: str,
        verification_id: VerificationId,
        verification: Verification,
        hint: str,
        threshold: float | None = None,
    ) -> None:
        super().__init__(message, object=verification_id, hint=hint)
        self.verification_id = verification_id
        self.verification = verification
        self.threshold = threshold


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
        threshold: Above which a prompt is flagged (KL, nats); None for the verification's tolerance.
    """

    verdict: str
    verification_id: VerificationId
    verification: Verification
    probe_name: str
    drift: dict[str, tuple[str | None, str | None]]
    threshold: float | None = None

    @property
    def intervals(self) -> dict[str, Interval]:
        """The mean over prompts of each measure with its 95 % interval, by name."""
        return intervals_of(self.verification.prompts)

    def as_json(self) -> dict[str, Any]:
        return {
            **verification_document(self.verification, self.threshold),
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
    threshold: float | None = None,
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
        tolerance: The upper ends of the intervals of KL and JS (nats) have to be below it to be within tolerance.
        threshold: KL (nats) above which a single prompt is flagged; None for the tolerance.
        author: Who.
        progress: Is told bytes read.

    Raises:
        NoBaselineError: The reference has no baseline under the probe.
        VerificationDivergedError: The outputs differ; the evidence is stored.
        ProbeMismatchError: The probe was made for another tokenizer.
        BaselineMismatchError: The baseline is of another vocabulary, or of another kind of output; nothing is stored.
        BadToleranceError: The tolerance is not a finite number of at least 0.
        BadThresholdError: The same of the threshold.
    """
    from rblstore.divergence.compare import compare
    from rblstore.divergence.environment import current_environment, environment_differences
    from rblstore.divergence.measure import measure

    check_tolerance(tolerance)
    if threshold is not None:
        check_threshold(threshold)
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
    check_fit(store, composition, probe_record, name)
    model = load_composition(store, composition, progress)
    check_fit(store, composition, probe_record, name, model)
    environment = current_environment(model, probe_record)
    baseline_id, baseline_record = find_baseline(store, reference_id, probe_id, environment) or elsewhere
    measured = _of_one_vocabulary(measure(model, probe_record), baseline_record, baseline_id)
    comparison = compare(references(store, baseline_record), measured, output=baseline_record.output)
    record = measured_evidence(
        store,
        # Near to another commit, or far from it: neither is a verdict on this one, and the log must not show it as one.
        commit if reference_id == composition_id else None,
        composition_id,
        probe_id,
        baseline_id,
        environment,
        comparison,
        tolerance,
        author,
        subject=commit,
    )
    with store.transaction(author) as transaction:
        verification_id = VerificationId(transaction.add_record(record))
    drift = environment_differences(environment, baseline_record.environment)
    result = VerificationResult(record.verdict, verification_id, record, name, drift, threshold)
    if record.verdict == "diverged":
        raise VerificationDivergedError(
            f"commit {commit.short} diverged from baseline {baseline_id.short}: {divergence_text(record)}",
            verification_id,
            record,
            f"The evidence is stored: rbl show {verification_id.short}",
            threshold,
        )
    return result


_KINDS: Final = {"embedding": "embeddings", "logits": "logits"}


def _of_one_vocabulary(
    measured: Iterable[PromptMeasurement], baseline: Baseline, baseline_id: BaselineId
) -> Iterator[PromptMeasurement]:
    """What is measured, as long as it is as wide as the baseline: the first prompt tells."""
    from rblstore.divergence.compare import BaselineMismatchError

    width = baseline.prompts[0].shape[1]
    for prompt in measured:
        if prompt.output != baseline.output:
            raise BaselineMismatchError(
                f"the baseline {baseline_id.short} holds {_KINDS[baseline.output]}, the model gives "
                f"{_KINDS[prompt.output]}",
                object=baseline_id,
                hint="Compare with a commit of the same kind of model, or with the commit's own baseline.",
            )
        if prompt.shape[1] != width:
            what = "an embedding" if baseline.output == "embedding" else "a vocabulary"
            raise BaselineMismatchError(
                f"the baseline {baseline_id.short} is of {what} of {width} entries, the model has {prompt.shape[1]}",
                object=baseline_id,
                hint="Compare with a commit of the same vocabulary, or with the commit's own baseline.",
            )
        yield prompt


def measured_evidence(
    store: Store,
    commit: CommitId | None,
    composition: CompositionId,
    probe: ProbeId,
    baseline: BaselineId,
    environment: dict[str, str],
    comparison: Comparison,
    tolerance: float,
    author: str,
    *,
    subject: CommitId | CompositionId,
) -> Verification:
    """The evidence of a comparison with a baseline where nothing was reverted; it is not stored yet.

    Args:
        store: The repository.
        commit: The commit vouched for, or None.
        composition: What was measured.
        probe: Under what.
        baseline: What it was compared with.
        environment: Where it was measured.
        comparison: What was found.
        tolerance: Of the verdict, nats.
        author: Who measured.
        subject: What the evidence is about; it is not older than that.
    """
    return Verification(
        commit,
        composition,
        None,
        (),
        probe,
        baseline,
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
        evidence_time(store, subject, Verification),
    )


def divergence_text(record: Verification) -> str:
    """What was measured in a few words: KL and JS, or how far embeddings are apart, and up to where they may reach."""
    found = intervals_of(record.prompts)
    if "relative_l2" in found:
        cosine = f", cosine {found['cosine'].mean:.6g}" if "cosine" in found else ""
        return f"relative L2 {found['relative_l2'].mean:.3g}{cosine}; embeddings have no KL"
    if record.kl is None or record.js is None:
        return record.reason or "no finite divergence"
    ends = {
        name: f" (up to {found[name].high:.3g})" if name in found and found[name].known else "" for name in ("kl", "js")
    }
    return f"KL {record.kl:.3g}{ends['kl']}, JS {record.js:.3g}{ends['js']} nats (tolerance {record.tolerance:g})"
