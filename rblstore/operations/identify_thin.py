"""Low-rank differences: how thin they are, and which stored adapters they consist of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING, Final

from rblstore.objects.ids import RecordId
from rblstore.operations.identify_adapters import Products
from rblstore.operations.identify_candidates import Candidate, Known, commits_found
from rblstore.operations.identify_result import MergedBehavior, ThinDifference
from rblstore.operations.merged_tensors import LowRankTerm, factors
from rblstore.repository import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rblstore.checkpoints.merging import Floats
    from rblstore.divergence.weight_differences import Share

_THIN_SHARE: Final = 0.9
# Of each difference that is looked at, what is compared with stored adapters' products: enough to tell thousands apart.
_ROWS, _COLUMNS = 64, 256
# Thousands of adapters are told apart by two matrices each; those that have most in common with them by all.
_GLANCED, _CONSIDERED = 2, 64


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
    store: Store, known: Known, candidate: Candidate, sampled: Iterable[SampledDifference], count: int, differing: int
) -> ThinDifference | None:
    """What the differences are made of, where nine in ten of those looked at are of low rank; else None.

    Args:
        store: The repository.
        known: The same, read.
        candidate: What they are differences from.
        sampled: The differences of some matrices.
        count: How many these are.
        differing: How many matrices differ.

    Raises:
        CorruptError: Stored bytes are damaged.
    """
    from rblstore.divergence.weight_differences import rounding_variances, thinness_of

    found, parts = [], []
    for one in sampled:
        found.append(thinness_of(one.difference, rounding_variances(one.values, one.dtype)))
        if sum(not thin.thin for thin in found) > (1 - _THIN_SHARE) * count:
            return None
        parts.append(_part(one))
    thin = [one for one in found if one.thin]
    if not thin:
        return None
    products = known.products(candidate.id, candidate.tensors, frozenset(part.name for part in parts))
    ids, shares, explained = _shares(store, products, parts)
    behaviors = tuple(
        MergedBehavior(ids[share.index], known.name("behavior", ids[share.index]), share.weight, share.cosine)
        for share in shares
    )
    commits = known.commits_with(frozenset([candidate.id]), frozenset(one.id for one in behaviors)) if behaviors else []
    return ThinDifference(
        differing, len(found), max(one.rank for one in thin), statistics.median(one.energy for one in thin),
        behaviors, explained, commits_found(commits),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Part:
    """Evenly spaced rows and columns of one tensor's difference.

    Attributes:
        name: The stored tensor's name.
        down: Which rows of the tensor.
        across: Which columns.
        values: (rows times columns,) float64.
    """

    name: str
    down: NDArray[np.intp]
    across: NDArray[np.intp]
    values: Floats


def _part(sampled: SampledDifference) -> _Part:
    import numpy as np

    rows, columns = sampled.difference.shape
    across = np.unique(np.linspace(0, columns - 1, min(columns, _COLUMNS)).astype(np.intp))
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, _ROWS)).astype(np.intp))
    down = np.asarray(sampled.rows, np.intp)[chosen]
    return _Part(sampled.name, down, across, sampled.difference[np.ix_(chosen, across)].ravel())


def _product(store: Store, term: LowRankTerm, part: _Part) -> Floats:
    """The same rows and columns of what an adapter adds, (rows times columns,) float64."""
    import numpy as np

    a, b = factors(store, term)
    product: Floats = term.scale * (b[part.down].astype(np.float64) @ a[:, part.across].astype(np.float64)).ravel()
    return product


def _shares(
    store: Store, products: Mapping[RecordId, Products], parts: Sequence[_Part]
) -> tuple[list[RecordId], tuple[Share, ...], float]:
    """The adapters that were considered, those of them that explain most, and how much these do."""
    import numpy as np

    from rblstore.divergence.weight_differences import SharedDifferences

    ids = list(products)
    if len(ids) > _CONSIDERED:
        scored = ((_cosine(store, products[one], parts), one) for one in ids)
        ids = [one for _, one in nlargest(_CONSIDERED, scored)]
    shared = SharedDifferences(len(ids))
    for part in parts:
        added = np.zeros((len(ids), len(part.values)))
        for place, one in enumerate(ids):
            if (term := products[one].get(part.name)) is not None:
                added[place] = _product(store, term, part)
        shared.add(part.values, added)
    return (ids, *shared.shares())


def _cosine(store: Store, products: Products, parts: Sequence[_Part]) -> float:
    """Of what an adapter adds with the difference, over the first matrices that it changes."""
    within = whole = own = 0.0
    for part in [part for part in parts if part.name in products][:_GLANCED]:
        added = _product(store, products[part.name], part)
        within += float(added @ part.values)
        whole += float(part.values @ part.values)
        own += float(added @ added)
    return abs(within) / math.sqrt(whole * own) if whole * own > 0.0 else 0.0
