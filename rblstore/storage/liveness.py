"""Who still uses a temporary file or folder: flock(2) says so, and neither its age nor a process id.

Whoever makes one opens it and holds a shared lock of it (:func:`claim`) until it is published or removed; the kernel
releases the lock when its process ends, however it ends. A collector removes only what it holds an exclusive lock of
(:func:`take_dead`), and opens nothing through a symbolic link.

Between making something and locking it, a collector may take it for dead. So a claim asks for the lock without waiting
and then looks whether the name still leads to what was opened: whoever loses makes another, under another name. Neither
side waits, and it takes no other lock: models are loaded without the repository's.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

CLAIM_ATTEMPTS: Final = 16
"""How often whoever makes something temporary tries again; a collector holds one thing at a time, for an instant."""

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def claim(descriptor: int, path: Path) -> bool:
    """Says that a file or folder that was just made is in use, for as long as the descriptor is open.

    Args:
        descriptor: Of what was made.
        path: Its name.

    Returns:
        False where a collector was faster: what was made is gone, or about to go.

    Raises:
        OSError: The system cannot lock here.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def take_dead(name: str, folder: int) -> Iterator[int | None]:
    """Holds the exclusive lock of a file or folder that nobody uses while the block runs.

    Args:
        name: Its name in ``folder``.
        folder: Descriptor of the folder that it lies in.

    Yields:
        A descriptor of it; None where somebody uses it, or it is no regular file or folder, or the system refused.
    """
    descriptor = -1
    try:
        taken = False
        with suppress(OSError):
            # A look before opening: opening a device is not without effect.
            if _is_plain(os.stat(name, dir_fd=folder, follow_symlinks=False)):
                descriptor = os.open(name, _READ, dir_fd=folder)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                named = os.stat(name, dir_fd=folder, follow_symlinks=False)
                taken = _is_plain(named) and os.path.samestat(os.fstat(descriptor), named)
        yield descriptor if taken else None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
