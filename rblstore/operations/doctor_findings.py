"""What ``doctor`` finds, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rblstore.operations.result import Result

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding(Result):
    """One thing that was looked at.

    Attributes:
        check: What was looked at; a stable name.
        level: ``ok``; ``note`` (worth knowing); ``warning`` (may cost something one day); ``problem`` (mend it now).
        what: What was found, in words.
        hint: What to do about it, or None.
    """

    check: str
    level: Level
    what: str
    hint: str | None = None
