"""``checkout``: compose a model from a commit into a directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    behavior_folder,
    plan_checkout,
)
from rblstore.checkpoints.checkout_writer import DirectoryWriter
from rblstore.errors import RblError, UsageError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.content_records import Behavior, Identity
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, ContentId
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.result import Result
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
        form: ``adapters`` (identity, with its behaviors beside it) or ``merged`` (one plain checkpoint).
        files: How many files were written.
        bytes: Their size in all.
        load: Lines of Python that load it.
    """

    directory: Path
    commit: CommitId
    composition: CompositionId
    form: str
    files: int
    bytes: int
    load: tuple[str, ...]


def checkout(
    store: Store, revision: str, target: Path, *, form: CheckoutForm = "adapters", progress: Progress | None = None
) -> CheckoutResult:
    """Writes the composition of a commit into a new or empty directory; every digest is verified on the way.

    Args:
        store: The repository.
        revision: Which commit.
        target: A directory that does not exist or is empty. HEAD does not move.
        form: ``adapters`` or ``merged``.
        progress: Is told bytes written.

    Raises:
        TargetNotEmptyError: The directory has something in it.
        CorruptError: Stored bytes are damaged; nothing is left behind.
        UsageError: Unknown form, or a composition that cannot be merged.
    """
    if form not in FORMS:
        raise UsageError(f"the form {form!r} is none of {', '.join(FORMS)}", object=form)
    commit_id = resolve(store, revision).commit
    composition_id = store.record(commit_id, Commit).composition
    composition = store.record(composition_id, Composition)
    if form == "merged" and composition.slots:
        from rblstore.operations.checkout_merged import write_merged

        files = write_merged(store, composition, commit_id, composition_id, target, progress)
        name = _class_name(target)
        load = (f"from transformers import {name}", f"model = {name}.from_pretrained({str(target)!r})")
    else:
        files = write_adapters(store, composition, target, progress, commit_id, composition_id, form)
        load = ("import rblstore", f"model = rblstore.load_checkout({str(target)!r})")
    return CheckoutResult(target, commit_id, composition_id, form, len(files), sum(file.size for file in files), load)


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


def write_adapters(
    store: Store,
    composition: Composition,
    target: Path,
    progress: Progress | None,
    commit_id: CommitId,
    composition_id: CompositionId,
    form: CheckoutForm = "adapters",
) -> tuple[CheckoutFile, ...]:
    """Writes a composition in the ``adapters`` form.

    Returns:
        The files written, the manifest aside.

    Raises:
        TargetNotEmptyError: The directory has something in it.
        CorruptError: Stored bytes are damaged; nothing is left behind.
    """
    planned = plan(store, composition)
    total = sum(file.size for file in planned)
    meter = Meter(progress, total)
    with_folders = {file.owner for file in planned}
    slots = tuple(
        CheckoutSlot(
            slot.name, slot.behavior, slot.weight, behavior_folder(slot.name) if slot.name in with_folders else None
        )
        for slot in composition.slots
    )
    with DirectoryWriter(target) as writer:
        writer.require_space(total)
        digests = write_files(store, writer, planned, meter, "writing")
        files = tuple(
            CheckoutFile(file.path, digest, file.size) for file, digest in zip(planned, digests, strict=True)
        )
        manifest = CheckoutManifest(form, commit_id, composition_id, composition.identity, slots, files)
        write_manifest(writer, manifest)
        writer.commit()
    return files


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
    identity = read_checkpoint(store, store.record(composition.identity, Identity).files)
    behaviors = [(slot.name, slot.weight, store.record(slot.behavior, Behavior)) for slot in composition.slots]
    beneath = compose(store, identity, [(name, behavior) for name, _, behavior in behaviors])
    return plan_checkout(beneath.files, behaviors, "adapters")


def metered(chunks: Iterable[Chunk], stage: str, meter: Meter) -> Iterator[Chunk]:
    """The same chunks, each told to the meter once it was taken."""
    for chunk in chunks:
        yield chunk
        meter.add(stage, len(chunk))
