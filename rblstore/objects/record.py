"""What every record is: a frozen value with one canonical encoding and so one id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from rblstore.objects.canonical import Json, record_body, record_bytes, sha256_hex
from rblstore.objects.fields import Fields
from rblstore.objects.ids import RecordId


@dataclass(frozen=True)
class Record:
    """A frozen record. Subclasses name their kind and id type, and give and read the body."""

    KIND: ClassVar[str]
    ID: ClassVar[type[RecordId]]

    def body(self) -> dict[str, Json]:
        """The JSON members, all of them, in any order."""
        raise TypeError(f"{type(self).__name__} has no body")

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads the members; ``parse`` checks that none is left over."""
        raise TypeError(f"{cls.__name__} cannot be read")

    def encode(self) -> bytes:
        """The bytes that are stored and hashed."""
        return record_bytes(self.KIND, self.body())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Reads a record's stored bytes, which may be hostile.

        Raises:
            InputError: Not this kind, not canonical, or against the kind's rules.
        """
        return cls.from_body(record_body(data, cls.KIND))

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> Self:
        """Reads a parsed body.

        Raises:
            InputError: Against the kind's rules.
        """
        fields = Fields(body, f"{cls.KIND} record")
        record = cls.from_fields(fields)
        fields.done()
        return record

    @classmethod
    def id_of(cls, data: bytes) -> RecordId:
        """The typed id of a record's stored bytes."""
        return cls.ID(sha256_hex(data))
