"""The signatures that are recorded over a commit or a verification; what they claim, not whether it holds."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.objects.ids import ContentId, RecordId, SignatureId
from rblstore.objects.signature_records import Signature
from rblstore.repository import Store


@dataclass(frozen=True)
class SignatureInfo:
    """A recorded signature. It is a claim: only ``verify_signature`` with a key says whether it holds.

    Attributes:
        id: The record's.
        subject: The commit or verification that it is over.
        method: ``key``, ``certificate`` or ``sigstore``.
        key: Claimed fingerprint of the public key, SHA-256 of its DER form; None for ``sigstore``.
        identity: Whose the certificate is said to be; None for a key.
        bundle: The sigstore bundle, a content.
        author: Who recorded it.
        time: RFC 3339.
    """

    id: SignatureId
    subject: RecordId
    method: str
    key: ContentId | None
    identity: str | None
    bundle: ContentId
    author: str
    time: str


def signatures_of(store: Store, subject: RecordId) -> tuple[SignatureInfo, ...]:
    """The signatures recorded over a commit or a verification, in the order in which they were recorded.

    Args:
        store: The repository.
        subject: Id of the commit or verification.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    with store.catalog.read() as reader:
        found = reader.evidence(subject, Signature.KIND)
    return tuple(signature_info(SignatureId(one), store.record(one, Signature)) for one in found)


def signature_info(id: SignatureId, record: Signature) -> SignatureInfo:
    """A record as others see it.

    Args:
        id: The record's id.
        record: The record.
    """
    return SignatureInfo(
        id, record.subject, record.method, record.key, record.identity, record.bundle, record.author, record.time
    )
