"""Licences as expressions: what cards and people write, brought to one form that rules and documents can rely on."""

from __future__ import annotations

from typing import ClassVar

from rblstore.errors import InputError
from rblstore.provenance.hub_licenses import HUB_LICENSES, NOASSERTION

__all__ = ["HUB_LICENSES", "NOASSERTION", "LicenseError", "alternatives", "keys_of", "named", "nearest", "normalise"]


class LicenseError(InputError):
    """A licence is neither an SPDX expression nor a name that is known."""

    code: ClassVar[str] = "bad_license"


def normalise(text: str) -> str:
    """A licence as one form of one expression.

    Known are SPDX ids in any case, ids of the hub and scancode's, ``LicenseRef-...`` of anybody's, and AND, OR, WITH and
    brackets over these. Operands are sorted and none repeated, so equal expressions are equal text.

    Args:
        text: As a card or a person writes it: ``apache-2.0``, ``llama3.1``, ``mit or gpl-3.0``.

    Returns:
        The expression, of the keys that rules use; ``NOASSERTION`` for ``other``, ``unknown`` and itself.

    Raises:
        LicenseError: It does not parse, or names what nobody knows.
    """
    raise NotImplementedError


def named(name: str) -> str:
    """The key of a licence that a card gives only a name (``license_name``): a known one's, else ``LicenseRef-rbl-<name>``.

    The name is brought to lower case, and what SPDX allows in no id becomes a hyphen.
    """
    raise NotImplementedError


def keys_of(expression: str) -> frozenset[str]:
    """Every licence and exception that a normalised expression names; none of NOASSERTION.

    Raises:
        LicenseError: It does not parse.
    """
    raise NotImplementedError


def alternatives(expression: str) -> tuple[frozenset[str], ...]:
    """What a normalised expression lets one choose between: each choice with all licences that then hold together.

    ``A AND (B OR C)`` gives ``{A, B}`` and ``{A, C}``. An exception is part of its licence's choice.

    Raises:
        LicenseError: It does not parse, or gives more than 256 choices.
    """
    raise NotImplementedError


def nearest(text: str) -> tuple[str, ...]:
    """Up to three known names that look like it."""
    raise NotImplementedError
