"""Reading for whoever is about to call something damaged."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from rblstore.storage.backend import ReadError
from rblstore.storage.disk import DiskBackend

T = TypeVar("T")


class PatientBackend(DiskBackend):
    """A disk whose I/O errors count once they came twice.

    A sector that is gone stays gone; a cable, a controller or a network disk may fail for one call. What could not be
    read is set aside by a repair, and what refers to it with it, so that is worth asking again.
    """

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See :meth:`rblstore.storage.backend.Backend.read`."""
        return _twice(partial(super().read, key, offset, length))

    def read_into(self, key: str, offset: int, out: memoryview) -> None:
        """See :meth:`rblstore.storage.backend.Backend.read_into`."""
        _twice(partial(super().read_into, key, offset, out))

    def size(self, key: str) -> int:
        """See :meth:`rblstore.storage.backend.Backend.size`."""
        return _twice(partial(super().size, key))


def _twice(read: Callable[[], T]) -> T:
    try:
        return read()
    except ReadError as error:
        if getattr(error.__cause__, "errno", None) != errno.EIO:
            raise
        return read()
