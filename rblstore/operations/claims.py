"""Statements made at commit and later: what model cards, files and the hub's client say, and what stands of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from rblstore.checkpoints.hub_metadata import hub_claims
from rblstore.checkpoints.model_card import claims_from_files
from rblstore.checkpoints.source_directory import SourceDirectory
from rblstore.objects import limits
from rblstore.objects.canonical import sha256_hex
from rblstore.objects.evidence_records import Claim, Statement
from rblstore.objects.ids import ContentId, RecordId, StatementId
from rblstore.operations.evidence_time import evidence_time
from rblstore.operations.moments import moment_of
from rblstore.provenance.license_texts import recognise
from rblstore.provenance.said import PERSONS, split_revision
from rblstore.repository import Store
from rblstore.transaction import Transaction

RETRACTED: Final = "retracted"
"""Key of a claim that takes back what was said before: ``KEY`` or ``KEY=VALUE`` of what stood."""

# What is said of the same thing under several keys is superseded together: a licence's name goes with the licence.
_TOGETHER: Final = {
    "license": ("license_link", "license_name"),
    "source": ("source_revision",),
    "base_model": ("base_model_relation", "base_revision"),
}
_OF_DATA: Final = ("dataset", "dataset_license")
_OF_TEXTS: Final = "license_file"


def captured_claims(source: SourceDirectory, digests: Mapping[str, str]) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """What lies beside the weights and what the hub's client noted, and warnings about what could not be read.

    Args:
        source: The scanned directory.
        digests: SHA-256 of its files as they were stored, by path.
    """
    readers = {file.path: partial(file.read, limits.MODEL_CARD_BYTES + 1) for file in source.files}
    claims, warnings = claims_from_files(readers, recognise)
    noted, more = hub_claims(source, digests)
    return (*claims, *noted), (*warnings, *more)


def not_said_yet(store: Store, subject: RecordId, claims: Iterable[Claim]) -> tuple[Claim, ...]:
    """Those of some claims that no statement makes yet.

    What files say is said once: who imports the same content again would else undo what somebody corrected since.
    """
    known = {claim for _, statement in statements_about(store, subject) for claim in statement.claims}
    return tuple(claim for claim in claims if claim not in known)


def state(
    store: Store,
    transaction: Transaction,
    subject: RecordId,
    claims: Iterable[Claim],
    author: str,
    texts: Iterable[bytes] = (),
) -> StatementId | None:
    """Adds a statement about an identity or behavior, unless its author's last one says just this and it stands.

    Args:
        store: The repository.
        transaction: Where it goes.
        subject: The identity or behavior.
        claims: What is said.
        author: Who says so.
        texts: Texts of licences that the statement brings along; they are stored with it.

    Returns:
        Its id, or None where none was added.
    """
    said = tuple(sorted(set(claims)))
    if not said:
        return None
    whole = tuple(texts)
    contents = tuple(sorted({ContentId(sha256_hex(text)) for text in whole}))
    earlier = [statement for _, statement in statements_about(store, subject)]
    made = Statement(subject, said, author, evidence_time(store, subject, Statement), contents)
    own = [one for one in earlier if one.author == author]
    if (
        own
        and (own[-1].claims, own[-1].contents) == (said, contents)
        and standing([*earlier, made]) == standing(earlier)
    ):
        return None
    for text in whole:
        transaction.add_content([text])
    return StatementId(transaction.add_record(made))


def statements_about(
    store: Store, subject: RecordId, until: datetime | None = None
) -> list[tuple[StatementId, Statement]]:
    """Every statement about an identity or behavior, in the order of time.

    Later is what its time says: the order in which statements came into this repository proves nothing.

    Args:
        store: The repository.
        subject: The identity or behavior.
        until: Leave out those made later; None for none.
    """
    with store.catalog.read() as reader:
        found = [(StatementId(one), store.record(one, Statement)) for one in reader.evidence(subject, "statement")]
    timed = sorted((moment_of(statement.time), one, statement) for one, statement in found)
    return [(one, statement) for moment, one, statement in timed if until is None or moment <= until]


def claims_about(store: Store, subject: RecordId, until: datetime | None = None) -> dict[str, tuple[Claim, ...]]:
    """What is said about an identity or behavior now, or was at a time, by key; see :func:`standing`.

    Args:
        store: The repository.
        subject: The identity or behavior.
        until: Leave out what was said later; None for nothing.
    """
    return standing(statement for _, statement in statements_about(store, subject, until))


def standing(statements: Iterable[Statement]) -> dict[str, tuple[Claim, ...]]:
    """What stands of statements about one thing, by key: a later one supersedes an earlier one's keys.

    Where a person and a file speak of one key in one statement, both stay. A licence is superseded together with its
    name and link, a source and a base with their revisions. Data sets are superseded one by one: what a later statement
    says of one leaves what was said of the others. Texts that a person gives supersede texts that persons gave, and not
    those that lie beside the weights. What is taken back stands no more.

    Args:
        statements: In the order of time.
    """
    current: dict[str, tuple[Claim, ...]] = {}
    for statement in statements:
        by_key: dict[str, list[Claim]] = {}
        for claim in statement.claims:
            if claim.key == RETRACTED:
                _take_back(current, claim.value)
            else:
                by_key.setdefault(claim.key, []).append(claim)
        for key in by_key:
            for other in _TOGETHER.get(key, ()):
                current.pop(other, None)
        for key in by_key.keys() & current.keys() & {*_OF_DATA, _OF_TEXTS}:
            kept: Callable[[Claim], object] = _by_person if key == _OF_TEXTS else _data_set
            spoken_of = {kept(claim) for claim in by_key[key]}
            by_key[key] = [*(one for one in current[key] if kept(one) not in spoken_of), *by_key[key]]
        current.update({key: tuple(claims) for key, claims in by_key.items()})
    return {key: claims for key, claims in current.items() if claims}


def stands(claims: Mapping[str, Sequence[Claim]], what: str) -> bool:
    """Whether there is something to take back.

    Args:
        claims: What stands, by key.
        what: ``KEY``, or ``KEY=VALUE``: of a data set its name does, of a text its path.
    """
    key, separator, value = what.partition("=")
    return any(not separator or value in _names(claim) for claim in claims.get(key, ()))


def _take_back(current: dict[str, tuple[Claim, ...]], what: str) -> None:
    key, separator, value = what.partition("=")
    together = ("dataset_license",) if key == "dataset" else () if separator else _TOGETHER.get(key, ())
    for one in (key, *together):
        current[one] = tuple(claim for claim in current.get(one, ()) if separator and value not in _names(claim))


def _names(claim: Claim) -> tuple[str, ...]:
    """What a person may call a claim by, beside its key."""
    if claim.key == _OF_TEXTS:
        return claim.value, claim.value.rpartition(" sha256:")[0]
    if claim.key == "dataset_license":
        return claim.value, claim.value.rpartition("=")[0], _data_set(claim)
    return claim.value, _data_set(claim) if claim.key == "dataset" else claim.value


def _by_person(claim: Claim) -> bool:
    return claim.origin in PERSONS


def _data_set(claim: Claim) -> str:
    """The data set that a claim is about; "" for a licence that names none."""
    named = claim.value if claim.key == "dataset" else claim.value.rpartition("=")[0]
    return split_revision(named)[0]
