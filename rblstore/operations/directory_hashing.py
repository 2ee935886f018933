"""Hashing the files of a directory as signatures compare them: each one is read, and what is no file is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from rblstore.errors import InputError
from rblstore.provenance.libraries import needed_for
from rblstore.provenance.signing_keys import WHAT


class UnreadableModelError(InputError):
    """A directory cannot be compared with a signature."""

    code: ClassVar[str] = "unreadable_model"


def hash_directory(directory: Path, ignored: Iterable[Path] = ()) -> dict[str, str]:
    """SHA-256 by path of the files in a directory that signatures are over, as the public command finds them.

    Args:
        directory: Of a model.
        ignored: Relative paths to leave out besides: the signature itself.

    Raises:
        UnreadableModelError: It has a symbolic link or a special file, or the system refuses.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    with needed_for(WHAT):
        from model_signing import hashing
    config: Any = hashing.Config()  # type: ignore[no-untyped-call]
    config.set_ignored_paths(paths=list(ignored))
    try:
        found = config.hash(directory)
    except (ValueError, OSError) as error:
        raise UnreadableModelError(
            f"the files in {directory} cannot be read: {error}",
            object=str(directory),
            hint="A signed model has regular files only.",
        ) from error
    return {one.identifier: one.digest.digest_hex for one in found.resource_descriptors()}
