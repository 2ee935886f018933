"""What is said about one identity or behavior, read from its claims: licences, sources, data, training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rblstore.objects.evidence_records import Claim
from rblstore.provenance.license_texts import DIGESTS
from rblstore.provenance.licenses import (
    FAMILIES,
    HUB_LICENSES,
    NOASSERTION,
    OF_OURS,
    LicenseError,
    covers,
    named,
    normalise,
)

PERSONS: Final = ("api", "command line")
"""Origins of what a person says directly."""

TRAINING_RUN: Final = "training run"
"""Origin of what a training loop measured."""

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
"""A revision of a hub's repository that no push changes."""

_TEXT: Final = re.compile(r"(.+) sha256:([0-9a-f]{64})(?: ([^\x00-\x1f]+) by (text|title))?")
_OWN_TERMS: Final = re.compile(r"(?!.*(third|3rd))(licen[sc]e|copying)([._-][^/]*)?", re.IGNORECASE)
_REVISED: Final = re.compile(r"([^@\s]+)@([^@\s/]+)")
_VAGUE: Final = frozenset(name for name, key in HUB_LICENSES.items() if key == NOASSERTION)
# What a training run says, by the name that documents have for it; the rest keeps its own.
_TRAINING: Final = {
    "step": "steps",
    **{library: f"library.{library}" for library in ("torch", "transformers", "peft", "accelerate", "rblstore")},
}
# What only a person knows of a training.
_TOLD: Final = ("code_commit", "energy_kwh", "epochs", "flops", "method", "seed", "steps", "tokens")


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
        training: What is known of how it was made: ``method``, ``steps``, ``tokens``, ``seed``, ``library.torch``,
            ``code_commit``, ``identity_before``, ``identity_after``, ...
        problems: What could not be understood, in words, each with its origin.
        declared_by: Where each of ``declared`` is said: a file's path, ``command line``, ``api``.
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
    declared_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
    reading = _Reading(claims)
    declared, concluded, texts = reading.licenses()
    reading.unread()
    sources, source_revision = reading.revised("source", "source_revision")
    bases, base_revision = reading.revised("base_model", "base_revision")
    relation = reading.single("base_model_relation")
    datasets, training = reading.datasets(), reading.training()
    return Said(
        next(iter(reading.values("name")), ""),
        declared,
        concluded,
        texts,
        sources,
        source_revision,
        bases,
        base_revision,
        relation,
        datasets,
        training,
        tuple(dict.fromkeys(reading.problems)),
        {one: tuple(dict.fromkeys(reading.where.get(one, ()))) for one in declared},
    )


def split_revision(text: str) -> tuple[str, str | None]:
    """``org/name@revision`` in its parts; the revision is None where there is none."""
    match = _REVISED.fullmatch(text)
    return (text, None) if match is None or "://" in text else (match.group(1), match.group(2))


