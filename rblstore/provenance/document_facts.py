"""The plain facts that documents are written from: one commit's parts, what is said of them, and what was measured."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from rblstore.objects.evidence_records import Verification
from rblstore.objects.ids import CommitId, CompositionId, ContentId, RecordId
from rblstore.objects.tombstone_records import Tombstone
from rblstore.provenance.findings import Finding
from rblstore.provenance.hub_licenses import NOASSERTION
from rblstore.provenance.said import Said

PROJECT: Final = "https://github.com/rblstore/rblstore"
"""Whose names the types that rblstore itself defines begin with."""

_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_URL: Final = re.compile(r"https?://[!#-;=?-Z_a-z~\[\]]{1,2000}")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_HUB_HOSTS: Final = ("huggingface.co", "hf.co")


@dataclass(frozen=True)
class FileFact:
    """One file.

    Attributes:
        path: Where it lies in its part, or in a checkout.
        sha256: Of all of it.
        size: Bytes.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class PartFact:
    """The identity, or one behavior.

    Attributes:
        role: ``identity`` or ``behavior``.
        name: The slot's; for the identity the name that it is known by, or "".
        id: Its record.
        weight: The slot's; 1.0 for the identity.
        form: ``adapter`` or ``overlay``; None for the identity.
        type: The adapter's PEFT type (``LORA``), or None.
        files: Every one.
        said: What is said about it.
        parameters: Elements in its tensors, of an overlay in those that it writes; None where that cannot be read.
        model_type: What the identity's config says it is (``gemma3_text``), or None.
        architectures: The classes that the config names.
        notes: What else people state, by key without ``meta.``: ``modality``, ``intended_use``, ...
        tombstone: What says that its content was removed on purpose, or None.
    """

    role: str
    name: str
    id: RecordId
    weight: float
    form: str | None
    type: str | None
    files: tuple[FileFact, ...]
    said: Said
    parameters: int | None
    model_type: str | None = None
    architectures: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    tombstone: Tombstone | None = None

    @property
    def removed(self) -> str | None:
        """By whom its content was removed, when and why; None where it was not."""
        found = self.tombstone
        return None if found is None else f"content removed by {found.author} at {found.time}: {found.reason}"

    @property
    def label(self) -> str:
        """Its name, or what it is and the first digits of its id."""
        return self.name or f"{self.role} {self.id.short}"


@dataclass(frozen=True)
class MetricFact:
    """One number that was measured of the commit.

    Attributes:
        name: ``RF``, ``KL``, ``JS``, ``ILS``, ``SVAR``, ...
        value: As measured.
        low: Lower end of its interval, or None where there is none.
        high: Upper end, or None.
        unit: ``nats``, or "" for a plain number.
        probe: Under which prompts.
        kind: ``verification`` or ``study``: what the evidence is.
        evidence: The record that holds it.
        of: What it says, in a few words.
        time: When it was measured.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str
    probe: RecordId
    kind: str
    evidence: RecordId
    of: str
    time: str

    @property
    def text(self) -> str:
        """The value as text, whole."""
        return repr(self.value)

    @property
    def slice(self) -> str:
        """Prompts and evidence on one line, for formats that have one field for both."""
        return f"probe {self.probe}, {self.kind} {self.evidence}"


@dataclass(frozen=True)
class VerificationFact:
    """A verification of the commit.

    Attributes:
        id: Its record.
        record: All of it.
    """

    id: RecordId
    record: Verification


@dataclass(frozen=True)
class SignatureFact:
    """A recorded signature over the commit, or over a verification of it: a claim, until somebody verifies its bundle.

    Attributes:
        id: Its record.
        subject: The commit or verification.
        over: ``commit`` or ``verification``.
        method: ``key``, ``certificate`` or ``sigstore``.
        key: Fingerprint of the public key, SHA-256 of its DER form; None for ``sigstore``.
        identity: Whose the certificate is; None for a key.
        bundle: SHA-256 of the sigstore bundle, which lies beside a signed checkout as ``model.sig``.
        author: Who recorded it.
        time: When.
    """

    id: RecordId
    subject: RecordId
    over: str
    method: str
    key: ContentId | None
    identity: str | None
    bundle: ContentId
    author: str
    time: str

    @property
    def signer(self) -> str:
        """Who signed, as the record says."""
        key = f"the key {self.key}" if self.key is not None else None
        return ", ".join(filter(None, (self.identity, key)))

    @property
    def address(self) -> str:
        """The bundle by its digest, as an address (RFC 6920): the same wherever it lies."""
        return "ni:///sha-256;" + base64.urlsafe_b64encode(bytes.fromhex(self.bundle)).decode().rstrip("=")

    @property
    def text(self) -> str:
        """All of it on one line."""
        return (
            f"{self.method} signature over {self.over} {self.subject}, said to be by {self.signer}; recorded by "
            f"{self.author} at {self.time}; not verified here"
        )


@dataclass(frozen=True)
class DocumentFacts:
    """Everything that documents about one commit are written from.

    Attributes:
        version: Of rblstore.
        commit: Which.
        composition: Its composition.
        author: Who committed.
        subject: The first line of the commit's message.
        time: When it was committed.
        stated: The latest of that and of every statement, measurement and signature that went in: the documents'
            date.
        parts: The identity, then the behaviors in order.
        statements: Ids of the statements that went in, sorted.
        metrics: In the order of their evidence.
        verifications: Oldest first.
        signatures: Over the commit, then over its verifications; as they were recorded.
        findings: Of an audit for every use, severest first.
        rules: Name and version of each set of rules that was asked.
    """

    version: str
    commit: CommitId
    composition: CompositionId
    author: str
    subject: str
    time: str
    stated: str
    parts: tuple[PartFact, ...]
    statements: tuple[str, ...]
    metrics: tuple[MetricFact, ...]
    verifications: tuple[VerificationFact, ...]
    signatures: tuple[SignatureFact, ...]
    findings: tuple[Finding, ...]
    rules: tuple[tuple[str, str], ...]

    @property
    def identity(self) -> PartFact:
        """The base."""
        return self.parts[0]

    @property
    def behaviors(self) -> tuple[PartFact, ...]:
        """What lies on it, in order."""
        return self.parts[1:]

    @property
    def name(self) -> str:
        """What a document calls the whole."""
        return " + ".join(part.label for part in self.parts)

    def uuid(self, form: str) -> UUID:
        """The number of a document of a form: the same for the same facts, and another where any of them differs."""
        evidence = [
            *self.statements,
            *(fact.id for fact in self.verifications),
            *(fact.id for fact in self.signatures),
            *(fact.evidence for fact in self.metrics),
        ]
        found = [" ".join(one.key) for one in self.findings]
        found += [part.removed for part in self.parts if part.removed]
        rules = [f"{name} {version}" for name, version in self.rules]
        text = "\n".join([form, self.version, self.commit, *sorted({*map(str, evidence)}), *found, *rules])
        return uuid5(NAMESPACE_URL, f"{PROJECT}/export/{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}")


def finding_text(finding: Finding) -> str:
    """What a finding says, about which part, and what to do, as sentences."""
    said = finding.message if finding.subject in finding.message else f"{finding.subject}: {finding.message}"
    return f"{said.rstrip('.')}. {finding.obligation}".rstrip()


def citation_text(finding: Finding) -> str:
    """Where a finding's rule is written, with the address."""
    return "; ".join(part for part in (finding.citation.text, finding.citation.url) if part)


