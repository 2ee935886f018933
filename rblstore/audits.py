"""What the public repository says of where its models come from: parts, licences, signatures, exports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.operations.audit import AuditResult


class Audits:
    """What :class:`rblstore.Repository` knows of where its models come from, and on whose terms."""

    _store: Store

    def audit(self, revision: str = "HEAD") -> AuditResult:
        """The parts of a commit with what is said about each: licences, sources, data, evidence."""
        from rblstore.operations.audit import audit

        return audit(self._store, revision)
