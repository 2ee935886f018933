"""Licences as expressions: what cards and people write, brought to one form that rules and documents can rely on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rblstore.errors import InputError
from rblstore.provenance.hub_licenses import FAMILIES, HUB_LICENSES, NOASSERTION, OF_OURS

if TYPE_CHECKING:
    from license_expression import Licensing

__all__ = [
    "FAMILIES", "HUB_LICENSES", "NOASSERTION", "OF_OURS", "LicenseError",
    "alternatives", "covers", "keys_of", "named", "nearest", "normalise",
]  # fmt: skip


_MAX_CHARACTERS: Final = 4096
_MAX_DEPTH: Final = 50
_MAX_CHOICES: Final = 256
_NAME_CHARACTERS: Final = 100
_LICENSE_REF: Final = re.compile(r"(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
_GNU: Final = re.compile(r"(A?GPL|LGPL|GFDL)-([0-9.]+)-(only|or-later)")
_ALIAS: Final = re.compile(r"[a-z0-9.+_-]+")


class LicenseError(InputError):
    """A licence is neither an SPDX expression nor a name that is known."""

    code: ClassVar[str] = "bad_expression"


def normalise(text: str) -> str:
    """A licence as one form of one expression.

    Known are SPDX ids in any case, the hub's and scancode's ids, ``LicenseRef-...`` of anybody's, and AND, OR, WITH and
    brackets over these. Operands are sorted and none repeated, so equal expressions are equal text.

    Args:
        text: As a card or a person writes it: ``apache-2.0``, ``llama3.1``, ``mit or gpl-3.0``.

    Returns:
        The expression, of the keys that rules use; ``NOASSERTION`` for ``other``, ``unknown`` and itself.

    Raises:
        LicenseError: It does not parse, names what nobody knows, or leaves more than 256 choices.
    """
    plain = " ".join(text.split())
    if plain.upper() == NOASSERTION:
        return NOASSERTION
    known = HUB_LICENSES.get(plain.lower())
    if known:
        return known
    tree = _parsed(plain)
    _choices(tree)  # what nobody could count, no rule would look at
    return _text(_in_form(tree))


def named(name: str) -> str:
    """The key of a licence that a card gives only a name: a known one's, else ``LicenseRef-rbl-<name>``.

    The name is brought to lower case, and what SPDX allows in no id becomes a hyphen.
    """
    try:
        return normalise(name)
    except LicenseError:
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower())[:_NAME_CHARACTERS].strip("-.")
        return f"{OF_OURS}{slug}" if slug else NOASSERTION


def keys_of(expression: str) -> frozenset[str]:
    """Every licence and exception that a normalised expression names; none of NOASSERTION.

    Raises:
        LicenseError: It does not parse.
    """
    if expression == NOASSERTION:
        return frozenset()
    return frozenset(key for leaf in _leaves(_parsed(expression)) for key in leaf)


def alternatives(expression: str) -> tuple[frozenset[str], ...]:
    """What an expression lets one choose between: each choice with all licences that then hold together.

    ``A AND (B OR C)`` gives ``{A, B}`` and ``{A, C}``. An exception is part of its licence's choice.

    Raises:
        LicenseError: It does not parse, or gives more than 256 choices.
    """
    if expression == NOASSERTION:
        return ()
    return tuple(sorted(_choices(_parsed(expression)), key=sorted))


def covers(expression: str, licence: str) -> bool:
    """Whether a text under a licence is what an expression may mean by one of its licences.

    Every key of the licence is among those of the expression, where the text of a GPL serves ``only`` and ``or-later``.

    Args:
        expression: Normalised: what was declared.
        licence: Normalised: what the text was recognised as.
    """
    keys = keys_of(expression)
    return all(key in keys or any(_same_gnu(one, key) for one in keys) for key in keys_of(licence))


def _same_gnu(declared: str, of_text: str) -> bool:
    left, right = _GNU.fullmatch(declared), _GNU.fullmatch(of_text)
    if left is None or right is None or left.group(1) != right.group(1):
        return False
    return left.group(2) == right.group(2) or (left.group(3) == "or-later" and left.group(2) < right.group(2))


def nearest(text: str) -> tuple[str, ...]:
    """Up to three known names that look like it."""
    shown = {name.lower(): name for name in [*_names(), *HUB_LICENSES]}
    found = get_close_matches(" ".join(text.split()).lower()[:_NAME_CHARACTERS], shown, 3, 0.7)
    return tuple(shown[name] for name in found)


@cache
def _index() -> list[dict[str, Any]]:
    from license_expression import get_license_index

    return [entry for entry in get_license_index() if entry.get("spdx_license_key")]


def _names() -> list[str]:
    return [entry["spdx_license_key"] for entry in _index() if not entry["is_deprecated"]]


@cache
def _licensing() -> Licensing:
    """The index with the hub's names added: read once a process, in a tenth of a second."""
    from license_expression import LicenseSymbol, Licensing

    taken = {entry["spdx_license_key"].lower() for entry in _index()}
    taken |= {alias.lower() for entry in _index() for alias in entry["other_spdx_license_keys"]}
    aliases: dict[str, list[str]] = {}
    for name, key in HUB_LICENSES.items():
        if name not in taken and key != NOASSERTION and _ALIAS.fullmatch(name):
            taken.add(name)
            aliases.setdefault(key, []).append(name)
    symbols = []
    for entry in _index():
        key, own = entry["spdx_license_key"], entry["license_key"]
        more = aliases.pop(key, [])
        if own.lower() not in taken:
            taken.add(own.lower())
            more.append(own)
        symbols.append(
            LicenseSymbol(key, [*entry["other_spdx_license_keys"], *more], is_exception=entry["is_exception"])
        )
    symbols += [LicenseSymbol(key, more) for key, more in aliases.items()]
    return Licensing(symbols)


