"""``load``: a composition as a model in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rblstore.checkpoints.checkout_layout import MANIFEST_NAME, parse_manifest
from rblstore.checkpoints.checkout_writer import DirectoryWriter
from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.checkout import plan
from rblstore.operations.progress import Meter, Progress
from rblstore.repository import Store
from rblstore.revisions import resolve


@dataclass(frozen=True)
class LaidOut:
    """A composition's files in a directory that goes away afterwards.

    Attributes:
        directory: The identity's files, with ``behaviors/NAME`` beside them.
        slots: (name, directory, weight) of each behavior, in order.
    """

    directory: Path
    slots: tuple[tuple[str, Path, float], ...]


@contextmanager
def laid_out(store: Store, composition: Composition, progress: Progress | None = None) -> Iterator[LaidOut]:
    """Writes a composition into a temporary directory, every digest verified.

    Args:
        store: The repository.
        composition: What to write.
        progress: Is told bytes written.

    Raises:
        CorruptError: Stored bytes are damaged.
    """
    with tempfile.TemporaryDirectory(prefix="rbl-load-", dir=store.folder / "tmp") as folder:
        directory = Path(folder) / "model"
        planned = plan(store, composition)
        meter = Meter(progress, sum(file.entry.size for file in planned))
        with DirectoryWriter(directory) as writer:
            for file in planned:
                writer.write_file(file.path, store.file(file.entry), file.entry.sha256, file.entry.size)
                meter.add(f"reading {file.path}", file.entry.size)
            writer.commit()
        yield LaidOut(
            directory,
            tuple((slot.name, directory / "behaviors" / slot.name, slot.weight) for slot in composition.slots),
        )


def load_composition(store: Store, composition: Composition, progress: Progress | None = None, **options: Any) -> Any:
    """A composition as a transformers model in evaluation mode, behaviors attached through peft.

    Args:
        store: The repository.
        composition: What to compose.
        progress: Is told bytes read.
        options: ``dtype``, ``device``, ``attn_implementation``, as :func:`rblstore.checkpoints.loading.load_directory`.

    Returns:
        A ``PreTrainedModel``, or a ``PeftModel`` where there are behaviors; its parameters lie in aligned memory.

    Raises:
        CorruptError: Stored bytes are damaged.
        LoadMismatchError: The weights are not those that the configuration describes.
    """
    from rblstore.checkpoints.loading import AttachSpec, load_directory
    from rblstore.divergence.measure import aligned

    with laid_out(store, composition, progress) as files:
        model = load_directory(files.directory, [AttachSpec(*slot) for slot in files.slots], **options)
        return aligned(model)


def load(store: Store, revision: str = "HEAD", *, progress: Progress | None = None, **options: Any) -> Any:
    """The composition of a commit as a model; see :func:`load_composition`."""
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    return load_composition(store, composition, progress, **options)


def load_checkout(directory: Path, **options: Any) -> Any:
    """A checkout directory as a model, behaviors attached; needs no repository.

    Args:
        directory: What ``rbl checkout`` wrote.
        options: As for :func:`load_composition`.

    Raises:
        InputError: The directory is no checkout, or its ``rbl-composition.json`` is malformed.
    """
    from rblstore.checkpoints.loading import AttachSpec, load_directory
    from rblstore.divergence.measure import aligned

    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as stream:
            data = stream.read(limits.RECORD_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{directory} is not a checkout: {MANIFEST_NAME} cannot be read ({error.strerror})",
            object=str(directory),
            hint="Make one with: rbl checkout REV DIR",
        ) from error
    manifest = parse_manifest(data)
    slots = [] if manifest.form == "merged" else manifest.slots
    specs = [AttachSpec(slot.name, directory / slot.path, slot.weight) for slot in slots]
    return aligned(load_directory(directory, specs, **options))
