"""A rule about licences, and the strict reading of files that hold rules.

Rules are data. A file of them is TOML with the members ``schema`` (1), ``name``, ``version``, ``groups`` (names for
lists of licences) and ``rule`` (a list). A rule either names ``licenses`` and speaks of their terms, or names a
``check`` of :mod:`rblstore.provenance.gaps` and says how much it matters that the check finds something.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from rblstore.errors import UsageError
from rblstore.provenance.findings import LEVELS, USES, Citation

ROUTES: Final = ("identity", "adapter", "overlay", "tokenizer", "dataset", "output", "merge")
"""How something licensed can reach a composition.

``identity``: it is the base. ``adapter``, ``overlay``: it is a behavior of that form. ``dataset``: a part was trained
on it. ``output``: it is data under a model's licence, so written by that model, and a part was trained on it.
``merge``: it is summed into one checkpoint with the others.
"""

MODELS: Final = ("identity", "adapter", "overlay")

FILE_BYTES: Final = 1 << 20
_LINE_BYTES: Final = 20_000  # the parser's time grows with the square of the dots in one key
_MAX_RULES: Final = 2000
_MAX_ITEMS: Final = 500
_MAX_TEXT: Final = 2000
_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,78}[a-z0-9])?")
_LICENSE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,199}\*?|@[a-z0-9-]{1,80}")
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_PLACE: Final = re.compile(r"\{([^{}]*)\}")
_PLACES: Final = frozenset({"part", "name", "license", "other", "other_license", "detail"})


class BadRulesError(UsageError):
    """A file of rules breaks the schema."""

    code: ClassVar[str] = "bad_rules"


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: Its name, unique; a later set replaces a rule by naming it.
        level: One of :data:`~rblstore.provenance.findings.LEVELS`.
        message: What is found, with ``{part}``, ``{name}`` (of that part, as ``rbl state`` takes it), ``{license}``,
            ``{other}``, ``{other_license}`` and ``{detail}``.
        obligation: What the terms ask, in words; "" where there is nothing to do.
        citation: Where that is written.
        licenses: Keys that it speaks of; a ``*`` at the end stands for any end. Empty for a check.
        check: A check of :mod:`rblstore.provenance.gaps`, or "".
        on: Routes by which something under these licences has to be there.
        triggers: Intended uses that ask for it.
        propagates: Routes by which the terms reach other parts.
        conflicts: Licences that contradict the terms on a part that they reach; ``*`` for any, none stated included.
            Where there are any, the rule finds these parts and nothing else.
        unless: Licences on such a part with which there is no contradiction; of outputs, also on the identity.
    """

    id: str
    level: str
    message: str
    obligation: str
    citation: Citation
    licenses: tuple[str, ...] = ()
    check: str = ""
    on: tuple[str, ...] = MODELS
    triggers: tuple[str, ...] = USES
    propagates: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuleSet:
    """Rules of one origin.

    Attributes:
        name: What it is called.
        version: Its version.
        rules: By id.
        groups: Licences by the name of their group.
    """

    name: str
    version: str
    rules: Mapping[str, Rule]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def matches(patterns: Sequence[str], key: str) -> bool:
    """Whether a licence is among some, any of which may end in ``*``."""
    return any(key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern for pattern in patterns)


def read_rules(data: bytes, origin: str, checks: Sequence[str], known: Mapping[str, tuple[str, ...]]) -> RuleSet:
    """Reads a file of rules.

    Args:
        data: Its bytes.
        origin: Its name, for messages.
        checks: Which checks there are.
        known: Groups of licences that it may use beside its own.

    Raises:
        BadRulesError: It is no TOML, or breaks the schema; the message names the rule.
    """
    if len(data) > FILE_BYTES:
        raise _bad(origin, f"it takes {len(data)} bytes, more than the {FILE_BYTES} allowed")
    if any(len(line) > _LINE_BYTES for line in data.split(b"\n")):
        raise _bad(origin, f"it has a line of more than {_LINE_BYTES} bytes")
    table = _Table(_toml(data, origin), origin, "the file")
    if table.take("schema") != 1:
        raise _bad(origin, "its member 'schema' is not 1: a newer rblstore wrote it, or it is no file of rules")
    name, version = table.text("name", 80), table.text("version", 80)
    groups = _groups(table.table("groups"), dict(known), origin)
    entries = table.take("rule", [])
    table.done()
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_RULES:
        raise _bad(origin, f"it has not between 1 and {_MAX_RULES} entries [[rule]]")
    rules: dict[str, Rule] = {}
    for number, entry in enumerate(entries, start=1):
        rule = _rule(_Table(entry, origin, f"rule {number}"), {**known, **groups}, checks)
        if rule.id in rules:
            raise _bad(origin, f"the rule {rule.id!r} is there twice")
        rules[rule.id] = rule
    return RuleSet(name, version, rules, groups)


def _bad(origin: str, why: str) -> BadRulesError:
    return BadRulesError(f"{origin[:200]}: {why}", object=origin[:200], hint="See docs/audit.md, Rules of your own.")


