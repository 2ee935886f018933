"""Reading a checkout directory, which may be hostile, before anything is made of it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutManifest
from rblstore.errors import InputError
from rblstore.objects import limits


def read_manifest(directory: Path) -> CheckoutManifest:
    """What a checkout's ``rbl-composition.json`` says.

    Raises:
        InputError: The directory is no checkout, or the file is malformed.
    """
    try:
        with (directory / MANIFEST_FILE).open("rb") as stream:
            data = stream.read(limits.RECORD_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{directory} is not a checkout: {MANIFEST_FILE} cannot be read ({error.strerror})",
            object=str(directory),
            hint="Make one with: rbl checkout REV DIR",
        ) from error
    return CheckoutManifest.parse(data)


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
