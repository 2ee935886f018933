"""What times and dates stand for, so that they can be compared: records write one moment in many ways."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from rblstore.errors import InputError, UsageError
from rblstore.objects.fields import check_time

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def moment_of(time: str) -> datetime:
    """The moment of a record's time, which was checked when that was read; finer than microseconds is cut off.

    Args:
        time: RFC 3339.
    """
    match = re.fullmatch(r"(.{19})(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", time)
    assert match is not None, "the time was checked when it was read"
    moment, fraction, offset = match.groups()
    shown = f"{moment}.{(fraction or '0')[:6]:<06}{'+00:00' if offset == 'Z' else offset}"
    try:
        return datetime.fromisoformat(shown).astimezone(UTC)
    except OverflowError:  # the first or last day of the calendar, in a zone where it is another
        return datetime.fromisoformat(shown[:-6] + "+00:00")


def moment_asked(at: str) -> datetime:
    """The moment that a person asks about.

    Args:
        at: A date (its end, UTC) or an RFC 3339 time.

    Raises:
        UsageError: It is neither.
    """
    if not isinstance(at, str):  # the types say so; a notebook does not read them
        raise UsageError(f"a time is text, not a {type(at).__name__}", hint="2026-03-01, or 2026-03-01T12:00:00Z")
    try:
        if _DAY.fullmatch(at):
            return datetime.fromisoformat(at).replace(tzinfo=UTC) + timedelta(days=1, microseconds=-1)
        return moment_of(check_time(at))
    except (InputError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{at[:40]!r} is neither a date nor a time",
            object=at[:40],
            hint="2026-03-01 (the end of that day, UTC), or 2026-03-01T12:00:00Z",
        ) from error
