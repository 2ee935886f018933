"""The texts of licences, notices and policies that are said to hold for an identity or behavior, read back."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.objects import limits
from rblstore.objects.ids import ContentId, RecordId
from rblstore.operations.claims import claims_about
from rblstore.operations.result import Result
from rblstore.operations.state import Role, find_part
from rblstore.provenance.said import LicenseText, said
from rblstore.repository import Store


@dataclass(frozen=True)
class TermsText:
    """A text of terms.

    Attributes:
        path: Where it lies beside the weights, or what the file was called that a person gave.
        sha256: Of its bytes, by which it is stored.
        expression: What it was recognised as, or ``LicenseRef-rbl-<sha256>``.
        by: ``text`` where all of it is a known licence's, ``title`` where only its title is; "" where it is not known.
        text: All of it; None where it is not stored. What is not UTF-8 in it is replaced.
    """

    path: str
    sha256: ContentId
    expression: str
    by: str
    text: str | None


@dataclass(frozen=True)
class TermsResult(Result):
    """The texts of terms of an identity or behavior.

    Attributes:
        role: ``identity`` or ``behavior``.
        name: The slot's name, or what was given.
        subject: Its id.
        texts: Those that stand, in the order of their paths.
    """

    role: Role
    name: str
    subject: RecordId
    texts: tuple[TermsText, ...]


def terms(store: Store, name: str, revision: str = "HEAD") -> TermsResult:
    """Reads the texts of terms that lie beside the weights or that somebody gave; every digest is compared.

    Args:
        store: The repository.
        name: ``identity``, a slot's name, or an id's prefix of at least six digits.
        revision: The commit in which names are looked up.

    Raises:
        NoSuchPartError: There is nothing of that name.
        CorruptError: A text is damaged.
    """
    role, subject = find_part(store, name, revision)
    claims = claims_about(store, subject)
    known = said([claim for several in claims.values() for claim in several])
    found = sorted(known.texts, key=lambda one: (one.path, one.sha256))
    return TermsResult(role, name, subject, tuple(_text(store, one) for one in found))


def _text(store: Store, found: LicenseText) -> TermsText:
    content = ContentId(found.sha256)
    data = store.content_bytes(content, limits.MODEL_CARD_BYTES) if store.has(content) else None
    text = None if data is None else data.decode("utf-8", "replace")
    return TermsText(found.path, content, found.expression, found.by, text)
