"""A progress bar in bytes, or whatever an operation counts, on stderr, where somebody is there to see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from rblstore.cli.render.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from rblstore.operations.progress import ProgressEvent

    ProgressCallback: TypeAlias = Callable[[ProgressEvent], None]


class _Bar:
    """Draws events; rich is imported at the first, so that a command that reports nothing does not pay for it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._unit = "bytes"
        self._done = 0

    def __call__(self, event: ProgressEvent) -> None:
        if event.unit != self._unit:
            self.stop()
            self._progress, self._task, self._unit = None, None, event.unit
        progress = self._progress or self._start()
        if self._task is None or event.done < self._done:  # the same bar for every file of one operation
            if self._task is not None:
                progress.remove_task(self._task)
            self._task = progress.add_task("", total=event.total or None)
        self._done = event.done
        progress.update(self._task, description=printable(event.stage), completed=event.done, total=event.total or None)

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.table import Column

        whole = Column(no_wrap=True)
        counted: tuple[ProgressColumn, ...] = (
            (DownloadColumn(binary_units=True, table_column=whole), TransferSpeedColumn(table_column=whole))
            if self._unit == "bytes"
            else (MofNCompleteColumn(table_column=whole), TextColumn(self._unit, markup=False, table_column=whole))
        )
        # One line on any terminal: what is left of it goes to the description, which gives way first.
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            BarColumn(bar_width=16),
            *counted,
            TimeRemainingColumn(table_column=whole),
            console=Console(stderr=True),
            transient=True,
            expand=True,
        )
        self._progress.start()
        return self._progress

    def stop(self) -> None:
        """Takes the bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def progress_bar(*, enabled: bool) -> Iterator[ProgressCallback | None]:
    """What an operation may report to: a bar on a terminal, else None.

    Args:
        enabled: False never draws.
    """
    if not enabled or not sys.stderr.isatty():
        yield None
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.stop()
