"""Signatures over commits and over evidence: who vouches for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, cast

from rblstore.errors import InputError
from rblstore.objects.canonical import Json
from rblstore.objects.fields import Fields
from rblstore.objects.ids import ContentId, RecordId, SignatureId
from rblstore.objects.record import Record

SigningMethod = Literal["certificate", "key", "sigstore"]

SIGNATURE_FILE: Final = "model.sig"
"""Where a signature over a directory lies in it; none signs itself."""


@dataclass(frozen=True)
class Signature(Record):
    """A signature over a commit's files, or over a verification. What it claims holds once its bundle was verified.

    Attributes:
        subject: The commit or verification; the signature lives while it does.
        method: ``key``, ``certificate`` or ``sigstore``.
        key: Fingerprint of the public key: SHA-256 of its DER form (SubjectPublicKeyInfo); None for ``sigstore``, whose
            keys last for one signature.
        identity: Who the certificate says it belongs to; None for a key, which says nothing.
        payload_type: Media type of what was signed.
        bundle: The sigstore bundle, a content.
        author: Who recorded it.
        time: RFC 3339; when it was recorded, as the recorder says.
    """

    KIND: ClassVar[str] = "signature"
    ID: ClassVar[type[RecordId]] = SignatureId

    subject: RecordId
    method: SigningMethod
    key: ContentId | None
    identity: str | None
    payload_type: str
    bundle: ContentId
    author: str
    time: str

    def body(self) -> dict[str, Json]:
        return {
            "author": self.author,
            "bundle": str(self.bundle),
            "identity": self.identity,
            "key": None if self.key is None else str(self.key),
            "method": self.method,
            "payload_type": self.payload_type,
            "subject": str(self.subject),
            "time": self.time,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Signature:
        signature = cls(
            fields.id("subject", RecordId),
            cast("SigningMethod", fields.choice("method", ("certificate", "key", "sigstore"))),
            fields.optional_id("key", ContentId),
            fields.optional_text("identity"),
            fields.text("payload_type", 255),
            fields.id("bundle", ContentId),
            fields.text("author"),
            fields.time("time"),
        )
        if (signature.key is None) != (signature.method == "sigstore"):
            raise InputError("signature record: 'key' is null for sigstore, and only there")
        if (signature.identity is None) != (signature.method == "key"):
            raise InputError("signature record: 'identity' is null for a key, and only there")
        return signature
