"""``checkout``: compose a model from a commit into a directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rblstore.checkpoints.checkout_layout import (
    MANIFEST_FILE,
    CheckoutFile,
    CheckoutForm,
    CheckoutManifest,
    CheckoutSlot,
    PlannedFile,
    WrittenForm,
    behavior_folder,
    plan_checkout,
)
from rblstore.checkpoints.checkout_writer import DirectoryWriter
from rblstore.checkpoints.composed_layout import ComposedCheckpoint
from rblstore.errors import RblError, UsageError
from rblstore.forgotten import require_remembered
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.content_records import Behavior, Identity
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, ContentId
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.result import Result
from rblstore.operations.scratch import checkout_note
from rblstore.operations.stored_models import CONFIG, compose, read_checkpoint
from rblstore.operations.writing import write_files
from rblstore.repository import Store
from rblstore.revisions import resolve

FORMS = ("adapters", "merged")
Chunk = TypeVar("Chunk", bound="bytes | memoryview")


@dataclass(frozen=True)
class CheckoutResult(Result):
    """A composition in a directory.

    Attributes:
        directory: Where.
        commit: Of which commit.
        composition: Of which composition.
        form: ``adapters`` (identity, with its behaviors beside it), ``merged`` (one plain checkpoint) or ``partial``.
        files: How many files were written.
        tensors: How many tensors were chosen by name, and are in ``tensors.safetensors``.
        bytes: The files' size in all.
        load: Lines of Python that load it; none where only files were chosen.
    """

    directory: Path
    commit: CommitId
    composition: CompositionId
    form: str
    files: int
    tensors: int
    bytes: int
    load: tuple[str, ...]


def checkout(
    store: Store,
    revision: str,
    target: Path,
    *,
    form: CheckoutForm = "adapters",
    only: str | Sequence[str] | None = None,
    tensors: str | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> CheckoutResult:
    """Writes the composition of a commit, or a part of it, into a new or empty directory; every digest is verified.

    Args:
        store: The repository.
        revision: Which commit.
        target: A directory that does not exist or is empty. HEAD does not move.
        form: ``adapters`` or ``merged``.
        only: Patterns of the paths to write, see :mod:`rblstore.checkpoints.name_patterns`. Nothing else is read.
        tensors: Patterns of logical names of tensors to write into ``tensors.safetensors``. Nothing else is read.
        progress: Is told bytes written.

    Raises:
        TargetNotEmptyError: The directory has something in it.
        NothingMatchedError: A pattern chooses nothing.
        CorruptError: Stored bytes are damaged; nothing is left behind.
        ForgottenError: Something of it was removed on purpose.
        UsageError: Unknown form, a composition that cannot be merged, or a part of what is to be merged.
    """
    if form not in FORMS:
        raise UsageError(f"the form {form!r} is none of {', '.join(FORMS)}", object=form)
    in_part = only is not None or tensors is not None
    if in_part and form != "adapters":
        raise UsageError(
            f"the form {form!r} cannot be checked out in part",
            object=form,
            hint="Leave out --form: tensors come as they are stored. Or check out all of it.",
        )
    commit_id = resolve(store, revision).commit
    composition_id = store.record(commit_id, Commit).composition
    composition = store.record(composition_id, Composition)
    require_remembered(store, composition)
    written: WrittenForm = form
    load: tuple[str, ...] = ("import rblstore", f"model = rblstore.load_checkout({str(target)!r})")
    taken = 0
    if in_part:
        from rblstore.operations.checkout_partial import TENSORS_FILE, plan_part

        part = plan_part(store, composition, only, tensors)
        written, taken = "partial", part.tensors
        files = _write(store, composition, part.files, target, progress, commit_id, composition_id, written)
        path = str(target / TENSORS_FILE)
        load = ("from safetensors.torch import load_file", f"tensors = load_file({path!r})") if taken else ()
    elif form == "merged" and composition.slots:
        from rblstore.operations.checkout_merged import write_merged

        files = write_merged(store, composition, commit_id, composition_id, target, progress)
        name = _class_name(target)
        load = (f"from transformers import {name}", f"model = {name}.from_pretrained({str(target)!r})")
    else:
        planned = plan(store, composition)
        files = _write(store, composition, planned, target, progress, commit_id, composition_id, form)
    size = sum(file.size for file in files)
    return CheckoutResult(target, commit_id, composition_id, written, len(files), taken, size, load)


def _class_name(directory: Path) -> str:
    """The transformers class that a written checkpoint's config names."""
    try:
        with (directory / CONFIG).open("rb") as stream:
            data = stream.read(limits.ADAPTER_CONFIG_BYTES + 1)
        config = decode_json(data, what=CONFIG, max_bytes=limits.ADAPTER_CONFIG_BYTES)
    except (OSError, RblError):
        config = None
    named = config.get("architectures") if isinstance(config, dict) else None
    first = named[0] if isinstance(named, list) and named else None
    # It is printed as code to run: nothing but a name may come out.
    return first if isinstance(first, str) and first.isidentifier() else "AutoModel"


