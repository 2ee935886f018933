"""``revert``: a new commit without what an earlier one added, and the proof that it is gone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rblstore.divergence.intervals import Interval
from rblstore.divergence.locality import check_threshold
from rblstore.divergence.uncertainty import intervals_of
from rblstore.divergence.verdict import DEFAULT_TOLERANCE, check_tolerance
from rblstore.errors import ConflictError, NothingChangedError, RblError, UsageError
from rblstore.forgotten import ForgottenError, gone_on_purpose, require_remembered, tombstones_of
from rblstore.objects.content_records import Identity
from rblstore.objects.evidence_records import Verification
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import CommitId, CompositionId, ProbeId, VerificationId
from rblstore.operations.commit import NoSuchBehaviorError, check_message
from rblstore.operations.probe import find_probe
from rblstore.operations.progress import Progress
from rblstore.operations.result import Result, to_json
from rblstore.operations.revert_proof import RevertProof
from rblstore.operations.stored_models import check_members, members, view_identity
from rblstore.operations.verification_document import DERIVED, verification_document
from rblstore.operations.verify import VerificationDivergedError, divergence_text
from rblstore.repository import HEADS, Store, utc_now
from rblstore.revisions import resolve


class RevertConflictError(ConflictError):
    """Something that the commit changed has been changed again since."""

    code = "revert_conflict"


class UnverifiedError(RblError):
    """A verified revert was asked for and there is no probe to verify it with."""

    code = "unverified"


@dataclass(frozen=True)
class RevertRequest:
    """What to take out, and how to prove it.

    Attributes:
        author: Who reverts.
        commit: A revision to undo, or None.
        behavior: A slot to take out, or None; exactly one of the two.
        probe: The probe's name; None for the default one.
        tolerance: KL and JS (nats) below which the verdict is within tolerance.
        verify: Whether to measure at all.
        require_verified: Whether having no probe is an error.
        mainline: For a merge, which parent to go back to, from 1.
        message: None for one that names what was reverted.
    """

    author: str
    commit: str | None = None
    behavior: str | None = None
    probe: str | None = None
    tolerance: float = DEFAULT_TOLERANCE
    verify: bool = True
    require_verified: bool = False
    mainline: int | None = None
    message: str | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class RevertResult(Result):
    """A revert that was made.

    Attributes:
        commit: The new commit.
        composition: Its composition.
        parents: Its parents.
        branch: The branch that moved.
        message: Its message.
        reverted: The commit that was undone, or None where a behavior was named.
        removed: Slots taken out.
        restored: Slots put back or changed back.
        same_composition_as: The newest earlier commit with this very composition, or None.
        verdict: ``exact``, ``within_tolerance`` or ``unverified``.
        verification_id: The evidence's id, or None.
        verification: The evidence, or None.
        threshold: Above which a prompt is flagged (KL, nats); None for the verification's tolerance.
    """

    commit: CommitId
    composition: CompositionId
    parents: tuple[CommitId, ...]
    branch: str
    message: str
    reverted: CommitId | None
    removed: tuple[str, ...]
    restored: tuple[str, ...]
    same_composition_as: CommitId | None
    verdict: str
    verification_id: VerificationId | None
    verification: Verification | None
    threshold: float | None = None

    @property
    def intervals(self) -> dict[str, Interval]:
        """The mean over prompts of each measure with its 95 % interval, by name, RF among them; none unverified."""
        return {} if self.verification is None else intervals_of(self.verification.prompts)

    def as_json(self) -> dict[str, Any]:
        skipped = ("verification", "verification_id", "threshold")
        own = {key: to_json(value) for key, value in vars(self).items() if key not in skipped}
        measured: dict[str, Any] = dict.fromkeys(_EVIDENCE)
        if self.verification is not None:
            measured = verification_document(self.verification, self.threshold)
        return {**{key: measured[key] for key in _EVIDENCE}, **own, "verification": self.verification_id}


# What a verification says, flat beside the revert's own keys, as the document of ``verify`` has it.
_EVIDENCE = (
    "adapted",
    "baseline",
    "bit_equal",
    "environment",
    "js",
    "js_adapted",
    "kl",
    "kl_adapted",
    "probe",
    "prompts",
    "reason",
    "rf",
    "tolerance",
    *DERIVED,
)


def _without(head: Composition, name: str) -> Composition:
    if head.slot(name) is None:
        raise NoSuchBehaviorError(
            f"the composition has no behavior {name[:80]!r}",
            object=name[:80],
            hint=f"It has: {', '.join(slot.name for slot in head.slots) or 'none'}.",
        )
    return replace(head, slots=tuple(slot for slot in head.slots if slot.name != name))


def undo_slots(head: Composition, before: Composition, after: Composition, blame: Any) -> Composition:
    """The head composition with what changed between two others changed back, slot by slot.

    Args:
        head: The composition to change.
        before: The reverted commit's parent.
        after: The reverted commit's own.
        blame: A function of a slot's name that gives the later commit that changed it again, for messages.

    Raises:
        RevertConflictError: A slot, or the identity, is no longer as the reverted commit left it.
    """

    def conflict(what: str, name: str | None) -> RevertConflictError:
        return RevertConflictError(
            f"{what} was changed again by commit {blame(name)}",
            object=name,
            hint="Revert the later commit first.",
        )

    identity = head.identity
    if before.identity != after.identity:
        if head.identity != after.identity:
            raise conflict("the identity", None)
        identity = before.identity
    slots = list(head.slots)
    for name in dict.fromkeys([*(slot.name for slot in before.slots), *(slot.name for slot in after.slots)]):
        old, new, now = before.slot(name), after.slot(name), head.slot(name)
        if old == new:
            continue
        if now != new:
            raise conflict(f"the behavior {name!r}", name)
        if old is None:
            slots = [slot for slot in slots if slot.name != name]
        elif new is None:
            slots.insert(_place(slots, before, name), old)
        else:
            slots = [old if slot.name == name else slot for slot in slots]
    return Composition(identity, tuple(slots))


def _place(slots: list[Slot], before: Composition, name: str) -> int:
    """Where a slot that comes back stood: behind the nearest slot that stood before it and is still there."""
    earlier: set[str] = set()
    for slot in before.slots:
        if slot.name == name:
            break
        earlier.add(slot.name)
    return max((at + 1 for at, slot in enumerate(slots) if slot.name in earlier), default=0)


def _blame(store: Store, head: CommitId, reverted: CommitId, name: str | None) -> str:
    """The newest commit after the reverted one that changed a slot (or, without a name, the identity)."""
    with store.catalog.read() as reader:
        for row in reader.commits([head], None):
            if row.id == reverted or not row.parents:
                continue
            own = reader.composition(row.composition)
            parent = reader.commit(row.parents[0])
            before = None if parent is None else reader.composition(parent.composition)
            if own is None or before is None:
                continue
            changed = own.identity != before.identity if name is None else own.slot(name) != before.slot(name)
            if changed:
                return row.id.short
    return "(unknown)"


def _target(
    store: Store, request: RevertRequest, head: CommitId, composition: Composition
) -> tuple[Composition, CommitId | None, str]:
    if (request.commit is None) == (request.behavior is None):
        raise UsageError("name either a commit or a behavior to revert", hint="rbl revert COMMIT, or --behavior NAME")
    if request.behavior is not None:
        return _without(composition, request.behavior), None, f"Revert behavior {request.behavior!r}"
    reverted = resolve(store, request.commit or "").commit
    with store.catalog.read() as reader:
        contained = reader.is_ancestor(reverted, head)
    if not contained:
        raise ConflictError(
            f"commit {reverted.short} is not in the history of HEAD", object=reverted, hint="See: rbl log"
        )
    record = store.record(reverted, Commit)
    if not record.parents:
        raise UsageError(
            f"{reverted.short} is a root commit and cannot be reverted",
            object=reverted,
            hint="To start over, use: rbl switch --orphan NAME",
        )
    if len(record.parents) > 1 and request.mainline is None:
        raise UsageError(
            f"{reverted.short} is a merge: say which parent to go back to", object=reverted, hint="--mainline N"
        )
    number = 1 if request.mainline is None else request.mainline
    if not 1 <= number <= len(record.parents):
        raise UsageError(f"{reverted.short} has no parent {number}", object=reverted, hint="--mainline N, from 1")
    parent = store.record(record.parents[number - 1], Commit)
    target = undo_slots(
        composition,
        store.record(parent.composition, Composition),
        store.record(record.composition, Composition),
        lambda name: _blame(store, head, reverted, name),
    )
    return target, reverted, f'Revert "{record.subject}"\n\nThis reverts commit {reverted}.'


def revert(store: Store, request: RevertRequest, progress: Progress | None = None) -> RevertResult:
    """Takes out what a commit changed, or one behavior, and proves it on the live model.

    Args:
        store: The repository.
        request: What, and how to prove it.
        progress: Is told bytes read.

    Raises:
        RevertConflictError: A later commit changed the same slot.
        StandsOnError: Another behavior stands on what would be taken out.
        VerificationDivergedError: The outputs differ from the reference; no ref moved, the evidence is stored.
        BadToleranceError: The tolerance is not a finite number of at least 0.
        UnverifiedError: ``require_verified``, and there is no default probe and none is named.
        NothingChangedError: The commit changed nothing.
    """
    plan = plan_revert(store, request)
    probe = probe_for(store, request)
    evidence: Verification | None = None
    if probe is not None:
        evidence = RevertProof(store, probe, request.author, request.tolerance, progress).prove(
            plan.commit_id, plan.head_composition, plan.head_composition_id, plan.target, plan.target_id, plan.removed
        )
    else:
        _check_digests(store, plan.target, progress)
    return record_revert(store, request, plan, evidence)


@dataclass(frozen=True)
class RevertPlan:
    """A revert that can be made, before anything was measured or written.

    Attributes:
        ref: The branch that would move.
        head: Where it stands.
        head_composition: What is there.
        target: What would be there.
        reverted: The commit that would be undone, or None.
        commit: The new commit.
        removed: Slots that would go.
        restored: Slots that would come back.
        same: The newest earlier commit of the target's composition, or None.
    """

    ref: str
    head: CommitId
    head_composition: Composition
    target: Composition
    reverted: CommitId | None
    commit: Commit
    removed: tuple[str, ...]
    restored: tuple[str, ...]
    same: CommitId | None

    @property
    def head_composition_id(self) -> CompositionId:
        """What is there now."""
        return CompositionId(Composition.id_of(self.head_composition.encode()))

    @property
    def target_id(self) -> CompositionId:
        """What would be there."""
        return self.commit.composition

    @property
    def commit_id(self) -> CommitId:
        """The new commit's id."""
        return CommitId(Commit.id_of(self.commit.encode()))


