"""``load``: a composition as a model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rblstore.checkpoints.checkout_layout import PlannedFile, behavior_folder
from rblstore.checkpoints.checkout_writer import DirectoryWriter
from rblstore.forgotten import require_remembered
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.checkout import plan
from rblstore.operations.checkout_manifest import check_weights, check_whole, read_manifest
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.scratch import scratch
from rblstore.operations.stored_models import composed_state
from rblstore.operations.writing import write_files
from rblstore.repository import Store
from rblstore.revisions import resolve

Slots = tuple[tuple[str, Path, float], ...]
"""(name, directory, weight) of each behavior, in order."""


# What loading reads of a checkpoint besides its weights.
_READ = ("config.json", "generation_config.json")


@contextmanager
def laid_out_behaviors(store: Store, composition: Composition) -> Iterator[tuple[Path, Slots]]:
    """Writes a composition's adapters, and of its checkpoint what loading reads besides the weights.

    Args:
        store: The repository.
        composition: What to write.

    Returns:
        A directory that goes away afterwards, and where in it each adapter lies; every digest was verified.

    Raises:
        CorruptError: Stored bytes are damaged.
    """
    require_remembered(store, composition)
    planned = [file for file in plan(store, composition) if file.owner is not None or file.path in _READ]
    with _written(store, composition, planned, None) as laid:
        yield laid


@contextmanager
def _written(
    store: Store, composition: Composition, planned: Sequence[PlannedFile], progress: Progress | None
) -> Iterator[tuple[Path, Slots]]:
    with scratch(store, "load") as folder:
        directory = folder / "model"
        meter = Meter(progress, sum(file.size for file in planned))
        with DirectoryWriter(directory) as writer:
            write_files(store, writer, planned, meter, "reading")
            writer.commit()
        adapters = {file.owner for file in planned}
        yield (
            directory,
            tuple(
                (slot.name, directory / behavior_folder(slot.name), slot.weight)
                for slot in composition.slots
                if slot.name in adapters
            ),
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
        ForgottenError: Something of it was removed on purpose.
        LoadMismatchError: The weights are not those that the configuration describes.
    """
    from rblstore.checkpoints.loading import AttachSpec, load_directory
    from rblstore.checkpoints.model_class import reads_other_weights
    from rblstore.divergence.alignment import aligned
    from rblstore.operations.tensor_memory import TensorReading, are_plain

    require_remembered(store, composition)
    tensors = composed_state(store, composition).tensors
    if not are_plain(tensors):
        return _load_from_files(store, composition, progress, options)
    with TensorReading(store, tensors, progress) as reading, laid_out_behaviors(store, composition) as laid:
        directory, slots = laid
        if not reads_other_weights(directory):
            specs = [AttachSpec(*slot) for slot in slots]
            return aligned(load_directory(directory, specs, tensors=reading.tensors, **options))
    return _load_from_files(store, composition, progress, options)


def _load_from_files(
    store: Store, composition: Composition, progress: Progress | None, options: Mapping[str, Any]
) -> Any:
    """What only transformers itself can read: quantized weights, and those in files of other names."""
    from rblstore.checkpoints.loading import AttachSpec, load_directory
    from rblstore.divergence.alignment import aligned

    with _written(store, composition, plan(store, composition), progress) as (directory, slots):
        # Somebody else may have made this repository: its headers are no safer than a download's.
        check_weights(directory)
        return aligned(load_directory(directory, [AttachSpec(*slot) for slot in slots], **options))


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
        PartialCheckoutError: The directory is a part of a checkout.
        InputError: The directory is no checkout, or a file of it breaks its format.
    """
    from rblstore.checkpoints.loading import AttachSpec, load_directory
    from rblstore.divergence.alignment import aligned

    manifest = read_manifest(directory)
    check_whole(manifest, directory)
    check_weights(directory)
    specs = [
        AttachSpec(slot.name, directory / slot.path, slot.weight) for slot in manifest.slots if slot.path is not None
    ]
    return aligned(load_directory(directory, specs, **options))