def _write(
    store: Store,
    composition: Composition,
    planned: Sequence[PlannedFile],
    target: Path,
    progress: Progress | None,
    commit_id: CommitId,
    composition_id: CompositionId,
    form: WrittenForm,
) -> tuple[CheckoutFile, ...]:
    """Writes planned files of a composition, and the manifest that is not among those returned."""
    total = sum(file.size for file in planned)
    meter = Meter(progress, total)
    slots = checkout_slots(composition, planned)
    with checkout_note(store) as announce, DirectoryWriter(target, announce=announce) as writer:
        writer.require_space(total)
        digests = write_files(store, writer, planned, meter, "writing")
        files = tuple(CheckoutFile(file.path, digest, file.size) for file, digest in zip(planned, digests, strict=True))
        manifest = CheckoutManifest(form, commit_id, composition_id, composition.identity, slots, files)
        write_manifest(writer, manifest)
        writer.commit()
    return files


def checkout_slots(composition: Composition, planned: Sequence[PlannedFile]) -> tuple[CheckoutSlot, ...]:
    """What ``rbl-composition.json`` says of a composition's slots, where these files are written."""
    with_folders = {file.owner for file in planned}
    return tuple(
        CheckoutSlot(
            slot.name, slot.behavior, slot.weight, behavior_folder(slot.name) if slot.name in with_folders else None
        )
        for slot in composition.slots
    )


def write_manifest(writer: DirectoryWriter, manifest: CheckoutManifest) -> None:
    """Writes ``rbl-composition.json``."""
    import hashlib

    data = manifest.encode()
    writer.write_file(MANIFEST_FILE, [data], ContentId(hashlib.sha256(data).hexdigest()), len(data))


def plan(store: Store, composition: Composition) -> tuple[PlannedFile, ...]:
    """Every file of a composition in the ``adapters`` form.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    return plan_composed(store, composition)[1]


def plan_composed(store: Store, composition: Composition) -> tuple[ComposedCheckpoint, tuple[PlannedFile, ...]]:
    """What lies beneath a composition's adapters, and what :func:`plan` gives."""
    identity = read_checkpoint(store, store.record(composition.identity, Identity).files)
    behaviors = [(slot.name, slot.weight, store.record(slot.behavior, Behavior)) for slot in composition.slots]
    beneath = compose(store, identity, [(name, behavior) for name, _, behavior in behaviors])
    return beneath, plan_checkout(beneath.files, behaviors, "adapters")


def metered(chunks: Iterable[Chunk], stage: str, meter: Meter) -> Iterator[Chunk]:
    """The same chunks, each told to the meter once it was taken."""
    for chunk in chunks:
        yield chunk
        meter.add(stage, len(chunk))
