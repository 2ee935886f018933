"""Rules applied to a composition. Pure: parts and rules go in, findings come out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rblstore.provenance.findings import Finding, severest_first
from rblstore.provenance.gaps import CHECKS
from rblstore.provenance.parts import Part, Subject, choices_of, held
from rblstore.provenance.rule import MODELS, Rule, matches

_PLACE = re.compile(r"\{(\w+)\}")


def find(subject: Subject, rules: Mapping[str, Rule]) -> tuple[Finding, ...]:
    """Everything that the rules find.

    ``A OR B`` leaves a choice: obligations of each are named with it, and a gap or conflict that one choice avoids is a
    note. ``A AND B``, and two statements that contradict each other, hold both.

    Args:
        subject: What is audited.
        rules: By id.

    Returns:
        Severest first, none twice.
    """
    found: dict[tuple[str, ...], Finding] = {}
    every = tuple(rules.values())
    for rule in every:
        wanted = tuple(use for use in subject.uses if use in rule.triggers)
        if not wanted:
            continue
        for finding in _checked(rule, subject, every, wanted) if rule.check else _of_terms(rule, subject, wanted):
            found.setdefault(finding.key, finding)
    return severest_first(found.values())


def _filled(text: str, **values: str) -> str:
    return _PLACE.sub(lambda match: values.get(match.group(1), ""), text)


def _checked(rule: Rule, subject: Subject, rules: Sequence[Rule], uses: tuple[str, ...]) -> Iterator[Finding]:
    for gap in CHECKS[rule.check](subject, rules):
        words = {"part": gap.subject, "license": gap.license, "detail": gap.detail, "other": gap.other,
                 "name": gap.name}  # fmt: skip
        yield Finding(
            rule.id, rule.level, gap.subject, _filled(rule.message, **words), _filled(rule.obligation, **words),
            uses, gap.license, gap.route, (), rule.citation,
        )  # fmt: skip


def _of_terms(rule: Rule, subject: Subject, uses: tuple[str, ...]) -> Iterator[Finding]:
    for part in subject.parts:
        if part.role == "dataset" and not subject.data_reaches_weights:
            continue  # which the check data-policy-off says
        through = next((route for route in rule.on if route in subject.routes(part)), None)
        if through is None:
            continue
        for key, choice in held(part).items():
            if not matches(rule.licenses, key):
                continue
            reached = tuple(_reached(rule, subject, part))
            if not rule.conflicts and _said_of_base(rule, subject, part, key):
                continue
            if rule.conflicts:
                yield from _conflicts(rule, subject, part, key, choice, through, reached, uses)
            else:
                words = {"part": part.label, "name": part.name, "license": key}
                chosen = f" (where {key} is chosen of {choice})" if choice else ""
                # What another choice avoids is nothing that has to be settled.
                level = "note" if choice and rule.level in ("gap", "conflict") else rule.level
                yield Finding(
                    rule.id, level, part.label, _filled(rule.message, **words) + chosen,
                    _filled(rule.obligation, **words), uses, key, through, tuple(one.label for one in reached),
                    rule.citation,
                )  # fmt: skip


def _said_of_base(rule: Rule, subject: Subject, part: Part, key: str) -> bool:
    """Whether the same terms of the identity reach the part: one finding says so, and names it."""
    identity = subject.identity
    if identity is None or part.role != "behavior" or held(identity).get(key) != "":
        return False
    return identity.own_route in rule.on and bool(subject.routes(part) & frozenset(rule.propagates))


def _reached(rule: Rule, subject: Subject, part: Part) -> Iterator[Part]:
    """Parts to which a part's terms extend."""
    for other in subject.parts:
        if other.label == part.label or other.own_route not in MODELS:
            continue
        if not subject.routes(other) & frozenset(rule.propagates):
            continue
        if part.role in ("dataset", "tokenizer"):
            if other.label in part.of:
                yield other
        elif part.role == "identity" or (subject.merged and "merge" in rule.propagates):
            # What lies beneath binds what is made on it; behaviors bind each other only where they become one.
            yield other


def _conflicts(
    rule: Rule,
    subject: Subject,
    part: Part,
    key: str,
    choice: str,
    through: str,
    reached: Iterable[Part],
    uses: tuple[str, ...],
) -> Iterator[Finding]:
    identity = subject.identity
    for other in reached:
        # Whose model may learn from what a model wrote depends on the base as much as on the behavior.
        around = {*held(other), *(held(identity) if identity is not None and through == "output" else ())}
        if any(matches(rule.unless, one) for one in around):
            continue
        clashing, avoidable = _clash(rule.conflicts, other)
        if not clashing and "*" not in rule.conflicts:
            continue
        words = {
            "part": part.label,
            "name": part.name,
            "license": key,
            "other": other.label,
            "other_license": " and ".join(clashing) or "no licence",
        }
        message = _filled(rule.message, **words)
        avoidable = avoidable or choice
        if avoidable:
            message += f" (another choice of {avoidable} avoids it)"
        yield Finding(
            rule.id, "note" if avoidable else rule.level, other.label, message, _filled(rule.obligation, **words), uses,
            key, through, (part.label,), rule.citation,
        )  # fmt: skip


def _clash(conflicts: Sequence[str], part: Part) -> tuple[list[str], str]:
    """Which of a part's licences are among some, and the expression that lets one choose otherwise, or ""."""
    found: dict[str, None] = {}
    avoidable = ""
    for expression in part.said.licenses:
        choices = choices_of(expression)
        clashing = [{key for key in choice if matches(conflicts, key)} for choice in choices]
        if not any(clashing):
            continue
        if all(clashing):
            return sorted(set().union(*clashing)), ""
        avoidable = expression
        found.update(dict.fromkeys(sorted(set().union(*clashing))))
    return list(found), avoidable
