"""An audit, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.log import summary_text
from rblstore.cli.render.text import columns, number, short


def audit_lines(audit: Any) -> Iterator[str]:
    """A table of the parts of a commit, and the evidence.

    Args:
        audit: The document of an ``AuditResult``.
    """
    yield f"commit {short(audit['commit'])}, composition {short(audit['composition'])}"
    yield ""
    yield from columns(
        (
            (
                part["role"],
                part["name"] or "-",
                short(part["id"]),
                "-" if part["role"] == "identity" else number(part["weight"]),
                _joined(part["license"]),
                _joined(part["source"]),
                _joined(part["base_model"]),
                _joined(part["datasets"]) + _under(part["dataset_licenses"]),
            )
            for part in audit["components"]
        ),
        header=("role", "name", "id", "weight", "licence", "source", "base model", "datasets"),
    )
    yield ""
    if not audit["verifications"]:
        yield "no verification of this commit is recorded"
    for verification in audit["verifications"]:
        yield f"verified: {summary_text(verification)}"


def _joined(values: Any) -> str:
    return ", ".join(values) or "-"


def _under(licenses: Any) -> str:
    return f" ({', '.join(licenses)})" if licenses else ""
