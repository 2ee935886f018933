"""Tombstones: that the content of an identity or behavior was removed on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rblstore.errors import InputError
from rblstore.objects.canonical import Json
from rblstore.objects.fields import Fields
from rblstore.objects.ids import RecordId, TombstoneId
from rblstore.objects.record import Record


@dataclass(frozen=True)
class Tombstone(Record):
    """The content of an identity or behavior was removed on purpose, by whom, when and why.

    It covers every content that the subject's files are put together from and that no other identity, behavior or
    evidence needs. The subject's record, and everything that is said about it, stay.

    Attributes:
        subject: The identity or behavior; the tombstone lives while its record does.
        reason: Why, for people; not empty.
        author: Who removed it.
        time: RFC 3339.
    """

    KIND: ClassVar[str] = "tombstone"
    ID: ClassVar[type[RecordId]] = TombstoneId

    subject: RecordId
    reason: str
    author: str
    time: str

    def body(self) -> dict[str, Json]:
        return {"author": self.author, "reason": self.reason, "subject": str(self.subject), "time": self.time}

    @classmethod
    def from_fields(cls, fields: Fields) -> Tombstone:
        tombstone = cls(
            fields.id("subject", RecordId), fields.text("reason"), fields.text("author"), fields.time("time")
        )
        if not tombstone.reason.strip():
            raise InputError("tombstone record: 'reason' is empty")
        return tombstone
