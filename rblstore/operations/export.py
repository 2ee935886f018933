"""``export``: what is known of a commit, as a document that others' tools read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from rblstore.errors import UsageError
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import CommitId, CompositionId
from rblstore.operations.export_facts import document_facts
from rblstore.operations.result import Result
from rblstore.repository import Store
from rblstore.revisions import resolve

FORMATS: Final = {
    "cyclonedx": "application/vnd.cyclonedx+json; version=1.7",
    "spdx3": "application/spdx3+json; version=3.0.1",
    "in-toto": "application/vnd.in-toto+json",
    "model-card": "text/markdown",
    "annex-xi": "text/markdown",
}
"""Format -> media type of its documents."""


class UnknownExportFormatError(UsageError):
    """A document is asked for in a format that there is none of."""

    code: ClassVar[str] = "unknown_export_format"


@dataclass(frozen=True)
class ExportResult(Result):
    """A document about a commit.

    Attributes:
        commit: Which.
        composition: Its composition.
        format: One of :data:`FORMATS`.
        media_type: Of the bytes.
        size: Bytes.
        sha256: Of the bytes.
        document: What it says: the JSON of a JSON format and of ``annex-xi``, the text of a model card.
        data: The bytes themselves; not in the JSON form.
    """

    commit: CommitId
    composition: CompositionId
    format: str
    media_type: str
    size: int
    sha256: str
    document: Any
    data: bytes = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        return {name: value for name, value in super().as_json().items() if name != "data"}


def export(
    store: Store,
    revision: str = "HEAD",
    format: str = "cyclonedx",
    *,
    verification: str | None = None,
    behavior: str | None = None,
    version: str,
) -> ExportResult:
    """Writes a document about a commit. The same records give the same bytes; no tensor is read.

    Args:
        store: The repository.
        revision: Which commit.
        format: ``cyclonedx``, ``spdx3``, ``in-toto``, ``model-card`` or ``annex-xi``.
        verification: For ``in-toto`` alone: which verification, by id or unique prefix; None for the latest.
        behavior: For ``in-toto`` alone: a behavior, whose training is attested in place of a verification.
        version: Of rblstore, which documents name as their tool.

    Raises:
        UnknownExportFormatError: Another format.
        UsageError: A verification or behavior is named for another format than in-toto.
        UnknownRevisionError: No such revision.
        NothingToAttestError: There is nothing that an in-toto statement could be made of.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
        CorruptError: A record, or a small file beside the weights, is missing or damaged.
    """
    if format not in FORMATS:
        raise UnknownExportFormatError(
            f"there are no exports as {str(format)[:40]!r}", object=str(format)[:40], hint=f"Use {', '.join(FORMATS)}."
        )
    if format != "in-toto" and (verification is not None or behavior is not None):
        raise UsageError(
            f"{format} documents are about the whole commit",
            object=verification or behavior,
            hint="A verification or a behavior is chosen for --format in-toto alone.",
        )
    if format == "in-toto":
        from rblstore.operations.export_in_toto import statement_bytes

        commit = resolve(store, revision).commit
        data = statement_bytes(store, commit, verification=verification, behavior=behavior)
        return _result(commit, store.record(commit, Commit).composition, format, data, json.loads(data))
    facts = document_facts(store, revision, version=version)
    document: Any = None
    if format == "cyclonedx":
        from rblstore.provenance.cyclonedx import cyclonedx_document

        data = cyclonedx_document(facts)
    elif format == "spdx3":
        from rblstore.provenance.spdx3 import spdx3_document

        data = spdx3_document(facts)
    elif format == "model-card":
        from rblstore.provenance.model_card_document import model_card

        data = model_card(facts)
        document = data.decode("utf-8")
    else:
        from rblstore.provenance.annex_xi import annex_xi, annex_xi_markdown

        data, document = annex_xi_markdown(facts), annex_xi(facts)
    return _result(facts.commit, facts.composition, format, data, json.loads(data) if document is None else document)


def _result(commit: CommitId, composition: CompositionId, format: str, data: bytes, document: Any) -> ExportResult:
    digest = hashlib.sha256(data).hexdigest()
    return ExportResult(commit, composition, format, FORMATS[format], len(data), digest, document, data)
