"""Where trials by the thousand put their files: in memory where there is room for them.

What a killed process leaves is what the kernel has of it, and to that all file systems are alike; on a disk, every
fsync of a commit would be waited for. Power cuts are another matter, and have tests of their own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
