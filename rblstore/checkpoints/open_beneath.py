"""Opening what lies beneath a directory, one component at a time and never through a symbolic link.

Whoever can swap a directory for a link while we walk gets an error, not a file elsewhere: each component is opened
relative to the descriptor of the one before it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a fifo must not wait for a writer; on a regular file it changes nothing.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotRegularError(OSError):
    """What was opened is a fifo, a socket, a device or a directory."""


def open_directory(root: int, components: Sequence[str], *, make: bool = False) -> int:
    """A descriptor of a directory beneath another.

    Args:
        root: Descriptor of the directory above; stays open.
        components: Names from there, each a single component; none for a second descriptor of ``root``.
        make: Whether missing directories are made.

    Returns:
        A descriptor that the caller closes.

    Raises:
        OSError: A component is missing, no directory, or a symbolic link.
    """
    current = os.open(".", DIRECTORY_FLAGS, dir_fd=root)
    for component in components:
        try:
            if make:
                try:
                    os.mkdir(component, 0o777, dir_fd=current)
                except FileExistsError:
                    pass  # opening it says whether it is a directory
            following = os.open(component, DIRECTORY_FLAGS, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current


def open_regular(root: int, components: Sequence[str]) -> int:
    """A descriptor, for reading, of a regular file beneath a directory.

    Args:
        root: Descriptor of the directory above; stays open.
        components: Names from there, at least one.

    Returns:
        A descriptor that the caller closes.

    Raises:
        NotRegularError: It is not a regular file.
        OSError: A component is missing or a symbolic link.
    """
    folder = open_directory(root, components[:-1])
    try:
        descriptor = os.open(components[-1], FILE_FLAGS, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError("not a regular file")
    return descriptor
