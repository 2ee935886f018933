"""What documents are written from, gathered from records: no tensor is read, whatever the size of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rblstore.divergence.uncertainty import intervals_of
from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.content_records import Behavior, FileEntry, FileManifest, Identity
from rblstore.objects.evidence_records import Statement, Verification
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import CommitId, RecordId
from rblstore.objects.study_records import Study
from rblstore.objects.tombstone_records import Tombstone
from rblstore.operations.audit import audit
from rblstore.operations.claims import claims_about
from rblstore.operations.signatures import signatures_of
from rblstore.operations.stored_models import CONFIG, adapter_config, file_named, read_checkpoint
from rblstore.operations.study_summary import figures
from rblstore.operations.verification_document import local_residue
from rblstore.provenance.document_facts import (
    DocumentFacts,
    FileFact,
    MetricFact,
    PartFact,
    SignatureFact,
    VerificationFact,
    latest,
)
from rblstore.provenance.said import Said, said
from rblstore.repository import Store
from rblstore.revisions import resolve

_MEASURES = (
    ("rf", "RF", "", "recovery fidelity: 1 - KL after / KL before, against the baseline"),
    ("kl", "KL", "nats", "mean over prompts of KL(baseline || measured)"),
    ("js", "JS", "nats", "mean over prompts of the Jensen-Shannon divergence from the baseline"),
    ("relative_l2", "relative L2", "", "mean over prompts of the distance of embeddings from the baseline's"),
    ("cosine", "cosine", "", "mean over prompts of the cosine of embeddings and the baseline's"),
)


def document_facts(store: Store, revision: str, *, version: str) -> DocumentFacts:
    """Gathers what is known of a commit.

    Args:
        store: The repository.
        revision: Which commit.
        version: Of rblstore, which the documents name as their tool.

    Raises:
        UnknownRevisionError: No such revision.
        CorruptError: A record, or a small file beside the weights, is missing or damaged.
    """
    commit = resolve(store, revision).commit
    record = store.record(commit, Commit)
    composition = store.record(record.composition, Composition)
    parts = (
        identity_part(store, composition.identity),
        *(slot_part(store, slot) for slot in composition.slots),
    )
    with store.catalog.read() as reader:
        statements = sorted({one for part in parts for one in reader.evidence(part.id, "statement")})
        verified = list(reader.evidence(commit, "verification"))
        studied = list(reader.evidence(commit, "study"))
    verifications = sorted(
        (VerificationFact(one, store.record(one, Verification)) for one in verified),
        key=lambda fact: (latest((fact.record.time,)), fact.id),
    )
    metrics = [metric for fact in verifications for metric in _of_verification(fact)]
    metrics += [metric for one in sorted(studied) for metric in _of_study(one, store.record(one, Study), commit)]
    times = [store.record(one, Statement).time for one in statements]
    times += [record.time, *(fact.record.time for fact in verifications), *(metric.time for metric in metrics)]
    signatures = signature_facts(store, commit, verifications)
    times += [fact.time for fact in signatures]
    times += [part.tombstone.time for part in parts if part.tombstone is not None]
    audited = audit(store, str(commit))
    return DocumentFacts(
        version,
        commit,
        record.composition,
        record.author,
        record.subject,
        record.time,
        latest(times),
        parts,
        tuple(map(str, statements)),
        tuple(metrics),
        tuple(verifications),
        signatures,
        audited.findings,
        tuple((one.name, one.version) for one in audited.rules),
    )


def signature_facts(
    store: Store, commit: CommitId, verifications: Iterable[VerificationFact] = ()
) -> tuple[SignatureFact, ...]:
    """The signatures that are recorded over a commit, and then those over some verifications of it.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    subjects = [(RecordId(commit), "commit"), *((fact.id, "verification") for fact in verifications)]
    return tuple(
        SignatureFact(one.id, subject, over, one.method, one.key, one.identity, one.bundle, one.author, one.time)
        for subject, over in subjects
        for one in signatures_of(store, subject)
    )


def identity_part(store: Store, identity_id: RecordId) -> PartFact:
    """An identity and what is said about it.

    Raises:
        CorruptError: A record, or its config, is missing or damaged.
    """
    identity = store.record(identity_id, Identity)
    (known, notes), parameters, config = _said(store, identity_id), None, {}
    tombstone = _tombstone(store, identity_id)
    if tombstone is None:
        checkpoint = read_checkpoint(store, identity.files)
        parameters = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
        config = _config(store, identity.files)
    classes = config.get("architectures")
    return PartFact(
        "identity",
        known.name,
        identity_id,
        1.0,
        None,
        None,
        _files(identity.files),
        known,
        parameters,
        _word(config.get("model_type")),
        tuple(filter(None, map(_word, classes))) if isinstance(classes, list) else (),
        notes,
        tombstone,
    )


