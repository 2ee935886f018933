"""Buffers that are used again, so that the system need not clear new pages for each frame."""

from __future__ import annotations

import mmap
import threading
from typing import Final

_LEAST: Final = 64 << 10
_OF_THREAD = threading.local()


Room = mmap.mmap
"""Memory straight from the system: a bytearray would be cleared at once, while every other thread waits."""


def make_room(length: int) -> Room:
    """A buffer of at least that many bytes, zero at first; a forked process gets a copy of its own."""
    return mmap.mmap(-1, max(length, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def scratch(length: int, purpose: str) -> memoryview:
    """Bytes that are this thread's until it asks again for the same purpose, of no particular value."""
    room: Room | None = getattr(_OF_THREAD, purpose, None)
    if room is None or len(room) < length:
        room = make_room(length)
        setattr(_OF_THREAD, purpose, room)
    return memoryview(room)[:length]


class Rooms:
    """A pool of buffers, of sizes that are powers of two. Used by one thread.

    Args:
        limit: Bytes above which buffers that nobody uses are let go.

    Attributes:
        in_use: Bytes of the buffers that somebody has.
    """

    def __init__(self, limit: int) -> None:
        self.in_use = 0
        self._limit = limit
        self._free: list[Room] = []

    @staticmethod
    def size_for(length: int) -> int:
        """Bytes of the buffer that a length gets."""
        return max(_LEAST, 1 << max(length - 1, 0).bit_length())

    def take(self, length: int) -> Room:
        """A buffer of at least that many bytes, of no particular value."""
        size = self.size_for(length)
        self.in_use += size
        for at, room in enumerate(self._free):
            if len(room) == size:
                return self._free.pop(at)
        idle = sum(map(len, self._free))
        while self._free and self.in_use + idle > self._limit:
            idle -= len(self._free.pop(0))
        return make_room(size)

    def give(self, room: Room) -> None:
        """Takes a buffer back, to which nothing refers any more."""
        self.in_use -= len(room)
        self._free.append(room)
