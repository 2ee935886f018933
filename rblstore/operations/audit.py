"""``audit``: what is in a commit, on whose terms, what these ask, what is not known, and who vouches for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from rblstore.errors import UsageError
from rblstore.objects.evidence_records import Verification
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, ContentId, OperationId, VerificationId
from rblstore.objects.signature_records import Signature
from rblstore.operations.audit_parts import Component, FileHash, components_of, parts_of
from rblstore.operations.claims import statements_about
from rblstore.operations.log import VerificationSummary, summary
from rblstore.operations.moments import moment_of
from rblstore.operations.result import Result
from rblstore.operations.signatures import SignatureInfo, signatures_of
from rblstore.provenance.engine import find
from rblstore.provenance.findings import LEVELS, USES, Finding, at_least
from rblstore.provenance.parts import Subject
from rblstore.provenance.rulebook import Rulebook, rulebook
from rblstore.repository import Store
from rblstore.revisions import resolve

__all__ = [
    "AuditRequest", "AuditResult", "Component", "FileFound", "FileHash", "MadeSince", "RuleSetUsed", "audit",
    "audit_commit", "check_level",
]  # fmt: skip


@dataclass(frozen=True)
class AuditRequest:
    """How to audit.

    Attributes:
        use: What it is meant for: some of ``use``, ``host``, ``distribute``.
        rules: (name, bytes) of files of rules that add to those that come with rblstore.
        data_reaches_weights: Whether terms of data count as terms of what was trained on it.
        merged: Whether the parts are to be summed into one checkpoint.
    """

    use: Sequence[str] = USES
    rules: Sequence[tuple[str, bytes]] = ()
    data_reaches_weights: bool = True
    merged: bool = False

    def book(self) -> Rulebook:
        """The rules that are asked.

        Raises:
            BadRulesError: A file breaks the schema.
            UsageError: A use that there is not.
        """
        if (
            isinstance(self.use, str)
            or not isinstance(self.use, Iterable)
            or not self.use
            or any(one not in USES for one in self.use)
        ):
            raise UsageError(
                f"a model is meant for {', '.join(USES)}, and not for {self.use!r}"[:300],
                object=str(self.use)[:80],
                hint="Give a list of some of these: use=['distribute'].",
            )
        return rulebook(self.rules)


@dataclass(frozen=True)
class RuleSetUsed:
    """A set of rules that findings come from.

    Attributes:
        name: Its name.
        version: Its version.
    """

    name: str
    version: str


@dataclass(frozen=True)
class FileFound:
    """A file that was looked up by its digest.

    Attributes:
        path: As it was given, or relative to the directory that was given.
        size: Bytes.
        sha256: Of the whole file.
        parts: Labels of the identities and behaviors that hold it; none where it is not known.
        commits: Commits that compose one of these, newest first.
    """

    path: str
    size: int
    sha256: ContentId
    parts: tuple[str, ...]
    commits: tuple[CommitId, ...]


@dataclass(frozen=True)
class MadeSince:
    """What was recorded after the time that an audit goes by, and counted for nothing in it.

    Attributes:
        statements: About its parts.
        verifications: Of its commit.
        signatures: Over the commit and over those verifications.
    """

    statements: int
    verifications: int
    signatures: int


@dataclass(frozen=True)
class AuditResult(Result):
    """What is in a commit, a checkout or a file.

    Attributes:
        commit: Which; None for loose files.
        composition: Its composition, or None likewise.
        use: What it is meant for: some of ``use``, ``host``, ``distribute``.
        components: The identity, then the behaviors in order, tokenizers and data; of loose files, what holds them.
        findings: Severest first.
        verifications: Evidence about the commit.
        signatures: Recorded over the commit and over that evidence. Claims: ``rbl verify-signature`` says what holds.
        warnings: Parts without a licence, declarations that contradict each other.
        rules: The sets of rules that were asked.
        merged: Whether the parts are taken to be summed into one checkpoint.
        data_reaches_weights: Whether terms of data counted as terms of what was trained on it.
        at: The time by which a ref was looked up, and everything else left out that was said or proved later; or None.
        operation: The operation that had moved it there, or None.
        path: The directory or file that was audited, or None.
        files: Loose files, looked up by digest.
        since: What was recorded after ``at``; None without it.
    """

    commit: CommitId | None
    composition: CompositionId | None
    use: tuple[str, ...]
    components: tuple[Component, ...]
    findings: tuple[Finding, ...]
    verifications: tuple[VerificationSummary, ...]
    signatures: tuple[SignatureInfo, ...]
    warnings: tuple[str, ...]
    rules: tuple[RuleSetUsed, ...]
    merged: bool = False
    data_reaches_weights: bool = True
    at: str | None = None
    operation: OperationId | None = None
    path: str | None = None
    files: tuple[FileFound, ...] = field(default=())
    since: MadeSince | None = None

    def at_least(self, level: str) -> tuple[Finding, ...]:
        """The findings of a level and of those above it: ``note``, ``obligation``, ``gap``, ``conflict``.

        Raises:
            UsageError: There is no such level.
        """
        return at_least(self.findings, check_level(level))


def check_level(level: str) -> str:
    """A level of findings, returned as it is.

    Raises:
        UsageError: There is no such level.
    """
    if level not in LEVELS:
        raise UsageError(
            f"findings have no level {level!r}"[:200], object=str(level)[:80], hint=f"Levels are: {', '.join(LEVELS)}."
        )
    return level


def audit(
    store: Store,
    revision: str = "HEAD",
    request: AuditRequest | None = None,
    *,
    at: str | None = None,
) -> AuditResult:
    """What is in a commit, on whose terms, and what is not known.

    Args:
        store: The repository.
        revision: Which commit.
        request: How; None for every use, by the rules that come with rblstore.
        at: A date or time: the commit that the ref stood for then, by what was said and proved until then. The rules
            are those of today.

    Raises:
        UnknownRevisionError: No such revision, or not then.
        BadRulesError: A file of rules breaks the schema.
        CorruptError: A record is missing or damaged.
    """
    request = request or AuditRequest()
    request.book()  # a mistake in a file of rules is said before anything else is looked at
    if at is None:
        return audit_commit(store, resolve(store, revision).commit, request)
    from rblstore.operations.audit_history import revision_at

    then, operation, moment = revision_at(store, revision, at)
    result = audit_commit(store, then, request, until=moment_of(moment))
    return replace(result, at=moment, operation=operation)


def audit_commit(
    store: Store,
    commit: CommitId,
    request: AuditRequest,
    differences: Sequence[str] = (),
    until: datetime | None = None,
) -> AuditResult:
    """Audits a commit.

    Args:
        store: The repository.
        commit: Which.
        request: How.
        differences: What a directory has otherwise, in words.
        until: What was said or proved later is left out, and counted; None for nothing.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    book = request.book()
    composition_id = store.record(commit, Commit).composition
    composition = store.record(composition_id, Composition)
    proved = _evidence(store, commit)
    verified = tuple(summary(store, one) for one in proved if _by(until, store.record(one, Verification).time))
    components = components_of(store, composition, verified, until)
    recorded = [info for subject in (commit, *proved) for info in signatures_of(store, subject)]
    signatures = tuple(one for one in recorded if _by(until, one.time))
    subject = Subject(
        parts_of(components, verified),
        tuple(request.use),
        request.merged,
        request.data_reaches_weights,
        _signed(store, signatures, commit, until),
        tuple(differences),
    )
    since = None
    if until is not None:
        later = len(proved) - len(verified), len(recorded) - len(signatures)
        since = MadeSince(_statements_since(store, composition, until), *later)
    return AuditResult(
        commit,
        composition_id,
        tuple(request.use),
        components,
        find(subject, book.rules),
        verified,
        signatures,
        _warnings(components),
        tuple(RuleSetUsed(name, version) for name, version in book.sets),
        request.merged,
        request.data_reaches_weights,
        since=since,
    )


