"""What a ref stood for at a time, and when each part entered and left it: read from the operation log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from rblstore.catalog.reader import CatalogReader
from rblstore.errors import NotFoundError, UsageError
from rblstore.objects.history_records import SYMBOLIC, Commit, Composition, Operation, Tag
from rblstore.objects.ids import CommitId, OperationId, RecordId, is_prefix
from rblstore.operations.moments import moment_asked, moment_of
from rblstore.operations.result import Result
from rblstore.operations.undo import operation_id
from rblstore.repository import HEADS, TAGS, Store
from rblstore.revisions import UnknownRevisionError, resolve

_STEPS: Final = re.compile(r"([^~^]*)(.*)", re.DOTALL)


class TooEarlyError(NotFoundError):
    """The repository has no operation that is as old as the time asked for."""

    code: ClassVar[str] = "too_early"


@dataclass(frozen=True)
class Event:
    """One move of a ref.

    Attributes:
        operation: Its id.
        description: What was done.
        author: Who did it.
        time: When, as whoever did it says.
        commit: What the ref stands for since; None where it was deleted.
    """

    operation: OperationId
    description: str
    author: str
    time: str
    commit: CommitId | None


@dataclass(frozen=True)
class Stay:
    """A part's time in a ref.

    Attributes:
        role: ``identity`` or ``behavior``.
        name: The slot's name; "" for the identity.
        id: The identity or behavior.
        weight: The slot's weight; 1.0 for the identity.
        entered: What brought it.
        left: What took it away; None where it is still there.
    """

    role: str
    name: str
    id: RecordId
    weight: float
    entered: Event
    left: Event | None


@dataclass(frozen=True)
class AuditHistory(Result):
    """What has been in a ref.

    Attributes:
        ref: Its full name.
        components: Every stay of every part, in the order in which they entered.
        lost: Commits that the ref once stood for and that are not stored any more: what they held is not known.
    """

    ref: str
    components: tuple[Stay, ...]
    lost: tuple[CommitId, ...]


def revision_at(store: Store, revision: str, at: str) -> tuple[CommitId, OperationId, str]:
    """The commit that a ref stood for at a time.

    Args:
        store: The repository.
        revision: A ref, with steps such as ``~1`` after it; or the id of a commit, which is itself at any time.
        at: A date (its end, UTC) or an RFC 3339 time.

    Returns:
        The commit, the last operation of that time, and the time in full.

    Raises:
        UsageError: It is neither a date nor a time.
        TooEarlyError: The repository has no operation that old, or the commit is younger.
        UnknownRevisionError: The ref was not there then.
    """
    moment = moment_asked(at)
    with store.catalog.read() as reader:
        operations = reader.operations()
    # Newest first. Order is the log's and not the clocks': the latest operation that says it was done by then.
    latest = next((one for one in operations if moment_of(one.time) <= moment), None)
    if latest is None:
        raise TooEarlyError(
            f"no operation is as old as {at}", object=at, hint="See when this repository began: rbl op log"
        )
    own = operation_id(latest)
    match = _STEPS.fullmatch(revision)
    name, steps = match.groups() if match is not None else (revision, "")
    if "@{" in name:
        raise UsageError(f"{revision!r} names an operation already", object=revision, hint="Give it, or a time.")
    shown = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    try:
        return resolve(store, f"{name}@{{{own}}}{steps}").commit, own, shown
    except UnknownRevisionError:
        if not is_prefix(name):
            raise
    # No ref then; an id is that of the same commit at any time, once that was made.
    commit = resolve(store, revision).commit
    made = store.record(commit, Commit).time
    if moment_of(made) > moment:
        raise TooEarlyError(
            f"commit {commit.short} was made later than {at}: at {made}", object=commit, hint="Ask about a later time."
        )
    return commit, own, shown


def history(store: Store, ref: str = "HEAD") -> AuditHistory:
    """When each part entered a ref and when it left, and who did it.

    Args:
        store: The repository.
        ref: A branch or tag; HEAD is the branch that it stands for now.

    Raises:
        UnknownRevisionError: No ref of that name was ever there.
        CorruptError: A record is damaged.
    """
    with store.catalog.read() as reader:
        operations = reader.operations()[::-1]
        full = _full_name(reader, operations, ref)
    stays: dict[tuple[str, str, str, float], tuple[int, Event]] = {}
    done: list[tuple[int, Stay]] = []
    lost: dict[CommitId, None] = {}
    number = 0
    for event in _events(store, operations, full):
        parts = _parts(store, event.commit)
        if parts is None:
            assert event.commit is not None, "nothing is never lost"
            lost[event.commit] = None
            continue
        gone = [key for key in stays if key not in parts]
        done += [_stay(key, *stays.pop(key), event) for key in gone]
        for key in parts:
            if key not in stays:
                number += 1
                stays[key] = (number, event)
    done += [_stay(key, *since, None) for key, since in stays.items()]
    return AuditHistory(full, tuple(stay for _, stay in sorted(done, key=lambda one: one[0])), tuple(lost))


def _stay(key: tuple[str, str, str, float], number: int, entered: Event, left: Event | None) -> tuple[int, Stay]:
    role, name, id, weight = key
    return number, Stay(role, name, RecordId(id), weight, entered, left)


def _full_name(reader: CatalogReader, operations: list[Operation], ref: str) -> str:
    if not isinstance(ref, str):
        raise UsageError(f"a ref is text, not a {type(ref).__name__}", hint="A branch, a tag, HEAD.")
    if ref in ("HEAD", "@"):
        return (reader.ref("HEAD") or "").removeprefix(SYMBOLIC)
    known = {change.ref for operation in operations for change in operation.changes}
    for full in (ref, HEADS + ref, TAGS + ref):
        if full.startswith((HEADS, TAGS)) and full in known:
            return full
    raise UnknownRevisionError(
        f"no branch or tag is or was called {ref[:200]!r}", object=ref[:200], hint="See: rbl branch, rbl tag"
    )


def _events(store: Store, operations: list[Operation], full: str) -> Iterator[Event]:
    for operation in operations:
        for change in operation.changes:
            if change.ref != full:
                continue
            commit = None if change.after is None else _peeled(store, RecordId(change.after))
            yield Event(operation_id(operation), operation.description, operation.author, operation.time, commit)


def _peeled(store: Store, value: RecordId) -> CommitId:
    with store.catalog.read() as reader:
        kind = reader.record_kind(value)
    return store.record(value, Tag).target if kind == "tag" else CommitId(value)


def _parts(store: Store, commit: CommitId | None) -> list[tuple[str, str, str, float]] | None:
    """What a commit is composed of; nothing where the ref was deleted, None where the commit is gone."""
    if commit is None:
        return []
    with store.catalog.read() as reader:
        if reader.record_kind(commit) != "commit":
            return None
    composition = store.record(store.record(commit, Commit).composition, Composition)
    behaviors = [("behavior", slot.name, str(slot.behavior), slot.weight) for slot in composition.slots]
    return [("identity", "", str(composition.identity), 1.0), *behaviors]