def slot_part(store: Store, slot: Slot) -> PartFact:
    """A behavior in its slot, and what is said about it.

    Raises:
        CorruptError: A record, or its config, is missing or damaged.
    """
    behavior, kind = store.record(slot.behavior, Behavior), None
    tombstone = _tombstone(store, slot.behavior)
    if behavior.form == "adapter":
        manifests = [store.record(entry.manifest, FileManifest) for entry in behavior.files if entry.manifest]
        shapes = [entry.tensor.shape for manifest in manifests for entry in manifest.tensors]
        if tombstone is None:
            kind = adapter_config(store, behavior).peft_type
    else:
        values = [effect.value for effect in behavior.effects if effect.on == "tensor"]
        shapes = [value.shape for value in values if value is not None and value.shape is not None]
    known, notes = _said(store, slot.behavior)
    return PartFact(
        "behavior",
        slot.name,
        slot.behavior,
        slot.weight,
        behavior.form,
        kind,
        _files(behavior.files),
        known,
        sum(map(math.prod, shapes)),
        notes=notes,
        tombstone=tombstone,
    )


def _said(store: Store, subject: RecordId) -> tuple[Said, dict[str, str]]:
    claims = claims_about(store, subject)
    notes = {key.removeprefix("meta."): one[-1].value for key, one in claims.items() if key.startswith("meta.")}
    return said([claim for found in claims.values() for claim in found]), dict(sorted(notes.items()))


def _tombstone(store: Store, subject: RecordId) -> Tombstone | None:
    """What says that its content was let go on purpose: what only that says is then not known, and no damage."""
    with store.catalog.read() as reader:
        found = list(reader.evidence(subject, Tombstone.KIND))
    return store.record(found[0], Tombstone) if found else None


def _files(entries: Iterable[FileEntry]) -> tuple[FileFact, ...]:
    return tuple(FileFact(entry.path, str(entry.sha256), entry.size) for entry in entries)


def _config(store: Store, files: Sequence[FileEntry]) -> dict[str, Any]:
    entry = file_named(files, CONFIG)
    if entry is None or entry.manifest is not None or entry.size > limits.ADAPTER_CONFIG_BYTES:
        return {}
    try:
        found = decode_json(
            store.content_bytes(entry.sha256, limits.ADAPTER_CONFIG_BYTES),
            what=CONFIG,
            max_bytes=limits.ADAPTER_CONFIG_BYTES,
        )
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def _word(value: Any) -> str | None:
    """A class or a kind of model, as configs name it; anything else is none."""
    return value if isinstance(value, str) and value.isidentifier() and len(value) <= 255 else None


def _of_verification(fact: VerificationFact) -> Iterator[MetricFact]:
    record = fact.record
    intervals, residue = intervals_of(record.prompts), local_residue(record)

    def metric(name: str, value: float, unit: str, of: str, low: float | None, high: float | None) -> MetricFact:
        return MetricFact(name, value, low, high, unit, record.probe, "verification", fact.id, of, record.time)

    for key, name, unit, of in _MEASURES:
        found = intervals.get(key)
        value = getattr(record, key, None) if key in ("rf", "kl", "js") else None if found is None else found.mean
        if value is not None:
            known = found is not None and found.known
            low, high = (found.low, found.high) if found is not None and known else (None, None)
            yield metric(name, value, unit, of, low, high)
    if residue.largest is not None:
        flagged, prompts = len(residue.flagged), len(residue.prompts)
        of = f"largest ILS of a prompt; {flagged} of {prompts} prompts above {residue.threshold:g} nats or unknown"
        yield metric("ILS", residue.largest, "nats", of, None, None)


def _of_study(study_id: RecordId, record: Study, commit: CommitId) -> Iterator[MetricFact]:
    """SVAR of a study whose subject is the commit."""
    if record.study != "svar" or record.commits[0] != commit or not record.probes:
        return
    found = figures(record)
    interval = found.get("svar")
    if not interval:
        return
    behavior = record.parameters.get("behavior")
    unit = "nats" if found["measure"] == "kl" else ""
    of = f"stability of {behavior} under perturbation: mean over prompts and perturbations of {found['measure']}"
    known = interval["prompts"] * interval["seeds"] > 1
    low, high = (interval["low"], interval["high"]) if known else (None, None)
    yield MetricFact("SVAR", interval["mean"], low, high, unit, record.probes[0], "study", study_id, of, record.time)
