"""What a report holds: numbers and names, every one with the id of what it was taken from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rblstore.divergence.intervals import Interval
from rblstore.objects.evidence_records import Claim
from rblstore.objects.history_records import Slot
from rblstore.objects.ids import (
    BaselineId,
    CommitId,
    CompositionId,
    ProbeId,
    RecordId,
    StudyId,
    VerificationId,
)
from rblstore.objects.study_records import Study
from rblstore.operations.result import Result, to_json
from rblstore.operations.undo import OperationInfo


@dataclass(frozen=True)
class SlotChange:
    """One slot that a commit changed against its first parent.

    Attributes:
        name: The slot's.
        change: ``added``, ``removed``, ``replaced``, ``weight`` or ``moved``.
    """

    name: str
    change: str


@dataclass(frozen=True)
class LineageCommit:
    """One commit of the lineage.

    Attributes:
        commit: Its id.
        composition: What it composes.
        parents: Its parents.
        author: Who.
        time: RFC 3339.
        message: Whole.
        refs: Names that point here.
        slots: The behaviors in order.
        identity_changed: Whether its identity is not its first parent's; False for a root.
        changes: What it changed against its first parent.
        verdict: Of the newest verification about it; ``unverified`` without one.
        verification: That verification, or None.
    """

    commit: CommitId
    composition: CompositionId
    parents: tuple[CommitId, ...]
    author: str
    time: str
    message: str
    refs: tuple[str, ...]
    slots: tuple[Slot, ...]
    identity_changed: bool
    changes: tuple[SlotChange, ...]
    verdict: str
    verification: VerificationId | None

    @property
    def subject(self) -> str:
        """The message's first line."""
        return self.message.split("\n", 1)[0]


@dataclass(frozen=True)
class TensorNorm:
    """How large a change of one tensor is.

    Attributes:
        tensor: Its logical name.
        layer: What the tensor belongs to: its name up to the first number, or "" outside all layers.
        norm: Frobenius norm of what was added to it; None where that is not measured.
        reason: Why it is not, else None.
    """

    tensor: str
    layer: str
    norm: float | None
    reason: str | None


@dataclass(frozen=True)
class LayerNorm:
    """How large the changes of one layer are together.

    Attributes:
        layer: See :class:`TensorNorm`.
        norm: Root of the summed squares of its tensors' norms; None where one of them is not measured.
        tensors: How many tensors are changed.
    """

    layer: str
    norm: float | None
    tensors: int


@dataclass(frozen=True)
class PartFact:
    """The identity, or one behavior.

    Attributes:
        role: ``identity`` or ``behavior``.
        name: The slot's name; for the identity, the name it is known by, or "".
        id: Its id.
        weight: The slot's; 1.0 for the identity.
        form: ``adapter``, ``overlay``, or ``checkpoint`` for the identity.
        type: PEFT's name of the adapter's kind, or None.
        ranks: Ranks of the adapter's products, ascending; empty where it has none.
        alpha: The adapter's ``lora_alpha``, or None.
        tensors: How many tensors it has or acts on.
        actions: How many tensors and files it acts on, by action; empty for the identity.
        elements: Elements of the identity's tensors; None for behaviors.
        dtypes: The identity's tensors by element type.
        bytes: Of its files.
        licenses: What is claimed, every claim that stands.
        sources: Where it is said to come from.
        claims: Everything that is said about it.
        layers: Norms of what it changed, by layer in the order of the layers.
        norms: The same by tensor.
        not_measured: Why nothing of what it changed is measured, else None.
    """

    role: str
    name: str
    id: RecordId
    weight: float
    form: str
    type: str | None
    ranks: tuple[int, ...]
    alpha: float | None
    tensors: int
    actions: dict[str, int]
    elements: int | None
    dtypes: dict[str, int]
    bytes: int
    licenses: tuple[str, ...]
    sources: tuple[str, ...]
    claims: tuple[Claim, ...]
    layers: tuple[LayerNorm, ...] = ()
    norms: tuple[TensorNorm, ...] = ()
    not_measured: str | None = None


@dataclass(frozen=True)
class PromptFact:
    """One prompt of a probe.

    Attributes:
        id: Its id.
        text: What was tokenized, or None.
        tokens: How many tokens.
        first_tokens: The first of them, for prompts without a text.
    """

    id: str
    text: str | None
    tokens: int
    first_tokens: tuple[int, ...]


@dataclass(frozen=True)
class ProbeFact:
    """A probe that something in the report was measured under.

    Attributes:
        id: Its id.
        name: Its name, or "" where none points at it any more.
        positions: ``all`` or ``last``.
        measured_positions: Over all prompts.
        prompts: In order.
    """

    id: ProbeId
    name: str
    positions: str
    measured_positions: int
    prompts: tuple[PromptFact, ...]


@dataclass(frozen=True)
class PromptResidue:
    """ILS of one prompt.

    Attributes:
        id: The prompt's.
        kl: Nats, or None.
        js: Nats, or None.
        bit_equal: Whether its outputs are equal.
        flagged: Whether its KL is above the tolerance, or unknown.
        values: Further measures: ``kl_adapted`` and ``js_adapted`` before a revert, ``relative_l2`` of embeddings.
    """

    id: str
    kl: float | None
    js: float | None
    bit_equal: bool
    flagged: bool
    values: dict[str, float | None]


