"""A checkpoint as it was committed: its files, which of them hold the weights, and the tensors that these hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from rblstore.checkpoints.logical_tensors import INDEX_FILE, SINGLE_FILE, logical_tensors, primary_weight_files
from rblstore.objects.content_records import FileEntry, FileManifest, StoredTensor
from rblstore.objects.ids import ContentId


@dataclass(frozen=True)
class StoredCheckpoint:
    """The files of an identity or an overlay.

    Attributes:
        files: Every file, sorted by path.
        manifests: The manifest of each safetensors file, by path.
        index: Bytes of ``model.safetensors.index.json``, or None where there is none.
    """

    files: tuple[FileEntry, ...]
    manifests: Mapping[str, FileManifest]
    index: bytes | None

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """Paths of the primary weight files, sorted.

        Raises:
            BadIndexError: The index lists a shard that is not there.
        """
        return primary_weight_files(sorted(self.manifests), self.index)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The logical tensors, by name.

        Raises:
            InputError: Files and index contradict each other.
        """
        return logical_tensors(self.manifests, self.weights, self.index)

    @cached_property
    def beside(self) -> dict[str, ContentId]:
        """SHA-256 by path of every file that is neither a primary weight file nor their index.

        An index is the weights' own business even where a single file makes it meaningless.
        """
        apart = {*self.weights, INDEX_FILE}
        return {entry.path: entry.sha256 for entry in self.files if entry.path not in apart}

    @property
    def sharded(self) -> bool:
        """Whether the index decides which files are read."""
        return self.index is not None and self.weights != (SINGLE_FILE,)
