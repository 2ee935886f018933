"""Watches the tensors that training has no business with, and says so the moment that one of them changed.

Each check has two layers. The first looks at every tensor: which object hangs there, where its memory is, torch's count
of writes, shape, element type, whether it is trainable, and a few bytes from all over it. The second reads the memory:
of what the first made suspicious at once, and of the rest in full or in turn. The second decides, for torch does not
count every write (``.data``, NumPy, fused optimizers, batch normalization), and not every write changes a value.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import ClassVar, Literal, Self

from torch import nn

from rblstore.errors import UsageError
from rblstore.live.mutations import IdentityMutated, Mutation
from rblstore.live.watching import Piece, UnguardableError, Watch

__all__ = ["BadGuardError", "IdentityGuard", "IdentityMutated", "Mutation", "OnMutation", "UnguardableError"]

OnMutation = Literal["raise", "record"]

# Not the most that there is: beside other work that fills the machine, reading has to come to an end as well.
_NICER = 10


class BadGuardError(UsageError):
    """A guard was asked for with settings that it does not have."""

    code: ClassVar[str] = "bad_guard"


class IdentityGuard:
    """Fingerprints a model's own tensors when it is made, and compares them at every :meth:`check`.

    What adapters put beside the model (their own tensors, copies in ``modules_to_save``) is never watched. Made by
    :meth:`rblstore.Repository.guard`, or without any repository. As a context manager it makes a last full check where
    its block ends, unless an error ends it.

    Args:
        model: A transformers model, a PEFT model around one, or any module.
        names: Which tensors, by their names in the plain model; None for all of them.
        every: :meth:`step` checks at every N-th call.
        sample: Bytes that a check of :meth:`step` reads, in turn, beside what looks suspicious; None for everything.
        on_mutation: ``raise`` an :class:`IdentityMutated`, or ``record`` only, in :attr:`findings`.
        background: Whether :meth:`step` leaves the reading to threads, which stand back behind the loop's own (on
            Linux). What they find is raised by a later step, and at
            the end. The memory of an accelerator is always read at once.
        threads: How many threads read.

    Raises:
        BadGuardError: A setting is out of range, or the model is no module.
        UnguardableError: Tensors are offloaded, sharded or sparse.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Collection[str] | None = None,
        *,
        every: int = 1,
        sample: int | None = None,
        on_mutation: OnMutation = "raise",
        background: bool = True,
        threads: int = 1,
    ) -> None:
        check_settings(model, every=every, sample=sample, on_mutation=on_mutation, threads=threads)
        self._every = every
        self._sample = sample
        self._raises = on_mutation == "raise"
        self._background = background
        self._threads = threads
        self._steps = 0
        self._turn = 0
        self._findings: list[Mutation] = []
        self._executor: ThreadPoolExecutor | None = None
        self._reading: list[Future[list[Piece]]] = []
        self._reading_since = 0
        self._watch = Watch(model, names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.stop()

    @property
    def findings(self) -> tuple[Mutation, ...]:
        """Everything found so far, each tensor and change once, in the order in which it was found."""
        return tuple(self._findings)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are watched, by their names in the plain model."""
        return self._watch.names

    @property
    def steps(self) -> int:
        """How often :meth:`step` was called."""
        return self._steps

    @property
    def checks_to_cover(self) -> int:
        """How many checks of :meth:`step` it takes until every byte was read, where threads keep up."""
        return 1 if self._sample is None else max(1, -(-self._watch.size // self._sample))

    def step(self) -> None:
        """Counts a step of training, and checks at every N-th.

        Raises:
            IdentityMutated: Tensors changed, as noticed now or by the threads since the last step; with
                ``on_mutation="raise"`` only.
        """
        self._steps += 1
        found = self._found_behind(wait=False)
        if self._steps % self._every == 0:
            looked, pieces = self._watch.look(self._steps)
            found += looked
            if not self._reading:  # else the threads are still at it, and must not fall further behind
                found += self._read(self._in_turn(pieces), behind=self._background)
        self._report(found)

    def check(self, full: bool = True) -> tuple[Mutation, ...]:
        """Checks now, and waits for it.

        Args:
            full: Whether to read everything, or as much as a check of :meth:`step` reads.

        Returns:
            What was not known before.

        Raises:
            IdentityMutated: Something was not known before; with ``on_mutation="raise"`` only.
        """
        found = self._found_behind(wait=True)
        looked, pieces = self._watch.look(self._steps)
        found += looked
        found += self._read(pieces if full else self._in_turn(pieces), behind=False)
        self._report(found)
        return tuple(found)

    def finish(self) -> tuple[Mutation, ...]:
        """A last full check, as :meth:`check`; then the threads end."""
        try:
            return self.check()
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends the threads, without a last check."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
        self._reading = []

    def _in_turn(self, pieces: list[Piece]) -> list[Piece]:
        """As many of the pieces as a check reads, from where the check before left off."""
        if self._sample is None or not pieces:
            return pieces
        chosen: list[Piece] = []
        size = 0
        # At least one, and none twice.
        while len(chosen) < len(pieces) and (not chosen or size < self._sample):
            piece = pieces[self._turn % len(pieces)]
            self._turn = (self._turn + 1) % len(pieces)
            chosen.append(piece)
            size += piece.size
        return chosen

    def _read(self, pieces: list[Piece], *, behind: bool) -> list[Mutation]:
        """Reads pieces, or leaves those in main memory to the threads; returns what was found at once."""
        away = [piece for piece in pieces if piece.tensor.device.type != "cpu"]
        here = [piece for piece in pieces if piece.tensor.device.type == "cpu"]
        changed = _changed(away)
        if here and not behind and self._threads == 1:
            changed += _changed(here)
        elif here:
            self._submit(here)
            if not behind:
                return Watch.found_changed(changed, self._steps) + self._found_behind(wait=True)
        return Watch.found_changed(changed, self._steps)

    def _submit(self, pieces: list[Piece]) -> None:
        if self._executor is None:
            behind = _stand_back if self._background else None
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="rbl-guard", initializer=behind)
        shares = _shares(pieces, self._threads)
        self._reading = [self._executor.submit(_changed, share) for share in shares]
        self._reading_since = self._steps

    def _found_behind(self, *, wait: bool) -> list[Mutation]:
        """What the threads found, where they are done; an error of theirs is raised here."""
        if not self._reading or not (wait or all(reading.done() for reading in self._reading)):
            return []
        readings, self._reading = self._reading, []
        changed = [piece for reading in readings for piece in reading.result()]
        return Watch.found_changed(changed, self._reading_since)

    def _report(self, found: Sequence[Mutation]) -> None:
        self._findings += found
        if found and self._raises:
            raise IdentityMutated(found, self._steps)


def check_settings(model: object, *, every: int, sample: int | None, on_mutation: str, threads: int) -> None:
    """Refuses what an :class:`IdentityGuard` cannot be made with.

    Raises:
        BadGuardError: A setting is out of range, or the model is no module.
    """
    why = None
    if not isinstance(model, nn.Module):
        why = f"a {type(model).__name__} is no torch.nn.Module"
    elif every < 1:
        why = f"every must be at least 1, not {every}"
    elif sample is not None and sample < 1:
        why = f"sample must be at least 1 byte, not {sample}; None reads everything"
    elif on_mutation not in ("raise", "record"):
        why = f"on_mutation is 'raise' or 'record', not {on_mutation!r}"
    elif threads < 1:
        why = f"threads must be at least 1, not {threads}"
    if why is not None:
        raise BadGuardError(f"the identity cannot be guarded: {why}")


def _stand_back() -> None:
    """Lets the step's own threads go first where the processors are too few for all: reading waits, training does not.

    Linux gives each thread a priority of its own; elsewhere this would be the whole process's.
    """
    if sys.platform == "linux":
        own = os.getpriority(os.PRIO_PROCESS, 0)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, min(own + _NICER, 19))


def _changed(pieces: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.changed()]


def _shares(pieces: list[Piece], number: int) -> list[list[Piece]]:
    """The pieces in that many lists of about equal size, at most."""
    shares: list[list[Piece]] = [[] for _ in range(number)]
    sizes = [0] * number
    for piece in pieces:
        least = sizes.index(min(sizes))
        shares[least].append(piece)
        sizes[least] += piece.size
    return [share for share in shares if share]
