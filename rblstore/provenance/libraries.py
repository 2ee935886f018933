"""Libraries that only some of what provenance does needs, and what is said where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from rblstore.errors import RblError

EXTRA: Final = "pip install 'rblstore[provenance]'"


class MissingLibraryError(RblError):
    """What is asked for needs a library that is not installed."""

    code: ClassVar[str] = "missing_library"


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Around imports: says what could not be done, and what to install.

    Args:
        what: What the libraries are wanted for ("CycloneDX documents").

    Raises:
        MissingLibraryError: One is not there.
    """
    try:
        yield
    except ImportError as error:
        raise MissingLibraryError(
            f"{what} need {error.name or 'a library'}, which is not installed",
            object=error.name,
            hint=f"Run: {EXTRA}",
        ) from error
