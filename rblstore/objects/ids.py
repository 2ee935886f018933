"""Typed object ids: 64 lower-case hexadecimal digits of a SHA-256, parsed in this one place."""

from __future__ import annotations

import re
from typing import TypeVar

from rblstore.errors import InputError, UsageError

_FULL = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{6,64}")


class Id(str):
    """A SHA-256 digest in hexadecimal. Subclasses say of what; ids of different kinds do not mix.

    Raises:
        InputError: The text is not 64 lower-case hexadecimal digits.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Id:
        if not isinstance(text, str):
            raise InputError(f"a {type(text).__name__} is not an object id")
        if not _FULL.fullmatch(text):
            raise InputError(f"{text[:80]!r} is not an object id (64 lower-case hexadecimal digits)", object=text[:80])
        return super().__new__(cls, text)

    @property
    def short(self) -> str:
        """The first twelve digits, for people."""
        return self[:12]


AnyId = TypeVar("AnyId", bound=Id)


class ContentId(Id):
    """Bytes: a tensor's raw little-endian bytes, or a file's."""

    __slots__ = ()


class PackId(Id):
    """A pack: SHA-256 of its header and index, which is also its file name."""

    __slots__ = ()


class RecordId(Id):
    """A record of any kind; its SHA-256 is that of the record's stored bytes, prefix line included."""

    __slots__ = ()


class FileManifestId(RecordId):
    """A safetensors file kept as a header and one content per tensor."""

    __slots__ = ()


class IdentityId(RecordId):
    """A base checkpoint's content."""

    __slots__ = ()


class BehaviorId(RecordId):
    """One removable unit of adaptation."""

    __slots__ = ()


class CompositionId(RecordId):
    """An identity and an ordered list of behaviors."""

    __slots__ = ()


class CommitId(RecordId):
    """A composition at one point of history."""

    __slots__ = ()


class TagId(RecordId):
    """A named, dated pointer at a commit."""

    __slots__ = ()


class OperationId(RecordId):
    """One change of refs."""

    __slots__ = ()


class StatementId(RecordId):
    """What somebody says about an identity or behavior."""

    __slots__ = ()


class ProbeId(RecordId):
    """A fixed set of token sequences."""

    __slots__ = ()


class BaselineId(RecordId):
    """The outputs of one composition under one probe in one environment."""

    __slots__ = ()


class VerificationId(RecordId):
    """Evidence: a comparison with a baseline, and its verdict."""

    __slots__ = ()


class StudyId(RecordId):
    """Evidence: measurements of a model in many states."""

    __slots__ = ()


class TrainingStateId(RecordId):
    """The state of an optimizer, a scheduler and random generators at a commit."""

    __slots__ = ()


class SignatureId(RecordId):
    """Who vouches for a commit or a verification."""

    __slots__ = ()


class TombstoneId(RecordId):
    """That the content of an identity or behavior was removed on purpose."""

    __slots__ = ()


def is_full_id(text: str) -> bool:
    """Whether the text is a whole object id."""
    return _FULL.fullmatch(text) is not None


def is_prefix(text: str) -> bool:
    """Whether the text could be the beginning of an object id as a person types it."""
    return _PREFIX.fullmatch(text.lower()) is not None


def parse_prefix(text: str) -> str:
    """A unique-prefix candidate typed by a person: 6 to 64 hexadecimal digits, lower-cased.

    Raises:
        UsageError: The text is not such a prefix.
    """
    lowered = text.lower()
    if not is_prefix(text):
        raise UsageError(
            f"{text!r} is not an object id or a prefix of one",
            object=text,
            hint="Give at least 6 hexadecimal digits.",
        )
    return lowered
