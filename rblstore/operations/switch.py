"""``switch`` and ``branch``: where commits go next."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.errors import ConflictError, NotFoundError
from rblstore.objects.history_records import SYMBOLIC
from rblstore.objects.ids import CommitId
from rblstore.objects.paths import check_ref_name
from rblstore.operations.result import Result
from rblstore.repository import HEADS, Store
from rblstore.revisions import resolve


class RefExistsError(ConflictError):
    """A branch or tag of that name exists."""

    code = "ref_exists"


class NoSuchBranchError(NotFoundError):
    """No branch of that name."""

    code = "no_such_branch"


@dataclass(frozen=True)
class BranchInfo(Result):
    """One branch.

    Attributes:
        name: Without ``refs/heads/``.
        commit: Its tip, or None before its first commit.
        current: Whether HEAD stands for it.
    """

    name: str
    commit: CommitId | None
    current: bool


def branches(store: Store) -> list[BranchInfo]:
    """Every branch, sorted by name; HEAD's is among them even before its first commit."""
    with store.catalog.read() as reader:
        found: dict[str, str | None] = dict(reader.refs(HEADS))
        head = (reader.ref("HEAD") or "").removeprefix(SYMBOLIC)
    found.setdefault(head, None)
    return [
        BranchInfo(ref.removeprefix(HEADS), None if value is None else CommitId(value), ref == head)
        for ref, value in sorted(found.items())
    ]


def create_branch(store: Store, name: str, start: str = "HEAD", *, author: str) -> BranchInfo:
    """Makes a branch at a revision, without switching to it.

    Raises:
        RefExistsError: There is one of that name.
        UnknownRevisionError: No such start.
    """
    ref = HEADS + check_ref_name(name, "branch")
    commit = resolve(store, start).commit
    refuse_clash(store, ref)
    with store.transaction(author) as transaction:
        transaction.set_ref(ref, None, commit)
        transaction.describe(f"branch: {name}")
    return BranchInfo(name, commit, store.head_branch() == ref)


def refuse_clash(store: Store, ref: str, namespace: str = HEADS, what: str = "branch") -> None:
    """Refuses a new name that no file system could hold beside those that there are, and one that exists.

    Args:
        store: The repository.
        ref: The new ref's full name.
        namespace: What the full names of its kind begin with.
        what: Its kind, for messages.

    Raises:
        RefExistsError: There is one of that name in any case, or one that would be a folder of the other.
    """
    with store.catalog.read() as reader:
        existing = reader.refs(namespace)
    for other in existing:
        mine, theirs = ref.casefold(), other.casefold()
        name = other.removeprefix(namespace)
        if mine == theirs:
            raise RefExistsError(f"the {what} {name!r} exists", object=other, hint="Choose another name.")
        if theirs.startswith(mine + "/") or mine.startswith(theirs + "/"):
            raise RefExistsError(
                f"{ref.removeprefix(namespace)!r} and the {what} {name!r} cannot both exist",
                object=other,
                hint="Choose another name.",
            )


def delete_branch(store: Store, name: str, *, author: str) -> BranchInfo:
    """Deletes a branch. Its commits stay, and ``undo`` brings it back.

    Raises:
        NoSuchBranchError: None of that name.
        ConflictError: HEAD stands for it.
    """
    ref = HEADS + check_ref_name(name, "branch")
    value = store.ref(ref)
    if value is None:
        raise NoSuchBranchError(f"no branch is called {name!r}", object=name, hint="See: rbl branch")
    if store.head_branch() == ref:
        raise ConflictError(
            f"{name!r} is the current branch", object=name, hint="Switch to another first: rbl switch NAME"
        )
    with store.transaction(author) as transaction:
        transaction.set_ref(ref, value, None)
        transaction.describe(f"branch: delete {name}")
    return BranchInfo(name, CommitId(value), False)


def switch(
    store: Store, name: str, *, create: bool = False, orphan: bool = False, start: str = "HEAD", author: str
) -> BranchInfo:
    """Makes HEAD stand for another branch.

    Args:
        store: The repository.
        name: The branch.
        create: Whether to make it, at ``start``.
        orphan: Whether it begins without a commit, for another identity.
        start: Where a created branch begins.
        author: Who.

    Raises:
        NoSuchBranchError: None of that name, and none was to be made.
        RefExistsError: It was to be made and exists.
    """
    ref = HEADS + check_ref_name(name, "branch")
    before = store.ref("HEAD")
    value = store.ref(ref)
    if create or orphan:
        refuse_clash(store, ref)
    elif value is None and store.head_branch() != ref:
        raise NoSuchBranchError(
            f"no branch is called {name!r}", object=name, hint=f"Make it with: rbl switch -c {name}"
        )
    target = resolve(store, start).commit if create and not orphan else None
    with store.transaction(author) as transaction:
        if target is not None:
            transaction.set_ref(ref, None, target)
        transaction.set_ref("HEAD", before, SYMBOLIC + ref)
        transaction.describe(f"switch: {name}")
    tip = store.ref(ref)
    return BranchInfo(name, None if tip is None else CommitId(tip), True)