def _by(until: datetime | None, time: str) -> bool:
    """Whether something that was made at a time had been made by then."""
    return until is None or moment_of(time) <= until


def _evidence(store: Store, commit: CommitId) -> tuple[VerificationId, ...]:
    with store.catalog.read() as reader:
        return tuple(VerificationId(one) for one in reader.evidence(commit, Verification.KIND))


def _signed(store: Store, signatures: Sequence[SignatureInfo], commit: CommitId, until: datetime | None) -> bool | None:
    """Whether the commit is signed; None where nothing here is, so that nobody would expect it."""
    if any(one.subject == commit for one in signatures):
        return True
    with store.catalog.read() as reader:
        every = [one for one, _ in reader.records(Signature.KIND)]
    return next((False for one in every if until is None or _by(until, store.record(one, Signature).time)), None)


def _statements_since(store: Store, composition: Composition, until: datetime) -> int:
    parts = dict.fromkeys((composition.identity, *(slot.behavior for slot in composition.slots)))
    return sum(len(statements_about(store, one)) - len(statements_about(store, one, until)) for one in parts)


def _warnings(components: Sequence[Component]) -> tuple[str, ...]:
    warnings = []
    for component in components:
        if component.role not in ("identity", "behavior"):
            continue
        if not (stated := component.said.licenses):
            warnings.append(f"{component.label}: no licence is stated; by default nothing is permitted")
        elif len(stated) > 1:
            warnings.append(f"{component.label}: the licences stated differ: {', '.join(stated)}")
    return tuple(warnings)
