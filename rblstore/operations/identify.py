"""``identify``: which stored identity, behavior or commit loose files are, and else what they resemble.

Digests decide what something *is*. Only where they have no answer, names, shapes and values say what it is *like*, and
the two are never mixed. Everything streams: no model is loaded, and memory does not grow with the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from rblstore.checkpoints.loose_files import HashedFile, hash_file, loose_files
from rblstore.objects.content_records import StoredTensor
from rblstore.objects.dtypes import BITS
from rblstore.objects.ids import CompositionId, ContentId, RecordId
from rblstore.operations.identify_adapters import attaches, loose_settings
from rblstore.operations.identify_candidates import Candidate, Known, commits_found
from rblstore.operations.identify_exact import exact_match, merged_matches
from rblstore.operations.identify_nearest import Glance, Pairing, pair_up, resemblance
from rblstore.operations.identify_result import (
    CommitsFound,
    ExactMatch,
    FittingIdentity,
    IdentifiedFile,
    IdentifiedModel,
    IdentifyResult,
    Resemblance,
    UnreadEntry,
    Verdict,
)
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.stored_models import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rblstore.repository import Store

# Of a model's bytes, what must have a counterpart of the same name and shape for its values to be looked at.
_LEAST_PAIRED: Final = 0.1
_COMPARED: Final = 8
_ORDER: Final = {"cast": 0, "merged": 1, "relative": 2, "parts": 3}


def identify(store: Store, path: Path, progress: Progress | None = None) -> IdentifyResult:
    """Says what a file, or each folder of a directory, is by digest, and else what it resembles.

    Args:
        store: The repository.
        path: A directory or file: safetensors, sharded or not, PEFT adapters, checkouts; any other file by its digest.
        progress: Is told bytes hashed.

    Raises:
        InputError: It cannot be read, changes meanwhile, or has a safetensors file that breaks its format.
        CorruptError: A record or stored bytes are missing or damaged.
    """
    listed, unread = loose_files(path)
    meter = Meter(progress, sum(file.size for file in listed))
    hashed = [hash_file(file, partial(meter.add, "hashing")) for file in listed]
    known = Known(store)
    by_digest: dict[ContentId, list[RecordId]] = {}
    for holder in known.holders:
        for digest in {entry.sha256 for entry in holder.files}:
            by_digest.setdefault(digest, []).append(holder.id)
    groups = _groups(hashed, folders=path.is_dir())
    beside = {one.file.path: one for one in hashed if not one.tensors}
    searches = [_Search(store, known, name, groups[name], beside) for name in sorted(groups)]
    for candidate in known.candidates() if searches else ():
        for search in searches:
            search.consider(candidate)
    models = tuple(search.found() for search in searches)
    return IdentifyResult(
        str(path),
        tuple(
            IdentifiedFile(one.file.path, one.file.size, one.sha256, tuple(by_digest.get(one.sha256, ())))
            for one in hashed
        ),
        tuple(UnreadEntry(one.path, one.reason) for one in unread),
        models,
        _commits(known, models),
    )


def _groups(hashed: Sequence[HashedFile], *, folders: bool) -> dict[str, list[HashedFile]]:
    """The files that are one model: those of a folder, but for an adapter's, and for files that hold the same names."""
    found: dict[str, list[HashedFile]] = {}
    for one in hashed:
        if one.tensors:
            path = one.file.path
            found.setdefault(str(PurePosixPath(path).parent) if folders else path, []).append(one)
    for name, files in list(found.items()):
        names = [tensor for file in files for tensor in file.tensors or ()]
        alone = [file for file in files if PurePosixPath(file.file.path).name == ADAPTER_WEIGHTS]
        if len(set(names)) < len(names):
            alone = files
        if len(files) > 1 and alone:
            own = {file.file.path for file in alone}
            found[name] = [file for file in files if file.file.path not in own]
            found.update((file.file.path, [file]) for file in alone)
    return {name: files for name, files in found.items() if files}


