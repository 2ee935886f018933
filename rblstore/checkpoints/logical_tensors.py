"""Which of a checkpoint's files hold its weights, and the tensors they hold together, however they are sharded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.content_records import FileManifest, StoredTensor

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
ADAPTER_FILE: Final = "adapter_model.safetensors"


class BadIndexError(InputError):
    """A shard index says something else than the shards, or breaks the rules for one."""

    code = "bad_index"


class DuplicateTensorError(InputError):
    """Two files of one checkpoint hold a tensor of the same name."""

    code = "duplicate_tensor"


def _weight_map(index: bytes) -> dict[str, str]:
    try:
        body = decode_json(index, what=INDEX_FILE, max_bytes=limits.RECORD_BYTES, max_entries=limits.JSON_ENTRIES)
    except InputError as error:
        raise BadIndexError(error.message, object=INDEX_FILE, hint="Fetch the file again.") from error
    weight_map = body.get("weight_map") if isinstance(body, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadIndexError(f"{INDEX_FILE}: it has no weight_map", object=INDEX_FILE, hint="Fetch the file again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise BadIndexError(f"{INDEX_FILE}: tensor {name[:200]!r} is in no safetensors file", object=name[:200])
    return weight_map


def primary_weight_files(paths: Sequence[str], index: bytes | None) -> tuple[str, ...]:
    """The files that loading the checkpoint would read, as transformers chooses them.

    ``model.safetensors`` where there is one, else the shards that the index lists, else every safetensors file beside
    the config except an adapter's.

    Args:
        paths: Every file's path, relative.
        index: Bytes of ``model.safetensors.index.json``, or None where there is none.

    Returns:
        Sorted paths; none where no safetensors file is at the root.

    Raises:
        BadIndexError: The index is malformed, or lists a shard that is not there.
    """
    present = set(paths)
    if SINGLE_FILE in present:
        return (SINGLE_FILE,)
    if index is None:
        return tuple(
            sorted(
                path for path in present if path.endswith(".safetensors") and "/" not in path and path != ADAPTER_FILE
            )
        )
    weight_map = _weight_map(index)
    for name, shard in weight_map.items():
        if shard not in present:
            raise BadIndexError(
                f"{INDEX_FILE}: tensor {name[:200]!r} should be in {shard[:200]!r}, which is not there",
                object=shard[:200],
                hint="Fetch the missing shard.",
            )
    return tuple(sorted(set(weight_map.values())))


def logical_tensors(
    files: Mapping[str, FileManifest], primary: Sequence[str], index: bytes | None
) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name, the same however they are spread over files.

    Args:
        files: Manifest of each safetensors file, by path.
        primary: What :func:`primary_weight_files` gives.
        index: Bytes of the shard index, or None. It binds only where the primary files are shards.

    Raises:
        DuplicateTensorError: Two of the files hold a tensor of one name.
        BadIndexError: The index puts a tensor into a shard that does not hold it.
        InputError: A primary file has no manifest.
    """
    tensors: dict[str, StoredTensor] = {}
    holders: dict[str, str] = {}
    for path in primary:
        if path not in files:
            raise InputError(f"{path} is not among the checkpoint's safetensors files", object=path)
        for entry in files[path].tensors:
            if entry.name in holders:
                raise DuplicateTensorError(
                    f"tensor {entry.name!r} is in {holders[entry.name]} and in {path}",
                    object=entry.name,
                    hint="Keep one set of weights in the folder: model.safetensors, or shards with their index.",
                )
            holders[entry.name] = path
            tensors[entry.name] = entry.tensor
    if index is not None and tuple(primary) != (SINGLE_FILE,):
        for name, shard in _weight_map(index).items():
            if holders.get(name) != shard:
                raise BadIndexError(
                    f"{INDEX_FILE}: tensor {name[:200]!r} should be in {shard[:200]!r}, which does not hold it",
                    object=name[:200],
                    hint="The index belongs to other shards; fetch both again.",
                )
    return tensors
