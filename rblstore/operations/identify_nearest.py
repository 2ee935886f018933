"""What a loose model is like: its tensors beside a stored model's, by digest, then by values. Rows are sampled."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rblstore.checkpoints.loose_files import LooseTensor
from rblstore.checkpoints.merging import MERGEABLE, read_floats, write_floats
from rblstore.checkpoints.source_directory import read_exact
from rblstore.checkpoints.tensor_names import TensorNames
from rblstore.forgotten import ForgottenError
from rblstore.objects.content_records import StoredTensor
from rblstore.objects.dtypes import BITS
from rblstore.objects.ids import ContentId
from rblstore.operations.identify_adapters import sampled_names
from rblstore.operations.identify_candidates import Candidate, Known, commits_found
from rblstore.operations.identify_result import Likeness, Resemblance, ThinDifference
from rblstore.operations.identify_thin import SampledDifference, thin_difference
from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.checkpoints.merging import Floats

CLOSE: Final = 0.5
"""Of what correlation a matrix is close to another: unrelated weights have next to none, fine-tuned ones above 0.9."""
_LEAST: Final = 0.1
# Places in a matrix that are looked at, rows at each, and elements at each at most.
_PLACES, _ROWS, _ELEMENTS = 3, 64, 1 << 20
# Of how many matrices, and how many rows at each place, a candidate's promise is judged; by these many at first.
_GLANCED, _GLANCED_ROWS, _GLANCED_FIRST = 16, 4, 2


@dataclass(frozen=True)
class Pair:
    """A loose tensor and the stored one that it corresponds to.

    Attributes:
        name: The stored one's name.
        loose: The loose one.
        stored: The stored one, of the same shape.
    """

    name: str
    loose: LooseTensor
    stored: StoredTensor


@dataclass(frozen=True)
class Pairing:
    """How a loose model's tensors correspond to a candidate's.

    Attributes:
        candidate: Which.
        equal: Names of the loose tensors whose bits are stored in it.
        pairs: The others that have a counterpart of their name and shape.
        added: How many have none.
        lacking: How many of its tensors are no counterpart.
        equal_bytes: Bytes of the equal ones.
        paired_bytes: Bytes of these and of all that have a counterpart.
    """

    candidate: Candidate
    equal: tuple[str, ...]
    pairs: tuple[Pair, ...]
    added: int
    lacking: int
    equal_bytes: int
    paired_bytes: int


def pair_up(given: Mapping[str, LooseTensor], candidate: Candidate) -> Pairing:
    """Which of a candidate's tensors each loose one corresponds to; nothing is read.

    Args:
        given: The loose tensors by name.
        candidate: A stored model.
    """
    names = TensorNames(candidate.tensors)
    by_value = {tensor: name for name, tensor in candidate.tensors.items()}
    equal, pairs, taken = [], [], set()
    for name, loose in given.items():
        found = [one.name for one in names.candidates(name)]
        if not found and (tied := names.tied(name.removesuffix(".weight"))) is not None:
            found = [tied]  # a head that was saved beside the embedding it is tied to
        same = candidate.tensors.get(found[0]) == loose.tensor if len(found) == 1 else False
        if same or (not found and loose.tensor in by_value):
            equal.append(name)
            taken.add(found[0] if same else by_value[loose.tensor])
        elif len(found) == 1 and candidate.tensors[found[0]].shape == loose.tensor.shape:
            pairs.append(Pair(found[0], loose, candidate.tensors[found[0]]))
            taken.add(found[0])
    equal_bytes = sum(given[name].tensor.size for name in equal)
    return Pairing(
        candidate, tuple(equal), tuple(pairs), len(given) - len(equal) - len(pairs),
        len(candidate.tensors.keys() - taken), equal_bytes, equal_bytes + sum(pair.loose.tensor.size for pair in pairs),
    )  # fmt: skip


@dataclass(frozen=True)
class _Sample:
    """Rows of a loose and a stored tensor, ``columns`` elements of each, as bytes."""

    rows: list[int]
    columns: int
    mine: bytes
    its: bytes

    def values(self, pair: Pair) -> tuple[Floats, Floats]:
        """Both as (rows, columns) float64."""
        import numpy as np

        shape = len(self.rows), self.columns
        return (
            read_floats(self.mine, pair.loose.tensor.dtype, shape).astype(np.float64),
            read_floats(self.its, pair.stored.dtype, shape).astype(np.float64),
        )


def _runs(rows: Sequence[int], *, joined: bool) -> Iterator[tuple[int, int]]:
    """(first, count) of rows that follow one another; each by itself where they may not be read together."""
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or not joined or rows[at] != rows[at - 1] + 1:
            yield rows[start], at - start
            start = at


class _Reading:
    """Both sides of pairs, read in part."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def sample(self, pair: Pair, most: int = _ROWS) -> _Sample:
        """The same rows of both, cut short where they are very long.

        Args:
            pair: Which.
            most: How many rows at each place.

        Raises:
            ForgottenError: The stored one's content was removed.
            CorruptError: It is damaged.
        """
        rows, columns = matrix_shape(pair.stored.shape)
        width = min(columns, _ELEMENTS)
        each = min(rows, most, max(1, _ELEMENTS // max(1, width)))
        starts = (round(place * (rows - each) / (_PLACES - 1)) for place in range(_PLACES))
        chosen = sorted({start + row for start in starts for row in range(each)})
        (stored,) = self._store.contents.stored([pair.stored.content])
        mine, its = bytearray(), bytearray()
        with pair.loose.file.open() as descriptor:
            for first, count in _runs(chosen, joined=width == columns):
                size = BITS[pair.loose.tensor.dtype] // 8
                mine += read_exact(descriptor, pair.loose.offset + first * columns * size, count * width * size)
                size = BITS[pair.stored.dtype] // 8
                room = bytearray(count * width * size)
                stored.read_into(memoryview(room), first * columns * size)
                its += room
        return _Sample(chosen, width, bytes(mine), bytes(its))

    def is_cast(self, pair: Pair) -> bool:
        """Whether the loose values are all of the stored ones, rounded to the loose element type.

        Raises:
            CorruptError: The stored one is damaged.
        """
        wide, narrow = BITS[pair.stored.dtype] // 8, BITS[pair.loose.tensor.dtype] // 8
        at, rest = pair.loose.offset, b""
        with pair.loose.file.open() as descriptor:
            for chunk in self._store.content(pair.stored.content):
                data = rest + bytes(chunk)
                elements = len(data) // wide
                rest = data[elements * wide :]
                made = cast(data[: elements * wide], pair.stored.dtype, pair.loose.tensor.dtype)
                if read_exact(descriptor, at, elements * narrow) != made:
                    return False
                at += len(made)
        return True


class Glance:
    """How much of a loose model many candidates promise to be, by a few rows of each: thousands may have its names.

    Args:
        store: The repository.
    """

    def __init__(self, store: Store) -> None:
        self._reading = _Reading(store)
        self._seen: dict[tuple[ContentId, ContentId], float] = {}

    def like_bytes(self, pairing: Pairing) -> float:
        """About how many bytes of the loose model are equal or alike.

        Args:
            pairing: Its tensors and a candidate's.

        Raises:
            ChangedFileError: A file is another one than was hashed.
            CorruptError: Stored bytes are damaged.
        """
        matrices = [pair for pair in pairing.pairs if len(pair.stored.shape) > 1]
        found: list[float] = []
        for pair in matrices[:: max(1, math.ceil(len(matrices) / _GLANCED))]:
            found.append(self._related(pair))
            if len(found) == _GLANCED_FIRST and max(found) < _LEAST:
                break
        related = statistics.fmean(found) if found else 0.0
        return pairing.equal_bytes + related * (pairing.paired_bytes - pairing.equal_bytes)

    def _related(self, pair: Pair) -> float:
        key = pair.loose.tensor.content, pair.stored.content
        if key not in self._seen:
            self._seen[key] = self._compared(pair)
        return self._seen[key]

    def _compared(self, pair: Pair) -> float:
        from rblstore.divergence.weight_differences import correlation

        before, after = pair.stored.dtype, pair.loose.tensor.dtype
        if before not in MERGEABLE or after not in MERGEABLE or not pair.stored.size:
            return 0.0
        try:
            sample = self._reading.sample(pair, _GLANCED_ROWS)
        except ForgottenError:
            return 0.0
        if before != after and cast(sample.its, before, after) == sample.mine:
            return 1.0
        return max(0.0, correlation(*sample.values(pair)) or 0.0)


def cast(data: bytes, before: str, after: str) -> bytes:
    """Values rounded to another float type, to nearest with ties to even, as torch does it: by way of float32.

    Args:
        data: Little-endian elements.
        before: Their type.
        after: Another one.
    """
    import numpy as np

    values = read_floats(data, before, (len(data) * 8 // BITS[before],))
    with np.errstate(over="ignore"):
        return write_floats(values if after == "F64" else values.astype(np.float32), after)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor, dimensions past the first flattened; a vector is one row.

    Args:
        shape: Of the tensor.
    """
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


class _Tally:
    """What comparing the pairs of one candidate showed."""

    def __init__(self) -> None:
        self.cast: list[Pair] = []
        self.close: list[Pair] = []
        self.unlike: list[Pair] = []
        self.other: list[Pair] = []
        self.correlations: list[float] = []
        self.bits: list[float] = []


def resemblance(store: Store, known: Known, pairing: Pairing, size: int) -> Resemblance | None:
    """What a loose model and a candidate have in common; None where that is nothing.

    Args:
        store: The repository.
        known: The same, read.
        pairing: Their tensors.
        size: Bytes of the loose model.

    Raises:
        ChangedFileError: The file is another one than was hashed.
        CorruptError: Stored bytes are damaged.
    """
    reading, tally = _Reading(store), _Tally()
    for pair in pairing.pairs:
        _compare(reading, pair, tally)
    candidate, thin = pairing.candidate, _thin(store, known, pairing, reading, [*tally.close, *tally.unlike])
    if thin is not None:  # a strong adapter leaves little correlation
        tally.close, tally.unlike = [*tally.close, *tally.unlike], []
    like_bytes = pairing.equal_bytes + sum(pair.loose.tensor.size for pair in (*tally.cast, *tally.close))
    if not like_bytes:
        return None
    kind: Likeness = "relative"
    if tally.cast and not pairing.added and len(tally.cast) == len(pairing.pairs):
        kind = "cast"
    elif thin is not None and not (tally.unlike or tally.other or pairing.added or pairing.lacking):
        kind = "merged"  # an adapter changes matrices and nothing else
    elif like_bytes < _LEAST * size:
        kind = "parts"
    if thin is not None and kind != "merged":
        thin = replace(thin, commits=commits_found([]))  # something else differs too, which none of them explains
    return Resemblance(
        candidate.role, candidate.id, known.name(candidate.role, candidate.id), kind,
        len(pairing.equal), len(tally.cast), len(tally.close), len(tally.unlike), len(tally.other), pairing.added,
        pairing.lacking, pairing.equal_bytes, like_bytes,
        tuple(sorted({pair.stored.dtype for pair in tally.cast})),
        tuple(sorted({pair.loose.tensor.dtype for pair in tally.cast})),
        statistics.median(tally.correlations) if tally.correlations else None,
        statistics.fmean(tally.bits) if tally.bits else None,
        thin, known.commits(candidate),
    )  # fmt: skip


def _compare(reading: _Reading, pair: Pair, tally: _Tally) -> None:
    """Puts a pair where it belongs."""
    from rblstore.divergence.weight_differences import bits_apart, correlation

    before, after = pair.stored.dtype, pair.loose.tensor.dtype
    if before not in MERGEABLE or after not in MERGEABLE:
        tally.other.append(pair)
        return
    if not pair.stored.size:
        tally.cast.append(pair)  # nothing, of another element type
        return
    try:
        sample = reading.sample(pair)
        if before != after and cast(sample.its, before, after) == sample.mine and reading.is_cast(pair):
            tally.cast.append(pair)
            return
    except ForgottenError:
        tally.other.append(pair)
        return
    related = correlation(*sample.values(pair)) if len(pair.stored.shape) > 1 else None
    if related is None:
        tally.other.append(pair)
        return
    tally.correlations.append(related)
    if before == after:
        tally.bits.append(bits_apart(sample.mine, sample.its, len(sample.rows) * sample.columns))
    (tally.unlike if related < CLOSE else tally.close).append(pair)


def _thin(
    store: Store, known: Known, pairing: Pairing, reading: _Reading, differing: Sequence[Pair]
) -> ThinDifference | None:
    names = sampled_names([pair.name for pair in differing])
    chosen = list({pair.name: pair for pair in differing if pair.name in names}.values())
    sampled = (_difference(reading, pair) for pair in chosen)
    return thin_difference(store, known, pairing.candidate, sampled, len(chosen), len(differing))


def _difference(reading: _Reading, pair: Pair) -> SampledDifference:
    sample = reading.sample(pair)
    one, other = sample.values(pair)
    return SampledDifference(pair.name, sample.rows, one - other, one, pair.loose.tensor.dtype)
