"""What loose tensors are, by digests: those of a stored model, some of them, or a merged checkout made anew."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

from rblstore.checkpoints.loose_files import HashedFile, LooseTensor
from rblstore.checkpoints.merging import CannotMergeError, merge_tensor
from rblstore.checkpoints.source_directory import read_exact
from rblstore.checkpoints.tensor_names import TensorNames
from rblstore.forgotten import ForgottenError
from rblstore.objects.content_records import StoredTensor
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import CompositionId, ContentId, RecordId
from rblstore.operations.checkout_merged import plain_merged
from rblstore.operations.identify_adapters import sampled_names
from rblstore.operations.identify_candidates import Candidate, Known, commits_found
from rblstore.operations.identify_result import ExactMatch, How
from rblstore.operations.merged_tensors import factors, plan_merge
from rblstore.operations.stored_models import members
from rblstore.repository import Store

_ROWS: Final = 4


def exact_match(
    known: Known,
    candidate: Candidate,
    given: Mapping[str, StoredTensor],
    values: frozenset[StoredTensor],
    files: Collection[ContentId],
    beside: Callable[[str], HashedFile | None],
) -> ExactMatch | None:
    """Whether all given tensors are a candidate's, each in its place, whatever their files.

    Names may be others, as long as none of them is that of another tensor there, up to a model's prefix.

    Args:
        known: The repository's.
        candidate: A stored model.
        given: Loose tensors by name.
        values: The same without names; none where they have no bytes, and so prove nothing.
        files: Digests of the files that they lie in.
        beside: Gives a file of their folder that holds no tensors, by its path in it.
    """
    if not values or len(values) > len(candidate.tensors) or not values.issubset(candidate.tensors.values()):
        return None
    names, left, renamed = TensorNames(candidate.tensors), Counter(candidate.tensors.values()), 0
    for name, tensor in given.items():
        if candidate.tensors.get(name) == tensor:
            left[tensor] -= 1
    for name, tensor in given.items():
        if candidate.tensors.get(name) == tensor:
            continue
        meant = [found.name for found in names.candidates(name)]
        if len(meant) == 1 and candidate.tensors[meant[0]] != tensor:
            return None  # its bits belong elsewhere: layers that changed places are another model
        tied = names.tied(name.removesuffix(".weight"))
        if left[tensor] > 0:
            left[tensor] -= 1
            renamed += 1
        elif tied is None or candidate.tensors[tied] != tensor:
            return None  # once more than it is there: a layer that was put in twice is another model
    lacking = sum((+left).values())
    same_files = not renamed and set(files) <= {entry.sha256 for entry in candidate.files}
    name, commits = known.name(candidate.role, candidate.id), known.commits(candidate)
    how: How = "files" if same_files else "tensors"
    differing = tuple(
        entry.path
        for entry in candidate.files
        if (other := beside(entry.path)) is not None and other.sha256 != entry.sha256
    )
    return ExactMatch(candidate.role, candidate.id, name, how, not lacking, renamed, lacking, differing, commits)


def merged_matches(store: Store, known: Known, given: Mapping[str, LooseTensor]) -> Iterator[ExactMatch]:
    """The compositions whose merged checkout holds just the given tensors; what differs is summed anew and hashed.

    Only plain LoRA is: anything else takes a model in memory.

    Args:
        store: The repository.
        known: The same, read.
        given: Loose tensors by name.

    Raises:
        ChangedFileError: A file is another one than was hashed.
        CorruptError: Stored bytes are damaged.
    """
    on: dict[RecordId, list[CompositionId]] = {}
    for id, composition in known.history.compositions.items():
        if known.adapters(composition):
            on.setdefault(known.ground(composition), []).append(id)
    for ground, compositions in on.items():
        try:
            beneath = known.composed_tensors(RecordId(compositions[0]))
            differing = _differing(beneath, given)
            if not differing:
                continue
            fitting = [
                id for id in compositions if differing <= known.targets(known.history.compositions[id])
            ]  # an adapter changes its targets and nothing else
            same = _Beginning(store, known, ground, beneath, given, differing) if fitting else None
            for id in fitting:
                composition = known.history.compositions[id]
                if same is not None and same.of(composition) and _is_merged(store, composition, beneath, given):
                    yield ExactMatch(
                        "composition", RecordId(id), "", "merged", True, 0, 0, (),
                        commits_found(known.history.commits_of(id)),
                    )  # fmt: skip
        except ForgottenError:
            continue  # what lies beneath is gone


def _differing(beneath: Mapping[str, StoredTensor], given: Mapping[str, LooseTensor]) -> frozenset[str]:
    """Names of the tensors that differ; none where it is another layout, and so no merged checkout of this."""
    if beneath.keys() != given.keys():
        return frozenset()
    differing = frozenset(name for name, tensor in beneath.items() if given[name].tensor != tensor)
    if any((given[name].tensor.dtype, given[name].tensor.shape) != (beneath[name].dtype, beneath[name].shape)
           for name in differing):  # fmt: skip
        return frozenset()
    return differing


class _Beginning:
    """Whether a tensor that was changed begins as a composition merges it: enough to pass over thousands of others."""

    def __init__(
        self, store: Store, known: Known, ground: RecordId, beneath: Mapping[str, StoredTensor],
        given: Mapping[str, LooseTensor], differing: frozenset[str],
    ) -> None:  # fmt: skip
        self._store, self._forms = store, known.forms
        self._products = known.products(ground, beneath, sampled_names(differing))
        self._name = min(sampled_names(differing), key=lambda name: (beneath[name].size, name))
        lies, loose = beneath[self._name], given[self._name]
        rows = min(lies.shape[0], _ROWS) if len(lies.shape) > 1 else 0
        self._lies = replace(lies, shape=(rows, *lies.shape[1:]))
        (stored,) = store.contents.stored([lies.content])
        room = bytearray(self._lies.size)
        stored.read_into(memoryview(room), 0)
        self._base = bytes(room)
        with loose.file.open() as descriptor:
            self._mine = read_exact(descriptor, loose.offset, len(room))

    def of(self, composition: Composition) -> bool:
        """Whether it does.

        Raises:
            CorruptError: Stored bytes are damaged.
        """
        rows, terms = self._lies.shape[0], []
        for slot in composition.slots:
            if self._forms.get(slot.behavior) != "adapter":
                continue
            if slot.behavior not in self._products:
                return False  # no plain LoRA, or gone
            term = self._products[slot.behavior].get(self._name)
            if term is not None and rows:
                a, b = factors(self._store, term)
                terms.append((a, b[:rows], term.scale * slot.weight))
        if not rows or not terms:
            return not rows
        try:
            made = b"".join(
                merge_tensor(lambda _start, _count: self._base, self._lies.dtype, self._lies.shape, terms, rows)
            )
        except CannotMergeError:
            return False
        return made == self._mine


def _is_merged(
    store: Store, composition: Composition, beneath: Mapping[str, StoredTensor], given: Mapping[str, LooseTensor]
) -> bool:
    try:
        plan = plan_merge(store, [one for one in members(store, composition) if one.config is not None], beneath)
    except CannotMergeError:
        return False
    if (
        plan.by_peft
        or plan.added
        or any(given[name].tensor != beneath[name] for name in beneath.keys() - plan.terms.keys())
    ):
        return False
    made = plain_merged(store, plan, beneath)
    # The smallest first: most that are something else differ there already.
    for name in sorted(made, key=lambda one: (beneath[one].size, one)):
        digest = hashlib.sha256()
        for block in made[name]():
            digest.update(block)
        if digest.hexdigest() != given[name].tensor.content:
            return False
    return True
