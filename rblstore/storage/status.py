"""Whether a file of a repository is there."""

from __future__ import annotations

from pathlib import Path

from rblstore.storage.backend import ReadError


def is_there(path: Path) -> bool:
    """Whether something is there, and not only a link that leads nowhere.

    Raises:
        ReadError: The system does not say.
    """
    try:
        return path.exists()
    except OSError as error:
        raise ReadError(
            f"looking for a file of the repository failed: {error.strerror or error}",
            object=str(path),
            hint="Check the disk and permissions; nothing was changed.",
        ) from error
