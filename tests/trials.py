"""How often a harness tries something: a fixed number each time, or with ``RBL_TEST_TIER=full`` many.

``RBL_TEST_SEED`` repeats a run, whose seed is printed. ``RBL_TEST_TRIALS`` sets the number of trials of each loop,
``RBL_TEST_MINUTES`` how long each loop may take (sixty in the full tier): what is cut short says how far it came.
``RBL_TEST_FIGURES`` names a file to which each loop appends one line of JSON with what it counted: the figures of
docs/reliability.md come from there.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

FULL = os.environ.get("RBL_TEST_TIER", "quick") == "full"
SEED = int(os.environ.get("RBL_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
MINUTES = float(os.environ.get("RBL_TEST_MINUTES", "60" if FULL else "inf"))


class Trials:
    """A loop over trials that counts them and says what it counted, also where one of them fails.

    Args:
        figure: ``R1`` to ``R12``.
        what: What is tried, in words; with the figure it names the line of the report.
        quick: How many trials there are in the quick tier.
        full: How many in the full one.

    Attributes:
        moment: Random numbers that depend on the seed and on ``what`` alone.
        counts: What the harness counted besides trials; it adds to it as it likes.
    """

    def __init__(self, figure: str, what: str, *, quick: int, full: int) -> None:
        self.figure = figure
        self.what = what
        self.wanted = int(os.environ.get("RBL_TEST_TRIALS", full if FULL else quick))
        self.moment = random.Random(f"{SEED} {figure} {what}")
        self.counts: dict[str, int] = {}
        self.done = 0
        self._start = time.monotonic()

    def count(self, name: str, by: int = 1) -> None:
        """Adds to one of :attr:`counts`."""
        self.counts[name] = self.counts.get(name, 0) + by

    def __iter__(self) -> Iterator[int]:
        while self.done < self.wanted and time.monotonic() - self._start < 60 * MINUTES:
            yield self.done
            self.done += 1

    def __enter__(self) -> Self:
        print(f"RBL_TEST_SEED={SEED}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._start
        counted = "".join(f", {number} {name}" for name, number in self.counts.items())
        failed = "" if kind is None else f"; trial {self.done} failed (RBL_TEST_SEED={SEED})"
        print(f"{self.figure} {self.what}: {self.done} of {self.wanted} trials, {seconds:.0f} s{counted}{failed}")
        target = os.environ.get("RBL_TEST_FIGURES")
        if target:
            line = {
                "figure": self.figure,
                "what": self.what,
                "trials": self.done,
                "wanted": self.wanted,
                "failed": kind is not None,
                "seed": SEED,
                "seconds": round(seconds, 1),
                "counts": self.counts,
            }
            with Path(target).open("a") as stream:
                stream.write(json.dumps(line) + "\n")
