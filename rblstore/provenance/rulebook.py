"""Sets of rules together: those that come with rblstore, and a company's own on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from rblstore.provenance.gaps import CHECKS
from rblstore.provenance.rule import Rule, RuleSet, read_rules

FILES: Final = (
    "permissive", "creative_commons", "llama", "gemma", "rail", "copyleft", "community", "gaps",
)  # fmt: skip
"""The files that come with rblstore; each may name the groups of those before it."""


@dataclass(frozen=True)
class Rulebook:
    """The rules of an audit.

    Attributes:
        rules: By id; a later set's in the place of an earlier one's.
        sets: Name and version of each set, in order.
    """

    rules: Mapping[str, Rule]
    sets: tuple[tuple[str, str], ...]


@cache
def built_in() -> RuleSet:
    """The rules that come with rblstore, all files as one set."""
    groups: dict[str, tuple[str, ...]] = {}
    rules: dict[str, Rule] = {}
    name = version = ""
    folder = files("rblstore.provenance").joinpath("rules")
    for file in FILES:
        data = folder.joinpath(f"{file}.toml").read_bytes()
        part = read_rules(data, f"{file}.toml", tuple(CHECKS), groups)
        groups.update(part.groups)
        rules.update(part.rules)
        name, version = part.name, part.version
    return RuleSet(name, version, rules, groups)


def rulebook(own: Sequence[tuple[str, bytes]] = ()) -> Rulebook:
    """The rules that come with rblstore, and others that add to them or replace some by id.

    Args:
        own: (name, bytes) of files of rules, in order.

    Raises:
        BadRulesError: One breaks the schema.
    """
    base = built_in()
    rules, groups, sets = dict(base.rules), dict(base.groups), [(base.name, base.version)]
    for origin, data in own:
        added = read_rules(data, origin, tuple(CHECKS), groups)
        groups.update(added.groups)
        rules.update(added.rules)
        sets.append((added.name, added.version))
    return Rulebook(rules, tuple(sets))
