"""The parts of a composition, with their files and what is said about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from rblstore.checkpoints.tokenizing import TOKENIZER_FILES
from rblstore.forgotten import tombstones_of
from rblstore.objects.content_records import Behavior, FileEntry, Identity
from rblstore.objects.evidence_records import Claim
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import ContentId, RecordId, VerificationId
from rblstore.operations.claims import claims_about
from rblstore.operations.log import VerificationSummary
from rblstore.provenance.licenses import NOASSERTION
from rblstore.provenance.parts import Part
from rblstore.provenance.said import DatasetSaid, Said, said
from rblstore.repository import Store


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
        verifications: Those that vouch for what the composition with it puts out.
        removed: Why its content was removed, or None where it was not.
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
    verifications: tuple[VerificationId, ...] = ()
    removed: str | None = None

    @property
    def label(self) -> str:
        """How findings name it."""
        return f"{self.role} {self.name or ('' if self.id is None else self.id.short)}".strip()


def components_of(
    store: Store,
    composition: Composition,
    verified: Sequence[VerificationSummary] = (),
    until: datetime | None = None,
) -> tuple[Component, ...]:
    """The parts of a composition: the identity, the behaviors in order, tokenizers, and data by name.

    Args:
        store: The repository.
        composition: What it is.
        verified: Verifications of its outputs: each vouches for every behavior that was measured.
        until: What was said later is left out; None for nothing.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    identity = store.record(composition.identity, Identity)
    parts = [component(store, "identity", "", composition.identity, 1.0, None, identity.files, until)]
    vouching = tuple(VerificationId(one.id) for one in verified)
    for slot in composition.slots:
        behavior = store.record(slot.behavior, Behavior)
        files = behavior.files
        part = component(store, "behavior", slot.name, slot.behavior, slot.weight, behavior.form, files, until)
        parts.append(replace(part, verifications=vouching))
    return (*parts, *tokenizers_of(parts), *datasets_of(parts))


def parts_of(components: Sequence[Component], verified: Sequence[VerificationSummary] = ()) -> tuple[Part, ...]:
    """Components as rules see them."""
    verdicts = {one.id: one.verdict for one in verified}
    return tuple(
        Part(
            one.role, one.label, one.form or "", one.said, one.of,
            tuple(verdicts[id] for id in one.verifications if id in verdicts), one.removed or "",
        )
        for one in components
    )  # fmt: skip


def component(
    store: Store,
    role: str,
    name: str,
    subject: RecordId,
    weight: float,
    form: str | None,
    files: Sequence[FileEntry],
    until: datetime | None = None,
) -> Component:
    """An identity or a behavior with what is said about it, or was until a time.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    claims = claims_about(store, subject, until)

    def values(*keys: str) -> tuple[str, ...]:
        stated = (claim.value for key in keys for claim in claims.get(key, ()))
        return tuple(dict.fromkeys(value for value in stated if value != NOASSERTION))

    licenses = values("license", "license_name")
    if values("license_name"):
        # How model cards say that the licence has only a name: it declares no second one.
        licenses = tuple(license for license in licenses if license != "other")
    every = tuple(claim for key in sorted(claims) for claim in claims[key])
    tombstone = tombstones_of(store, [subject]).get(subject)
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
        removed=None if tombstone is None else tombstone.reason,
    )


def tokenizers_of(parts: Sequence[Component]) -> list[Component]:
    """The tokenizers among the files of identities and behaviors, one for every part that has its own."""
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


def datasets_of(parts: Sequence[Component]) -> list[Component]:
    """The data that parts are said to be trained on, sorted by name."""
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
