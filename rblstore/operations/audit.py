"""``audit``: which identity, behaviors, data and licences are in a commit, and what vouches for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rblstore.checkpoints.tokenizing import TOKENIZER_FILES
from rblstore.objects.content_records import Behavior, FileEntry, Identity
from rblstore.objects.evidence_records import Claim
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, ContentId, RecordId
from rblstore.operations.claims import claims_about
from rblstore.operations.log import VerificationSummary, summary
from rblstore.operations.result import Result
from rblstore.provenance.findings import USES, Finding
from rblstore.provenance.said import DatasetSaid, Said, said
from rblstore.repository import Store
from rblstore.revisions import resolve


@dataclass(frozen=True)
class FileHash:
    """One file of a component.

    Attributes:
        path: Relative to the component's own folder.
        size: Bytes.
        sha256: Of the whole file.
    """

    path: str
    size: int
    sha256: ContentId


@dataclass(frozen=True)
class Component:
    """One part of a composition and what is said about it.

    Attributes:
        role: ``identity``, ``behavior``, ``tokenizer`` or ``dataset``.
        name: The slot's name; for the identity, the name it is known by, or ""; the data set's.
        id: Its id; for a tokenizer that of the identity or behavior that holds it; None for data.
        weight: The slot's weight; 1.0 for everything else.
        license: What it is declared to be under as it was written, every declaration that stands.
        source: Where it is said to come from.
        base_model: What it is said to have been made for.
        datasets: What it is said to have been trained on.
        dataset_licenses: What that is said to be under.
        claims: Everything that is said about it, each with its origin.
        form: ``adapter`` or ``overlay``; None for everything but behaviors.
        files: What it consists of; none for data.
        said: What the claims come to, licences as SPDX expressions.
        of: Labels of the parts that hold it (a tokenizer) or were trained on it (data).
    """

    role: str
    name: str
    id: RecordId | None
    weight: float
    license: tuple[str, ...]
    source: tuple[str, ...]
    base_model: tuple[str, ...]
    datasets: tuple[str, ...]
    dataset_licenses: tuple[str, ...]
    claims: tuple[Claim, ...]
    form: str | None
    files: tuple[FileHash, ...]
    said: Said
    of: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How findings name it."""
        return f"{self.role} {self.name or ('' if self.id is None else self.id.short)}".strip()


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
class AuditResult(Result):
    """What is in a commit.

    Attributes:
        commit: Which; None for a loose file that is in no commit.
        composition: Its composition, or None likewise.
        use: What it is meant for: some of ``use``, ``host``, ``distribute``.
        components: The identity, then the behaviors in order, then the tokenizer and the data sets.
        findings: Severest first.
        verifications: Evidence about the commit.
        signatures: Signatures of the commit, and of evidence about it.
        warnings: Parts without a licence, declarations that contradict each other.
        rules: The sets of rules that were asked.
    """

    commit: CommitId | None
    composition: CompositionId | None
    use: tuple[str, ...]
    components: tuple[Component, ...]
    findings: tuple[Finding, ...]
    verifications: tuple[VerificationSummary, ...]
    signatures: tuple[str, ...]
    warnings: tuple[str, ...]
    rules: tuple[RuleSetUsed, ...]


def audit(store: Store, revision: str = "HEAD", *, use: Sequence[str] = USES) -> AuditResult:
    """Lists the parts of a commit with what is said about each.

    Raises:
        UnknownRevisionError: No such revision.
        CorruptError: A statement is missing or damaged.
    """
    commit = resolve(store, revision).commit
    composition_id = store.record(commit, Commit).composition
    components = components_of(store, store.record(composition_id, Composition))
    with store.catalog.read() as reader:
        evidence = reader.evidence(commit, "verification")
    return AuditResult(
        commit,
        composition_id,
        tuple(use),
        components,
        (),
        tuple(summary(store, one) for one in evidence),
        (),
        _warnings(components),
        (),
    )


def components_of(store: Store, composition: Composition) -> tuple[Component, ...]:
    """The parts of a composition: the identity, the behaviors in order, tokenizers, and data by name.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    identity = store.record(composition.identity, Identity)
    parts = [_component(store, "identity", "", composition.identity, 1.0, None, identity.files)]
    for slot in composition.slots:
        behavior = store.record(slot.behavior, Behavior)
        parts.append(
            _component(store, "behavior", slot.name, slot.behavior, slot.weight, behavior.form, behavior.files)
        )
    return (*parts, *_tokenizers(parts), *_datasets(parts))


def _component(
    store: Store, role: str, name: str, subject: RecordId, weight: float, form: str | None, files: Sequence[FileEntry]
) -> Component:
    claims = claims_about(store, subject)

    def values(*keys: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(claim.value for key in keys for claim in claims.get(key, ())))

    licenses = values("license", "license_name")
    if values("license_name"):
        # How model cards say that the licence has only a name: it declares no second one.
        licenses = tuple(license for license in licenses if license != "other")
    every = tuple(claim for key in sorted(claims) for claim in claims[key])
    return Component(
        role,
        name or next(iter(values("name")), ""),
        subject,
        weight,
        licenses,
        values("source"),
        values("base_model"),
        values("dataset"),
        values("dataset_license"),
        every,
        form,
        tuple(FileHash(entry.path, entry.size, entry.sha256) for entry in files),
        said(every),
    )


def _tokenizers(parts: Sequence[Component]) -> list[Component]:
    found: list[Component] = []
    for part in parts:
        files = tuple(file for file in part.files if file.path in TOKENIZER_FILES)
        # An adapter's own copy of the base's tokenizer is not another one.
        known = {file.sha256 for one in found for file in one.files}
        if files and not known.issuperset(file.sha256 for file in files):
            found.append(
                Component(
                    "tokenizer", part.name, part.id, 1.0, part.license, part.source, (), (), (), (), None, files,
                    part.said, (part.label,),
                )
            )  # fmt: skip
    return found


def _datasets(parts: Sequence[Component]) -> list[Component]:
    trained: dict[str, list[str]] = {}
    merged: dict[str, list[DatasetSaid]] = {}
    for part in parts:
        for one in part.said.datasets:
            trained.setdefault(one.name, []).append(part.label)
            merged.setdefault(one.name, []).append(one)
    found = []
    for name in sorted(trained):
        licenses = tuple(dict.fromkeys(license for one in merged[name] for license in one.licenses))
        revisions = {one.revision for one in merged[name]}
        own = Said(name, licenses, None, (), (), revisions.pop() if len(revisions) == 1 else None)
        found.append(
            Component(
                "dataset", name, None, 1.0, licenses, (), (), (), (), (), None, (), own,
                tuple(dict.fromkeys(trained[name])),
            )
        )  # fmt: skip
    return found


def _warnings(components: Sequence[Component]) -> tuple[str, ...]:
    warnings = []
    for component in components:
        if component.role not in ("identity", "behavior"):
            continue
        if not component.license:
            warnings.append(f"{component.label}: no licence is stated; by default nothing is permitted")
        elif len(component.license) > 1:
            warnings.append(f"{component.label}: the licences stated differ: {', '.join(component.license)}")
    return tuple(warnings)
