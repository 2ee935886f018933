"""The licence effect of a change: which findings about terms it adds, and which it takes away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId
from rblstore.operations.audit import AuditRequest
from rblstore.operations.audit_parts import components_of, parts_of
from rblstore.operations.result import Result
from rblstore.provenance.engine import find
from rblstore.provenance.findings import Finding, without
from rblstore.provenance.parts import Subject
from rblstore.repository import Store
from rblstore.revisions import resolve

_OF_EVIDENCE: Final = frozenset({"unverified", "diverged", "unsigned", "files-differ"})


@dataclass(frozen=True)
class LicenseEffect(Result):
    """What one commit's findings have and another's have not.

    Attributes:
        before: The commit gone from; None for nothing.
        after: The commit gone to.
        added: Findings that only the second has, severest first.
        removed: Findings that only the first has, severest first.
    """

    before: CommitId | None
    after: CommitId
    added: tuple[Finding, ...]
    removed: tuple[Finding, ...]


def license_effect(
    store: Store, before: str | None, after: str = "HEAD", request: AuditRequest | None = None, *, merged: bool = False
) -> LicenseEffect:
    """Subtracts two audits' findings from each other, those about evidence left out: a change has none yet.

    Args:
        store: The repository.
        before: A revision; None for nothing.
        after: A revision.
        request: How to audit both; None for every use.
        merged: Whether the second is summed into one checkpoint.

    Raises:
        UnknownRevisionError: No such revision.
        BadRulesError: A file of rules breaks the schema.
        CorruptError: A record is missing or damaged.
    """
    request = request or AuditRequest()
    first = None if before is None else resolve(store, before).commit
    second = resolve(store, after).commit
    rules = {name: rule for name, rule in request.book().rules.items() if rule.check not in _OF_EVIDENCE}

    def findings(commit: CommitId, *, summed: bool) -> tuple[Finding, ...]:
        composition = store.record(store.record(commit, Commit).composition, Composition)
        parts = parts_of(components_of(store, composition))
        return find(Subject(parts, tuple(request.use), summed, request.data_reaches_weights), rules)

    old = () if first is None else findings(first, summed=request.merged)
    new = findings(second, summed=request.merged or merged)
    return LicenseEffect(first, second, without(new, old), without(old, new))
