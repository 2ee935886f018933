"""Writing one file of a checkout at its offsets."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from rblstore.errors import RblError

# A page: what a file system could leave out.
_HOLE: Final = 4096
_ZEROS: Final = bytes(_HOLE)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class NoSpaceError(RblError):
    """The disk, or the user's share of it, is full or would be."""

    code = "no_space"


class CheckoutWriteError(RblError):
    """The system refused to create, write or rename something."""

    code = "write_failed"


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Says of a system error what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpaceError(
                f"no space was left while writing {what}",
                object=what,
                hint="Free some space and try again; nothing was changed.",
            ) from error
        raise CheckoutWriteError(
            f"{what} could not be written: {error.strerror or error}",
            object=what,
            hint="Check permissions and the disk, then try again; nothing was changed.",
        ) from error


class NewFile:
    """A file being written at its offsets, in any order and by several threads at once. What is not written is zero.

    Args:
        path: Its name in the checkout.
        descriptor: Of the empty file; closed by this object.
        size: Bytes that it will have.
        durable: Whether closing it waits for the disk.
    """

    def __init__(self, path: str, descriptor: int, size: int, *, durable: bool) -> None:
        self.path = path
        self._descriptor = descriptor
        # The system takes one write to a file at a time; threads had better sleep than spin until it is theirs.
        self._turn = threading.Lock()
        self._durable = durable
        try:
            with writing(path):
                os.ftruncate(descriptor, size)
        except BaseException:
            self.abandon()
            raise

    def write_at(self, data: memoryview, offset: int) -> None:
        """Writes bytes at an offset. Zeros are left to the file system, which need not store them.

        Raises:
            NoSpaceError: The disk is full.
            CheckoutWriteError: The system refused.
        """
        if len(data) >= _HOLE and data[:_HOLE] == _ZEROS and data.tobytes() == bytes(len(data)):
            return
        with self._turn, writing(self.path):
            while data:
                count = os.pwrite(self._descriptor, data, offset)
                offset += count
                data = data[count:]

    def close(self) -> None:
        """Ends the file.

        Raises:
            CheckoutWriteError: The system refused.
        """
        try:
            if self._durable:
                with writing(self.path):
                    os.fsync(self._descriptor)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes it as it is; does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):  # what matters was said by pwrite and fsync
                os.close(descriptor)