def plan_revert(store: Store, request: RevertRequest) -> RevertPlan:
    """What a revert would do; raises as :func:`revert` does before it measures."""
    check_tolerance(request.tolerance)
    if request.threshold is not None:
        check_threshold(request.threshold)
    ref = store.head_branch()
    head = resolve(store, "HEAD").commit
    head_composition = store.record(store.record(head, Commit).composition, Composition)
    target, reverted, default_message = _target(store, request, head, head_composition)
    if target == head_composition:
        raise NothingChangedError("nothing to revert: the commit changed nothing", object=reverted)
    _refuse_forgotten(store, target, head_composition)
    view = view_identity(store, store.record(target.identity, Identity))
    check_members(view, members(store, target), members(store, head_composition), unloadable=True)
    message = check_message(default_message if request.message is None else request.message)
    composition_id = CompositionId(Composition.id_of(target.encode()))
    with store.catalog.read() as reader:
        same = [row.id for row in reader.commits_with_composition(composition_id, head)]
    return RevertPlan(
        ref,
        head,
        head_composition,
        target,
        reverted,
        Commit(composition_id, (head,), request.author, utc_now(), message),
        tuple(slot.name for slot in head_composition.slots if target.slot(slot.name) is None),
        tuple(slot.name for slot in target.slots if head_composition.slot(slot.name) != slot),
        same[0] if same else None,
    )


