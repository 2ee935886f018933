"""What loose tensors are, by digests: those of a stored model, some of them, or a merged checkout made anew."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from rblstore.checkpoints.merging import CannotMergeError
from rblstore.checkpoints.tensor_names import TensorNames
from rblstore.forgotten import ForgottenError, tombstones_of
from rblstore.objects.content_records import StoredTensor
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import ContentId
from rblstore.operations.checkout_merged import plain_merged
from rblstore.operations.identify_candidates import Candidate, Known, commits_found
from rblstore.operations.identify_result import ExactMatch, How
from rblstore.operations.merged_tensors import plan_merge
from rblstore.operations.stored_models import composed_state, members
from rblstore.repository import Store


def exact_match(
    known: Known,
    candidate: Candidate,
    given: Mapping[str, StoredTensor],
    files: Collection[ContentId],
    beside: Mapping[str, ContentId],
) -> ExactMatch | None:
    """Whether all given tensors are a candidate's, each in its place, whatever their files.

    Names may be others, as long as none of them is that of another tensor there, up to a model's prefix.

    Args:
        known: The repository's.
        candidate: A stored model.
        given: Loose tensors by name, at least one.
        files: Digests of the files that they lie in.
        beside: Digests of the other files of their folder, by their paths in it.
    """
    if not set(given.values()) <= set(candidate.tensors.values()):
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
    whole = not +left
    same_files = not renamed and set(files) <= {entry.sha256 for entry in candidate.files}
    name, commits = known.name(candidate.role, candidate.id), known.commits(candidate)
    how: How = "files" if same_files else "tensors"
    differing = tuple(entry.path for entry in candidate.files if beside.get(entry.path, entry.sha256) != entry.sha256)
    return ExactMatch(candidate.role, candidate.id, name, how, whole, renamed, differing, commits)


def merged_matches(store: Store, known: Known, given: Mapping[str, StoredTensor]) -> Iterator[ExactMatch]:
    """The compositions whose merged checkout holds just the given tensors; what differs is summed anew and hashed.

    Only plain LoRA is: anything else takes a model in memory.

    Args:
        store: The repository.
        known: The same, read.
        given: Loose tensors by name.

    Raises:
        CorruptError: Stored bytes are damaged.
    """
    for id, composition in known.history.compositions.items():
        adapters = known.adapters(composition)
        if not adapters or tombstones_of(store, adapters):
            continue
        try:
            same = _is_merged(store, composition, given)
        except (CannotMergeError, ForgottenError):
            continue
        if same:
            yield ExactMatch(
                "composition", id, "", "merged", True, 0, (), commits_found(known.history.commits_of(id))
            )  # fmt: skip


def _is_merged(store: Store, composition: Composition, given: Mapping[str, StoredTensor]) -> bool:
    beneath = composed_state(store, composition).tensors
    if beneath.keys() != given.keys():
        return False
    if all(given[name] == tensor for name, tensor in beneath.items()):
        return False  # it is what lies beneath
    plan = plan_merge(store, [one for one in members(store, composition) if one.config is not None], beneath)
    if plan.by_peft or plan.added or any(given[name] != beneath[name] for name in beneath.keys() - plan.terms.keys()):
        return False
    if any((given[name].dtype, given[name].shape) != (beneath[name].dtype, beneath[name].shape) for name in plan.terms):
        return False
    made = plain_merged(store, plan, beneath)
    # The smallest first: most that are something else differ there already.
    for name in sorted(made, key=lambda one: (beneath[one].size, one)):
        digest = hashlib.sha256()
        for block in made[name]():
            digest.update(block)
        if digest.hexdigest() != given[name].content:
            return False
    return True
