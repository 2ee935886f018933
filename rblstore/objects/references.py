"""What a record refers to: the one place that knows, for whoever checks, collects or publishes records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rblstore.objects.content_records import Behavior, FileEntry, FileManifest, Identity
from rblstore.objects.evidence_records import Baseline, Statement, Verification
from rblstore.objects.history_records import Commit, Composition, Tag
from rblstore.objects.record import Record
from rblstore.objects.signature_records import Signature
from rblstore.objects.study_records import Study
from rblstore.objects.tombstone_records import Tombstone
from rblstore.objects.training_records import TrainingState


def files_of(record: Record) -> tuple[FileEntry, ...]:
    """The files of an identity, a behavior or a training state; none of anything else."""
    return record.files if isinstance(record, (Identity, Behavior, TrainingState)) else ()


def references(record: Record) -> Iterator[tuple[str, Literal["record", "content"]]]:
    """The ids that a record cannot do without, and whether each is of a record or of a content; some come twice."""
    for entry in files_of(record):
        yield (entry.sha256, "content") if entry.manifest is None else (entry.manifest, "record")
    if isinstance(record, FileManifest):
        for content in record.contents():
            yield content, "content"
    elif isinstance(record, Composition):
        yield record.identity, "record"
        for slot in record.slots:
            yield slot.behavior, "record"
    elif isinstance(record, Commit):
        yield record.composition, "record"
        for parent in record.parents:
            yield parent, "record"
    elif isinstance(record, Tag):
        yield record.target, "record"
    elif isinstance(record, Statement):
        yield record.subject, "record"
        for content in record.contents:
            yield content, "content"
    elif isinstance(record, Tombstone):
        yield record.subject, "record"
    elif isinstance(record, Baseline):
        yield record.composition, "record"
        yield record.probe, "record"
        for prompt in record.prompts:
            yield prompt.content, "content"
    elif isinstance(record, Verification):
        yield record.composition, "record"
        yield record.probe, "record"
        yield record.baseline, "record"
        for optional in (record.commit, record.adapted):
            if optional is not None:
                yield optional, "record"
    elif isinstance(record, TrainingState):
        yield record.commit, "record"
    elif isinstance(record, Signature):
        yield record.subject, "record"
        yield record.bundle, "content"
    elif isinstance(record, Study):
        for target in (*record.commits, *record.probes):
            yield target, "record"
