"""How far a long operation is, told to whoever asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """One step forward.

    Attributes:
        stage: What is being done, a word or two ("reading model.safetensors").
        done: Units finished.
        total: Units in all.
        unit: What is counted.
    """

    stage: str
    done: int
    total: int
    unit: str = "bytes"


Progress = Callable[[ProgressEvent], None]


class Meter:
    """Adds up finished units and tells them.

    Args:
        progress: Who wants to know, or None.
        total: Units in all.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, stage: str, units: int) -> None:
        """Tells that so many more units are finished."""
        self._done += units
        if self._progress is not None:
            self._progress(ProgressEvent(stage, self._done, self._total))