def probe_for(store: Store, request: RevertRequest) -> tuple[str, ProbeId] | None:
    """Name and id of the probe that a revert is proved with; None where it is not.

    Raises:
        UnverifiedError: It has to be proved, and there is no probe.
    """
    probe = find_probe(store, request.probe) if request.verify else None
    if probe is None and request.require_verified:
        raise UnverifiedError(
            "the revert cannot be verified: no probe is named, and none is the default"
            if request.verify
            else "--no-verify verifies nothing",
            hint="Name one with --probe, or make one: rbl probe add NAME --prompts FILE",
        )
    return probe


def record_revert(
    store: Store, request: RevertRequest, plan: RevertPlan, evidence: Verification | None
) -> RevertResult:
    """Makes the commit, with its evidence; one that diverged is stored alone, and no ref moves.

    Raises:
        VerificationDivergedError: The evidence says so.
        RefMovedError: The branch moved meanwhile.
    """
    if evidence is not None and evidence.verdict == "diverged":
        _store_diverged(store, request, plan.target, replace(evidence, commit=None))
    verification_id = None
    with store.transaction(request.author) as transaction:
        transaction.add_record(plan.target)
        transaction.add_record(plan.commit)
        if evidence is not None:
            verification_id = VerificationId(transaction.add_record(evidence))
        transaction.set_ref(plan.ref, plan.head, plan.commit_id)
        transaction.describe(f"revert: {plan.commit.subject}")
    return RevertResult(
        plan.commit_id,
        plan.target_id,
        (plan.head,),
        plan.ref.removeprefix(HEADS),
        plan.commit.message,
        plan.reverted,
        plan.removed,
        plan.restored,
        plan.same,
        "unverified" if evidence is None else evidence.verdict,
        verification_id,
        evidence,
        request.threshold,
    )


