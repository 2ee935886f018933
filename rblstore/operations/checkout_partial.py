"""A part of a checkout: some of a composition's files, or some of its tensors in a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rblstore.checkpoints.checkout_layout import LayoutCollisionError, PlannedFile
from rblstore.checkpoints.composed_layout import written_anew
from rblstore.checkpoints.name_patterns import choose_names
from rblstore.objects.content_records import NamedTensor
from rblstore.objects.history_records import Composition
from rblstore.objects.paths import check_paths
from rblstore.operations.checkout import plan_composed
from rblstore.repository import Store

TENSORS_FILE: Final = "tensors.safetensors"


@dataclass(frozen=True)
class Part:
    """What of a composition is to be written.

    Attributes:
        files: Sorted by path.
        tensors: How many tensors are in :data:`TENSORS_FILE`, which is among the files where there are any.
    """

    files: tuple[PlannedFile, ...]
    tensors: int


def plan_part(
    store: Store, composition: Composition, only: str | Sequence[str] | None, tensors: str | Sequence[str] | None
) -> Part:
    """The files and tensors that patterns choose; no content is read for it but shard indexes.

    Args:
        store: The repository.
        composition: Of what.
        only: Patterns of paths, as the ``adapters`` form has them; None for no file.
        tensors: Patterns of tensors' logical names, overlays laid on; None for no tensor.

    Raises:
        NothingMatchedError: A pattern chooses nothing.
        LayoutCollisionError: A chosen file has the path of the file that the tensors would go to.
        UsageError: A pattern is malformed.
        CorruptError: A record is missing or damaged.
    """
    beneath, planned = plan_composed(store, composition)
    files: list[PlannedFile] = []
    if only is not None:
        chosen = choose_names(only, [file.path for file in planned], "file")
        files = [file for file in planned if file.path in chosen]
    if tensors is None:
        return Part(tuple(files), 0)
    stored = beneath.state.tensors
    names = sorted(choose_names(tensors, sorted(stored), "tensor"))
    if any(file.path.split("/")[0].casefold() == TENSORS_FILE for file in files):
        raise LayoutCollisionError(
            f"the composition has a {TENSORS_FILE} of its own, where the chosen tensors would go",
            object=TENSORS_FILE,
            hint="Take files and tensors into two directories.",
        )
    files.append(PlannedFile(TENSORS_FILE, written_anew([NamedTensor(name, stored[name]) for name in names]), None))
    files.sort(key=lambda file: file.path)
    check_paths(file.path for file in files)
    return Part(tuple(files), len(names))
