"""Stored adapters beside loose tensors: what they would add to a checkpoint, and which checkpoints one would fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from rblstore.checkpoints.adapter_config import AdapterConfig, parse_adapter_config
from rblstore.checkpoints.adapter_effects import bind_updates
from rblstore.checkpoints.loose_files import LooseFile
from rblstore.checkpoints.merging import can_merge_plain, plan_plain_merge
from rblstore.checkpoints.source_directory import read_exact
from rblstore.errors import ConflictError, InputError
from rblstore.objects import limits
from rblstore.objects.content_records import Behavior, FileManifest, StoredTensor
from rblstore.objects.ids import RecordId
from rblstore.operations.holders import Holder
from rblstore.operations.merged_tensors import LowRankTerm
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, file_named, kept_adapter_config
from rblstore.repository import Store

Products = Mapping[str, LowRankTerm]
"""What an adapter adds, by the tensor that it goes to."""
_SAMPLED: Final = 16


def sampled_names(names: Collection[str]) -> frozenset[str]:
    """At most 16 of some names, evenly spaced.

    Args:
        names: Of tensors that differ.
    """
    return frozenset(sorted(names)[:: max(1, math.ceil(len(names) / _SAMPLED))])


def products_of(
    store: Store,
    adapters: Iterable[Holder],
    beneath: Mapping[str, StoredTensor],
    targets: Collection[str],
) -> Iterator[tuple[RecordId, Products]]:
    """Those of many adapters that can be merged into a checkpoint, each with what it adds to some of its tensors.

    Args:
        store: The repository.
        adapters: Which.
        beneath: The checkpoint's tensors by name.
        targets: Names of some. Products with others are not kept: thousands of adapters may fit.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    for one in adapters:
        behavior = store.record(one.id, Behavior)
        config, entry = kept_adapter_config(store, behavior), file_named(one.files, ADAPTER_WEIGHTS)
        if config is None or entry is None or entry.manifest is None or not can_merge_plain(config, behavior):
            continue
        tensors = {named.name: named.tensor for named in store.record(entry.manifest, FileManifest).tensors}
        try:
            planned = plan_plain_merge(config, tensors, beneath)
        except (ConflictError, InputError):
            continue  # it is of another model
        yield (
            one.id,
            {
                product.target: LowRankTerm(
                    tensors[product.first], tensors[product.second], product.swapped, product.scale
                )
                for product in planned
                if product.target in targets
            },
        )


def loose_settings(file: LooseFile) -> AdapterConfig | None:
    """What an ``adapter_config.json`` says; None where it is none that can be read.

    Args:
        file: Which.

    Raises:
        ChangedFileError: Another file is there now.
    """
    if file.size > limits.ADAPTER_CONFIG_BYTES:
        return None
    with file.open() as descriptor:
        data = read_exact(descriptor, 0, file.size)
    try:
        return parse_adapter_config(data)
    except InputError:
        return None


def attaches(config: AdapterConfig, adapter: Mapping[str, StoredTensor], beneath: Mapping[str, StoredTensor]) -> bool:
    """Whether every module that an adapter changes is in a checkpoint, in its shape.

    Args:
        config: The adapter's.
        adapter: Its tensors by name.
        beneath: The checkpoint's.
    """
    try:
        return bool(bind_updates(config, adapter, beneath))
    except (ConflictError, InputError):
        return False
