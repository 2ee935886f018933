"""Which contents may be stored as differences from which, by what the records say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TypeAlias

from rblstore.objects.content_records import Behavior, Identity, StoredTensor
from rblstore.objects.ids import CommitId, ContentId, IdentityId
from rblstore.operations.stored_models import read_checkpoint
from rblstore.repository import Store

Candidates: TypeAlias = Mapping[ContentId, Sequence[ContentId]]
_Tensors: TypeAlias = Mapping[str, StoredTensor]


def base_candidates(store: Store, bases: Set[str]) -> Candidates:
    """What each content may be stored as a difference from, best first.

    1. Where a behavior replaces a tensor by one that is like it: what it replaces.
    2. Where a commit replaces its parent's identity: the tensors of that name in the earlier one of the two.
    3. Where identities that nothing connects have like tensors of one name: the one that something else stands on
       already, else that of the identity committed first.

    Like means of one element type, and of shapes that differ in the number of rows at most. Earlier means nearer to a
    root of the graph, then of an earlier time.

    Args:
        store: The repository.
        bases: What is the base of something already.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    found: dict[ContentId, dict[ContentId, None]] = {}

    def offer(tensor: StoredTensor, beneath: StoredTensor) -> None:
        if tensor.content != beneath.content and is_like(tensor, beneath):
            found.setdefault(tensor.content, {})[beneath.content] = None

    for tensor, beneath in _replaced_tensors(store):
        offer(tensor, beneath)
    stood_on = bases | {beneath for offered in found.values() for beneath in offered}
    identities, replacements = _identities(store)
    tensors: dict[IdentityId, _Tensors] = {
        identity: read_checkpoint(store, store.record(identity, Identity).files).tensors for identity in identities
    }
    for later, earlier in replacements:
        for name, tensor in tensors[later].items():
            if (under := tensors[earlier].get(name)) is not None:
                offer(tensor, under)
    alike: dict[tuple[object, ...], dict[ContentId, StoredTensor]] = {}
    for identity in identities:
        for name, tensor in tensors[identity].items():
            key = (name, tensor.dtype, len(tensor.shape), tensor.shape[1:])
            alike.setdefault(key, {}).setdefault(tensor.content, tensor)
    for group in alike.values():
        first = next((content for content in group if content in stood_on), next(iter(group)))
        for tensor in group.values():
            offer(tensor, group[first])
    return {content: tuple(offered) for content, offered in found.items()}


def is_like(tensor: StoredTensor, under: StoredTensor) -> bool:
    """Whether elements of the two correspond: equal shapes, or one with more rows than the other."""
    same_rank = len(under.shape) == len(tensor.shape)
    return same_rank and under.dtype == tensor.dtype and under.shape[1:] == tensor.shape[1:]


def _replaced_tensors(store: Store) -> Iterator[tuple[StoredTensor, StoredTensor]]:
    """Every tensor that a behavior puts in the place of another, and that other."""
    with store.catalog.read() as reader:
        behaviors = sorted(record_id for record_id, _ in reader.records("behavior"))
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
    with store.catalog.read() as reader:
        stored = sorted(IdentityId(record_id) for record_id, _ in reader.records("identity"))
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
    candidates: Candidates, settled: Mapping[ContentId, ContentId | None], helps: Callable[[ContentId, ContentId], bool]
) -> dict[ContentId, ContentId]:
    """A base for every content that is better stored as a difference. No base has one itself.

    What a content is chosen for is decided before the content, so that where a candidate becomes a difference, its base
    is taken in its stead; what only a cycle would decide is passed over.

    Args:
        candidates: See :func:`base_candidates`.
        settled: What is stored as a difference already, with its base; and what others are differences from, with None.
        helps: Whether one content takes fewer bytes as a difference from another.
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
