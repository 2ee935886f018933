"""Whether a checkout is as it was written."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutManifest
from rblstore.checkpoints.open_beneath import open_directory, open_regular
from rblstore.checkpoints.source_directory import is_excluded
from rblstore.errors import InputError
from rblstore.objects.signature_records import SIGNATURE_FILE

DifferenceKind = Literal["added", "changed", "missing"]
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Difference:
    """One file of a checkout that is not as it was written.

    Attributes:
        path: Relative to the checkout.
        kind: ``missing``, ``changed`` or ``added``.
    """

    path: str
    kind: DifferenceKind


def _is_same(root: int, path: str, sha256: str, size: int) -> bool | None:
    """Whether a file has that content; None where nothing is there."""
    try:
        descriptor = open_regular(root, path.split("/"))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EIO, errno.EMFILE):
            raise InputError(f"{path} could not be read: {error.strerror}", object=path) from error
        return False  # a link, a folder or something special lies in its place
    try:
        if os.fstat(descriptor).st_size != size:
            return False
        digest = hashlib.sha256()
        while data := os.read(descriptor, _CHUNK):
            digest.update(data)
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}", object=path) from error
    finally:
        os.close(descriptor)
    return digest.hexdigest() == sha256


def _is_signature(root: int, path: str) -> bool:
    return path == SIGNATURE_FILE and stat.S_ISREG(os.stat(path, dir_fd=root, follow_symlinks=False).st_mode)


def _walk(root: int) -> Iterator[str]:
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        components = waiting.pop()
        descriptor = open_directory(root, components)
        try:
            with os.scandir(descriptor) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((*components, entry.name))
                    else:
                        yield "/".join((*components, entry.name))
        finally:
            os.close(descriptor)


def compare_directory(target: Path, manifest: CheckoutManifest) -> list[Difference]:
    """Compares a checkout's files with what was written, digest by digest; links are differences, never followed.

    Args:
        target: The checkout.
        manifest: What its ``rbl-composition.json`` says.

    Returns:
        Sorted by path; none where it is as it was. Version control, cache folders and the signature that somebody put
        there (``model.sig``) do not count as added.

    Raises:
        InputError: The directory or a file in it cannot be read.
    """
    found: list[Difference] = []
    known = {file.path for file in manifest.files} | {MANIFEST_FILE}
    try:
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{target} cannot be opened: {error.strerror or error}", object=str(target)) from error
    try:
        for file in manifest.files:
            same = _is_same(root, file.path, file.sha256, file.size)
            if same is None:
                found.append(Difference(file.path, "missing"))
            elif not same:
                found.append(Difference(file.path, "changed"))
        added = (path for path in _walk(root) if path not in known and not is_excluded(path))
        found.extend(Difference(path, "added") for path in added if not _is_signature(root, path))
    except OSError as error:
        raise InputError(f"{target} could not be read: {error.strerror or error}", object=str(target)) from error
    finally:
        os.close(root)
    return sorted(found, key=lambda difference: difference.path)
