"""Which contents may be stored as differences from which, by what the records say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import cache
from typing import Final, TypeAlias

from rblstore.forgotten import all_tombstones
from rblstore.objects.content_records import Behavior, Identity, StoredTensor
from rblstore.objects.ids import CommitId, ContentId, IdentityId
from rblstore.operations.stored_models import read_checkpoint
from rblstore.repository import Store

Candidates: TypeAlias = Mapping[ContentId, Sequence[ContentId]]
Helps: TypeAlias = Callable[[ContentId, ContentId], bool]
_Tensors: TypeAlias = Mapping[str, StoredTensor]

# Of identities that nothing connects, how many a tensor is compared with.
_MOST_COMPARED: Final = 4


class BaseCandidates:
    """What each content may be stored as a difference from, best first.

    1. Where a behavior replaces a tensor by one that is like it: what it replaces.
    2. Where a commit replaces its parent's identity: the tensor of that name in the earlier one of the two.
    3. Where identities that nothing connects have like tensors of one name: those that something else stands on
       already, then those of the identities committed before; at most four.

    Like means of one element type, and of shapes that differ in the number of rows at most. Before and earlier mean
    nearer to a root of the graph, then of an earlier time.

    Args:
        store: The repository, whose records are read at once.

    Raises:
        CorruptError: A record is missing or damaged.
    """

    def __init__(self, store: Store) -> None:
        self._offered: dict[ContentId, dict[ContentId, None]] = {}
        for tensor, beneath in _replaced_tensors(store):
            self._offer(tensor, beneath)
        self._replaced = {beneath for offered in self._offered.values() for beneath in offered}
        identities, replacements = _identities(store)
        tensors: dict[IdentityId, _Tensors] = {
            identity: read_checkpoint(store, store.record(identity, Identity).files).tensors for identity in identities
        }
        for later, earlier in replacements:
            for name, tensor in tensors[later].items():
                if (under := tensors[earlier].get(name)) is not None:
                    self._offer(tensor, under)
        alike: dict[tuple[object, ...], dict[ContentId, None]] = {}
        for identity in identities:
            for name, tensor in tensors[identity].items():
                key = (name, tensor.dtype, len(tensor.shape), tensor.shape[1:])
                alike.setdefault(key, {})[tensor.content] = None
        self._alike = [tuple(group) for group in alike.values() if len(group) > 1]

    def _offer(self, tensor: StoredTensor, beneath: StoredTensor) -> None:
        if tensor.content != beneath.content and tensor.is_like(beneath):
            self._offered.setdefault(tensor.content, {})[beneath.content] = None

    def beside(self, bases: Set[ContentId]) -> Candidates:
        """The candidates, where these contents are the bases of something."""
        found = {content: dict(offered) for content, offered in self._offered.items()}
        for group in self._alike:
            stood_on = [content for content in group if content in bases or content in self._replaced]
            for number, content in enumerate(group):
                compared = [*stood_on, *group[: min(number, _MOST_COMPARED)]]
                found.setdefault(content, {}).update(dict.fromkeys(compared[:_MOST_COMPARED]))
        return {
            content: tuple(base for base in offered if base != content) for content, offered in sorted(found.items())
        }


def _replaced_tensors(store: Store) -> Iterator[tuple[StoredTensor, StoredTensor]]:
    """Every tensor that a behavior puts in the place of another, and that other."""
    forgotten = all_tombstones(store)
    with store.catalog.read() as reader:
        behaviors = sorted(one for one, _ in reader.records("behavior") if one not in forgotten)
    for record_id in behaviors:
        for effect in store.record(record_id, Behavior).effects:
            value, beneath = effect.value, effect.beneath
            if effect.on != "tensor" or value is None or beneath is None:
                continue
            if None not in (value.dtype, value.shape, beneath.dtype, beneath.shape):
                yield (
                    StoredTensor(value.dtype or "", value.shape or (), value.content),
                    StoredTensor(beneath.dtype or "", beneath.shape or (), beneath.content),
                )


def _identities(store: Store) -> tuple[list[IdentityId], list[tuple[IdentityId, IdentityId]]]:
    """Every identity, in the order in which commits brought them; and which took the place of which, later first."""
    forgotten = all_tombstones(store)  # nothing is to stand on what goes
    with store.catalog.read() as reader:
        stored = sorted(IdentityId(one) for one, _ in reader.records("identity") if one not in forgotten)
        commits = list(reader.commits([CommitId(record_id) for record_id, _ in reader.records("commit")]))
        composed = reader.compositions({row.composition for row in commits})
    of = {row.id: composed[row.composition].identity for row in commits if row.composition in composed}
    commits.sort(key=lambda row: (row.generation, row.time, row.id))
    order = dict.fromkeys(of[row.id] for row in commits if row.id in of)
    order = {identity: None for identity in order if identity in set(stored)} | dict.fromkeys(stored)
    number = {identity: at for at, identity in enumerate(order)}
    pairs: dict[tuple[IdentityId, IdentityId], None] = {}
    for row in commits:
        for parent in row.parents:
            one, other = of.get(row.id), of.get(parent)
            if one in number and other in number and one != other:
                earlier, later = sorted((one, other), key=number.__getitem__)
                pairs[later, earlier] = None
    return list(order), list(pairs)


def choose_bases(
    candidates: Callable[[Set[ContentId]], Candidates],
    stored: Mapping[ContentId, ContentId],
    helps: Helps,
) -> dict[ContentId, ContentId]:
    """A base for every content that is better stored as a difference. No base has one itself.

    Asked again, with what was chosen stored, it chooses nothing.

    Args:
        candidates: What may be a base of what, where some contents are bases already.
        stored: What is stored as a difference already, with its base.
        helps: Whether one content takes fewer bytes as a difference from another.
    """
    helps = cache(helps)
    chosen: dict[ContentId, ContentId] = {}
    while True:
        together = {**stored, **chosen}
        bases = set(together.values())
        more = _choose(candidates(bases), {**dict.fromkeys(bases), **together}, helps)
        if not more:
            return chosen
        chosen.update(more)


def _choose(
    candidates: Candidates, settled: Mapping[ContentId, ContentId | None], helps: Helps
) -> dict[ContentId, ContentId]:
    """Goes through the candidates once.

    What a content is chosen for is decided before the content, so that where a candidate becomes a difference, its base
    is taken in its stead; what only a circle would decide is passed over.
    """
    bases = dict(settled)
    chosen: dict[ContentId, ContentId] = {}
    for start in candidates:
        path = [start]
        on_path = {start}
        while path:
            content = path[-1]
            offered = candidates.get(content, ())
            ahead = (
                None if content in bases else next((c for c in offered if c not in bases and c not in on_path), None)
            )
            if ahead is not None:
                path.append(ahead)
                on_path.add(ahead)
                continue
            if content not in bases:
                roots = dict.fromkeys(bases[candidate] or candidate for candidate in offered if candidate in bases)
                base = next((root for root in roots if root != content and helps(content, root)), None)
                bases[content] = base
                if base is not None:
                    chosen[content] = base
            path.pop()
            on_path.discard(content)
    return chosen