@dataclass(frozen=True)
class VerificationFact:
    """One verification, with intervals over its prompts.

    Attributes:
        id: The evidence.
        commit: What it vouches for, or None.
        undone: Whether that commit was undone: every operation that put a ref to it is reversed.
        composition: What was measured.
        adapted: The composition before the revert, or None.
        removed: What was taken out of the live model.
        probe: Under what.
        baseline: What it was compared with.
        environment: Number of the environment among the report's, from 1.
        verdict: ``exact``, ``within_tolerance`` or ``diverged``.
        tolerance: KL and JS below which it is within tolerance.
        bit_equal: Whether all outputs are equal.
        rf: Or None, with a reason.
        kl: Nats, or None.
        js: Nats, or None.
        kl_adapted: Nats, or None.
        js_adapted: Nats, or None.
        intervals: Over the prompts, by measure: ``kl``, ``js``, ``rf``, ...; without those that a prompt lacks.
        decided_by: ``bits``, ``upper_95`` (the upper ends of the intervals of KL and JS) or ``mean``.
        reason: Why ``rf`` is None.
        prompts: In the probe's order.
        author: Who measured.
        time: RFC 3339.
    """

    id: VerificationId
    commit: CommitId | None
    undone: bool
    composition: CompositionId
    adapted: CompositionId | None
    removed: tuple[str, ...]
    probe: ProbeId
    baseline: BaselineId
    environment: int
    verdict: str
    tolerance: float
    bit_equal: bool
    rf: float | None
    kl: float | None
    js: float | None
    kl_adapted: float | None
    js_adapted: float | None
    intervals: dict[str, Interval]
    decided_by: str
    reason: str | None
    prompts: tuple[PromptResidue, ...]
    author: str
    time: str


@dataclass(frozen=True)
class PromptEntropy:
    """Mean entropy over the positions of one prompt, nats."""

    id: str
    entropy: float


@dataclass(frozen=True)
class BaselineFact:
    """A recorded baseline of a composition of the lineage.

    Attributes:
        id: The evidence.
        composition: Of what.
        commits: Commits of the lineage that have the composition, newest first.
        behaviors: Names of the composition's behaviors.
        probe: Under what.
        environment: Number among the report's environments, from 1.
        output: ``logits`` or ``embedding``.
        bytes: Of the outputs.
        entropy: Mean over the prompts with its interval; None where it was not computed.
        entropies: By prompt; empty where it was not computed.
        reason: Why it was not, else None.
        author: Who recorded it.
        time: RFC 3339.
    """

    id: BaselineId
    composition: CompositionId
    commits: tuple[CommitId, ...]
    behaviors: tuple[str, ...]
    probe: ProbeId
    environment: int
    output: str
    bytes: int
    entropy: Interval | None
    entropies: tuple[PromptEntropy, ...]
    reason: str | None
    author: str
    time: str


@dataclass(frozen=True)
class StudyFact:
    """A study of commits of the lineage.

    Attributes:
        id: The evidence.
        environment: Number among the report's environments, from 1.
        record: All of it, which its picture is drawn from.
    """

    id: StudyId
    environment: int
    record: Study

    def as_json(self) -> dict[str, Any]:
        """Its members but for the points, which ``rbl show`` has, and what they come to."""
        from rblstore.operations.study_summary import summarise

        body = {key: value for key, value in self.record.body().items() if key != "points"}
        rows = [to_json(row) for row in summarise(self.record)]
        return {"id": str(self.id), **body, "environment": self.environment, "summary": rows}


@dataclass(frozen=True)
class ReportResult(Result):
    """Everything that is known of a commit, gathered from the repository without running a model.

    Attributes:
        version: Of rblstore.
        revision: As asked for.
        commit: The commit.
        composition: Its composition.
        author: Of the commit.
        time: Of the commit.
        message: Of the commit, whole.
        refs: Names that point at it.
        parts: The identity, then the behaviors in order.
        lineage: The commit and its ancestors, children before parents.
        older: How many further ancestors are left out.
        operations: That moved a ref to or from a commit of the lineage and are of note, newest first.
        verifications: About commits of the lineage and what is composed, newest first.
        probes: What was measured under.
        baselines: Of compositions of the lineage, newest first.
        studies: Of commits of the lineage, newest first.
        environments: Where things were measured; others refer to them by number, from 1.
        left_out: What there is more of than is shown, by kind.
        warnings: Gaps that a reader should know of.
    """

    version: str
    revision: str
    commit: CommitId
    composition: CompositionId
    author: str
    time: str
    message: str
    refs: tuple[str, ...]
    parts: tuple[PartFact, ...]
    lineage: tuple[LineageCommit, ...]
    older: int
    operations: tuple[OperationInfo, ...]
    verifications: tuple[VerificationFact, ...]
    probes: tuple[ProbeFact, ...]
    baselines: tuple[BaselineFact, ...]
    studies: tuple[StudyFact, ...]
    environments: tuple[dict[str, str], ...]
    left_out: dict[str, int]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "studies": [study.as_json() for study in self.studies]}
