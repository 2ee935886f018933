"""Packs in memory: the double that tests use in place of mocks, harsher than any production backend.

Whatever the contract leaves open it does in the way that is least convenient: keys are listed backwards, a stage that
is used after its end fails, an object is published only as a copy, and stages that nobody ended can be counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from rblstore.storage.backend import check_key, check_prefix, check_span, missing
from rblstore.storage.durable import WriteError


class _MemoryStage:
    """Bytes of nobody yet; see :class:`rblstore.storage.backend.Stage`."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._data = bytearray()
        self._open = True
        backend.open_stages += 1

    def _require_open(self) -> None:
        if not self._open:
            raise WriteError("the stage has been published or discarded already")

    @property
    def size(self) -> int:
        return len(self._data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._require_open()
        self._data += memoryview(data).cast("B") if len(data) else b""

    def truncate(self, size: int) -> None:
        self._require_open()
        if not 0 <= size <= len(self._data):
            self.discard()
            raise WriteError(f"truncating {len(self._data)} bytes to {size}")
        del self._data[size:]

    def publish(self, key: str) -> bool:
        self._require_open()
        try:
            return self._backend.put(check_key(key), bytes(self._data))
        finally:
            self.discard()

    def discard(self) -> None:
        if self._open:
            self._open = False
            self._data = bytearray()
            self._backend.open_stages -= 1


class MemoryBackend:
    """A backend that forgets everything with the process.

    Attributes:
        open_stages: Stages neither published nor discarded: 0 when everyone has cleaned up.
    """

    def __init__(self) -> None:
        self.open_stages = 0
        self._objects: dict[str, bytes] = {}
        self._modified: dict[str, float] = {}
        self._ticks = 0.0
        self._lock = threading.Lock()

    def stage(self) -> _MemoryStage:
        """See :meth:`rblstore.storage.backend.Backend.stage`."""
        return _MemoryStage(self)

    def put(self, key: str, data: bytes) -> bool:
        """Stores an object unless there is one; whether it did."""
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key] = data
            self._modified[key] = self._tick()
            return True

    def _tick(self) -> float:
        """A clock on which a second passes whenever somebody looks."""
        self._ticks += 1
        return self._ticks

    def _object(self, key: str) -> bytes:
        with self._lock:
            data = self._objects.get(check_key(key))
        if data is None:
            raise missing(key)
        return data

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See :meth:`rblstore.storage.backend.Backend.read`."""
        data = self._object(key)
        check_span(key, offset, length, len(data))
        return bytes(memoryview(data)[offset : offset + length])

    def read_into(self, key: str, offset: int, out: memoryview) -> None:
        """See :meth:`rblstore.storage.backend.Backend.read_into`."""
        out[:] = self.read(key, offset, len(out))

    def size(self, key: str) -> int:
        """See :meth:`rblstore.storage.backend.Backend.size`."""
        return len(self._object(key))

    def exists(self, key: str) -> bool:
        """See :meth:`rblstore.storage.backend.Backend.exists`."""
        with self._lock:
            return check_key(key) in self._objects

    def list(self, prefix: str) -> Iterator[str]:
        """See :meth:`rblstore.storage.backend.Backend.list`."""
        check_prefix(prefix)
        with self._lock:
            keys = sorted((key for key in self._objects if key.startswith(prefix)), reverse=True)
        return iter(keys)

    def move(self, key: str, to: str) -> bool:
        """See :meth:`rblstore.storage.backend.Backend.move`."""
        check_key(key)
        check_key(to)
        with self._lock:
            if key not in self._objects or to in self._objects:
                return False
            self._objects[to] = self._objects.pop(key)
            self._modified[to] = self._tick()
            return True

    def modified(self, key: str) -> float:
        """See :meth:`rblstore.storage.backend.Backend.modified`."""
        self._object(key)
        return self._modified[key]

    def now(self) -> float:
        """See :meth:`rblstore.storage.backend.Backend.now`."""
        with self._lock:
            return self._tick()

    def delete(self, key: str) -> None:
        """See :meth:`rblstore.storage.backend.Backend.delete`."""
        with self._lock:
            self._objects.pop(check_key(key), None)
