"""``tag``: dated names for commits."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.errors import NotFoundError
from rblstore.objects import limits
from rblstore.objects.fields import check_text
from rblstore.objects.history_records import Tag
from rblstore.objects.ids import CommitId, RecordId, TagId
from rblstore.objects.paths import check_ref_name
from rblstore.operations.result import Result
from rblstore.operations.switch import RefExistsError, refuse_clash
from rblstore.repository import TAGS, Store, utc_now
from rblstore.revisions import resolve


class NoSuchTagError(NotFoundError):
    """No tag of that name."""

    code = "no_such_tag"


@dataclass(frozen=True)
class TagInfo(Result):
    """One tag.

    Attributes:
        name: Without ``refs/tags/``.
        tag: The tag's own id.
        commit: What it points at.
        author: Who tagged.
        time: RFC 3339.
        message: May be empty.
    """

    name: str
    tag: TagId
    commit: CommitId
    author: str
    time: str
    message: str


def _info(tag_id: RecordId, tag: Tag) -> TagInfo:
    return TagInfo(tag.name, TagId(tag_id), tag.target, tag.author, tag.time, tag.message)


def tags(store: Store) -> list[TagInfo]:
    """Every tag, sorted by name."""
    with store.catalog.read() as reader:
        found = reader.refs(TAGS)
    return [_info(RecordId(value), store.record(RecordId(value), Tag)) for _, value in sorted(found.items())]


def create_tag(store: Store, name: str, revision: str = "HEAD", *, message: str = "", author: str) -> TagInfo:
    """Tags a commit.

    Raises:
        RefExistsError: The tag exists (tags do not move), or its name cannot stand beside another's.
        UnknownRevisionError: No such revision.
    """
    ref = TAGS + check_ref_name(name, "tag")
    check_text(message, "the message", limits.MESSAGE_BYTES)
    if store.ref(ref) is not None:
        raise RefExistsError(
            f"the tag {name!r} exists, and tags do not move", object=name, hint=f"Delete it first: rbl tag -d {name}"
        )
    refuse_clash(store, ref, TAGS, "tag")
    tag = Tag(name, resolve(store, revision).commit, author, utc_now(), message)
    with store.transaction(author) as transaction:
        tag_id = transaction.add_record(tag)
        transaction.set_ref(ref, None, tag_id)
        transaction.describe(f"tag: {name}")
    return _info(tag_id, tag)


def delete_tag(store: Store, name: str, *, author: str) -> TagInfo:
    """Deletes a tag's name; the record stays, and ``undo`` brings the name back.

    Raises:
        NoSuchTagError: None of that name.
    """
    ref = TAGS + check_ref_name(name, "tag")
    value = store.ref(ref)
    if value is None:
        raise NoSuchTagError(f"no tag is called {name!r}", object=name, hint="See: rbl tag")
    with store.transaction(author) as transaction:
        transaction.set_ref(ref, value, None)
        transaction.describe(f"tag: delete {name}")
    return _info(RecordId(value), store.record(RecordId(value), Tag))
