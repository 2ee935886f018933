"""Which kinds of record there are, and reading one whose kind is not known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from rblstore.errors import InputError
from rblstore.objects.canonical import record_kind
from rblstore.objects.record import Record

# Classes are imported when a record of theirs is read: looking at history needs few of them.
_MODULES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "content_records": ("file-manifest", "identity", "behavior"),
    "history_records": ("composition", "commit", "tag", "operation"),
    "evidence_records": ("statement", "probe", "baseline", "verification"),
    "training_records": ("training-state",),
    "study_records": ("study",),
    "signature_records": ("signature",),
    "tombstone_records": ("tombstone",),
})  # fmt: skip

KINDS: Final = frozenset(kind for kinds in _MODULES.values() for kind in kinds)


def record_class(kind: str) -> type[Record]:
    """The class of the records of a kind, which is one of :data:`KINDS`."""
    classes: tuple[type[Record], ...]
    if kind in _MODULES["content_records"]:
        from rblstore.objects.content_records import Behavior, FileManifest, Identity

        classes = (FileManifest, Identity, Behavior)
    elif kind in _MODULES["history_records"]:
        from rblstore.objects.history_records import Commit, Composition, Operation, Tag

        classes = (Composition, Commit, Tag, Operation)
    elif kind in _MODULES["training_records"]:
        from rblstore.objects.training_records import TrainingState

        classes = (TrainingState,)
    elif kind in _MODULES["study_records"]:
        from rblstore.objects.study_records import Study

        classes = (Study,)
    elif kind in _MODULES["signature_records"]:
        from rblstore.objects.signature_records import Signature

        classes = (Signature,)
    elif kind in _MODULES["tombstone_records"]:
        from rblstore.objects.tombstone_records import Tombstone

        classes = (Tombstone,)
    else:
        from rblstore.objects.evidence_records import Baseline, Probe, Statement, Verification

        classes = (Statement, Probe, Baseline, Verification)
    return {record.KIND: record for record in classes}[kind]


def parse_record(data: bytes) -> Record:
    """Reads a record of any kind from its stored bytes.

    Raises:
        InputError: Malformed, or of a kind that this version does not have.
    """
    kind = record_kind(data)
    if kind not in KINDS:
        raise InputError(f"{kind[:40]!r} is not a kind of record", object=kind[:40])
    return record_class(kind).parse(data)
