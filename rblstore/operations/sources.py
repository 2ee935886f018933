"""What a commit takes in: directories as they are scanned, models and tensors in memory as they are saved first."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.checkout_layout import BEHAVIORS_FOLDER, MANIFEST_FILE
from rblstore.checkpoints.source_directory import LeftOut, SourceDirectory, scan_directory
from rblstore.configuration import Compression
from rblstore.objects.content_records import Behavior
from rblstore.objects.history_records import Composition
from rblstore.objects.paths import given_path
from rblstore.objects.signature_records import SIGNATURE_FILE
from rblstore.operations.checkout_manifest import read_manifest, refuse_part
from rblstore.operations.scratch import scratch
from rblstore.operations.stored_models import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rblstore.operations.told import Told
from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.checkpoints.saving import ModelSource


@dataclass(frozen=True)
class CommitRequest:
    """What to commit.

    Attributes:
        message: At least one character that is not white space.
        identity: A directory, a live model or a mapping of tensors; None keeps the parent's.
        behaviors: By slot name: a directory, a live model (a PEFT model is an adapter, any other an overlay), adapter
            tensors with their configuration, or a mapping of all tensors.
        remove: Names of slots to leave out.
        weights: By slot name.
        branch: Where to commit; None for HEAD's branch.
        told: Said about everything imported here; ``base_revision`` about the behaviors, where there are any.
        author: Who commits.
        origin: Where that comes from: ``command line`` or ``api``.
        allow_empty: Whether a commit may repeat its parent's composition.
        unloadable: Whether a composition may be one that peft cannot attach.
        rebind: Whether to bind an adapter to this base although it names another.
        include_opaque: Whether pickles beside safetensors are kept as bytes that are never loaded.
        rehash: Whether files are read although their time stamps say that they are unchanged.
        compression: How what is new is stored: ``fast``, ``max`` or ``none``; None for what the settings say.
    """

    message: str
    author: str
    identity: str | Path | ModelSource | None = None
    behaviors: Mapping[str, str | Path | ModelSource] | None = None
    remove: Sequence[str] = ()
    weights: Mapping[str, float] | None = None
    branch: str | None = None
    told: Told = field(default_factory=Told)
    origin: str = "api"
    allow_empty: bool = False
    unloadable: bool = False
    rebind: bool = False
    include_opaque: bool = False
    rehash: bool = False
    compression: Compression | None = None


class Sources:
    """The directories to read, scanned; what is in memory is written to a temporary folder first.

    Args:
        stack: Keeps the temporary folders until it is closed.
        store: The repository.
        request: What is committed.
        before: What the branch has.
    """

    def __init__(self, stack: ExitStack, store: Store, request: CommitRequest, before: Composition | None) -> None:
        self._stack = stack
        self._store = store
        self._before = before
        given = request.identity
        self.identity = None if given is None else self._scan(given, request, None)
        self.behaviors = {name: self._scan(source, request, name) for name, source in (request.behaviors or {}).items()}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        every = [*self.behaviors.values(), *([] if self.identity is None else [self.identity])]
        return sum(file.size for source in every for file in source.files)

    def _scan(self, source: Any, request: CommitRequest, slot: str | None) -> SourceDirectory:
        if isinstance(source, (str, Path)):
            refuse_part(given_path(source))
            return _without_checkout_parts(scan_directory(given_path(source), include_opaque=request.include_opaque))
        from rblstore.checkpoints.saving import is_adapter, save_source

        folder = self._stack.enter_context(scratch(self._store, "save"))
        if slot is not None and not is_adapter(source):
            save_source(source, folder, identity=True)
            return scan_directory(folder)
        several = len(getattr(source, "peft_config", ())) > 1
        save_source(source, folder, identity=slot is None, adapter_name=slot if several else None)
        return scan_directory(folder if slot is None else self._as_stored(folder, slot))

    def _as_stored(self, folder: Path, slot: str) -> Path:
        """The form in which the slot's adapter was stored before, as far as its values are equal.

        Loading widens a stored adapter to fp32: without this, committing one that nobody trained would change it.
        """
        stored = None if self._before is None else self._before.slot(slot)
        if self._before is None or stored is None or self._store.record(stored.behavior, Behavior).form != "adapter":
            return folder
        from rblstore.checkpoints.saving import keep_stored_form
        from rblstore.operations.load import laid_out_behaviors

        alone = Composition(self._before.identity, (stored,))
        _, ((_, before, _),) = self._stack.enter_context(laid_out_behaviors(self._store, alone))
        keep_stored_form(folder, before)
        unchanged = all(_same_file(folder / name, before / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
        return before if unchanged else folder


def _same_file(left: Path, right: Path) -> bool:
    return filecmp.cmp(left, right, shallow=False)


def _without_checkout_parts(source: SourceDirectory) -> SourceDirectory:
    """A checkout's own files are not part of the model that was checked out."""
    if not any(file.path == MANIFEST_FILE for file in source.files):
        return source
    kept = tuple(file for file in source.files if file.path.split("/")[0] not in (MANIFEST_FILE, BEHAVIORS_FOLDER))
    left_out = source.left_out
    if len(kept) < len(source.files) - 1:
        left_out += (LeftOut(BEHAVIORS_FOLDER, "the checkout's behaviors, which are no part of its identity"),)
    signed = any(file.path == SIGNATURE_FILE for file in kept)
    if signed and all(file.path != SIGNATURE_FILE for file in read_manifest(source.path).files):
        kept = tuple(file for file in kept if file.path != SIGNATURE_FILE)
        left_out += (LeftOut(SIGNATURE_FILE, "the checkout's signature, which is not over a commit to come"),)
    return replace(source, files=kept, left_out=left_out)
