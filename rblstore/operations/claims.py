"""Statements made at commit and later: what model cards, files and the hub's client say, and what stands of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from rblstore.checkpoints.hub_metadata import hub_claims
from rblstore.checkpoints.model_card import claims_from_files
from rblstore.checkpoints.source_directory import SourceDirectory
from rblstore.objects import limits
from rblstore.objects.evidence_records import Claim, Statement
from rblstore.objects.ids import RecordId, StatementId
from rblstore.operations.evidence_time import evidence_time
from rblstore.provenance.license_texts import recognise
from rblstore.provenance.said import split_revision
from rblstore.repository import Store
from rblstore.transaction import Transaction

# What is said of the same thing under several keys is superseded together: a licence's name goes with the licence.
_TOGETHER: Final = {
    "license": ("license_link", "license_name"),
    "source": ("source_revision",),
    "base_model": ("base_model_relation", "base_revision"),
}
_OF_DATA: Final = ("dataset", "dataset_license")


def captured_claims(source: SourceDirectory, digests: Mapping[str, str]) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """What lies beside the weights and what the hub's client noted, and warnings about what could not be read.

    Args:
        source: The scanned directory.
        digests: SHA-256 of its files as they were stored, by path.
    """
    small = [file for file in source.files if file.size <= limits.MODEL_CARD_BYTES]
    readers = {file.path: partial(file.read, limits.MODEL_CARD_BYTES) for file in small}
    claims, warnings = claims_from_files(readers, recognise)
    noted, more = hub_claims(source, digests)
    return (*claims, *noted), (*warnings, *more)


def state(
    store: Store, transaction: Transaction, subject: RecordId, claims: tuple[Claim, ...], author: str
) -> StatementId | None:
    """Adds a statement about an identity or behavior, unless the last one by the same author says just this.

    Returns:
        Its id, or None where none was added.
    """
    claims = tuple(sorted(set(claims)))
    if not claims:
        return None
    own = [statement for _, statement in statements_about(store, subject) if statement.author == author]
    if own and own[-1].claims == claims:
        return None
    return StatementId(
        transaction.add_record(Statement(subject, claims, author, evidence_time(store, subject, Statement)))
    )


def statements_about(store: Store, subject: RecordId) -> list[tuple[StatementId, Statement]]:
    """Every statement about an identity or behavior, in the order of time.

    Later is what its time says: the order in which statements came into this repository proves nothing.
    """
    with store.catalog.read() as reader:
        found = [(StatementId(one), store.record(one, Statement)) for one in reader.evidence(subject, "statement")]
    return sorted(found, key=lambda pair: pair[1].time)


def claims_about(store: Store, subject: RecordId) -> dict[str, tuple[Claim, ...]]:
    """What is said about an identity or behavior now, by key; a later statement supersedes an earlier one's keys.

    Where a person and a file speak of one key in one statement, both stay. A licence is superseded together with its
    name and link, a source and a base with their revisions. Data sets are superseded one by one: what a later statement
    says of one leaves what was said of the others.
    """
    current: dict[str, tuple[Claim, ...]] = {}
    for _, statement in statements_about(store, subject):
        by_key: dict[str, list[Claim]] = {}
        for claim in statement.claims:
            by_key.setdefault(claim.key, []).append(claim)
        for key in by_key:
            for other in _TOGETHER.get(key, ()):
                current.pop(other, None)
        for key in by_key.keys() & current.keys() & set(_OF_DATA):
            spoken_of = {_data_set(claim) for claim in by_key[key]}
            by_key[key] = [*(one for one in current[key] if _data_set(one) not in spoken_of), *by_key[key]]
        current.update({key: tuple(claims) for key, claims in by_key.items()})
    return {key: claims for key, claims in current.items() if claims}


def _data_set(claim: Claim) -> str:
    """The data set that a claim is about; "" for a licence that names none."""
    named = claim.value if claim.key == "dataset" else claim.value.rpartition("=")[0]
    return split_revision(named)[0]
