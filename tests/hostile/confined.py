"""Running one input within what it may take: processor time of this process, and memory on top of what it has.

Neither depends on what else the machine is doing: time is what the process itself used (``ITIMER_PROF``), and memory
what it maps privately (``RLIMIT_DATA``), so that an allocation beyond the limit fails where it is made.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

SECONDS = 1.0
MEMORY = 64 << 20

_PAGE = resource.getpagesize()


@cache
def _statm() -> int:
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


class TooSlowError(BaseException):
    """An input took more than its processor time. No family of anybody's, so that nothing catches it."""


def _expired(number: int, frame: FrameType | None) -> None:
    raise TooSlowError("more processor time than an input may take")


@contextmanager
def confined(*, seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Runs the block within limits; only for the main thread.

    Args:
        seconds: Processor time of all threads, the system's part included.
        memory: Bytes that may be mapped beyond what the process has now.

    Raises:
        TooSlowError: The time is over.
        MemoryError: So is the memory, and nobody made another error of it.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.signal(signal.SIGPROF, _expired)
    was_collecting = gc.isenabled()
    gc.disable()  # a collection walks over everything that the tests have imported, which is not the input's doing
    now = int(os.pread(_statm(), 200, 0).split()[5]) * _PAGE
    resource.setrlimit(resource.RLIMIT_DATA, (now + memory, before[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, before)
        signal.signal(signal.SIGPROF, handler)
        if was_collecting:
            gc.enable()
