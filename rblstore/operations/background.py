"""One thread that works off what a training loop hands it, in order, with at most one piece of work waiting."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, TypeVar

from rblstore.errors import RblError, UsageError

Work = TypeVar("Work")

# How long a wait lasts before whoever waits looks whether the thread is still there.
_LOOK_SECONDS: Final = 1.0


class RunElsewhereError(UsageError):
    """A training run was used in a process or thread that it was not started in."""

    code: ClassVar[str] = "run_elsewhere"


class WorkerLostError(RblError):
    """The thread that writes is gone, and nobody asked it to go."""

    code: ClassVar[str] = "worker_lost"


class _Keeping:
    """Keeps what goes wrong in the thread for whoever handed the work over, and ends it there."""

    def __init__(self, worker: BackgroundWorker[Any]) -> None:
        self._worker = worker

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self._worker.error = error
        return True


class BackgroundWorker(Generic[Work]):
    """Does work behind whoever hands it over.

    After the first error nothing more is done: what waits is dropped, and :meth:`check` raises that error from then on.

    Args:
        do: Does one piece of work, in the thread.
        close: Is called in the thread when all is done, or nothing more will be.
    """

    def __init__(self, do: Callable[[Work], None], close: Callable[[], None]) -> None:
        self._do = do
        self._close = close
        self._changed = threading.Condition()
        self._waiting: list[Work] = []
        self._busy = False
        self._ending = False
        self.error: BaseException | None = None
        # A forked child has this object, but neither the thread nor a lock that it could trust.
        self._process = os.getpid()
        self._owner = threading.get_ident()
        # As a daemon it keeps nobody from leaving who was interrupted while waiting; what it was writing then is either
        # published or nowhere.
        self._thread = threading.Thread(target=self._run, name="rbl-training", daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """Whether this is the process that it was started in."""
        return os.getpid() == self._process

    def require_here(self) -> None:
        """Refuses other processes and threads.

        Raises:
            RunElsewhereError: This is one.
        """
        if not self.here:
            raise RunElsewhereError(
                "a training run was used in a process that was forked from its own",
                hint="Only the process that started the run commits.",
            )
        if threading.get_ident() != self._owner:
            raise RunElsewhereError(
                "a training run was used in another thread than the one that started it",
                hint="Call step where the run was started: between two steps nothing writes to the model.",
            )

    def check(self) -> None:
        """Raises what went wrong in the thread, every time."""
        if self.error is not None:
            raise self.error

    def reserve(self, *, wait: bool) -> bool:
        """Makes sure that :meth:`put` may be called.

        Args:
            wait: Whether to wait while one piece of work is waiting already.

        Returns:
            Whether it may.
        """
        with self._changed:
            while self._waiting and self.error is None:
                if not wait:
                    return False
                self._wait()
        self.check()
        return True

    def put(self, work: Work) -> None:
        """Hands over one piece of work, for which :meth:`reserve` made sure that there is room."""
        with self._changed:
            self._waiting.append(work)
            self._changed.notify_all()

    def wait(self) -> None:
        """Waits until everything handed over is done, or nothing more will be. Does not raise what went wrong."""
        with self._changed:
            while (self._waiting or self._busy) and self.error is None:
                self._wait()

    def end(self) -> None:
        """Lets the thread finish what was handed over, and waits for it.

        An interrupt ends the wait: then what waits is dropped, and only what was being written may still be published.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        try:
            while self._thread.is_alive():
                self._thread.join(_LOOK_SECONDS)
        except BaseException:
            with self._changed:
                self._waiting.clear()
            raise

    def _wait(self) -> None:
        self._changed.wait(_LOOK_SECONDS)
        if not self._thread.is_alive() and self.error is None:
            self.error = WorkerLostError("the thread that writes commits is gone", hint="Start the run again.")

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                with _Keeping(self):
                    self._do(work)
                del work
        finally:
            self._close()
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> Work | None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self._waiting and not self._ending and self.error is None:
                self._changed.wait()
            if self.error is not None:
                self._waiting.clear()
                return None
            if not self._waiting:
                return None
            self._busy = True
            work = self._waiting.pop(0)
            self._changed.notify_all()
            return work
