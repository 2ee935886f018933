"""Strict reading of one JSON object of a record: every key known, every value of its type and within its cap."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise
from typing import Any, TypeVar

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.ids import AnyId

T = TypeVar("T")

_TIME = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)

_MEASURE = re.compile(r"[a-z][a-z0-9_]{0,62}")


def check_time(text: str) -> str:
    """An RFC 3339 time, returned as it is.

    Raises:
        InputError: It is not one.
    """
    if not _TIME.fullmatch(text):
        raise InputError(f"{text[:40]!r} is not an RFC 3339 time", object=text[:40])
    try:
        date.fromisoformat(text[:10])
    except ValueError as error:
        raise InputError(f"{text!r} is on a day that no calendar has", object=text) from error
    return text


def check_text(text: object, what: str, max_bytes: int = limits.TEXT_BYTES) -> str:
    """A string no longer than a cap and free of NUL, returned as it is.

    Raises:
        InputError: It is not one.
    """
    if not isinstance(text, str) or "\0" in text:
        raise InputError(f"{what} is not text", object=what)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not valid Unicode", object=what) from error
    if size > max_bytes:
        raise InputError(f"{what} takes {size} bytes, more than the {max_bytes} allowed", object=what)
    return text


def check_measure_name(name: str, what: str) -> str:
    """A name of small letters, digits and underscores, at most 63, returned as it is.

    Raises:
        InputError: It is not one.
    """
    if not _MEASURE.fullmatch(name):
        raise InputError(f"{what} {name[:64]!r} is not of small letters, digits and underscores", object=name[:64])
    return name


class Fields:
    """The members of one JSON object, taken one at a time; :meth:`done` refuses what nobody took.

    Every method raises InputError, naming the record and the member, where the value is not what the method says.
    """

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise InputError(f"{what} is not a JSON object", object=what)
        self._members: dict[str, Any] = dict(value)
        self._what = what

    def _refuse(self, name: str, why: str) -> InputError:
        return InputError(f"{self._what}: {name!r} {why}", object=self._what)

    def take(self, name: str) -> Any:
        """The value as parsed."""
        if name not in self._members:
            raise self._refuse(name, "is missing")
        return self._members.pop(name)

    def has(self, name: str) -> bool:
        """Whether there is such a member, and nobody took it yet."""
        return name in self._members

    def text(self, name: str, max_bytes: int = limits.TEXT_BYTES) -> str:
        """A string of at most so many UTF-8 bytes."""
        return check_text(self.take(name), f"{self._what}: {name!r}", max_bytes)

    def optional_text(self, name: str, max_bytes: int = limits.TEXT_BYTES) -> str | None:
        """A string, or null."""
        value = self.take(name)
        return None if value is None else check_text(value, f"{self._what}: {name!r}", max_bytes)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of a few words."""
        value = self.take(name)
        if not isinstance(value, str) or value not in choices:
            raise self._refuse(name, f"is none of {', '.join(choices)}")
        return value

    def time(self, name: str) -> str:
        """An RFC 3339 time."""
        return check_time(self.text(name, 64))

    def id(self, name: str, of: type[AnyId]) -> AnyId:
        """An object id of a kind."""
        value = self.take(name)
        if not isinstance(value, str):
            raise self._refuse(name, "is not an object id")
        return of(value)

    def optional_id(self, name: str, of: type[AnyId]) -> AnyId | None:
        """An object id of a kind, or null."""
        if name in self._members and self._members[name] is None:
            del self._members[name]
            return None
        return self.id(name, of)

    def integer(self, name: str, minimum: int = 0, maximum: int = limits.JSON_INTEGER) -> int:
        """An integer within bounds."""
        value = self.take(name)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self._refuse(name, f"is not an integer from {minimum} to {maximum}")
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self.take(name)
        if type(value) is not bool:
            raise self._refuse(name, "is not true or false")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.take(name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._refuse(name, "is not a finite number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number, or null."""
        if name in self._members and self._members[name] is None:
            del self._members[name]
            return None
        return self.number(name)

    def items(self, name: str, read: Callable[[Any], T], minimum: int = 0) -> tuple[T, ...]:
        """An array, each element read by a function."""
        value = self.take(name)
        if not isinstance(value, list) or len(value) < minimum:
            raise self._refuse(name, f"is not an array of {minimum} or more")
        return tuple(read(item) for item in value)

    def integers(self, name: str, maximum: int = limits.JSON_INTEGER) -> tuple[int, ...]:
        """An array of integers from 0 to a maximum."""
        value = self.take(name)
        if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= maximum for item in value):
            raise self._refuse(name, f"is not an array of integers from 0 to {maximum}")
        return tuple(value)

    def text_map(self, name: str) -> dict[str, str]:
        """An object whose members are all strings."""
        value = self.take(name)
        if not isinstance(value, dict):
            raise self._refuse(name, "is not a JSON object")
        return {key: check_text(item, f"{self._what}: {name}.{key}") for key, item in value.items()}

    def numbers(self, name: str) -> dict[str, float | None]:
        """An object of numbers or null, its members named by small letters, digits and underscores."""
        value = self.take(name)
        if not isinstance(value, dict):
            raise self._refuse(name, "is not a JSON object")
        reading = Fields(value, f"{self._what}: {name}")
        return {check_measure_name(key, f"{self._what}: {name}:"): reading.optional_number(key) for key in value}

    def done(self) -> None:
        """Refuses members that no method took."""
        if self._members:
            raise self._refuse(min(self._members), "is not a known member")


def require_sorted(values: Sequence[Any], what: str) -> None:
    """Refuses a sequence that is not strictly ascending, so that one set has one encoding.

    Raises:
        InputError: Out of order or repeated.
    """
    for before, after in pairwise(values):
        if not before < after:
            raise InputError(f"{what}: {str(after)[:200]!r} is repeated or out of order", object=what)
