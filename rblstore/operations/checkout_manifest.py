"""Reading a checkout directory, which may be hostile, before anything is made of it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutManifest
from rblstore.checkpoints.open_beneath import open_regular
from rblstore.errors import InputError
from rblstore.objects import limits


class PartialCheckoutError(InputError):
    """A directory holds a part of a composition where a whole model is wanted."""

    code = "partial_checkout"


def _read(directory: Path) -> bytes:
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = open_regular(root, (MANIFEST_FILE,))
    finally:
        os.close(root)
    with open(descriptor, "rb") as stream:
        # Asking for as much as may be there would take that much memory, however little is.
        return stream.read(min(os.fstat(descriptor).st_size, limits.RECORD_BYTES) + 1)


def read_manifest(directory: Path) -> CheckoutManifest:
    """What a checkout's ``rbl-composition.json`` says.

    Raises:
        InputError: The directory is no checkout, or the file is malformed.
    """
    try:
        data = _read(directory)
    except OSError as error:
        raise InputError(
            f"{directory} is not a checkout: {MANIFEST_FILE} cannot be read ({error.strerror or error})",
            object=str(directory),
            hint="Make one with: rbl checkout REV DIR",
        ) from error
    return CheckoutManifest.parse(data)


def refuse_part(directory: Path) -> None:
    """Refuses a directory that is a partial checkout: what it lacks would seem to be meant. Any other passes.

    Raises:
        PartialCheckoutError: It is one.
        InputError: It has a malformed ``rbl-composition.json``.
    """
    try:
        data = _read(directory)
    except OSError:
        return  # no checkout; whoever reads the directory says what else is wrong with it
    check_whole(CheckoutManifest.parse(data), directory)


def check_whole(manifest: CheckoutManifest, directory: Path) -> None:
    """Refuses the manifest of a partial checkout.

    Raises:
        PartialCheckoutError: It is one.
    """
    if manifest.form == "partial":
        raise PartialCheckoutError(
            f"{directory} is a partial checkout: it holds some files or tensors of a model, not the model",
            object=str(directory),
            hint=f"Check out all of it into another directory: rbl checkout {manifest.commit.short} DIR",
        )


def check_weights(directory: Path) -> None:
    """Parses every safetensors header of a directory strictly, before a library that is less strict loads it.

    Raises:
        InputError: A header that lies, a link, a special file, or weights that are only pickles.
    """
    from rblstore.checkpoints.safetensors_header import read_header
    from rblstore.checkpoints.source_directory import read_exact, scan_directory

    for file in scan_directory(directory).files:
        if file.kind != "safetensors":
            continue
        descriptor = file.open()
        try:
            read_header(partial(read_exact, descriptor), file.size, name=file.path)
        finally:
            os.close(descriptor)
