"""What an audit finds: an obligation, a gap or a conflict, with the rule that says so and where that is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LEVELS: Final = ("note", "obligation", "gap", "conflict")
"""How much a finding matters, least first.

``note``: to be known. ``obligation``: something must be done, and can be. ``gap``: something is not known or not
proved. ``conflict``: two statements or terms that cannot both be kept.
"""

USES: Final = ("use", "host", "distribute")
"""What a model may be meant for: run by oneself, offered to others over a network, given to others as files."""


@dataclass(frozen=True)
class Citation:
    """Where a rule is written.

    Attributes:
        document: Its title.
        section: Which part of it, or "" where the whole is meant.
        version: Its version or date.
        url: Where it was published, as text.
    """

    document: str
    section: str
    version: str
    url: str

    @property
    def text(self) -> str:
        """On one line, without the address."""
        return ", ".join(part for part in (self.document, self.section, self.version) if part)


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Attributes:
        rule: Id of the rule that says so.
        level: One of :data:`LEVELS`.
        subject: The part that it is about: ``identity gemma``, ``behavior polite``, ``dataset imdb``.
        message: What was found.
        obligation: What to do about it, in words; "" where there is nothing.
        trigger: Which of the intended uses ask for it; all of them for what holds whatever the use.
        license: Key of the licence whose terms they are, or "".
        through: How that licence reaches the composition: ``identity``, ``adapter``, ``overlay``, ``tokenizer``,
            ``dataset``, ``output`` or ``merge``; "" where no licence is concerned.
        reaches: Other parts that the same terms extend to.
        citation: Where it is written.
    """

    rule: str
    level: str
    subject: str
    message: str
    obligation: str
    trigger: tuple[str, ...]
    license: str
    through: str
    reaches: tuple[str, ...]
    citation: Citation

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What is the same for one finding in two audits."""
        return (self.rule, self.subject, self.license, self.message)


def severest_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings sorted by level, then part, then rule."""
    return tuple(
        sorted(findings, key=lambda one: (-LEVELS.index(one.level), one.subject, one.rule, one.license, one.message))
    )


def without(findings: Iterable[Finding], others: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those findings that are not among the others."""
    known = {other.key for other in others}
    return tuple(one for one in findings if one.key not in known)


def at_least(findings: Iterable[Finding], level: str) -> tuple[Finding, ...]:
    """Those of a level and of those above it."""
    least = LEVELS.index(level)
    return tuple(one for one in findings if LEVELS.index(one.level) >= least)
