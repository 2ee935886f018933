"""``log``: commits from newest to oldest in the order of the graph, with their evidence."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.catalog.reader import CatalogReader
from rblstore.errors import CorruptError
from rblstore.objects.history_records import Slot, Tag
from rblstore.objects.ids import CommitId, CompositionId, IdentityId, RecordId, VerificationId
from rblstore.operations.result import Result
from rblstore.repository import HEADS, TAGS, Store, head_branch
from rblstore.revisions import resolve


@dataclass(frozen=True)
class VerificationSummary:
    """One verification of a commit, in short.

    Attributes:
        id: The verification.
        verdict: ``exact``, ``within_tolerance`` or ``diverged``.
        bit_equal: Whether outputs were equal bit for bit.
        rf: Recovery fidelity, or None.
        kl: Mean KL in nats, or None.
        js: Mean JS in nats, or None.
        probe: Under what.
    """

    id: VerificationId
    verdict: str
    bit_equal: bool
    rf: float | None
    kl: float | None
    js: float | None
    probe: RecordId


@dataclass(frozen=True)
class LogEntry(Result):
    """One commit of a log.

    Attributes:
        commit: Its id.
        composition: What the model was made of.
        parents: Its parents.
        author: Who.
        time: RFC 3339.
        message: Whole.
        refs: Names that point here, as git shows them ("HEAD -> main", "tag: v1").
        identity: The base checkpoint.
        slots: The behaviors in order.
        verifications: Evidence about this commit, oldest first.
    """

    commit: CommitId
    composition: CompositionId
    parents: tuple[CommitId, ...]
    author: str
    time: str
    message: str
    refs: tuple[str, ...]
    identity: IdentityId
    slots: tuple[Slot, ...]
    verifications: tuple[VerificationSummary, ...]


def ref_names(store: Store, reader: CatalogReader) -> dict[CommitId, list[str]]:
    """Which names point at which commit, HEAD's branch first."""
    current = head_branch(reader)
    names: dict[CommitId, list[str]] = {}
    branches = reader.refs(HEADS)
    for ref, value in sorted(branches.items(), key=lambda item: (item[0] != current, item[0])):
        short = ref.removeprefix(HEADS)
        names.setdefault(CommitId(value), []).append(f"HEAD -> {short}" if ref == current else short)
    for ref, value in reader.refs(TAGS).items():
        target = store.record(RecordId(value), Tag).target
        names.setdefault(target, []).append(f"tag: {ref.removeprefix(TAGS)}")
    return names


def log(store: Store, revision: str = "HEAD", *, limit: int | None = None, every: bool = False) -> list[LogEntry]:
    """The history of a revision.

    Args:
        store: The repository.
        revision: Where to start.
        limit: The most commits to give, or None.
        every: Whether to start from every branch and tag besides.

    Returns:
        Commits, children before their parents.

    Raises:
        UnknownRevisionError: No such revision.
        NoCommitsError: The branch has no commit yet.
    """
    heads = [] if every and store.head() is None else [resolve(store, revision).commit]
    with store.catalog.read() as reader:
        names = ref_names(store, reader)
        rows = list(reader.commits([*heads, *names] if every else heads, limit))
        evidence = reader.evidence_for([row.id for row in rows], "verification")
        compositions = reader.compositions(row.composition for row in rows)
    entries = []
    for row in rows:
        composition = compositions.get(row.composition)
        if composition is None:
            raise CorruptError(
                f"composition {row.composition.short} is not in the catalog",
                object=row.composition,
                hint="Run: rbl reindex",
            )
        entries.append(
            LogEntry(
                row.id,
                row.composition,
                row.parents,
                row.author,
                row.time,
                row.message,
                tuple(names.get(row.id, ())),
                composition.identity,
                composition.slots,
                tuple(summary(store, RecordId(record_id)) for record_id in evidence.get(row.id, ())),
            )
        )
    return entries


def summary(store: Store, verification_id: RecordId) -> VerificationSummary:
    """A stored verification in short."""
    from rblstore.objects.evidence_records import Verification

    record = store.record(verification_id, Verification)
    return VerificationSummary(
        VerificationId(verification_id),
        record.verdict,
        record.bit_equal,
        record.rf,
        record.kl,
        record.js,
        record.probe,
    )
