"""``guard``: watch the identity's tensors in a live model while something else is trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.composition_ground import WrongBaseError, shown
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.stored_models import composed_state
from rblstore.operations.tensor_reading import tensor_reader
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    from rblstore.live.guard import IdentityGuard, OnMutation


class NotCommittedModelError(WrongBaseError):
    """A live model's own tensors are not those of the commit that it is said to be."""

    code = "not_committed_model"


def guard_model(
    store: Store,
    model: Any,
    revision: str | None = "HEAD",
    *,
    every: int = 1,
    sample: int | None = None,
    on_mutation: OnMutation = "raise",
    background: bool = True,
    threads: int = 1,
    compare: bool = True,
) -> IdentityGuard:
    """Fingerprints the tensors of a live model that belong to a commit's identity, overlays laid on.

    Args:
        store: The repository.
        model: A transformers model, a PEFT model around one, or any module whose names match.
        revision: Which commit; None to watch every tensor of the plain model, whatever is stored.
        every: As for :class:`rblstore.live.guard.IdentityGuard`, and so on.
        sample: Bytes that a check reads.
        on_mutation: What to do.
        background: Whether threads read.
        threads: How many.
        compare: Whether to compare the tensors with the stored ones first. Those that an attached adapter has replaced
            are watched, but not compared.

    Raises:
        BadGuardError: A setting is out of range, or the model is no module.
        NotCommittedModelError: The model is not what was committed.
        UnguardableError: Tensors are offloaded, sharded or sparse.
        UnmappedTensorError: A stored tensor has no place in the model.
        CorruptError: Stored bytes are damaged.
    """
    from rblstore.checkpoints.plain_view import plain_tensors
    from rblstore.live.binding import bind, replaced_names
    from rblstore.live.guard import IdentityGuard, check_settings
    from rblstore.live.watching import check_readable, model_within

    check_settings(model, every=every, sample=sample, on_mutation=on_mutation, threads=threads)
    names: Collection[str] | None = None
    if revision is not None:
        inner = model_within(model)
        present = plain_tensors(inner)
        check_readable(present.items())
        commit = resolve(store, revision).commit
        composition = store.record(store.record(commit, Commit).composition, Composition)
        stored = composed_state(store, composition).tensors
        binding = bind(inner, stored, absent=_heads(inner, stored))
        names = present.keys() - binding.unbound
        if compare:
            replaced = replaced_names(inner, present)
            asked = {name: one.content for name, one in stored.items() if binding.direct.get(name) not in replaced}
            differing = binding.check(asked, tensor_reader(store, stored))
            if differing:
                raise NotCommittedModelError(
                    f"the model is not what commit {commit.short} holds: {shown(differing)} differ",
                    object=differing[0],
                    hint="Load it with repo.load, or guard it as it is: compare=False, or revision=None.",
                )
    return IdentityGuard(
        model, names, every=every, sample=sample, on_mutation=on_mutation, background=background, threads=threads
    )


def _heads(model: Any, stored: Collection[str]) -> frozenset[str]:
    """Stored names that a model of another task has no place for: those beside the base model that both share."""
    prefix = getattr(model, "base_model_prefix", None)
    beside = frozenset(name for name in stored if not name.startswith(f"{prefix}."))
    return beside if prefix and len(beside) < len(stored) else frozenset()
