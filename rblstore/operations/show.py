"""``show``: one object of any kind, with what is said and proved about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rblstore.forgotten import tombstones_of
from rblstore.objects.content_records import Behavior, Identity
from rblstore.objects.evidence_records import Claim
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import RecordId, is_prefix
from rblstore.objects.tombstone_records import Tombstone
from rblstore.operations.claims import claims_about
from rblstore.operations.log import VerificationSummary, ref_names, summary
from rblstore.operations.result import Result
from rblstore.operations.stored_models import kept_adapter_config, view_identity
from rblstore.operations.study_list import StudyInfo, study_info
from rblstore.operations.training_state import StateInfo, state_info
from rblstore.operations.undo import operation_id
from rblstore.repository import Store
from rblstore.revisions import UnknownRevisionError, find_record


@dataclass(frozen=True)
class BehaviorDetail:
    """One behavior of a shown commit.

    Attributes:
        name: The slot's name, or None where the behavior itself is shown.
        behavior: Its id.
        weight: The slot's weight.
        form: ``adapter`` or ``overlay``.
        type: The adapter's PEFT type ("LORA"), or None; None, too, where the adapter's content was removed on purpose.
        effects: How many tensors and files it acts on, by action.
        tensors: How many tensors, by action.
        files: How many files, by action.
        bytes: Size of its files.
        claims: What is said about it.
        forgotten: The tombstone, where its content was removed on purpose; else None.
    """

    name: str | None
    behavior: RecordId
    weight: float
    form: str
    type: str | None
    effects: dict[str, int]
    tensors: dict[str, int]
    files: dict[str, int]
    bytes: int
    claims: tuple[Claim, ...]
    forgotten: Tombstone | None = None


@dataclass(frozen=True)
class IdentityDetail:
    """The identity of a shown commit.

    Attributes:
        identity: Its id.
        files: How many files.
        bytes: Their size.
        tensors: How many logical tensors.
        elements: Elements in all logical tensors.
        dtypes: Logical tensors by element type.
        claims: What is said about it.
        forgotten: The tombstone, where its content was removed on purpose; else None.
    """

    identity: RecordId
    files: int
    bytes: int
    tensors: int
    elements: int
    dtypes: dict[str, int]
    claims: tuple[Claim, ...]
    forgotten: Tombstone | None = None


@dataclass(frozen=True)
class ShowResult(Result):
    """One object.

    Attributes:
        kind: ``commit``, ``identity``, ...
        id: Its id.
        record: Its body.
        refs: Names that point at it.
        identity: For commits, compositions and identities.
        behaviors: For commits, compositions and behaviors.
        verifications: Evidence about it.
        states: For commits, the training states that were stored with them.
        derived: What follows from the record: for verifications ``decided_by``, ``intervals`` and ``local``, for
            studies ``figures`` and ``summary``; else None.
        studies: For commits, the studies of them.
    """

    kind: str
    id: RecordId
    record: dict[str, Any]
    refs: tuple[str, ...] = ()
    identity: IdentityDetail | None = None
    behaviors: tuple[BehaviorDetail, ...] = ()
    verifications: tuple[VerificationSummary, ...] = ()
    states: tuple[StateInfo, ...] = ()
    derived: dict[str, Any] | None = None
    studies: tuple[StudyInfo, ...] = ()


def _claims(store: Store, subject: RecordId) -> tuple[Claim, ...]:
    return tuple(claim for claims in claims_about(store, subject).values() for claim in claims)


def _identity_detail(store: Store, identity_id: RecordId) -> IdentityDetail:
    identity = store.record(identity_id, Identity)
    view = view_identity(store, identity)
    dtypes: dict[str, int] = {}
    elements = 0
    for tensor in view.tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
        count = 1
        for extent in tensor.shape:
            count *= extent
        elements += count
    return IdentityDetail(
        identity_id,
        len(identity.files),
        sum(entry.size for entry in identity.files),
        len(view.tensors),
        elements,
        dtypes,
        _claims(store, identity_id),
        tombstones_of(store, [identity_id]).get(identity_id),
    )


def _adapter_type(store: Store, behavior: Behavior) -> str | None:
    config = kept_adapter_config(store, behavior) if behavior.form == "adapter" else None
    return None if config is None else config.peft_type


def _behavior_detail(store: Store, behavior_id: RecordId, name: str | None, weight: float) -> BehaviorDetail:
    behavior = store.record(behavior_id, Behavior)
    return BehaviorDetail(
        name,
        behavior_id,
        weight,
        behavior.form,
        _adapter_type(store, behavior),
        dict(Counter(effect.action for effect in behavior.effects)),
        dict(Counter(effect.action for effect in behavior.effects if effect.on == "tensor")),
        dict(Counter(effect.action for effect in behavior.effects if effect.on == "file")),
        sum(entry.size for entry in behavior.files),
        _claims(store, behavior_id),
        tombstones_of(store, [behavior_id]).get(behavior_id),
    )


def show(store: Store, revision: str = "HEAD") -> ShowResult:
    """Describes an object.

    Args:
        store: The repository.
        revision: A revision, a probe's name, or the id (or a unique prefix) of any record or operation.

    Raises:
        UnknownRevisionError: Nothing goes by that name.
        AmbiguousRevisionError: Several objects do.
    """
    try:
        record_id = find_record(store, revision)
    except UnknownRevisionError:
        with store.catalog.read() as reader:
            operations = reader.find_operations(revision.lower()) if is_prefix(revision) else []
        if len(operations) != 1:
            raise
        return ShowResult(operations[0].KIND, operation_id(operations[0]), operations[0].body())
    record = store.any_record(record_id)
    identity: IdentityDetail | None = None
    behaviors: tuple[BehaviorDetail, ...] = ()
    composition = record if isinstance(record, Composition) else None
    if isinstance(record, Commit):
        composition = store.record(record.composition, Composition)
    if composition is not None:
        identity = _identity_detail(store, composition.identity)
        behaviors = tuple(_behavior_detail(store, slot.behavior, slot.name, slot.weight) for slot in composition.slots)
    elif isinstance(record, Identity):
        identity = _identity_detail(store, record_id)
    elif isinstance(record, Behavior):
        behaviors = (_behavior_detail(store, record_id, None, 1.0),)
    with store.catalog.read() as reader:
        names = {str(commit): found for commit, found in ref_names(store, reader).items()}
        evidence = reader.evidence(record_id, "verification")
        states = reader.evidence(record_id, "training-state")
        studied = reader.evidence(record_id, "study")
    return ShowResult(
        record.KIND,
        record_id,
        record.body(),
        tuple(names.get(record_id, ())),
        identity,
        behaviors,
        tuple(summary(store, one) for one in evidence),
        tuple(state_info(store, one) for one in states),
        _derived(record),
        tuple(study_info(store, one) for one in studied),
    )


def _derived(record: Any) -> dict[str, Any] | None:
    from rblstore.objects.evidence_records import Verification
    from rblstore.objects.study_records import Study

    if isinstance(record, Study):
        from rblstore.operations.study_summary import derived_of

        return derived_of(record)
    if not isinstance(record, Verification):
        return None
    from rblstore.operations.verification_document import DERIVED, verification_document

    document = verification_document(record)
    return {name: document[name] for name in DERIVED}
