"""Memory that a thread uses again: the system would have to clear new pages for each frame."""

from __future__ import annotations

import threading

_OF_THREAD = threading.local()


def scratch(length: int) -> memoryview:
    """Bytes that are this thread's until it asks again, of no particular value."""
    room: bytearray = getattr(_OF_THREAD, "room", bytearray())
    if len(room) < length:
        room = _OF_THREAD.room = bytearray(length)
    return memoryview(room)[:length]
