"""Proving what a live model is: its weights against the store bit for bit, its outputs against a baseline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rblstore.checkpoints.composition_ground import shown
from rblstore.divergence.locality import check_threshold
from rblstore.divergence.verdict import DEFAULT_TOLERANCE, check_tolerance
from rblstore.errors import ConflictError, DivergedError, RblError
from rblstore.objects.evidence_records import Probe, Verification
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import CommitId, CompositionId, ProbeId, VerificationId
from rblstore.operations.baseline import baseline_of, references
from rblstore.operations.live_measuring import fresh_model, live_environment
from rblstore.operations.load import laid_out_behaviors
from rblstore.operations.probe import find_probe
from rblstore.operations.result import Result
from rblstore.operations.revert import (
    RevertPlan,
    RevertRequest,
    RevertResult,
    plan_revert,
    probe_for,
    record_revert,
)
from rblstore.operations.revert_proof import RevertProof
from rblstore.operations.verification_document import verification_document
from rblstore.operations.verify import VerificationDivergedError, divergence_text, measured_evidence

if TYPE_CHECKING:
    from rblstore.operations.live_model import LiveModel
    from rblstore.repository import Store


class WeightsDifferError(DivergedError):
    """Tensors of a live model do not hold the stored bits.

    Attributes:
        names: Of the tensors: stored names, and for an adapter's ``SLOT: NAME``.
        verification: What was measured of the outputs, or None.
        verification_id: Its id where it was stored.
    """

    code: ClassVar[str] = "weights_differ"

    def __init__(
        self,
        names: tuple[str, ...],
        count: int,
        verification: Verification | None,
        verification_id: VerificationId | None,
    ) -> None:
        measured = "" if verification is None else f"; the outputs: {_outputs_text(verification)}"
        super().__init__(
            f"{len(names)} of {count} tensors of the live model do not hold the stored values: "
            f"{shown(sorted(names))}{measured}",
            object=names[0],
            hint="Something wrote into the model. live.repair() writes the stored values; live.residue() names more.",
        )
        self.names = names
        self.verification = verification
        self.verification_id = verification_id


class NotHeadError(ConflictError):
    """A live model that is to be reverted is not what HEAD says."""

    code: ClassVar[str] = "not_head"


@dataclass(frozen=True)
class LiveVerification(Result):
    """What was proved of a live model.

    Attributes:
        verdict: ``exact`` or ``within_tolerance``; ``unverified`` where there is no probe, and the weights alone were
            compared. A diverged one is raised.
        weights: How many tensors were compared with the stored ones, all of them equal bit for bit.
        commit: The commit that the model is, or None.
        composition: What it is made of.
        form: ``adapters`` or ``merged``.
        probe_name: The probe's name, or None.
        verification_id: The stored evidence's id, or None.
        verification: The evidence, or None.
        threshold: Above which a prompt is flagged (KL, nats); None for the verification's tolerance.
    """

    verdict: str
    weights: int
    commit: CommitId | None
    composition: CompositionId
    form: str
    probe_name: str | None
    verification_id: VerificationId | None
    verification: Verification | None
    threshold: float | None = None

    def as_json(self) -> dict[str, Any]:
        measured = {} if self.verification is None else verification_document(self.verification, self.threshold)
        return {
            **measured,
            "commit": None if self.commit is None else str(self.commit),
            "composition": str(self.composition),
            "form": self.form,
            "probe_name": self.probe_name,
            "verdict": self.verdict,
            "verification": None if self.verification_id is None else str(self.verification_id),
            "weights": self.weights,
        }


def verify_live(
    live: LiveModel,
    probe: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    author: str | None = None,
    threshold: float | None = None,
) -> LiveVerification:
    """Compares a live model with the store: every tensor by its bits, the outputs under a probe with a baseline.

    The baseline is the composition's own in this environment; where there is none it is recorded from a fresh load,
    beside the live model for that time. Outputs are measured also where weights differ, and what was measured is
    stored before an error is raised, but no evidence says ``exact`` of a model whose weights are not.

    Args:
        live: The live model.
        probe: The probe's name; None for the live model's, the default or the only one. Without any the weights alone
            are compared.
        tolerance: KL and JS (nats) below which the verdict is within tolerance.
        author: Who; None for the live model's author.
        threshold: KL (nats) above which a single prompt is flagged; None for the tolerance.

    Raises:
        WeightsDifferError: Tensors do not hold the stored bits; names them.
        VerificationDivergedError: The weights are as stored, and the outputs are not the baseline's.
        ProbeMismatchError: The probe does not fit the model.
        BadToleranceError: The tolerance is not a finite number of at least 0.
        BadThresholdError: The same of the threshold.
    """
    check_tolerance(tolerance)
    if threshold is not None:
        check_threshold(threshold)
    store, author = live.store, author or live.author
    composition, form = live.composition, live.form
    composition_id = CompositionId(Composition.id_of(composition.encode()))
    found = find_probe(store, probe if probe is not None else live.probe)
    count, differing = compare_weights(live)
    evidence = None
    if found is not None:
        evidence = _measured(live, composition, composition_id, found, tolerance, author)
    stored = evidence is not None and (not differing or evidence.verdict == "diverged")
    verification_id = None
    if evidence is not None and stored:
        with store.transaction(author) as transaction:
            transaction.add_record(composition)
            verification_id = VerificationId(transaction.add_record(evidence))
    if differing:
        raise WeightsDifferError(differing, count, evidence, verification_id)
    if evidence is not None and verification_id is not None and evidence.verdict == "diverged":
        raise VerificationDivergedError(
            f"the live model diverged from its baseline, though every weight is as stored: {divergence_text(evidence)}",
            verification_id,
            evidence,
            "Look for hooks and replaced methods: live.residue()",
            threshold,
        )
    return LiveVerification(
        "unverified" if evidence is None else evidence.verdict,
        count,
        live.commit,
        composition_id,
        form,
        None if found is None else found[0],
        verification_id,
        evidence,
        threshold,
    )


def compare_weights(live: LiveModel) -> tuple[int, tuple[str, ...]]:
    """How many tensors the model and its adapters hold, and the names of those that do not hold the stored bits.

    Returns:
        The count, and stored names; an adapter's tensors are called ``SLOT: NAME``.

    Raises:
        CorruptError: Stored bytes that are needed to tell are damaged.
    """
    from rblstore.checkpoints.ledger import ledger_of
    from rblstore.live.adapters_alike import differing_tensors
    from rblstore.live.binding import bind

    wanted = live.values.of(live.composition, live.form)
    differing = live.values.differing(wanted)
    ledger = ledger_of(live.model) if live.form == "adapters" else None
    mounting = live._state.mounting  # noqa: SLF001 - a change under way, which this proves, holds it
    if ledger is None or mounting is None:
        return len(wanted), tuple(differing)
    if mounting.own:
        # What attaching an adapter wrote into the model is compared with what it wrote.
        direct, changed = bind(live.model, wanted, absent=frozenset(wanted)).direct, mounting.overwritten()
        differing = [name for name in differing if direct.get(name) not in mounting.own]
        differing += [name for name in wanted if direct.get(name) in changed]
    count = len(wanted)
    with laid_out_behaviors(live.store, live.composition) as (_, slots):
        folders = {name: directory for name, directory, _ in slots}
        for entry in ledger.attached:
            found = differing_tensors(live.model, entry.live, folders[entry.slot])
            differing += [f"{entry.slot}: {name}" for name in found]
            count += _tensors_in(folders[entry.slot])
    return count, tuple(differing)


def _tensors_in(directory: Any) -> int:
    from rblstore.checkpoints.attaching import adapter_shapes

    return len(adapter_shapes(directory))


def _measured(
    live: LiveModel,
    composition: Composition,
    composition_id: CompositionId,
    probe: tuple[str, ProbeId],
    tolerance: float,
    author: str,
) -> Verification:
    from rblstore.divergence.compare import compare
    from rblstore.divergence.measure import measure
    from rblstore.operations.baseline import check_fit

    store, form = live.store, live.form
    record = store.record(probe[1], Probe)
    check_fit(store, composition, record, probe[0], live.model)
    environment = live_environment(live, composition, record, form)
    baseline_id, baseline = baseline_of(
        store, composition, composition_id, probe, environment, lambda: fresh_model(live, composition, form), author
    )
    comparison = compare(references(store, baseline), measure(live.model, record), output=baseline.output)
    return measured_evidence(
        store,
        live.commit,
        composition_id,
        probe[1],
        baseline_id,
        environment,
        comparison,
        tolerance,
        author,
        subject=live.commit or composition_id,
    )


def _outputs_text(record: Verification) -> str:
    return "equal under the probe" if record.bit_equal else divergence_text(record)


def revert_live(
    live: LiveModel,
    target: str,
    *,
    probe: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    verify: bool = True,
    require_verified: bool = False,
    mainline: int | None = None,
    message: str | None = None,
    author: str | None = None,
    threshold: float | None = None,
) -> RevertResult:
    """Takes a behavior, or what a commit changed, out of a live model, proves it, and commits that.

    The behavior leaves the model that serves, and what is measured afterwards is that model: nothing else is loaded but
    a fresh target where it has no baseline. Weights are compared bit for bit as well, with or without a probe.

    Args:
        live: The live model; it has to be what HEAD is.
        target: A behavior's name, else a revision.
        probe: The probe's name; None for the live model's, the default or the only one.
        tolerance: KL and JS (nats) below which the verdict is within tolerance.
        verify: Whether to measure outputs.
        require_verified: Whether having no probe is an error.
        mainline: For a merge, which parent to go back to, from 1.
        message: None for one that names what was reverted.
        author: Who; None for the live model's author.
        threshold: KL (nats) above which a single prompt is flagged; None for the tolerance.

    Returns:
        As ``repo.revert``. The live model is the new commit.

    Raises:
        NotHeadError: HEAD is another composition than the live model.
        VerificationDivergedError: The outputs are not the reference's; no ref moved, the evidence is stored, the model
            is as before.
        WeightsDifferError: Tensors do not hold the stored bits afterwards; nothing was committed, the model is as
            before.
        RevertConflictError: A later commit changed the same slot.
    """
    behavior = target if live.composition.slot(target) is not None else None
    request = RevertRequest(
        author or live.author,
        None if behavior else target,
        behavior,
        live.probe if probe is None else probe,
        tolerance,
        verify,
        require_verified,
        mainline,
        message,
        threshold,
    )
    store = live.store
    plan = plan_revert(store, request)
    if live.composition != plan.head_composition:
        raise NotHeadError(
            f"the live model is not what HEAD ({plan.head.short}) is",
            object=plan.head,
            hint='live.switch("HEAD") first, or rbl switch to the branch of the live model.',
        )
    found = probe_for(store, request)
    made: list[RevertResult] = []

    def proof() -> Callable[[], None]:
        finish = None if found is None else _begin(live, plan, request, found)

        def prove() -> None:
            evidence = None if finish is None else finish()
            if evidence is None or evidence.verdict != "diverged":
                count, differing = compare_weights(live)
                if differing:
                    raise WeightsDifferError(differing, count, evidence, None)
            made.append(record_revert(store, request, plan, evidence))

        return prove

    with live.changing() as state:
        try:
            state.become(plan.target, state.form, proof=proof)
        except BaseException:
            # An interrupt once the commit was made has taken the change back all the same: history has the last word.
            if not state.broken and _was_made(store, plan):
                state.become(plan.target, state.form)
                live.bind_to(plan.commit_id)
            raise
        live.bind_to(plan.commit_id)
    return made[0]


def _was_made(store: Store, plan: RevertPlan) -> bool:
    """Whether the commit of a revert is where its branch stands; no, where that cannot be told."""
    with suppress(RblError):
        return store.ref(plan.ref) == plan.commit_id
    return False


def _begin(
    live: LiveModel, plan: RevertPlan, request: RevertRequest, probe: tuple[str, ProbeId]
) -> Callable[[], Verification]:
    """Measures the live model as it is; what is returned measures what it is then."""
    store, form = live.store, live.form
    proof = RevertProof(store, probe, request.author, request.tolerance, live.progress)
    environment = live_environment(live, plan.target, store.record(probe[1], Probe), form)
    begun = proof.begin(
        live.model,
        plan.head_composition,
        plan.target,
        plan.target_id,
        environment,
        lambda: fresh_model(live, plan.target, form),
    )
    # Another identity is written over the live one: nothing is taken out of anything (docs/decisions/0007).
    removed = plan.removed if plan.head_composition.identity == plan.target.identity else ()
    return lambda: proof.finish(begun, live.model, plan.commit_id, plan.head_composition_id, removed)
