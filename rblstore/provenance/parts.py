"""What an audit is about, as rules see it: parts with what is said of them, and how they reach the composition."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from rblstore.provenance.licenses import NOASSERTION, LicenseError, alternatives
from rblstore.provenance.said import Said


@dataclass(frozen=True)
class Part:
    """One part of a composition.

    Attributes:
        role: ``identity``, ``behavior``, ``tokenizer`` or ``dataset``.
        label: How findings name it; unique.
        form: ``adapter`` or ``overlay`` of a behavior, else "".
        said: What is said about it.
        of: Labels of the parts that were trained on it, or hold it.
        verdicts: Of the verifications that vouch for it.
        missing: Why its content is gone, or "".
    """

    role: str
    label: str
    form: str
    said: Said
    of: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    missing: str = ""

    @property
    def name(self) -> str:
        """What it is called where a command takes its name; quoted for a shell where it has to be."""
        return "identity" if self.role == "identity" else shlex.quote(self.label.removeprefix(f"{self.role} "))

    @property
    def own_route(self) -> str:
        """How it reaches the composition, one of :data:`~rblstore.provenance.rule.ROUTES`."""
        return self.form or self.role


@dataclass(frozen=True)
class Subject:
    """What is audited.

    Attributes:
        parts: The identity, the behaviors in order, then the tokenizer and the data.
        uses: What it is meant for.
        merged: Whether the parts are summed into one checkpoint.
        data_reaches_weights: Whether terms of data count as terms of what was trained on it.
        signed: Whether it is signed; None where nothing in the repository is.
        differences: What a directory has otherwise than the commit that it was made from.
        unknown: What a directory has that no commit holds.
    """

    parts: tuple[Part, ...]
    uses: tuple[str, ...]
    merged: bool = False
    data_reaches_weights: bool = True
    signed: bool | None = None
    differences: tuple[str, ...] = ()
    unknown: tuple[str, ...] = field(default=())

    @property
    def identity(self) -> Part | None:
        """The base, where there is one."""
        return next((part for part in self.parts if part.role == "identity"), None)

    def routes(self, part: Part) -> frozenset[str]:
        """By which ways a part is there."""
        routes = {part.own_route}
        if part.role == "dataset":
            routes.add("output")
        elif self.merged and part.role in ("identity", "behavior"):
            routes.add("merge")
        return frozenset(routes)


def held(part: Part) -> dict[str, str]:
    """Every licence that a part may be under.

    Returns:
        Its key, and the expression that leaves a choice of it; "" for one that holds whatever is chosen.
    """
    found: dict[str, str] = {}
    for expression in part.said.licenses:
        choices = choices_of(expression)
        for choice in choices:
            for key in choice:
                optional = "" if all(key in other for other in choices) else expression
                found[key] = "" if not optional or found.get(key) == "" else optional
    return dict(sorted(found.items()))


def choices_of(expression: str) -> tuple[frozenset[str], ...]:
    """What an expression lets one choose between; none for NOASSERTION or what does not parse."""
    if expression == NOASSERTION:
        return ()
    if " " not in expression and "(" not in expression:
        return (frozenset({expression}),)  # without an index of licences, which takes a tenth of a second to read
    try:
        return alternatives(expression)
    except LicenseError:
        return ()
