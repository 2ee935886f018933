"""What a checkout looks like on disk: which file goes where, and the ``rbl-composition.json`` that says so.

``DIR/`` holds the identity's files with every overlay laid on, loadable as they are; ``DIR/behaviors/NAME/`` each
adapter's; and ``DIR/rbl-composition.json`` names the commit, the order, the weights and every file's digest:

    {
      "rblstore_checkout": 1,
      "form": "adapters",             or "merged", or "partial": some of its files, no model to load or commit
      "commit": ID, "composition": ID, "identity": ID,
      "slots": [{"name", "behavior": ID, "weight", "path"}],     in the order in which they are applied; path is null
                                                                 where it is in the checkpoint itself, or not here
      "files": [{"path", "sha256", "size"}]                      sorted by path; this file is not among them
    }
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from rblstore.errors import ConflictError, InputError, UsageError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.content_records import Behavior, FileEntry, NamedTensor
from rblstore.objects.fields import Fields, require_sorted
from rblstore.objects.ids import BehaviorId, CommitId, CompositionId, ContentId, IdentityId
from rblstore.objects.paths import check_name, check_path, check_paths

CheckoutForm = Literal["adapters", "merged"]
WrittenForm = Literal["adapters", "merged", "partial"]

MANIFEST_FILE: Final = "rbl-composition.json"
BEHAVIORS_FOLDER: Final = "behaviors"
_VERSION: Final = 1
_VERSION_KEY: Final = "rblstore_checkout"


class LayoutCollisionError(ConflictError):
    """A file of the model has a path that a checkout needs for itself."""

    code = "layout_collision"


@dataclass(frozen=True)
class CheckoutSlot:
    """One behavior of a checkout.

    Attributes:
        name: Its slot's.
        behavior: Which.
        weight: Its scale.
        path: Its folder in the checkout, or None where it is in the checkpoint itself (an overlay, or anything merged)
            or no file of it was taken.
    """

    name: str
    behavior: BehaviorId
    weight: float
    path: str | None


@dataclass(frozen=True)
class CheckoutFile:
    """One file of a checkout.

    Attributes:
        path: Relative, with forward slashes.
        sha256: Of the whole file.
        size: Bytes.
    """

    path: str
    sha256: ContentId
    size: int


@dataclass(frozen=True)
class CheckoutManifest:
    """What ``rbl-composition.json`` says.

    Attributes:
        form: ``adapters``, ``merged``, or ``partial`` where only some files or tensors were taken.
        commit: What was checked out.
        composition: The commit's.
        identity: The composition's.
        slots: In the composition's order.
        files: Every file but the manifest's own, sorted by path.
    """

    form: WrittenForm
    commit: CommitId
    composition: CompositionId
    identity: IdentityId
    slots: tuple[CheckoutSlot, ...]
    files: tuple[CheckoutFile, ...]

    def encode(self) -> bytes:
        """The file's bytes: indented JSON, made for people too."""
        body = {
            _VERSION_KEY: _VERSION,
            "form": self.form,
            "commit": str(self.commit),
            "composition": str(self.composition),
            "identity": str(self.identity),
            "slots": [
                {"name": slot.name, "behavior": str(slot.behavior), "weight": slot.weight, "path": slot.path}
                for slot in self.slots
            ],
            "files": [{"path": file.path, "sha256": str(file.sha256), "size": file.size} for file in self.files],
        }
        return json.dumps(body, ensure_ascii=False, indent=2, allow_nan=False).encode("utf-8") + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> CheckoutManifest:
        """Reads the file's bytes, which may be hostile.

        Raises:
            InputError: Malformed, of another version, or with a path that leaves the checkout.
        """
        body = decode_json(data, what=MANIFEST_FILE, max_bytes=limits.RECORD_BYTES, max_entries=limits.JSON_ENTRIES)
        fields = Fields(body, MANIFEST_FILE)
        version = fields.integer(_VERSION_KEY)
        if version != _VERSION:
            raise InputError(
                f"{MANIFEST_FILE}: version {version} is not known",
                object=MANIFEST_FILE,
                hint="A newer rblstore wrote it; upgrade.",
            )
        manifest = cls(
            cast("WrittenForm", fields.choice("form", get_args(WrittenForm))),
            fields.id("commit", CommitId),
            fields.id("composition", CompositionId),
            fields.id("identity", IdentityId),
            fields.items("slots", _read_slot),
            fields.items("files", _read_file),
        )
        fields.done()
        require_sorted(sorted(slot.name.casefold() for slot in manifest.slots), f"{MANIFEST_FILE}: slot names")
        require_sorted([file.path for file in manifest.files], f"{MANIFEST_FILE}: files")
        check_paths(file.path for file in manifest.files)
        return manifest