def _parsed(text: str) -> Any:
    """The expression's tree.

    Raises:
        LicenseError: It does not parse, or names what nobody knows.
    """
    from license_expression import ExpressionError

    shown = text[:80]
    if not text or len(text) > _MAX_CHARACTERS:
        raise LicenseError(f"a licence has 1 to {_MAX_CHARACTERS} characters, not {len(text)}", object=shown)
    if text.count("(") > _MAX_DEPTH:
        raise LicenseError(f"a licence expression has at most {_MAX_DEPTH} brackets", object=shown)
    try:
        tree = _licensing().parse(text, strict=True)
        unknown = [key for key in _licensing().unknown_license_keys(tree) if not _LICENSE_REF.fullmatch(key)]
        _leaves(tree)
    except (
        ExpressionError,
        AssertionError,
        RecursionError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
    ) as error:
        # The library answers some malformed text with errors that it does not declare, or a tree of no licences.
        raise LicenseError(f"{shown!r} is not a licence expression", object=shown) from error
    if tree is None or unknown:
        raise LicenseError(f"{(unknown or [shown])[0][:80]!r} is not a licence that is known", object=shown)
    return tree


@dataclass(frozen=True)
class _Several:
    """Licences that hold together, or of which one may be chosen; those of the same operator below are taken in."""

    operator: str
    parts: tuple[str, ...]


def _in_form(tree: Any) -> str | _Several:
    operator = _operator(tree)
    if operator is None:
        return " WITH ".join(_leaf(tree))
    parts: set[str] = set()
    below: list[str | _Several] = [_in_form(one) for one in tree.args]
    if len(set(below)) == 1:
        return below[0]
    for one in below:
        if isinstance(one, str):
            parts.add(one)
        elif one.operator == operator:
            parts.update(one.parts)
        else:
            parts.add(f"({_text(one)})")
    return _Several(operator, tuple(sorted(parts, key=lambda part: (part.lower(), part))))


def _text(found: str | _Several) -> str:
    return found if isinstance(found, str) else f" {found.operator} ".join(found.parts)


def _operator(tree: Any) -> str | None:
    """``AND`` or ``OR``, or None for one licence."""
    return str(tree.operator).strip() if getattr(tree, "args", ()) else None


def _leaf(tree: Any) -> list[str]:
    exception = getattr(tree, "exception_symbol", None)
    return [tree.key] if exception is None else [tree.license_symbol.key, exception.key]


def _leaves(tree: Any) -> list[list[str]]:
    return [_leaf(tree)] if _operator(tree) is None else [leaf for one in tree.args for leaf in _leaves(one)]


def _choices(tree: Any) -> set[frozenset[str]]:
    operator = _operator(tree)
    if operator is None:
        return {frozenset(_leaf(tree))}
    found: set[frozenset[str]] = set() if operator == "OR" else {frozenset()}
    for one in tree.args:
        below = _choices(one)
        found = found | below if operator == "OR" else {left | right for left in found for right in below}
        if len(found) > _MAX_CHOICES:
            raise LicenseError(f"the licence expression leaves more than {_MAX_CHOICES} choices")
    return found
