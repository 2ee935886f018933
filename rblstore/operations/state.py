"""``state``: what somebody says about an identity or behavior, after it was committed; and what is said, by whom."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from rblstore.errors import NotFoundError, UsageError
from rblstore.objects.content_records import Behavior, Identity
from rblstore.objects.evidence_records import Claim
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import RecordId, StatementId
from rblstore.operations.claims import claims_about, stands
from rblstore.operations.claims import state as add_statement
from rblstore.operations.claims import statements_about as about
from rblstore.operations.result import Result
from rblstore.operations.told import Told
from rblstore.provenance.said import Said, said
from rblstore.repository import Store
from rblstore.revisions import AmbiguousRevisionError, NoCommitsError, resolve

Role = Literal["identity", "behavior"]

IDENTITY: Final = "identity"
_PREFIX: Final = re.compile(r"[0-9a-f]{6,64}")


class NoSuchPartError(NotFoundError):
    """Nothing of that name is in the composition, and no identity or behavior has such an id."""

    code: ClassVar[str] = "no_such_part"


@dataclass(frozen=True)
class StatementInfo:
    """One statement.

    Attributes:
        statement: Its id.
        author: Who says so.
        time: When.
        claims: What, sorted.
    """

    statement: StatementId
    author: str
    time: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class StatementsResult(Result):
    """What is said about an identity or behavior.

    Attributes:
        statement: The one that was made, or None: nothing was said, or its author's last one says just that.
        role: ``identity`` or ``behavior``.
        name: The slot's name, or what was given.
        subject: Its id.
        said: What it comes to.
        claims: What stands, with where each was read.
        statements: All, in the order of time, those that were superseded among them.
    """

    statement: StatementId | None
    role: Role
    name: str
    subject: RecordId
    said: Said
    claims: tuple[Claim, ...]
    statements: tuple[StatementInfo, ...]


def state(
    store: Store, name: str, told: Told, *, revision: str = "HEAD", origin: str = "api", author: str
) -> StatementsResult:
    """States something about an identity or behavior, or only shows what is said.

    A statement about content that several commits hold is about it in all of them, and changes none of their ids.

    Args:
        store: The repository.
        name: ``identity``, a slot's name, or an id's prefix of at least six digits.
        told: What is said; of nothing, no statement is made.
        revision: The commit in which names are looked up.
        origin: ``command line`` or ``api``.
        author: Who says so.

    Raises:
        NoSuchPartError: There is nothing of that name.
        BadLicenseError: A licence that nobody knows.
        UsageError: An empty key or value, or nothing stands of what is to be retracted.
        InputError: Text that no record could hold, or a licence file that cannot be read.
    """
    role, subject = find_part(store, name, revision)
    claims, texts = told.statement(origin)
    _check_retracted(store, subject, told.retract)
    made = None
    if claims:
        with store.transaction(author) as transaction:
            made = add_statement(store, transaction, subject, claims, author, texts)
    standing = claims_about(store, subject)
    found = tuple(claim for key in sorted(standing) for claim in standing[key])
    every = [StatementInfo(one, made_by.author, made_by.time, made_by.claims) for one, made_by in about(store, subject)]
    return StatementsResult(made, role, name, subject, said(found), found, tuple(every))


def _check_retracted(store: Store, subject: RecordId, retracted: Sequence[str]) -> None:
    """Refuses to take back what nobody said: somebody would rely on it."""
    standing = claims_about(store, subject) if retracted else {}
    for what in retracted:
        if not stands(standing, what):
            key = what.partition("=")[0]
            there = sorted(f"{key}={claim.value}" for claim in standing.get(key, ())) or sorted(standing)
            raise UsageError(
                f"nothing that stands is called {what[:80]!r}",
                object=what[:80],
                hint=f"There is: {', '.join(one[:200] for one in there[:10]) or 'nothing'}. See: rbl state NAME",
            )


def find_part(store: Store, name: str, revision: str = "HEAD") -> tuple[Role, RecordId]:
    """The identity or behavior that a name stands for in a commit; or, by its id's prefix, anywhere.

    Raises:
        NoSuchPartError: None does.
        UsageError: It is no text.
        AmbiguousRevisionError: Several ids begin so.
        UnknownRevisionError: No such commit.
    """
    if not isinstance(name, str):
        raise UsageError(f"a name is text, not a {type(name).__name__}", hint="'identity', or a behavior's name.")
    names: list[str] = []
    try:
        commit = resolve(store, revision).commit
    except NoCommitsError:
        if revision != "HEAD":
            raise
    else:
        composition = store.record(store.record(commit, Commit).composition, Composition)
        if name == IDENTITY:
            return "identity", composition.identity
        if (slot := composition.slot(name)) is not None:
            return "behavior", slot.behavior
        names = [IDENTITY, *(slot.name for slot in composition.slots)]
    found: list[tuple[RecordId, str]] = []
    if _PREFIX.fullmatch(name.lower()):
        with store.catalog.read() as reader:
            found = reader.find_records(name.lower(), [Behavior.KIND, Identity.KIND])
    if len(found) > 1:
        raise AmbiguousRevisionError(
            f"{name!r} is a prefix of {len(found)} identities and behaviors", object=name, hint="Give more digits."
        )
    if found:
        return ("identity" if found[0][1] == Identity.KIND else "behavior"), found[0][0]
    raise NoSuchPartError(
        f"{revision} has no part {name[:80]!r}",
        object=name[:80],
        hint=f"It has: {', '.join(names) or 'nothing yet'}. An id's prefix of six digits or more does, too.",
    )