def _read_slot(value: Any) -> CheckoutSlot:
    fields = Fields(value, f"{MANIFEST_FILE}: slot")
    slot = CheckoutSlot(
        fields.text("name", limits.NAME_BYTES),
        fields.id("behavior", BehaviorId),
        fields.number("weight"),
        fields.optional_text("path", limits.PATH_BYTES),
    )
    fields.done()
    try:
        check_name(slot.name, "behavior")
    except UsageError as error:
        raise InputError(f"{MANIFEST_FILE}: {error.message}", object=error.object) from error
    if slot.path is not None and check_path(slot.path) != behavior_folder(slot.name):
        raise InputError(f"{MANIFEST_FILE}: slot {slot.name!r} lies in {slot.path!r}", object=slot.name)
    return slot


def _read_file(value: Any) -> CheckoutFile:
    fields = Fields(value, f"{MANIFEST_FILE}: file")
    file = CheckoutFile(fields.text("path", limits.PATH_BYTES), fields.id("sha256", ContentId), fields.integer("size"))
    fields.done()
    return file


@dataclass(frozen=True)
class ComposedWeights:
    """A weight file that nobody committed as it is; see :mod:`rblstore.checkpoints.composed_layout`.

    Attributes:
        header: Its bytes before the first tensor, or the stored content that they are.
        tensors: What follows, in order.
        size: Bytes of the whole file.
    """

    header: bytes | ContentId
    tensors: tuple[NamedTensor, ...]
    size: int


FileSource: TypeAlias = "FileEntry | ComposedWeights | bytes"
"""What a file comes from: a stored file as it is, tensors under a header, or these very bytes."""


@dataclass(frozen=True)
class PlannedFile:
    """One file that a checkout will write.

    Attributes:
        path: Where, relative to the checkout.
        source: What it comes from. A stored file's own path is the one that it was committed under.
        owner: The slot's name whose adapter it belongs to, or None for the checkpoint beneath them.
    """

    path: str
    source: FileSource
    owner: str | None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.size

    @property
    def sha256(self) -> ContentId | None:
        """Of the whole file, where it was committed as it is; else None."""
        return self.source.sha256 if isinstance(self.source, FileEntry) else None


def behavior_folder(name: str) -> str:
    """Where in a checkout the behavior of a slot lies."""
    return f"{BEHAVIORS_FOLDER}/{name}"


def refuse_reserved_paths(paths: Iterable[str]) -> None:
    """Refuses a checkpoint's files whose paths a checkout needs for itself, in any spelling of case.

    Raises:
        LayoutCollisionError: One of them is, or lies in, such a path.
    """
    for path in paths:
        if path.split("/")[0].casefold() in (BEHAVIORS_FOLDER, MANIFEST_FILE):
            raise LayoutCollisionError(
                f"the file {path} lies where a checkout keeps its own",
                object=path,
                hint=f"Rename it: {BEHAVIORS_FOLDER}/ and {MANIFEST_FILE} are taken.",
            )


def plan_checkout(
    files: Iterable[tuple[str, FileSource]], behaviors: Sequence[tuple[str, float, Behavior]], form: CheckoutForm
) -> tuple[PlannedFile, ...]:
    """Which file goes where.

    Args:
        files: (path, source) of the checkpoint beneath the adapters; they keep their paths.
        behaviors: (slot name, weight, behavior) in the composition's order; an adapter's files go to
            ``behaviors/NAME/``, an overlay is in the checkpoint already.
        form: ``merged`` plans the checkpoint's files only: the caller puts summed weights in the place of stored ones.

    Returns:
        Sorted by path.

    Raises:
        LayoutCollisionError: A file of the checkpoint has a path that the checkout needs.
        InputError: A path would be too long, or two collide on a system that folds case.
    """
    planned = [PlannedFile(path, source, None) for path, source in files]
    refuse_reserved_paths(file.path for file in planned)
    for name, _weight, behavior in behaviors:
        folder = behavior_folder(check_name(name, "behavior"))
        if form == "adapters" and behavior.form == "adapter":
            planned += [PlannedFile(f"{folder}/{entry.path}", entry, name) for entry in behavior.files]
    planned.sort(key=lambda file: file.path)
    check_paths(file.path for file in planned)
    return tuple(planned)