def _toml(data: bytes, origin: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        why = "" if isinstance(error, RecursionError) else f": {str(error)[:200]}"
        raise _bad(origin, f"it is not a TOML document{_UNPRINTABLE.sub('?', why)}") from error


def _groups(table: _Table, groups: dict[str, tuple[str, ...]], origin: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in table.names():
        if not _ID.fullmatch(name):
            raise _bad(origin, f"{name[:80]!r} is not a name for a group of licences")
        found[name] = groups[name] = _licenses(table, name, groups)
    table.done()
    return found


def _licenses(table: _Table, name: str, groups: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """A list of licences with every group in it written out."""
    found: list[str] = []
    for one in table.texts(name):
        if one != "*" and not _LICENSE.fullmatch(one):
            raise table.bad(f"{one[:80]!r} in {name!r} is neither a licence's key nor the name of a group")
        if one.startswith("@") and one[1:] not in groups:
            raise table.bad(f"there is no group of licences {one!r}")
        found += groups[one[1:]] if one.startswith("@") else [one]
    return tuple(dict.fromkeys(found))


def _rule(table: _Table, groups: Mapping[str, tuple[str, ...]], checks: Sequence[str]) -> Rule:
    own = table.text("id", 80)
    if not _ID.fullmatch(own):
        raise table.bad(f"its id {own!r} is not of small letters, digits, dots and hyphens")
    table.what = f"rule {own}"
    citation = table.table("citation", required=True)
    rule = Rule(
        own,
        table.choice("level", LEVELS),
        table.text("message", _MAX_TEXT),
        table.text("obligation", _MAX_TEXT, ""),
        Citation(
            citation.text("document", 400),
            citation.text("section", 400, ""),
            citation.text("version", 200, ""),
            citation.text("url", 1000, ""),
        ),
        _licenses(table, "licenses", groups),
        table.text("check", 80, ""),
        table.choices("on", ROUTES, MODELS),
        table.choices("triggers", USES, USES),
        table.choices("propagates", ROUTES, ()),
        _licenses(table, "conflicts", groups),
        _licenses(table, "unless", groups),
    )
    citation.done()
    table.done()
    if bool(rule.licenses) == bool(rule.check):
        raise table.bad("it names either 'licenses' or a 'check'")
    if rule.check and rule.check not in checks:
        raise table.bad(f"there is no check {rule.check!r}; there are {', '.join(checks)}")
    if rule.check and (rule.conflicts or rule.unless or rule.propagates):
        raise table.bad("a check has no 'conflicts', 'unless' or 'propagates'")
    if rule.conflicts and not rule.propagates:
        raise table.bad("with 'conflicts' it has to say how the terms reach other parts: 'propagates'")
    if rule.unless and not rule.conflicts:
        raise table.bad("'unless' is an exception to 'conflicts', and there are none")
    for text in (rule.message, rule.obligation):
        for place in _PLACE.findall(text):
            if place not in _PLACES:
                raise table.bad(f"{{{place[:40]}}} stands for nothing; there are {', '.join(sorted(_PLACES))}")
    return rule


class _Table:
    """A TOML table that is read member by member, so that what nobody reads is an error."""

    def __init__(self, value: Any, origin: str, what: str) -> None:
        self._origin = origin
        self.what = what
        if not isinstance(value, dict):
            raise self.bad("it is not a table")
        self._left: dict[str, Any] = dict(value)

    def bad(self, why: str) -> BadRulesError:
        return _bad(self._origin, f"{self.what}: {why}")

    def names(self) -> list[str]:
        return list(self._left)

    def take(self, name: str, default: Any = None) -> Any:
        return self._left.pop(name, default)

    def table(self, name: str, *, required: bool = False) -> _Table:
        if required and name not in self._left:
            raise self.bad(f"it has no {name!r}")
        return _Table(self.take(name, {}), self._origin, f"{self.what}, {name}")

    def text(self, name: str, longest: int, default: str | None = None) -> str:
        value = self.take(name, default)
        if value is None:
            raise self.bad(f"it has no {name!r}")
        if not isinstance(value, str) or len(value) > longest or (default is None and not value.strip()):
            raise self.bad(f"its member {name!r} is not a text of 1 to {longest} characters")
        if _UNPRINTABLE.search(value):
            raise self.bad(f"its member {name!r} has characters that cannot be printed")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.take(name, [])
        if not isinstance(value, list) or len(value) > _MAX_ITEMS or not all(isinstance(one, str) for one in value):
            raise self.bad(f"its member {name!r} is not a list of at most {_MAX_ITEMS} texts")
        return tuple(value)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        value = self.text(name, 80)
        if value not in choices:
            raise self.bad(f"its member {name!r} is {value!r}, none of {', '.join(choices)}")
        return value

    def choices(self, name: str, choices: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
        if name not in self._left:
            return tuple(default)
        found = self.texts(name)
        for one in found:
            if one not in choices:
                raise self.bad(f"its member {name!r} has {one[:80]!r}, none of {', '.join(choices)}")
        if not found or len(set(found)) != len(found):
            raise self.bad(f"its member {name!r} is empty, or says something twice")
        return found

    def done(self) -> None:
        if self._left:
            raise self.bad(f"nobody knows its member {next(iter(self._left))[:80]!r}")
