"""Which kinds of record there are, and reading one whose kind is not known beforehand."""

from __future__ import annotations

from types import MappingProxyType

from rblstore.errors import InputError
from rblstore.objects.canonical import record_kind
from rblstore.objects.content_records import Behavior, FileManifest, Identity
from rblstore.objects.evidence_records import Baseline, Probe, Statement, Verification
from rblstore.objects.history_records import Commit, Composition, Operation, Tag
from rblstore.objects.record import Record

KINDS: MappingProxyType[str, type[Record]] = MappingProxyType({
    record.KIND: record
    for record in (
        FileManifest, Identity, Behavior, Composition, Commit, Tag, Operation, Statement, Probe, Baseline, Verification,
    )
})  # fmt: skip

RESERVED = frozenset({"study", "tombstone", "signature", "training-state"})


def parse_record(data: bytes) -> Record:
    """Reads a record of any kind from its stored bytes.

    Raises:
        InputError: Malformed, of a reserved kind, or of a kind that no version has.
    """
    kind = record_kind(data)
    if kind in RESERVED:
        raise InputError(
            f"records of kind {kind!r} are reserved for a later version", object=kind, hint="Upgrade rblstore."
        )
    if kind not in KINDS:
        raise InputError(f"{kind[:40]!r} is not a kind of record", object=kind[:40])
    return KINDS[kind].parse(data)
