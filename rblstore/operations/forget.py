"""``forget``: an identity's or behavior's content goes for good; its record, and everything said about it, stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, cast

from rblstore.errors import NothingChangedError, UsageError
from rblstore.forgotten import contents_named_by, tombstones_of
from rblstore.objects import limits
from rblstore.objects.fields import check_text
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import CommitId, ContentId, RecordId, TombstoneId
from rblstore.objects.tombstone_records import Tombstone
from rblstore.operations.content_needs import read_parts
from rblstore.operations.result import Result
from rblstore.operations.state import Role, find_part
from rblstore.repository import HEADS, Store, utc_now

_NAMED: Final = 20
_HOLDING: Final = ("identity", "behavior", "baseline", "training-state")


class AlreadyForgottenError(NothingChangedError):
    """There is a tombstone already."""

    code: ClassVar[str] = "already_forgotten"


@dataclass(frozen=True)
class ForgottenCommit:
    """A commit that can be composed no more.

    Attributes:
        id: Its id.
        subject: Its message's first line.
    """

    id: CommitId
    subject: str


@dataclass(frozen=True)
class ForgetResult(Result):
    """What was removed, or would be.

    Attributes:
        applied: Whether it was.
        tombstone: The record that says so; None where nothing was done.
        role: ``identity`` or ``behavior``.
        name: What was given.
        subject: Its id.
        reason: Why.
        author: Who removes it.
        contents: How many contents go with the next gc, once its grace is over.
        bytes: What these take in packs.
        shared: How many of its contents stay, since something else needs them.
        commits: How many commits can be composed no more.
        named: Those commits, the newest first; at most twenty.
        branches: Branches whose heads are among them.
    """

    applied: bool
    tombstone: TombstoneId | None
    role: Role
    name: str
    subject: RecordId
    reason: str
    author: str
    contents: int
    bytes: int
    shared: int
    commits: int
    named: tuple[ForgottenCommit, ...]
    branches: tuple[str, ...]


def forget(
    store: Store, name: str, *, reason: str, author: str, revision: str = "HEAD", apply: bool = False
) -> ForgetResult:
    """Says what goes with an identity or behavior; with ``apply``, records the tombstone. The bytes go by gc.

    Args:
        store: The repository.
        name: ``identity``, a behavior's name in the revision, or the prefix of an id.
        reason: Why, for whoever looks for it later.
        author: Who removes it.
        revision: The commit in which the name is looked up.
        apply: Whether to do it. It cannot be undone.

    Raises:
        NoSuchPartError: There is nothing of that name.
        AlreadyForgottenError: It was removed before.
        UsageError: There is no reason.
    """
    if not check_text(reason, "reason", limits.TEXT_BYTES).strip():
        raise UsageError("say why it is removed", object="reason", hint='--reason "..."')
    role, subject = find_part(store, name, revision)
    for tombstone in tombstones_of(store, [subject]).values():
        raise AlreadyForgottenError(
            f"{subject.short} was removed already, by {tombstone.author} at {tombstone.time}: {tombstone.reason}",
            object=subject,
            hint="What is left of it goes with: rbl gc --apply",
        )
    made: TombstoneId | None = None
    if apply:
        with store.transaction(author) as transaction:
            made = cast("TombstoneId", transaction.add_record(Tombstone(subject, reason, author, utc_now())))
    named = contents_named_by(store, subject)
    goes = named - _needed_elsewhere(store, subject)
    with store.catalog.read() as reader:
        stored = reader.locations(map(ContentId, goes))
        heads = {value: ref.removeprefix(HEADS) for ref, value in reader.refs(HEADS).items()}
        ids = [CommitId(one) for one, _ in reader.records("commit")]
        rows = list(reader.commit_rows(ids))
        compositions = reader.compositions({row.composition for row in rows})
    having = {one for one, composition in compositions.items() if _has(composition, subject)}
    commits = sorted((row for row in rows if row.composition in having), key=lambda row: row.generation, reverse=True)
    return ForgetResult(
        apply,
        made,
        role,
        name,
        subject,
        reason,
        author,
        len(stored),
        sum(at.stored for at in stored.values()),
        len(named) - len(goes),
        len(commits),
        tuple(ForgottenCommit(row.id, row.message.split("\n", 1)[0]) for row in commits[:_NAMED]),
        tuple(sorted(heads[row.id] for row in commits if row.id in heads)),
    )


def _has(composition: Composition, subject: RecordId) -> bool:
    return composition.identity == subject or any(slot.behavior == subject for slot in composition.slots)


def _needed_elsewhere(store: Store, subject: RecordId) -> frozenset[str]:
    """Contents of everything that is not forgotten, as far as the catalog knows."""
    with store.catalog.read() as reader:
        others = [one for kind in _HOLDING for one, _ in reader.records(kind) if one != subject]
    forgotten = tombstones_of(store, others)
    parts = read_parts(store, (one for one in others if one not in forgotten))
    return frozenset(content for part in parts for content in part.contents)
