"""The JSON form of a verification: what is stored, and what follows from it."""

from __future__ import annotations

from typing import Any

from rblstore.divergence.locality import Locality, locality
from rblstore.divergence.uncertainty import intervals_of
from rblstore.divergence.verdict import decided_by
from rblstore.objects.evidence_records import Verification

DERIVED = ("decided_by", "intervals", "local")
"""Members that are computed from the record whenever it is shown."""


def verification_document(record: Verification, threshold: float | None = None) -> dict[str, Any]:
    """A verification with the intervals of its means, what is left on single prompts, and what decided its verdict.

    Args:
        record: The evidence.
        threshold: As for :func:`local_residue`.
    """
    return {
        **record.body(),
        "decided_by": decided_by(record),
        "intervals": {name: found.as_json() for name, found in intervals_of(record.prompts).items()},
        "local": local_residue(record, threshold).as_json(),
    }


def local_residue(record: Verification, threshold: float | None = None) -> Locality:
    """ILS of each prompt of a verification, with flags.

    Args:
        record: The evidence.
        threshold: KL (nats) above which a prompt is flagged; None for the verification's tolerance.
    """
    bound = record.tolerance if threshold is None else threshold
    return locality(((prompt.id, prompt.kl, prompt.bit_equal) for prompt in record.prompts), bound)
