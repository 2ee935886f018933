"""Low-rank differences: how thin they are, and which stored adapters they consist of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rblstore.checkpoints.merging import PlainDelta, can_merge_plain, oriented, plan_plain_merge, read_floats
from rblstore.errors import ConflictError, InputError
from rblstore.forgotten import tombstones_of
from rblstore.objects.content_records import Behavior, FileManifest, StoredTensor
from rblstore.objects.ids import RecordId
from rblstore.operations.identify_candidates import Candidate, Known, commits_found
from rblstore.operations.identify_result import MergedBehavior, ThinDifference
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, file_named, kept_adapter_config
from rblstore.repository import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rblstore.checkpoints.merging import Floats
    from rblstore.divergence.weight_differences import SharedDifferences

_THIN_SHARE: Final = 0.9
# Of each difference that is looked at, what is compared with stored adapters' products: enough to tell thousands apart.
_ROWS, _COLUMNS = 64, 256


@dataclass(frozen=True, eq=False)
class SampledDifference:
    """What was looked at of one matrix.

    Attributes:
        name: The stored tensor's name.
        rows: Which rows.
        difference: (rows, columns) float64: the loose values less the stored ones.
        values: (rows, columns) float64: the loose values.
        dtype: The element type that these were rounded to.
    """

    name: str
    rows: Sequence[int]
    difference: Floats
    values: Floats
    dtype: str


def thin_difference(
    store: Store, known: Known, candidate: Candidate, sampled: Iterable[SampledDifference], differing: int
) -> ThinDifference | None:
    """What the differences are made of, where nine in ten of those looked at are of low rank; else None.

    Args:
        store: The repository.
        known: The same, read.
        candidate: What they are differences from.
        sampled: The differences of some matrices.
        differing: How many matrices differ.

    Raises:
        CorruptError: Stored bytes are damaged.
    """
    from rblstore.divergence.weight_differences import SharedDifferences, rounding_variances, thinness_of

    adapters = list(_adapters(store, known, candidate.tensors))
    shared = SharedDifferences(len(adapters))
    found = []
    for one in sampled:
        found.append(thinness_of(one.difference, rounding_variances(one.values, one.dtype)))
        _add(store, shared, one, adapters)
    thin = [one for one in found if one.thin]
    if not thin or len(thin) < _THIN_SHARE * len(found):
        return None
    shares, explained = shared.shares()
    behaviors = tuple(
        MergedBehavior(adapters[share.index].id, known.name("behavior", adapters[share.index].id), share.weight,
                       share.cosine)
        for share in shares
    )  # fmt: skip
    ground = frozenset([candidate.id])
    commits = known.commits_with(ground, frozenset(one.id for one in behaviors)) if behaviors else []
    return ThinDifference(
        differing, len(found), max(one.rank for one in thin), statistics.median(one.energy for one in thin),
        behaviors, explained, commits_found(commits),
    )  # fmt: skip


@dataclass(frozen=True)
class _Adapter:
    """A stored adapter that fits, with the products that it adds by the tensors that they go to."""

    id: RecordId
    tensors: Mapping[str, StoredTensor]
    products: Mapping[str, PlainDelta]


def _adapters(store: Store, known: Known, beneath: Mapping[str, StoredTensor]) -> Iterator[_Adapter]:
    """The stored adapters that could be merged into these tensors, by their names and shapes."""
    adapters = [one for one in known.holders if one.form == "adapter"]
    gone = tombstones_of(store, (one.id for one in adapters))
    for one in adapters:
        if one.id in gone:
            continue
        behavior = store.record(one.id, Behavior)
        config, entry = kept_adapter_config(store, behavior), file_named(one.files, ADAPTER_WEIGHTS)
        if config is None or entry is None or entry.manifest is None or not can_merge_plain(config, behavior):
            continue
        tensors = {named.name: named.tensor for named in store.record(entry.manifest, FileManifest).tensors}
        try:
            products = plan_plain_merge(config, tensors, beneath)
        except (ConflictError, InputError):
            continue  # it is of another model
        yield _Adapter(one.id, tensors, {product.target: product for product in products})


def _add(store: Store, shared: SharedDifferences, sampled: SampledDifference, adapters: Sequence[_Adapter]) -> None:
    """Takes in one matrix: evenly spaced rows and columns of its difference, and of each adapter's product."""
    import numpy as np

    rows, columns = sampled.difference.shape
    across: NDArray[np.intp] = np.unique(np.linspace(0, columns - 1, min(columns, _COLUMNS)).astype(np.intp))
    chosen: NDArray[np.intp] = np.unique(np.linspace(0, rows - 1, min(rows, _ROWS)).astype(np.intp))
    down = np.asarray(sampled.rows)[chosen]
    known = np.zeros((len(adapters), len(chosen) * len(across)))
    for place, adapter in enumerate(adapters):
        product = adapter.products.get(sampled.name)
        if product is None:
            continue
        first, second = (
            read_floats(store.content_bytes(one.content, one.size), one.dtype, one.shape)
            for one in (adapter.tensors[product.first], adapter.tensors[product.second])
        )
        a, b = oriented(first, second, swapped=product.swapped)
        known[place] = product.scale * (b[down].astype(np.float64) @ a[:, across].astype(np.float64)).ravel()
    shared.add(sampled.difference[np.ix_(chosen, across)].ravel(), known)