class _Search:
    """What one loose model is, as one stored model after the other comes by: records are read once for all models.

    Args:
        store: The repository.
        known: The same, read.
        path: What the model is called.
        files: Its files.
        beside: Every file that holds no tensors, by its path.
    """

    def __init__(
        self, store: Store, known: Known, path: str, files: Sequence[HashedFile], beside: Mapping[str, HashedFile]
    ) -> None:
        self._store, self._known, self._path, self._files, self._all_beside = store, known, path, files, beside
        self._folder = PurePosixPath(files[0].file.path).parent
        self._loose = {name: tensor for file in files for name, tensor in (file.tensors or {}).items()}
        self._given = {name: loose.tensor for name, loose in self._loose.items()}
        self._size = sum(tensor.size for tensor in self._given.values())
        self._values = frozenset(self._given.values()) if self._size else frozenset()
        self._digests = {file.sha256 for file in files}
        self._measure, self._glance = _Measure(self._given), Glance(store)
        self._exact: list[ExactMatch] = []
        self._likely: list[tuple[float, Pairing]] = []
        self._candidates = self._fitting = 0

    def _beside(self, path: str) -> HashedFile | None:
        return self._all_beside.get(str(self._folder / path))

    def consider(self, candidate: Candidate) -> None:
        """Takes in a stored model.

        Raises:
            ChangedFileError: A file is another one than was hashed.
            CorruptError: Stored bytes are missing or damaged.
        """
        match = exact_match(self._known, candidate, self._given, self._values, self._digests, self._beside)
        if match is not None:
            self._exact.append(match)
            self._likely.clear()
            return
        self._candidates += 1
        if self._exact or self._measure.at_most(candidate) < _LEAST_PAIRED * self._size:
            return
        pairing = pair_up(self._loose, candidate)
        if not pairing.paired_bytes or pairing.paired_bytes < _LEAST_PAIRED * self._size:
            return
        self._fitting += 1
        self._likely.append((self._glance.like_bytes(pairing), pairing))
        self._likely.sort(key=lambda one: (one[0], one[1].paired_bytes), reverse=True)
        del self._likely[_COMPARED:]  # a manifest may have 100,000 names: only the likeliest stay in memory

    def found(self) -> IdentifiedModel:
        """What it is, once every stored model came by.

        Raises:
            ChangedFileError: A file is another one than was hashed.
            CorruptError: Stored bytes are missing or damaged.
        """
        exact, found = self._exact, []
        if (exact or self._fitting) and not any(match.whole for match in exact):
            exact = [*merged_matches(self._store, self._known, self._loose), *exact]
        if not exact:
            compared = (resemblance(self._store, self._known, one, self._size) for _, one in self._likely)
            found = [like for like in compared if like is not None]
            found.sort(key=lambda one: (_ORDER[one.kind], -one.like_bytes, -(one.correlation or 0.0)))
        exact.sort(key=lambda one: not one.whole)
        verdict = _verdict(exact, found)
        fits, base_named = self._fits() if verdict == "unknown" else ((), None)
        return IdentifiedModel(
            self._path, tuple(file.file.path for file in self._files), len(self._given), self._size, verdict,
            tuple(exact), tuple(found),
            *((0, 0, 0) if exact else (self._candidates, self._fitting, len(self._likely))), fits, base_named,
        )  # fmt: skip

    def _fits(self) -> tuple[tuple[FittingIdentity, ...], str | None]:
        """The identities that an unknown adapter can be attached to, and what it says that it was made for."""
        settings = self._beside(ADAPTER_CONFIG)
        if settings is None or PurePosixPath(self._files[0].file.path).name != ADAPTER_WEIGHTS:
            return (), None
        config = loose_settings(settings.file)
        if config is None:
            return (), None
        found = (one for one in self._known.identities() if attaches(config, self._given, one.tensors))
        fits = tuple(FittingIdentity(one.id, self._known.name(one.role, one.id)) for one in found)
        return fits, config.base_model_name_or_path


class _Measure:
    """How much of a loose model can have counterparts in a candidate: its 100,000 names are not gone through for all.

    Args:
        given: The loose tensors.
    """

    def __init__(self, given: Mapping[str, StoredTensor]) -> None:
        self._width = max((BITS[tensor.dtype] for tensor in given.values()), default=0) / 8
        self._bytes: dict[tuple[int, ...], int] = {}
        for tensor in given.values():
            self._bytes[tensor.shape] = self._bytes.get(tensor.shape, 0) + tensor.size

    def at_most(self, candidate: Candidate) -> float:
        """Bytes of the loose model, by shapes and by the candidate's size, of which a tied tensor counts twice."""
        shapes = {tensor.shape for tensor in candidate.tensors.values()}
        elements = sum(math.prod(tensor.shape) for tensor in candidate.tensors.values())
        return min(sum(self._bytes.get(shape, 0) for shape in shapes), 2 * self._width * elements)


def _verdict(exact: Sequence[ExactMatch], resembling: Sequence[Resemblance]) -> Verdict:
    if exact:
        return "exact"
    if not resembling or resembling[0].kind == "parts":
        return "unknown"
    return resembling[0].kind


def _commits(known: Known, models: Sequence[IdentifiedModel]) -> CommitsFound:
    """The commits of which all models together are the weights: a checkpoint, and its adapters or none."""
    matches = [match for model in models for match in model.exact if match.whole]
    merged = [CompositionId(match.id) for match in matches if match.how == "merged"]
    if merged and len(models) == 1:
        commits = [commit for commit, composition in known.history.commits if composition in merged]
        return commits_found(commits)
    exact: list[Mapping[RecordId, ExactMatch]] = [
        {match.id: match for match in model.exact if match.whole} for model in models
    ]
    adapters = [{one for one in found if known.forms.get(one) == "adapter"} for found in exact]
    grounds = [found.keys() - several for found, several in zip(exact, adapters, strict=True)]
    bases = [ground for ground in grounds if ground]
    if not all(exact) or len(bases) != 1:
        return commits_found([])
    held = frozenset(one for several in adapters for one in several)
    return commits_found(known.commits_with(frozenset(bases[0]), held))
