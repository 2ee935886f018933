"""The repository's lock: flock(2) on an open descriptor, shared by writers, exclusive for maintenance.

The kernel releases it when its holder ends, however it ends; there are no ages and no process ids to guess from.

flock is not fair: writers that come and go could keep maintenance waiting for ever. So everybody first goes through a
gate, a second lock beside the first, which maintenance holds closed while it waits for the writers inside to leave.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rblstore.errors import LockedError, RblError

# Maintenance takes minutes at most; a commit is worth the wait. A long import is not worth waiting for.
WRITER_WAIT_SECONDS: float = 60.0
MAINTENANCE_WAIT_SECONDS: float = 10.0

_PAUSE_SECONDS = 0.01


class LockUnavailableError(RblError):
    """The system cannot lock here (no permission, or a file system without flock)."""

    code = "lock_unavailable"


def acquire(descriptor: int, path: Path, *, exclusive: bool, wait_seconds: float) -> None:
    """Locks an open file.

    Args:
        descriptor: The open file; closing it releases the lock.
        path: Its name, for messages.
        exclusive: Whether nobody else may hold the lock, shared or not.
        wait_seconds: How long to wait for those who hold it; 0 to ask once.

    Raises:
        LockedError: Others still hold it.
        LockUnavailableError: The system cannot lock this file.
    """
    deadline = time.monotonic() + wait_seconds
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise _unavailable(path, error) from error
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise LockedError(
                f"another process holds {path}",
                object=str(path),
                hint="Wait for the other rbl command to end, then run this one again.",
            )
        time.sleep(min(_PAUSE_SECONDS, remaining))


def _unavailable(path: Path, error: OSError) -> LockUnavailableError:
    return LockUnavailableError(
        f"{path} cannot be locked: {error.strerror or error}",
        object=str(path),
        hint="Check permissions; network file systems are not supported.",
    )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file, open and not yet locked; closing it releases the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise _unavailable(path, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _held(path: Path, *, exclusive: bool, wait_seconds: float) -> Iterator[None]:
    until = time.monotonic() + wait_seconds
    gate = path.with_name(path.name + ".gate")
    with _opened(path) as descriptor:
        with _opened(gate) as entrance:
            acquire(entrance, path, exclusive=exclusive, wait_seconds=wait_seconds)
            acquire(descriptor, path, exclusive=exclusive, wait_seconds=max(0.0, until - time.monotonic()))
            fcntl.flock(entrance, fcntl.LOCK_UN)  # also where a child inherited the descriptor
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def shared(path: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Holds the lock together with other writers while the block runs.

    Args:
        path: The lock file, made where it is missing.
        wait_seconds: How long to wait for maintenance to end.

    Raises:
        LockedError: Maintenance (gc, repair, migration) holds it.
        LockUnavailableError: The system cannot lock this file.
    """
    with _held(path, exclusive=False, wait_seconds=wait_seconds):
        yield


@contextmanager
def exclusive(path: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Holds the lock alone while the block runs.

    Args:
        path: The lock file, made where it is missing.
        wait_seconds: How long to wait for others to end.

    Raises:
        LockedError: Another process holds it, shared or not.
        LockUnavailableError: The system cannot lock this file.
    """
    with _held(path, exclusive=True, wait_seconds=wait_seconds):
        yield


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Holds a repository's lock as those do who write to it, together.

    Args:
        folder: The ``.rbl`` folder.

    Raises:
        LockedError: Maintenance took longer than :data:`WRITER_WAIT_SECONDS`.
        LockUnavailableError: The system cannot lock here.
    """
    with shared(folder / "lock", WRITER_WAIT_SECONDS):
        yield


@contextmanager
def maintaining(folder: Path) -> Iterator[None]:
    """Holds a repository's lock alone: nobody writes, and nobody begins to.

    Args:
        folder: The ``.rbl`` folder.

    Raises:
        LockedError: Somebody wrote for longer than :data:`MAINTENANCE_WAIT_SECONDS`.
        LockUnavailableError: The system cannot lock here.
    """
    with exclusive(folder / "lock", MAINTENANCE_WAIT_SECONDS):
        yield
