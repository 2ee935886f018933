"""``report``: everything that is known of a commit, gathered from records and stored bytes; no model runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from rblstore.divergence.intervals import Interval
from rblstore.divergence.locality import locality
from rblstore.divergence.uncertainty import intervals_of
from rblstore.divergence.verdict import decided_by
from rblstore.objects.dtypes import span_bytes
from rblstore.objects.evidence_records import Baseline, Probe, Verification
from rblstore.objects.history_records import Commit, Composition, Slot
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
from rblstore.operations.audit import AuditResult, audit
from rblstore.operations.log import LogEntry, log
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.report_facts import (
    BaselineFact,
    LineageCommit,
    PartFact,
    ProbeFact,
    PromptEntropy,
    PromptFact,
    PromptResidue,
    ReportResult,
    SlotChange,
    StudyFact,
    VerificationFact,
)
from rblstore.operations.show import BehaviorDetail, ShowResult, show
from rblstore.operations.stored_models import kept_adapter_config
from rblstore.operations.undo import OperationInfo, operations
from rblstore.repository import PROBES, Store
from rblstore.revisions import resolve

MOST_COMMITS: Final = 60
MOST_OPERATIONS: Final = 30
MOST_VERIFICATIONS: Final = 24
MOST_BASELINES: Final = 24
MOST_STUDIES: Final = 30
MOST_ENTROPIES: Final = 6
"""Of how many baselines the entropy is computed: this commit's, the bare identity's, and then the newest."""
LARGEST_ENTROPY_BYTES: Final = 4 << 30
_TOKENS_SHOWN: Final = 24

_Found = TypeVar("_Found", Verification, Baseline, Study)


@dataclass
class _Numbered:
    """Environments in the order in which they are first met, numbered from 1; and the probes that were met."""

    environments: list[dict[str, str]] = field(default_factory=list)
    probes: dict[ProbeId, None] = field(default_factory=dict)

    def environment(self, settings: Mapping[str, str]) -> int:
        known = dict(settings)
        if known not in self.environments:
            self.environments.append(known)
        return self.environments.index(known) + 1


def report(store: Store, revision: str = "HEAD", *, version: str, progress: Progress | None = None) -> ReportResult:
    """Gathers what is known of a commit.

    Args:
        store: The repository.
        revision: Which commit.
        version: Of rblstore, to be named in the report.
        progress: Is told bytes read.

    Raises:
        UnknownRevisionError: No such revision.
        NoCommitsError: The branch has no commit yet.
        CorruptError: Evidence, or something that is measured, is missing or damaged; the error names it.
    """
    commit = resolve(store, revision).commit
    record = store.record(commit, Commit)
    composition = store.record(record.composition, Composition)
    entries = log(store, str(commit))
    near = entries[:MOST_COMMITS]
    ids, compositions = [entry.commit for entry in near], _compositions(near, composition)
    numbered, left_out = _Numbered(), {}

    verified, left_out["verifications"] = _newest(
        store, Verification, [*ids, record.composition], "verification", MOST_VERIFICATIONS
    )
    recorded, left_out["baselines"] = _newest(store, Baseline, list(compositions), "baseline", MOST_BASELINES)
    studied, left_out["studies"] = _newest(store, Study, ids, "study", MOST_STUDIES)
    done = operations(store)
    undone = _undone_commits(done)
    verifications = tuple(_verification(VerificationId(id), one, numbered, undone) for id, one in verified)
    detail, said = show(store, str(commit)), audit(store, str(commit))
    of_note = _of_note(done, set(ids))
    left_out["operations"] = max(0, len(of_note) - MOST_OPERATIONS)
    measured = _to_measure(recorded, record.composition, composition)
    total = sum(entry.bytes for entry in detail.behaviors) + sum(_output_bytes(recorded[at][1]) for at in measured)
    meter = Meter(progress, total)
    parts = _parts(store, composition, detail, said, meter)
    baselines = tuple(
        _baseline(store, BaselineId(id), one, compositions, numbered, meter, compute=at in measured)
        for at, (id, one) in enumerate(recorded)
    )
    studies = tuple(StudyFact(StudyId(id), numbered.environment(one.environment), one) for id, one in studied)
    numbered.probes.update(dict.fromkeys(probe for _, one in studied for probe in one.probes))
    lineage = tuple(_lineage(near, entries))
    return ReportResult(
        version,
        revision,
        commit,
        record.composition,
        record.author,
        record.time,
        record.message,
        next((entry.refs for entry in near if entry.commit == commit), ()),
        parts,
        lineage,
        len(entries) - len(near),
        tuple(of_note[:MOST_OPERATIONS]),
        verifications,
        _probes(store, numbered.probes),
        baselines,
        studies,
        tuple(numbered.environments),
        {kind: count for kind, count in left_out.items() if count},
        _warnings(said, verifications, commit, record.composition),
    )


def _compositions(near: Sequence[LogEntry], composition: Composition) -> dict[CompositionId, tuple[CommitId, ...]]:
    """Compositions of the lineage and the bare identity, with the commits that have them."""
    found: dict[CompositionId, list[CommitId]] = {}
    for entry in near:
        found.setdefault(entry.composition, []).append(entry.commit)
    bare = CompositionId(Composition.id_of(Composition(composition.identity).encode()))
    found.setdefault(bare, [])
    return {id: tuple(commits) for id, commits in found.items()}


def _newest(
    store: Store, of: type[_Found], subjects: Sequence[RecordId], kind: str, most: int
) -> tuple[list[tuple[RecordId, _Found]], int]:
    """Evidence about any of some subjects, each once, newest first; and how many are left out."""
    with store.catalog.read() as reader:
        ids = dict.fromkeys(id for found in reader.evidence_for(subjects, kind).values() for id in found)
    records = [(id, store.record(id, of)) for id in ids]
    # Equal times are told apart by ids: the order in which evidence came here says nothing elsewhere.
    records.sort(key=lambda found: (found[1].time, found[0]), reverse=True)
    return records[:most], max(0, len(records) - most)


def _lineage(near: Sequence[LogEntry], entries: Sequence[LogEntry]) -> Iterable[LineageCommit]:
    known = {entry.commit: entry for entry in entries}
    for entry in near:
        parent = known.get(entry.parents[0]) if entry.parents else None
        newest = entry.verifications[-1] if entry.verifications else None
        yield LineageCommit(
            entry.commit,
            entry.composition,
            entry.parents,
            entry.author,
            entry.time,
            entry.message,
            entry.refs,
            entry.slots,
            parent is not None and parent.identity != entry.identity,
            _changes(parent.slots if parent is not None else (), entry.slots),
            newest.verdict if newest is not None else "unverified",
            newest.id if newest is not None else None,
        )


def _changes(before: Sequence[Slot], after: Sequence[Slot]) -> tuple[SlotChange, ...]:
    old, new = {slot.name: slot for slot in before}, {slot.name: slot for slot in after}
    found = [SlotChange(name, "removed") for name in old if name not in new]
    stayed_old = [name for name in old if name in new]
    stayed_new = [name for name in new if name in old]
    for name, slot in new.items():
        if name not in old:
            found.append(SlotChange(name, "added"))
        elif old[name].behavior != slot.behavior:
            found.append(SlotChange(name, "replaced"))
        elif old[name].weight != slot.weight:
            found.append(SlotChange(name, "weight"))
        elif stayed_old.index(name) != stayed_new.index(name):
            found.append(SlotChange(name, "moved"))
    return tuple(found)


def _of_note(done: Iterable[OperationInfo], commits: set[CommitId]) -> list[OperationInfo]:
    """Operations that touched the lineage and are more than a commit that stands."""
    return [
        one
        for one in done
        if any(value in commits for change in one.changes for value in (change.before, change.after))
        and (one.undone or not one.description.startswith("commit"))
    ]


def _undone_commits(done: Iterable[OperationInfo]) -> set[str]:
    """What refs were put to by operations that are all undone: a revert that was taken back, for one."""
    stands: dict[str, bool] = {}
    for one in done:
        for change in one.changes:
            if change.after is not None:
                stands[change.after] = stands.get(change.after, False) or not one.undone
    return {value for value, stood in stands.items() if not stood}


# -- parts ------------------------------------------------------------------------------------------------------


def _parts(
    store: Store, composition: Composition, detail: ShowResult, said: AuditResult, meter: Meter
) -> tuple[PartFact, ...]:
    identity = detail.identity
    assert identity is not None, "a commit has an identity"
    base, *components = [part for part in said.components if part.role in ("identity", "behavior")]
    parts = [
        PartFact(
            "identity", base.name, identity.identity, 1.0, "checkpoint", None, (), None, identity.tensors, {},
            identity.elements, identity.dtypes, identity.bytes, base.license, base.source, base.claims,
        )
    ]  # fmt: skip
    if not components:
        return tuple(parts)
    from rblstore.operations.behavior_deltas import behavior_deltas
    from rblstore.operations.report_changes import layer_norms, tensor_norms

    deltas = behavior_deltas(store, composition)
    for behavior, component, delta in zip(detail.behaviors, components, deltas, strict=True):
        ranks, alpha = _ranks(store, behavior)
        norms = tensor_norms(delta)
        meter.add(f"measuring {component.name}", behavior.bytes)
        parts.append(
            PartFact(
                "behavior", component.name, behavior.behavior, component.weight, behavior.form, behavior.type, ranks,
                alpha, sum(behavior.tensors.values()), behavior.effects, None, {}, behavior.bytes, component.license,
                component.source, component.claims, layer_norms(norms), norms, delta.reason,
            )
        )  # fmt: skip
    return tuple(parts)


def _ranks(store: Store, behavior: BehaviorDetail) -> tuple[tuple[int, ...], float | None]:
    from rblstore.objects.content_records import Behavior

    if behavior.form != "adapter":
        return (), None
    config = kept_adapter_config(store, store.record(behavior.behavior, Behavior))
    if config is None:  # removed on purpose
        return (), None
    ranks = {rank for rank in (config.r, *config.rank_pattern.values()) if rank is not None}
    return tuple(sorted(ranks)), config.lora_alpha


# -- evidence ---------------------------------------------------------------------------------------------------


def _verification(id: VerificationId, record: Verification, numbered: _Numbered, undone: set[str]) -> VerificationFact:
    numbered.probes[record.probe] = None
    residue = locality(((one.id, one.kl, one.bit_equal) for one in record.prompts), record.tolerance)
    return VerificationFact(
        id,
        record.commit,
        record.commit in undone,
        record.composition,
        record.adapted,
        record.removed,
        record.probe,
        record.baseline,
        numbered.environment(record.environment),
        record.verdict,
        record.tolerance,
        record.bit_equal,
        record.rf,
        record.kl,
        record.js,
        record.kl_adapted,
        record.js_adapted,
        intervals_of(record.prompts),
        decided_by(record),
        record.reason,
        tuple(
            PromptResidue(one.id, one.kl, one.js, one.bit_equal, local.flagged, dict(one.values))
            for one, local in zip(record.prompts, residue.prompts, strict=True)
        ),
        record.author,
        record.time,
    )


def _output_bytes(record: Baseline) -> int:
    return sum(span_bytes(record.dtype, prompt.shape) for prompt in record.prompts)


def _to_measure(
    recorded: Sequence[tuple[RecordId, Baseline]], own: CompositionId, composition: Composition
) -> set[int]:
    """Which baselines' entropy is computed: the newest of a composition under a probe, the telling ones first."""
    bare = CompositionId(Composition.id_of(Composition(composition.identity).encode()))
    newest: dict[tuple[CompositionId, ProbeId], int] = {}
    for at, (_, record) in enumerate(recorded):
        if record.output == "logits" and _output_bytes(record) <= LARGEST_ENTROPY_BYTES:
            newest.setdefault((record.composition, record.probe), at)
    order = sorted(newest.items(), key=lambda one: (one[0][0] != own, one[0][0] != bare, one[1]))
    return {at for _, at in order[:MOST_ENTROPIES]}