def finding_line(finding: Finding) -> str:
    """A finding on one line: how much it matters, what it says, which rule says so, and where that is written."""
    return f"{finding.level}: {finding_text(finding)} [{finding.rule}: {citation_text(finding)}]"


def latest(times: Sequence[str]) -> str:
    """The latest of some RFC 3339 times, as it was written; the first of those that are equal.

    Args:
        times: At least one.
    """
    return max(times, key=_moment)


def moment(time: str) -> datetime:
    """An RFC 3339 time in UTC, without its fraction."""
    return _moment(time)[0]


def whole_second(time: str) -> str:
    """The same as text: ``2026-03-01T12:00:00Z``."""
    return moment(time).replace(tzinfo=None).isoformat() + "Z"


def _moment(time: str) -> tuple[datetime, str]:
    found = datetime.fromisoformat(time[:19]).replace(tzinfo=UTC)
    rest = time[19:].rstrip("Z")
    fraction, sign, offset = re.fullmatch(r"(\.\d+)?(?:([+-])(\d\d:\d\d))?", rest).groups()  # type: ignore[union-attr]
    if offset:
        away = timedelta(hours=int(offset[:2]), minutes=int(offset[3:]))
        try:
            found = found - away if sign == "+" else found + away
        except OverflowError:  # the first or the last day of the calendar: a day off is the best that can be said
            pass
    return found, (fraction or ".").ljust(11, "0")


def is_url(text: str) -> bool:
    """Whether a text is a plain http or https URL, so that no document is spoilt by it and no reader led elsewhere."""
    if not _URL.fullmatch(text) or re.search(r"%(?![0-9A-Fa-f]{2})|[\[\]]", text):
        return False
    try:
        parts = urlsplit(text)
        return parts.username is None and _HOST.fullmatch(parts.hostname or "") is not None
    except ValueError:
        return False


def hub_id(text: str) -> str | None:
    """``owner/name`` where a text is that, or is the address of a model or data set on the hub; else None."""
    if is_url(text):
        parts = urlsplit(text)
        words = [word for word in parts.path.split("/") if word and word != "datasets"]
        text = "/".join(words[:2]) if parts.hostname in _HUB_HOSTS else ""
    return text if _HUB_ID.fullmatch(text) and ".." not in text else None


def declared(said: Said) -> tuple[str, ...]:
    """What it is declared to be under; NOASSERTION where nobody says."""
    return said.declared or (NOASSERTION,)


def number_said(training: Mapping[str, str], *keys: str) -> float | None:
    """The first of some training facts that is a plain number of at least 0."""
    for key in keys:
        text = training.get(key, "").strip().replace("_", "")
        if re.fullmatch(r"\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,2})?", text):
            return float(text)
    return None
