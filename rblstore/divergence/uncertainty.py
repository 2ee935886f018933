"""How sure the figures of a verification are: intervals over the numbers of its prompts. No torch; nothing is stored.

A verification keeps one number a prompt and measure. Means, intervals and flags are pure functions of those, so that an
old record says as much as a new one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

from rblstore.divergence.intervals import Interval, interval, recovery_interval

__all__ = ["MEASURED", "MeasuredPrompt", "intervals_of", "upper_end"]

MEASURED: Final = (
    "kl",
    "js",
    "relative_l2",
    "cosine",
    "kl_adapted",
    "js_adapted",
    "relative_l2_adapted",
    "cosine_adapted",
)
"""Measures of a verification that are means over prompts, in the order in which they are shown."""


class MeasuredPrompt(Protocol):
    """What is known of one prompt; ``PromptDivergence`` is one."""

    @property
    def kl(self) -> float | None:
        """Mean KL over its positions in nats, or None."""

    @property
    def js(self) -> float | None:
        """Mean JS over its positions in nats, or None."""

    @property
    def values(self) -> dict[str, float | None]:
        """Further measures by name."""


def intervals_of(prompts: Sequence[MeasuredPrompt]) -> dict[str, Interval]:
    """The mean over prompts of every measure that all of them have, with its interval; and ``rf`` where it can be had.

    Args:
        prompts: At least one.

    Returns:
        By name, in the order of :data:`MEASURED`, then ``rf``. Measures that a prompt lacks are left out: their mean is
        infinite or undefined.
    """
    columns = {name: _column(prompts, name) for name in MEASURED}
    found = {name: interval([values]) for name, values in columns.items() if values is not None}
    recovered, adapted = columns["kl"], columns["kl_adapted"]
    if recovered is not None and adapted is not None:
        fidelity = recovery_interval([recovered], [adapted])
        if fidelity is not None:
            found["rf"] = fidelity
    return found


def upper_end(prompts: Sequence[MeasuredPrompt]) -> float | None:
    """The larger of the upper ends of the intervals of KL and JS, in nats; None where one of them cannot be had."""
    ends = []
    for name in ("kl", "js"):
        values = _column(prompts, name)
        if values is None:
            return None
        ends.append(interval([values]).high)
    return max(ends)


def _column(prompts: Sequence[MeasuredPrompt], name: str) -> list[float] | None:
    values = [getattr(prompt, name) if name in ("kl", "js") else prompt.values.get(name) for prompt in prompts]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return known if known and len(known) == len(values) else None