def _baseline(
    store: Store,
    id: BaselineId,
    record: Baseline,
    compositions: Mapping[CompositionId, tuple[CommitId, ...]],
    numbered: _Numbered,
    meter: Meter,
    *,
    compute: bool,
) -> BaselineFact:
    numbered.probes[record.probe] = None
    slots = store.record(record.composition, Composition).slots
    size = _output_bytes(record)
    entropy: Interval | None = None
    entropies: tuple[PromptEntropy, ...] = ()
    reason: str | None = None
    if compute:
        from rblstore.operations.report_outputs import baseline_entropy

        entropy, entropies = baseline_entropy(store, record)
        meter.add("reading recorded outputs", size)
    elif record.output != "logits":
        reason = "embeddings are no distributions"
    elif size > LARGEST_ENTROPY_BYTES:
        reason = "the outputs are too large to be read for a report"
    else:
        reason = "others tell more, or it is an older one of the same composition and probe"
    return BaselineFact(
        id,
        record.composition,
        compositions.get(record.composition, ()),
        tuple(slot.name for slot in slots),
        record.probe,
        numbered.environment(record.environment),
        record.output,
        size,
        entropy,
        entropies,
        reason,
        record.author,
        record.time,
    )


def _probes(store: Store, wanted: Iterable[ProbeId]) -> tuple[ProbeFact, ...]:
    with store.catalog.read() as reader:
        names = {value: ref.removeprefix(PROBES) for ref, value in sorted(reader.refs(PROBES).items())}
    found = []
    for id in wanted:
        record = store.record(id, Probe)
        prompts = tuple(
            PromptFact(one.id, one.text, len(one.tokens), () if one.text is not None else one.tokens[:_TOKENS_SHOWN])
            for one in record.prompts
        )
        found.append(ProbeFact(id, names.get(id, ""), record.positions, record.measured_positions(), prompts))
    return tuple(sorted(found, key=lambda probe: (probe.name == "", probe.name, probe.id)))


def _warnings(
    said: AuditResult, verifications: Sequence[VerificationFact], commit: CommitId, composition: CompositionId
) -> tuple[str, ...]:
    found = list(said.warnings)
    about = [one for one in verifications if one.commit == commit or one.composition == composition]
    if not about:
        found.insert(0, "nothing was verified about this commit: rbl verify, or rbl revert with a probe, does it")
    found += [
        f"verification {one.id.short} diverged: composition {one.composition.short}"
        for one in verifications
        if one.verdict == "diverged"
    ]
    return tuple(found)
