"""Statements made at commit: what model cards say, and what the person who commits says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from rblstore.checkpoints.model_card import claims_from_files
from rblstore.checkpoints.source_directory import SourceDirectory
from rblstore.errors import UsageError
from rblstore.objects import limits
from rblstore.objects.evidence_records import Claim, Statement
from rblstore.objects.fields import check_text
from rblstore.objects.ids import RecordId
from rblstore.operations.evidence_time import evidence_time
from rblstore.repository import Store
from rblstore.transaction import Transaction


def said_claims(license: str | None, meta: Mapping[str, str], origin: str) -> tuple[Claim, ...]:
    """Claims that a person makes directly.

    Args:
        license: An SPDX expression or a hub's licence id.
        meta: Free keys; ``source``, ``base_model``, ``dataset`` keep their names, others become ``meta.<key>``.
        origin: ``command line`` or ``api``.

    Raises:
        UsageError: An empty key or value.
    """
    claims = []
    if license is not None:
        claims.append(Claim("license", license, origin))
    for key, value in meta.items():
        known = key in ("source", "base_model", "dataset", "license", "license_link", "license_name")
        claims.append(Claim(key if known else f"meta.{key}", value, origin))
    for claim in claims:
        check_text(claim.value, f"{claim.key} of the statement")
        if not claim.value.strip() or claim.key in ("", "meta."):
            raise UsageError(f"the statement {claim.key!r} is empty", object=claim.key)
    return tuple(claims)


def card_claims(source: SourceDirectory) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """What the files beside the weights say, and warnings about those that could not be read.

    Args:
        source: The scanned directory.
    """
    small = [file for file in source.files if file.size <= limits.MODEL_CARD_BYTES]
    return claims_from_files({file.path: partial(file.read, limits.MODEL_CARD_BYTES) for file in small})


def state(store: Store, transaction: Transaction, subject: RecordId, claims: tuple[Claim, ...], author: str) -> None:
    """Adds a statement about an identity or behavior, unless the last one by the same author says just this."""
    claims = tuple(sorted(set(claims)))
    if not claims:
        return
    with store.catalog.read() as reader:
        earlier = reader.evidence(subject, "statement")
    for statement_id in reversed(earlier):
        last = store.record(statement_id, Statement)
        if last.author == author:
            if last.claims == claims:
                return
            break
    transaction.add_record(Statement(subject, claims, author, evidence_time(store, subject, Statement)))


def claims_about(store: Store, subject: RecordId) -> dict[str, tuple[Claim, ...]]:
    """What is said about an identity or behavior now, by key; a later statement supersedes an earlier one's keys.

    Where a person and a file speak of one key in one statement, both stay. Later is what its time says: the order in
    which statements came into this repository proves nothing.
    """
    with store.catalog.read() as reader:
        statements = [store.record(statement_id, Statement) for statement_id in reader.evidence(subject, "statement")]
    current: dict[str, tuple[Claim, ...]] = {}
    for statement in sorted(statements, key=lambda one: one.time):
        by_key: dict[str, list[Claim]] = {}
        for claim in statement.claims:
            by_key.setdefault(claim.key, []).append(claim)
        current.update({key: tuple(claims) for key, claims in by_key.items()})
    return current