class _Reading:
    """Claims by key, and what could not be understood in them."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._claims: dict[str, list[Claim]] = {}
        for claim in sorted(claims):
            self._claims.setdefault(claim.key, []).append(claim)
        self.problems: list[str] = []
        self.where: dict[str, list[str]] = {}
        """Where each licence is spoken of."""

    def all(self, key: str) -> list[Claim]:
        return self._claims.get(key, [])

    def values(self, key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(claim.value for claim in self.all(key) if claim.value != NOASSERTION))

    def single(self, key: str) -> str | None:
        """The one value. Of several it is the one that a person gave, and that there are several is a problem."""
        found = self.values(key)
        if key.endswith("_revision"):
            # A branch's name contradicts no commit.
            found = tuple(value for value in found if COMMIT.fullmatch(value)) or found
        if len(found) > 1:
            self.problems.append(f"{key} is stated in {len(found)} ways: {', '.join(value[:80] for value in found)}")
            found = (
                tuple(claim.value for claim in self.all(key) if claim.origin in PERSONS and claim.value in found)
                or found
            )
        return next(iter(found), None)

    def revised(self, key: str, revision_key: str) -> tuple[tuple[str, ...], str | None]:
        """Names, and the revision that is stated of them: in a claim of its own, or behind the name."""
        split = [split_revision(value) for value in self.values(key)]
        behind = list(dict.fromkeys(revision for _, revision in split if revision is not None))
        if len(behind) > 1:
            self.problems.append(f"{key} is stated at {len(behind)} revisions: {', '.join(behind)}")
        return tuple(dict.fromkeys(name for name, _ in split)), self.single(revision_key) or next(iter(behind), None)

    def understood(self, text: str, origin: str, what: str) -> str:
        """A licence as an expression; NOASSERTION, and a problem, where it is none that is known."""
        try:
            return normalise(text)
        except LicenseError as error:
            self.problems.append(f"{origin}: {what}: {error.message}")
            return NOASSERTION

    def unread(self) -> None:
        """What is said in files that could not be read."""
        self.problems += [f"{claim.origin}: {claim.value}" for claim in self.all("not_read")]

    def licenses(self) -> tuple[tuple[str, ...], str | None, tuple[LicenseText, ...]]:
        """Those declared, the one concluded, and the texts."""
        found = [(text, claim.origin) for claim in self.all("license_file") if (text := _text(claim)) is not None]
        # A notice, a use policy and what lies in folders are texts to pass on, and declare nothing.
        own = [text for text, origin in found if origin in PERSONS or _OWN_TERMS.fullmatch(text.path)]
        declared = self._declared(own)
        for text in own:
            self.where.setdefault(text.expression, []).append(text.path)
            if text.by:
                declared = _with_text(declared, text.expression)
            elif not declared:
                declared.append(text.expression)
            elif text.expression not in declared:
                self.problems.append(
                    f"{text.path}: a text that is not known; whether it is {' or '.join(declared)} is not known either"
                )
            if text.by == "title" and text.expression in DIGESTS.values():
                self.problems.append(f"{text.path}: it has the title of {text.expression}, and another text")
        concluded = dict.fromkeys(
            self.understood(claim.value, claim.origin, "concluded licence") for claim in self.all("license_concluded")
        )
        if len(concluded) == 1 and NOASSERTION not in concluded:
            self.problems.clear()  # of licences alone until here: somebody read them, and concluded
        if len(concluded) > 1:
            self.problems.append(f"several licences are concluded: {', '.join(concluded)}")
        texts = tuple(dict.fromkeys(text for text, _ in found))
        return tuple(declared), next(iter(concluded)) if len(concluded) == 1 else None, texts

    def _declared(self, own: Sequence[LicenseText]) -> list[str]:
        """What cards and people name."""
        by_origin: dict[str, list[str]] = {}
        for claim in self.all("license"):
            expression = self.understood(claim.value, claim.origin, "licence")
            by_origin.setdefault(claim.origin, []).append(expression)
        for origin, expressions in by_origin.items():
            if len(set(expressions)) > 1:
                self.problems.append(f"{origin}: several licences, and not whether all of them hold or any")
        for claim in self.all("license_name"):
            # A card gives a name where the hub has no id for the licence; beside one that is named it adds nothing.
            if set(by_origin.get(claim.origin, ())) <= {NOASSERTION}:
                expression = named(claim.value)
                unknown = expression not in HUB_LICENSES.values() and expression.startswith(OF_OURS)
                by_origin[claim.origin] = [] if unknown and own else [expression]
        for origin, expressions in by_origin.items():
            for one in expressions:
                self.where.setdefault(one, []).append(origin)
        found = [one for expressions in by_origin.values() for one in expressions]
        declared = [one for one in dict.fromkeys(found) if one != NOASSERTION]
        # What says "other" leaves open which; NOASSERTION says that nobody says; the rest is a problem already.
        vague = any(
            claim.value.strip().lower() in _VAGUE for claim in (*self.all("license"), *self.all("license_name"))
        )
        if vague and not declared and not own:
            self.problems.append("a licence is spoken of, and not which")
        return declared

    def datasets(self) -> tuple[DatasetSaid, ...]:
        """Data sets by name; a licence without a name is that of every data set of its origin."""
        found: dict[str, dict[str | None, list[str]]] = {}
        origins: dict[str, list[str]] = {}
        for claim in self.all("dataset"):
            name, revision = split_revision(claim.value)
            found.setdefault(name, {}).setdefault(revision, [])
            origins.setdefault(claim.origin, []).append(name)
        for claim in self.all("dataset_license"):
            named_by, separator, text = claim.value.rpartition("=")
            name, revision = split_revision(named_by)
            expression = self.understood(text, claim.origin, f"licence of {name}" if separator else "licence of data")
            if separator:
                found.setdefault(name, {}).setdefault(revision, [])
            names = [name] if separator else origins.get(claim.origin, [])
            if not names:
                self.problems.append(f"{claim.origin}: a licence of data, {text}, and not of which")
            for one in names:
                for stated, licenses in found[one].items():
                    if expression != NOASSERTION and (revision is None or stated == revision):
                        licenses.append(expression)
        return tuple(
            DatasetSaid(name, revision, tuple(dict.fromkeys(licenses)))
            for name, revisions in sorted(found.items())
            for revision, licenses in sorted(revisions.items(), key=lambda item: item[0] or "")
            if revision is not None or len(revisions) == 1
        )

    def training(self) -> dict[str, str]:
        """What a run measured and what a person knows of it, by the names that documents use."""
        found = {}
        for key, claims in self._claims.items():
            name = key.removeprefix("meta.")
            for claim in claims:
                if name != key and (claim.origin == TRAINING_RUN or name in _TOLD):
                    found[_TRAINING.get(name, name)] = claim.value
        return dict(sorted(found.items()))


def _text(claim: Claim) -> LicenseText | None:
    match = _TEXT.fullmatch(claim.value)
    if match is None:
        return None
    path, sha256, expression, by = match.groups()
    return LicenseText(path, sha256, expression or f"{OF_OURS}{sha256}", by or "")


def _with_text(declared: Sequence[str], expression: str) -> list[str]:
    """What is declared, and what a text declares beside it: nothing where it is one of those, or says which it is."""
    family = next((one for one in declared if one in FAMILIES and expression.startswith(FAMILIES[one])), None)
    if family is not None:
        return list(dict.fromkeys(expression if one == family else one for one in declared))
    return [*declared, *([] if any(covers(one, expression) for one in declared) else [expression])]
