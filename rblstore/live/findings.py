"""What a scan of a live model finds, in words and with what undoes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "adapter",
    "attribute",
    "buffer",
    "class",
    "config",
    "device",
    "dtype",
    "extra_state",
    "generation_config",
    "gradient",
    "hook",
    "merged",
    "method",
    "module",
    "parameter",
    "requires_grad",
    "shape",
    "tie",
    "training",
    "wrapper",
]


@dataclass(frozen=True)
class Finding:
    """One thing on a model that should not be there, or lacks.

    Attributes:
        module: Dotted name of the module; empty for the model itself.
        kind: What sort of thing.
        detail: What was found, in one line.
        mendable: Whether :func:`rblstore.live.residue.mend` can undo it by reference, without inventing a value.
        mended: Whether it was undone.
    """

    module: str
    kind: Kind
    detail: str
    mendable: bool
    mended: bool = False

    def __str__(self) -> str:
        return f"{self.module or 'the model'}: {self.detail}"


@dataclass(frozen=True)
class Difference:
    """A finding, and what undoes it where anything does."""

    finding: Finding
    undo: Callable[[], None] | None

    @classmethod
    def of(cls, module: str, kind: Kind, detail: str, undo: Callable[[], None] | None = None) -> Difference:
        """A difference; mendable where there is an ``undo``."""
        return cls(Finding(module, kind, detail, undo is not None), undo)
