"""How something is trained, in numbers alone. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from rblstore.errors import UsageError

MOST_STEPS: Final = 100_000


@dataclass(frozen=True)
class Recipe:
    """How something is trained; what a study records of it.

    Attributes:
        steps: Optimizer steps, from 1.
        learning_rate: Of AdamW; constant.
        layers: How many of the last layers, from 1; all of them where there are no more.
        rows: How many sequences a step takes; one may be drawn more than once.
        weight_decay: Of AdamW.
    """

    steps: int = 10
    learning_rate: float = 5e-5
    layers: int = 4
    rows: int = 2
    weight_decay: float = 0.01

    def check(self) -> None:
        """Refuses what cannot be trained by.

        Raises:
            UsageError: A number is out of range; names it and the range.
        """
        for name in ("steps", "layers", "rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_STEPS:
                raise UsageError(f"'{name}' is a whole number from 1 to {MOST_STEPS}, not {value!r:.40}", object=name)
        for name, least in (("learning_rate", "above 0"), ("weight_decay", "from 0")):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not 0 <= value <= 1 or (least == "above 0" and value == 0):
                raise UsageError(f"'{name}' is a number {least} to 1, not {value!r:.40}", object=name)
