"""Turning what a person types into an object: ``HEAD~2``, ``main^``, a branch, a tag, an id prefix, ``ref@{OP}``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rblstore.catalog.reader import CatalogReader
from rblstore.errors import CorruptError, NotFoundError, UsageError
from rblstore.objects.history_records import SYMBOLIC, Operation, Tag
from rblstore.objects.ids import CommitId, RecordId, TagId, is_full_id, parse_prefix
from rblstore.objects.kinds import KINDS
from rblstore.repository import HEADS, PROBES, TAGS, Store

_STEP = re.compile(r"~([0-9]{0,9})|\^([0-9]{0,4})")
_AT = re.compile(r"(.*)@\{([^{}]*)\}")
_HEX = re.compile(r"[0-9a-fA-F]{6,64}")
_LONGEST = 4096
_RESTORE = "If gc took it, 'rbl gc --restore' brings it back while it lies in the trash."


class UnknownRevisionError(NotFoundError):
    """Nothing in the repository goes by that name."""

    code = "unknown_revision"


class AmbiguousRevisionError(UsageError):
    """Several objects go by that prefix."""

    code = "ambiguous_revision"


class NoCommitsError(NotFoundError):
    """The branch has no commit yet."""

    code = "no_commits"


@dataclass(frozen=True)
class Resolved:
    """A revision and what it stands for.

    Attributes:
        text: As typed.
        commit: The commit.
        tag: The tag it was reached through, or None.
    """

    text: str
    commit: CommitId
    tag: TagId | None = None


def resolve(store: Store, text: str) -> Resolved:
    """The commit that a revision names.

    Raises:
        UnknownRevisionError: No ref or object of that name.
        AmbiguousRevisionError: A prefix of several commits.
        NoCommitsError: A branch without commits.
        UsageError: Malformed.
    """
    if not isinstance(text, str):  # the types say so; a notebook does not read them
        raise UsageError(f"a revision is text, not a {type(text).__name__}", hint="A branch, a tag, an id, HEAD.")
    _check_length(text)
    start = min((at for at in (text.find("~"), text.find("^")) if at >= 0), default=len(text))
    name, steps = text[:start], text[start:]
    if not name or "".join(match.group(0) for match in _STEP.finditer(steps)) != steps:
        raise UsageError(
            f"{text!r} is not a revision",
            object=text,
            hint="Use a branch, a tag, an id, HEAD, and after it ~N or ^N; or ref@{OPERATION}.",
        )
    with store.catalog.read() as reader:
        commit, tag = _start(store, reader, name)
        for match in _STEP.finditer(steps):
            if match.group(1) is not None:
                for _ in range(int(match.group(1) or 1)):
                    commit = _parent(reader, commit, 1, text)
            elif (number := int(match.group(2) or 1)) > 0:
                commit = _parent(reader, commit, number, text)
    return Resolved(text, commit, tag if not steps else None)


def _check_length(text: str) -> None:
    if len(text) > _LONGEST:
        raise UsageError(
            f"a revision of {len(text)} characters is longer than any",
            object=text[:80],
            hint="Use a branch, a tag, an id, HEAD, and after it ~N or ^N; or ref@{OPERATION}.",
        )


def _parent(reader: CatalogReader, commit: CommitId, number: int, text: str) -> CommitId:
    row = reader.commit(commit)
    if row is None:
        raise CorruptError(f"commit {commit.short} is not in the catalog", object=commit, hint="Run: rbl reindex")
    if number > len(row.parents):
        raise UnknownRevisionError(
            f"{text!r} does not exist: commit {commit.short} has "
            + ("no parent" if not row.parents else f"only {len(row.parents)} parent{'s' * (len(row.parents) > 1)}"),
            object=text,
            hint="See the history with: rbl log --graph",
        )
    return row.parents[number - 1]


def _start(store: Store, reader: CatalogReader, name: str) -> tuple[CommitId, TagId | None]:
    if (at := _AT.fullmatch(name)) is not None:
        return _peel(store, reader, _ref_after(reader, at.group(1) or "HEAD", at.group(2)), name)
    if name in ("HEAD", "@"):
        return _peel(store, reader, _symbolic(reader, "HEAD"), name)
    for full in (name, HEADS + name, TAGS + name):
        if full.startswith("refs/") and (value := reader.ref(full)) is not None:
            return _peel(store, reader, value, name)
    if not _HEX.fullmatch(name):
        if name.startswith("refs/") or _symbolic_target(reader) == HEADS + name:
            raise NoCommitsError(f"the branch {name!r} has no commit yet", object=name, hint="Make one: rbl commit")
        raise UnknownRevisionError(
            f"no branch, tag or commit is called {name!r}", object=name, hint="See: rbl branch, rbl tag, rbl log"
        )
    found = reader.find_records(parse_prefix(name), ["commit", "tag"])
    if not found:
        raise UnknownRevisionError(
            f"no branch, tag or commit is called {name!r}",
            object=name,
            hint=f"See: rbl branch, rbl tag, rbl log. {_RESTORE}",
        )
    if len(found) > 1:
        raise _ambiguous(name, found)
    return _peel(store, reader, found[0][0], name)


def _symbolic_target(reader: CatalogReader) -> str:
    return (reader.ref("HEAD") or "").removeprefix(SYMBOLIC)


def _symbolic(reader: CatalogReader, name: str) -> str:
    target = (reader.ref(name) or "").removeprefix(SYMBOLIC)
    value = reader.ref(target)
    if value is None:
        branch = target.removeprefix(HEADS)
        raise NoCommitsError(
            f"the branch {branch!r} has no commit yet",
            object=branch,
            hint="Make one: rbl commit -m MESSAGE --identity DIR",
        )
    return value


def _peel(store: Store, reader: CatalogReader, value: str, name: str) -> tuple[CommitId, TagId | None]:
    record_id = RecordId(value)
    kind = reader.record_kind(record_id)
    if kind == "tag":
        return store.record(record_id, Tag).target, TagId(value)
    if kind == "commit":
        return CommitId(value), None
    if kind is None:
        raise UnknownRevisionError(
            f"{name!r} stood for {record_id.short}, which is not stored any more", object=value, hint=_RESTORE
        )
    raise UnknownRevisionError(f"{name!r} is a {kind}, not a commit", object=name)


def _ambiguous(name: str, found: list[tuple[RecordId, str]]) -> AmbiguousRevisionError:
    candidates = ", ".join(f"{record_id.short} ({kind})" for record_id, kind in found[:5])
    return AmbiguousRevisionError(
        f"{name!r} is a prefix of several objects: {candidates}", object=name, hint="Give more digits."
    )


def find_operation(reader: CatalogReader, text: str) -> Operation:
    """The operation that an id prefix or a sequence number names.

    Raises:
        UnknownRevisionError: None does.
        AmbiguousRevisionError: Several do.
    """
    _check_length(text)
    if text.isdecimal() and len(text) < 6:
        newest = reader.last_operation()
        sequence = int(text)
        if newest is not None and 1 <= sequence <= newest.sequence:
            return reader.operations(limit=1, before_sequence=sequence + 1)[0]
    elif _HEX.fullmatch(text):
        found = reader.find_operations(text.lower())
        if len(found) > 1:
            raise AmbiguousRevisionError(
                f"{text!r} is a prefix of {len(found)} operations", object=text, hint="Give more digits."
            )
        if found:
            return found[0]
    raise UnknownRevisionError(f"no operation is called {text!r}", object=text, hint="See: rbl op log")


def _ref_after(reader: CatalogReader, name: str, operation_text: str) -> str:
    operation = find_operation(reader, operation_text)
    newest = reader.last_operation()
    state: dict[str, str | None] = {}
    if newest is not None and newest.sequence > operation.sequence:
        for later in reader.operations(limit=newest.sequence - operation.sequence):
            state.update({change.ref: change.before for change in later.changes})

    def value(ref: str) -> str | None:
        return state[ref] if ref in state else reader.ref(ref)

    names = ["HEAD"] if name in ("HEAD", "@") else [name, HEADS + name, TAGS + name, PROBES + name]
    for full in names:
        found = value(full)
        if found is not None and found.startswith(SYMBOLIC):
            found = value(found.removeprefix(SYMBOLIC))
        if found is not None:
            return found
    raise UnknownRevisionError(
        f"{name!r} had no value after operation {operation_text[:12]}", object=name, hint="See: rbl op log"
    )


def find_record(store: Store, text: str) -> RecordId:
    """The object of any kind that a revision, a probe's name or an id prefix names.

    Raises:
        UnknownRevisionError: None does.
        AmbiguousRevisionError: Several do.
    """
    _check_length(text)
    with store.catalog.read() as reader:
        for full in (TAGS + text, PROBES + text):
            if (value := reader.ref(full)) is not None and reader.ref(HEADS + text) is None:
                return RecordId(value)
        if _HEX.fullmatch(text):
            found = reader.find_records(text.lower(), sorted(KINDS))
            if len(found) == 1:
                return found[0][0]
            if len(found) > 1 and not is_full_id(text):
                raise _ambiguous(text, found)
    return resolve(store, text).commit