def _refuse_forgotten(store: Store, target: Composition, head: Composition) -> None:
    """Refuses to bring back what was removed on purpose since; what is there stays as it is.

    Raises:
        ForgottenError: It was.
    """
    there = {slot.behavior for slot in head.slots}
    back = tuple(slot for slot in target.slots if slot.behavior not in there)
    if target.identity != head.identity:
        require_remembered(store, replace(target, slots=back))
    else:
        for slot in back:
            for tombstone in tombstones_of(store, [slot.behavior]).values():
                raise ForgottenError(tombstone, slot.name)


def _check_digests(store: Store, target: Composition, progress: Progress | None) -> None:
    """Reads every stored byte of a composition, so that a revert never points at something damaged."""
    from rblstore.operations.checkout import plan
    from rblstore.operations.progress import Meter
    from rblstore.operations.writing import source_parts

    parts = dict.fromkeys(part for file in plan(store, target) for part in source_parts(store, file.source))
    # What was removed on purpose and stays in the composition has no bytes to read.
    gone = gone_on_purpose(store, (target.identity, *(slot.behavior for slot in target.slots)))
    contents = store.contents.stored(part for part in parts if not isinstance(part, bytes) and part not in gone)
    meter = Meter(progress, sum(content.size for content in contents))
    for data in store.contents.read(contents):
        meter.add("checking digests", len(data))


def _store_diverged(store: Store, request: RevertRequest, target: Composition, evidence: Verification) -> None:
    with store.transaction(request.author) as transaction:
        transaction.add_record(target)
        verification_id = VerificationId(transaction.add_record(evidence))
    raise VerificationDivergedError(
        f"the revert diverged and was not made: {divergence_text(evidence)}",
        verification_id,
        evidence,
        f"No ref moved. The evidence is stored: rbl show {verification_id.short}",
        request.threshold,
    )
