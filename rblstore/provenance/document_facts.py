"""The plain facts that documents are written from: one commit's parts, what is said of them, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final
from urllib.parse import urlsplit

from rblstore.objects.evidence_records import Verification
from rblstore.objects.ids import CommitId, CompositionId, RecordId
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
class FindingFact:
    """What an audit found.

    Attributes:
        level: ``note``, ``obligation``, ``gap``, ``conflict``, as the audit names it.
        rule: Which rule says so.
        subject: Of which part.
        message: In words.
        citation: Where that is written, or "".
    """

    level: str
    rule: str
    subject: str
    message: str
    citation: str


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
        stated: The latest of that and of every statement and measurement that went in: what the documents are dated.
        parts: The identity, then the behaviors in order.
        statements: Ids of the statements that went in, sorted.
        metrics: In the order of their evidence.
        verifications: Oldest first.
        findings: For distribution, the severest use there is.
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
    findings: tuple[FindingFact, ...]
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


def latest(times: Sequence[str]) -> str:
    """The latest of some RFC 3339 times, as it was written; the first of those that are equal.

    Args:
        times: At least one.
    """
    return max(times, key=_moment)


def whole_second(time: str) -> str:
    """An RFC 3339 time in UTC without a fraction: ``2026-03-01T12:00:00Z``."""
    return _moment(time)[0].strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def _moment(time: str) -> tuple[datetime, str]:
    moment = datetime(*map(int, re.split(r"[-T:]", time[:19])), tzinfo=timezone.utc)  # type: ignore[arg-type,misc]
    rest = time[19:].rstrip("Z")
    fraction, sign, offset = re.fullmatch(r"(\.\d+)?(?:([+-])(\d\d:\d\d))?", rest).groups()  # type: ignore[union-attr]
    if offset:
        away = timedelta(hours=int(offset[:2]), minutes=int(offset[3:]))
        try:
            moment = moment - away if sign == "+" else moment + away
        except OverflowError:  # the first or the last day of the calendar: a day off is the best that can be said
            pass
    return moment, (fraction or ".").ljust(11, "0")


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
