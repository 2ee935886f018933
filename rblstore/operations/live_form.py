"""In which form a live model holds its behaviors."""

from __future__ import annotations

from typing import Literal

from rblstore.errors import UsageError

LiveForm = Literal["adapters", "merged"]


def check_form(form: str) -> LiveForm:
    """The form, where it is one.

    Raises:
        UsageError: It is none.
    """
    if form == "adapters":
        return "adapters"
    if form == "merged":
        return "merged"
    raise UsageError(f"{form!r:.40} is no form of a live model", hint="adapters or merged")
