"""Checks that rules name: what is not said, not understood, not proved, or contradicts itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from rblstore.provenance.base_mismatch import base_mismatch
from rblstore.provenance.licenses import NOASSERTION
from rblstore.provenance.parts import Part, Subject, held
from rblstore.provenance.rule import Rule, matches

_MAX_DETAIL: Final = 300
# Ids of a hub and addresses: what lies there may be another thing tomorrow. Words for a training run may not.
_MOVES: Final = re.compile(r"[\w.-]+/[\w.-]+|\w+://.*", re.DOTALL)


class Gap(NamedTuple):
    """What a check found.

    Attributes:
        subject: The part's label.
        license: Key of the licence concerned, or "".
        detail: In words.
        route: How the part is there.
        other: Label of another part concerned, or "".
        name: Of the part, as commands take it, or "".
    """

    subject: str
    license: str
    detail: str
    route: str
    other: str = ""
    name: str = ""


Check: TypeAlias = "Callable[[Subject, Sequence[Rule]], Iterator[Gap]]"
COMPOSITION: Final = "composition"
"""The subject of findings about the whole."""


def _models(subject: Subject) -> Iterator[Part]:
    return (part for part in subject.parts if part.role in ("identity", "behavior"))


def _data(subject: Subject) -> Iterator[Part]:
    return (part for part in subject.parts if part.role == "dataset")


def _of(part: Part, detail: str = "", license: str = "") -> Gap:
    return Gap(part.label, license, detail[:_MAX_DETAIL], part.own_route, name=part.name)


def _no_license(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _models(subject):
        if not any(license != NOASSERTION for license in part.said.licenses):
            yield _of(part)


def _no_dataset_license(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _data(subject):
        if not part.said.licenses:
            yield _of(part, ", ".join(part.of))


def _no_source(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _models(subject):
        if not part.said.sources and not part.said.training:
            yield _of(part)


def _unpinned(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _models(subject):
        elsewhere = [source for source in part.said.sources if _MOVES.fullmatch(source)]
        if elsewhere and not part.said.source_revision:
            yield _of(part, ", ".join(elsewhere))


def _unpinned_data(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _data(subject):
        if not part.said.source_revision:
            yield _of(part)


def _contradiction(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in subject.parts:
        if part.role != "tokenizer" and len(part.said.licenses) > 1:
            yield _of(part, ", ".join(_by(part, one) for one in part.said.licenses))


def _by(part: Part, license: str) -> str:
    where = ", ".join(part.said.declared_by.get(license, ()))
    return f"{license} ({where})" if where else license


def _not_understood(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _models(subject):
        for problem in part.said.problems:
            yield _of(part, problem)


def _other_base(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    identity = subject.identity
    for part in _models(subject):
        if identity is None or part.role != "behavior":
            continue
        mismatch = base_mismatch(part.said, identity.said)
        if mismatch is not None:
            named, have = ", ".join(mismatch.behavior), ", ".join(mismatch.identity)
            what = "" if mismatch.what == "base" else "revision "
            yield _of(part, f"{what}{named}, not {what}{have}")._replace(other=identity.label)


def _unverified(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _models(subject):
        if part.role == "behavior" and not part.verdicts:
            yield _of(part)


def _diverged(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _models(subject):
        if part.role == "behavior" and "diverged" in part.verdicts:
            yield _of(part)


def _unsigned(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    if subject.signed is False:
        yield Gap(COMPOSITION, "", "", "")


def _unknown_terms(subject: Subject, rules: Sequence[Rule]) -> Iterator[Gap]:
    for part in subject.parts:
        if part.role == "tokenizer":
            continue
        for key in held(part):
            if not any(matches(rule.licenses, key) for rule in rules):
                yield _of(part, license=key)


def _data_policy(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    if subject.data_reaches_weights:
        return
    for part in _data(subject):
        for key in held(part):
            yield _of(part, ", ".join(part.of), key)


def _different(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for difference in subject.differences:
        yield Gap(COMPOSITION, "", difference[:_MAX_DETAIL], "")


def _unknown_file(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for path in subject.unknown:
        yield Gap(COMPOSITION, "", path[:_MAX_DETAIL], "")


def _gone(subject: Subject, _: Sequence[Rule]) -> Iterator[Gap]:
    for part in _models(subject):
        if part.missing:
            yield _of(part, part.missing)


CHECKS: Final[Mapping[str, Check]] = {
    "base-mismatch": _other_base,
    "content-gone": _gone,
    "contradicting-statements": _contradiction,
    "data-policy-off": _data_policy,
    "dataset-without-license": _no_dataset_license,
    "dataset-without-revision": _unpinned_data,
    "diverged": _diverged,
    "files-differ": _different,
    "license-without-rules": _unknown_terms,
    "not-understood": _not_understood,
    "unknown-file": _unknown_file,
    "unsigned": _unsigned,
    "unverified": _unverified,
    "without-license": _no_license,
    "without-revision": _unpinned,
    "without-source": _no_source,
}
"""By the name that a rule calls it by."""
