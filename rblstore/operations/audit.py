"""``audit``: which identity, behaviors, data and licences are in a commit, and what vouches for them."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.objects.evidence_records import Claim
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, RecordId
from rblstore.operations.claims import claims_about
from rblstore.operations.log import VerificationSummary, summary
from rblstore.operations.result import Result
from rblstore.repository import Store
from rblstore.revisions import resolve


@dataclass(frozen=True)
class Component:
    """One part of a composition and what is said about it.

    Attributes:
        role: ``identity`` or ``behavior``.
        name: The slot's name; for the identity, the name it is known by, or "".
        id: Its id.
        weight: The slot's weight; 1.0 for the identity.
        license: What it is declared to be under, every declaration that stands.
        source: Where it is said to come from.
        base_model: What it is said to have been made for.
        datasets: What it is said to have been trained on.
        dataset_licenses: What that is said to be under.
        claims: Everything that is said about it, each with its origin.
    """

    role: str
    name: str
    id: RecordId
    weight: float
    license: tuple[str, ...]
    source: tuple[str, ...]
    base_model: tuple[str, ...]
    datasets: tuple[str, ...]
    dataset_licenses: tuple[str, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class AuditResult(Result):
    """What is in a commit.

    Attributes:
        commit: Which.
        composition: Its composition.
        components: The identity, then the behaviors in order.
        verifications: Evidence about the commit.
        warnings: Gaps: parts without a licence, declarations that contradict each other.
    """

    commit: CommitId
    composition: CompositionId
    components: tuple[Component, ...]
    verifications: tuple[VerificationSummary, ...]
    warnings: tuple[str, ...]


def _component(store: Store, role: str, name: str, subject: RecordId, weight: float) -> Component:
    claims = claims_about(store, subject)

    def values(*keys: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(claim.value for key in keys for claim in claims.get(key, ())))

    licenses = values("license", "license_name")
    if values("license_name"):
        # How model cards say that the licence has only a name: it declares no second one.
        licenses = tuple(license for license in licenses if license != "other")
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
        tuple(claim for key in sorted(claims) for claim in claims[key]),
    )


def audit(store: Store, revision: str = "HEAD") -> AuditResult:
    """Lists the parts of a commit with what is said about each.

    Raises:
        UnknownRevisionError: No such revision.
        CorruptError: A statement is missing or damaged.
    """
    commit = resolve(store, revision).commit
    composition_id = store.record(commit, Commit).composition
    composition = store.record(composition_id, Composition)
    components = [_component(store, "identity", "", composition.identity, 1.0)]
    components += [_component(store, "behavior", slot.name, slot.behavior, slot.weight) for slot in composition.slots]
    warnings = []
    for component in components:
        label = f"{component.role} {component.name or component.id.short}"
        if not component.license:
            warnings.append(f"{label}: no licence is stated; by default nothing is permitted")
        elif len(component.license) > 1:
            warnings.append(f"{label}: the licences stated differ: {', '.join(component.license)}")
    with store.catalog.read() as reader:
        evidence = reader.evidence(commit, "verification")
    return AuditResult(
        commit, composition_id, tuple(components), tuple(summary(store, one) for one in evidence), tuple(warnings)
    )
