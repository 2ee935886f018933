"""Whether an adapter was trained on the identity it is being committed on, as far as its files can tell.

An adapter's tensors do not say what they were trained on; its configuration names a base. The name is evidence where
it leads to a checkpoint that holds some of the tensors in question (a directory on this machine) or to another identity
of this repository; elsewhere it decides nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from rblstore.checkpoints.adapter_config import AdapterConfig
from rblstore.checkpoints.composition_ground import WrongBaseError, shown
from rblstore.checkpoints.merging import MERGEABLE, read_floats, write_floats
from rblstore.checkpoints.safetensors_header import TensorSpan, read_header
from rblstore.checkpoints.source_directory import read_exact, scan_directory
from rblstore.errors import RblError
from rblstore.objects.content_records import Behavior, Ground, Identity
from rblstore.objects.dtypes import BITS
from rblstore.objects.ids import ContentId, RecordId
from rblstore.operations.claims import claims_about
from rblstore.operations.stat_cache import FileStamp, StatCache
from rblstore.operations.stored_models import view_identity
from rblstore.repository import Store

_CHUNK = 1 << 20


def check_named_base(
    store: Store,
    name: str,
    config: AdapterConfig,
    directory: Path,
    behavior: Behavior,
    stat_cache: StatCache,
) -> None:
    """Refuses an adapter whose configuration leads to a base with other tensors.

    Args:
        store: The repository, whose statements name its identities.
        name: The slot, for messages.
        config: The adapter's configuration.
        directory: Where the adapter lies.
        behavior: The adapter as it would be bound.
        stat_cache: Spares hashing what a commit has read before.

    Raises:
        WrongBaseError: The named base has other tensors where this adapter acts.
    """
    named = config.base_model_name_or_path
    if not named:
        return
    grounds = [ground for ground in behavior.grounds if ground.on == "tensor"]
    last = Path(named).name
    candidates = [Path(named), directory.absolute().parent / last]
    for candidate in candidates:
        try:
            # Adapters come from anywhere: a name like "/" must not make us walk through a file system.
            if not (candidate / "config.json").is_file():
                continue
            differing = _differing(candidate, grounds, stat_cache)
        except (OSError, RblError):
            # The name is only a hint: a folder of that name that is no checkpoint says nothing.
            continue
        if differing is None:
            continue
        if differing:
            raise WrongBaseError(
                f"{name!r} was made for {named!r}, whose tensors differ from this identity's: {shown(differing)}",
                object=name,
                hint="Commit it on a branch that holds that base (rbl switch --orphan), or bind it here with --rebind.",
            )
        return
    found = [_differing_stored(store, other, grounds) for other in _identities_called(store, last)]
    contradicting = [differing for differing in found if differing]
    # Several identities may go by one name: one that agrees is enough.
    if contradicting and [] not in found:
        raise WrongBaseError(
            f"{name!r} was made for {named!r}, another identity of this repository, whose tensors differ from this "
            f"one's: {shown(contradicting[0])}",
            object=name,
            hint="Commit it on that identity's branch, or bind it here with --rebind.",
        )


def _spans(directory: Path, stat_cache: StatCache) -> Iterator[tuple[int, int, TensorSpan, ContentId | None]]:
    """Every tensor: its file's descriptor, where the tensors begin in it, its place, and its content where known."""
    for file in scan_directory(directory).files:
        if file.kind != "safetensors":
            continue
        descriptor = file.open()
        try:
            header = read_header(partial(read_exact, descriptor), file.size, name=file.path)
            known = stat_cache.lookup(directory / file.path, FileStamp.of(os.fstat(descriptor)))
            manifest = None if known is None else known.record
            contents = {} if manifest is None else {entry.name: entry.tensor.content for entry in manifest.tensors}
            for span in header.tensors:
                yield descriptor, len(header.raw), span, contents.get(span.name)
        finally:
            os.close(descriptor)


def _differing(directory: Path, grounds: list[Ground], stat_cache: StatCache) -> list[str] | None:
    """Names of the ground that a checkpoint lacks or has otherwise; None where it has nothing to compare."""
    wanted = {ground.target: ground for ground in grounds}
    differing = []
    for descriptor, start, span, content in _spans(directory, stat_cache):
        ground = wanted.pop(span.name, None)
        if ground is None:
            continue
        if content is not None and span.dtype == ground.dtype:
            agrees = (span.shape, content) == (ground.shape, ground.content)
        else:
            chunks = _chunks(descriptor, start + span.begin, start + span.end)
            agrees = _agrees(ground, span.dtype, span.shape, chunks)
        if not agrees:
            differing.append(span.name)
    return None if wanted and len(wanted) == len(grounds) else sorted([*differing, *wanted])


def _differing_stored(store: Store, other: Identity, grounds: list[Ground]) -> list[str] | None:
    """The same, of an identity of this repository."""
    tensors = view_identity(store, other).tensors
    missing = [ground.target for ground in grounds if ground.target not in tensors]
    if len(missing) == len(grounds):
        return None
    differing = []
    for ground in grounds:
        stored = tensors.get(ground.target)
        if stored is None or stored.content == ground.content:
            continue
        if stored.dtype == ground.dtype or not _agrees(
            ground, stored.dtype, stored.shape, store.content(stored.content)
        ):
            differing.append(ground.target)
    return sorted([*differing, *missing])


def _chunks(descriptor: int, at: int, end: int) -> Iterator[bytes]:
    while at < end:
        yield (data := read_exact(descriptor, at, min(_CHUNK, end - at)))
        at += len(data)


def _agrees(ground: Ground, dtype: str, shape: tuple[int, ...], chunks: Iterable[bytes | memoryview]) -> bool:
    """Whether a tensor is the ground, or the same values in another floating-point type: a cast is no other base."""
    if shape != ground.shape:
        return False
    cast = dtype != ground.dtype
    if cast and not {dtype, ground.dtype} <= set(MERGEABLE):
        return False
    digest = hashlib.sha256()
    for chunk in chunks:
        if cast and ground.dtype is not None:
            values = read_floats(bytes(chunk), dtype, (len(chunk) * 8 // BITS[dtype],))
            digest.update(write_floats(values, ground.dtype))
        else:
            digest.update(chunk)
    return digest.hexdigest() == ground.content


def _identities_called(store: Store, named: str) -> Iterator[Identity]:
    with store.catalog.read() as reader:
        identities = [record_id for record_id, _ in reader.records("identity")]
    for identity_id in identities:
        names = {Path(claim.value).name for claim in claims_about(store, RecordId(identity_id)).get("name", ())}
        if named in names:
            yield store.record(identity_id, Identity)
