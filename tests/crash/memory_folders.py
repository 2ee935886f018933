"""Where trials by the thousand put their files: in memory where there is room for them.

What a killed process leaves is what the kernel has of it, and to that all file systems are alike; on a disk, every
fsync of a commit would be waited for. Power cuts are another matter, and have tests of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")
_BYTES = 1 << 30


@contextmanager
def trial_folder() -> Iterator[Path]:
    """A folder that goes away afterwards."""
    roomy = False
    if os.access(_MEMORY, os.W_OK):
        status = os.statvfs(_MEMORY)
        roomy = status.f_bavail * status.f_frsize >= _BYTES
    folder = Path(tempfile.mkdtemp(prefix="rbl-trials-", dir=_MEMORY if roomy else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes, on a folder; skips the test where none may be mounted."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a file system")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def leave_free(folder: Path, room: int, filler: Path) -> None:
    """Fills a file system up, but for so many bytes."""
    status = os.statvfs(folder)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, status.f_bavail * status.f_frsize - room))
