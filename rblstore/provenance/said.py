"""What is said about one identity or behavior, read from its claims: licences, sources, data, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rblstore.objects.evidence_records import Claim
from rblstore.provenance.hub_licenses import NOASSERTION


@dataclass(frozen=True)
class DatasetSaid:
    """Data that something is said to have been trained on.

    Attributes:
        name: As it was said.
        revision: Likewise, or None.
        licenses: Normalised expressions, distinct; none where none is stated.
    """

    name: str
    revision: str | None
    licenses: tuple[str, ...]


@dataclass(frozen=True)
class LicenseText:
    """A file with terms beside the weights: a licence, a notice, a use policy.

    Attributes:
        path: Where it lies, or lay where a person named it.
        sha256: Of its bytes.
        expression: What it was recognised as, or ``LicenseRef-rbl-<sha256>``.
        by: ``text`` where all of it is a known licence's, ``title`` where only its title is; "" where it is not known.
    """

    path: str
    sha256: str
    expression: str
    by: str = ""


@dataclass(frozen=True)
class Said:
    """What is said about an identity or behavior now.

    Attributes:
        name: What it is called, or "".
        declared: Normalised expressions, distinct; more than one contradict each other. Never NOASSERTION.
        concluded: What a person concluded, NOASSERTION among it; None where nobody did.
        texts: Files with terms.
        sources: Where it is said to come from.
        source_revision: The commit there, or None.
        base_models: What it is said to have been made from or for.
        base_revision: The revision of that, or None.
        relation: ``adapter``, ``finetune``, ``merge`` or ``quantized``, as a card says it, or None.
        datasets: Sorted by name.
        training: What is known of how it was made: ``method``, ``steps``, ``tokens``, ``seed``, ``library.torch``, ...
        problems: What could not be understood, in words, each with its origin.
    """

    name: str = ""
    declared: tuple[str, ...] = ()
    concluded: str | None = None
    texts: tuple[LicenseText, ...] = ()
    sources: tuple[str, ...] = ()
    source_revision: str | None = None
    base_models: tuple[str, ...] = ()
    base_revision: str | None = None
    relation: str | None = None
    datasets: tuple[DatasetSaid, ...] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def licenses(self) -> tuple[str, ...]:
        """The concluded one where there is one, else those declared."""
        if self.concluded is None or self.concluded == NOASSERTION:
            return self.declared
        return (self.concluded,)


def said(claims: Sequence[Claim]) -> Said:
    """Reads claims, those that stand now, into one answer. Nothing is resolved: what differs stays side by side.

    Args:
        claims: Of one identity or behavior, from every origin.
    """
    raise NotImplementedError
