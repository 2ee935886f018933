"""``study elimination``: a growing part of a behavior is put to nothing, the smallest first (the paper's Fig. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from rblstore.errors import ConflictError
from rblstore.objects.content_records import Behavior
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.study_records import StudyPoint
from rblstore.operations.live_compositions import Compositions
from rblstore.operations.live_form import check_form
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.stored_models import member
from rblstore.operations.study_points import check_bounds, check_list, studied_behavior, with_recovery
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    import torch

    from rblstore.divergence.elimination import Elimination
    from rblstore.operations.live_form import LiveForm
    from rblstore.operations.study_model import StudyModel
    from rblstore.operations.study_run import StudyResult

EPSILONS: Final = (0.0, 0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The paper's."""

# Kinds whose update is a product (or a rotation, a difference) that is nothing where their tensors are zero.
_ZERO_IS_NOTHING: Final = frozenset({"LORA", "LOHA", "LOKR", "VERA", "OFT"})


class NotEliminableError(ConflictError):
    """There is no value of the behavior's tensors at which it does nothing."""

    code: ClassVar[str] = "not_eliminable"


def study_elimination(
    store: Store,
    revision: str = "HEAD",
    behavior: str | None = None,
    epsilons: Sequence[float] | None = None,
    probe: str | None = None,
    *,
    form: str = "adapters",
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
) -> StudyResult:
    """Puts fractions of a behavior to nothing, and measures how far the model is from the one without it.

    Args:
        store: The repository.
        revision: Which commit.
        behavior: Which of its behaviors; None for the only one.
        epsilons: Fractions, from 0 to 1; None for the paper's. 0, the adapted model, is always measured: RF needs it.
        probe: The probe's name; None for the default one.
        form: ``adapters`` to put an adapter's own tensors to zero, ``merged`` to put what it changes of the weights
            back to what they are without it; for an overlay these are one.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.

    Raises:
        NoBehaviorError: The commit has none, or several and none is named.
        NoSuchBehaviorError: It has none of that name.
        UsageError: An epsilon is out of range.
        NotEliminableError: The behavior is of a kind that is not nothing where it is zero.
        CannotMergeError: It cannot be merged into weights.
        ConflictError: Another behavior stands on it, or the probe was not made for the model.
        NanOutputError: A state's outputs are not numbers; names the prompt. Nothing is recorded.
    """
    from rblstore.divergence.perturbations import check_epsilon
    from rblstore.operations.study_model import StudyModel
    from rblstore.operations.study_run import StudyRun
    from rblstore.operations.study_tensors import peft_merged_bytes

    fractions = check_list("epsilon", [0.0, *map(check_epsilon, EPSILONS if epsilons is None else epsilons)])
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    slot = studied_behavior(composition, behavior, revision)
    without = Composition(composition.identity, tuple(one for one in composition.slots if one != slot))
    Compositions(store).checked(without, composition)
    held = check_form(form)
    kind = _check_eliminable(store, slot, held)
    named = require_probe(store, probe)
    # What peft merges takes a model of its own each time: better kept.
    cache = peft_merged_bytes(store, composition) if held == "merged" else 0
    with StudyModel(store, commit, named, dtype=dtype, cache_bytes=cache, author=author, progress=progress) as model:
        model.become(composition, held)
        reference = model.reference(without, held)
        run = StudyRun(
            model,
            "elimination",
            {"behavior": slot.name, "epsilons": list(fractions), "form": kind},
            total=len(fractions),
        )
        planned: list[Elimination] = []

        def measured(epsilon: float, adapted: StudyPoint | None) -> StudyPoint:
            model.restore()
            if epsilon:
                if not planned:
                    planned.append(_elimination(model, slot, kind, fractions))
                planned[0].apply(epsilon)
            point = check_bounds(model.measured(reference, {"epsilon": epsilon}, None))
            return with_recovery(point, point if adapted is None else adapted)

        adapted = run.point({"epsilon": 0.0}, None, lambda: measured(0.0, None))
        for epsilon in fractions[1:]:
            run.point({"epsilon": epsilon}, None, _later(measured, epsilon, adapted))
        return run.finish()


def _later(
    measured: Callable[[float, StudyPoint | None], StudyPoint], epsilon: float, adapted: StudyPoint
) -> Callable[[], StudyPoint]:
    return lambda: measured(epsilon, adapted)


def _check_eliminable(store: Store, slot: Slot, held: LiveForm) -> str:
    """What goes: an ``adapter``'s own tensors, an ``overlay``, or what a ``merged`` adapter changes of the weights.

    Raises:
        NotEliminableError: There is nothing that those tensors can be put to.
    """
    one = member(store, slot)
    behavior: Behavior = one.behavior
    config = one.config
    why = None
    if config is None:
        return "overlay"
    if not behavior.effects:
        why = f"{config.peft_type} changes no weights, and its own tensors are no less there where they are zero"
    elif held == "merged":
        return "merged"
    elif config.peft_type not in _ZERO_IS_NOTHING:
        why = f"a behavior of kind {config.peft_type} does something else, not nothing, where its tensors are zero"
    elif config.raw.get("use_dora"):
        why = "DoRA rescales weights: where its tensors are zero the weights are zero, too"
    elif config.mutates_base:
        why = "attaching it takes a part of the weights away, which its zeros do not bring back"
    elif any(effect.on == "tensor" and effect.action != "modifies" for effect in behavior.effects):
        why = "it also replaces or adds whole tensors, which are not nothing where they are zero"
    if why is None:
        return "adapter"
    merged = "--form merged puts back, element by element, what it changes of the weights. " if behavior.effects else ""
    raise NotEliminableError(
        f"{slot.name!r} cannot be eliminated element by element: {why}",
        object=slot.name,
        hint=f"{merged}rbl revert takes it out whole, and proves it.",
    )


def _elimination(model: StudyModel, slot: Slot, kind: str, fractions: Sequence[float]) -> Elimination:
    from rblstore.divergence.elimination import Elimination

    tensors = model.behavior_tensors(slot)
    ground: Mapping[str, torch.Tensor] | None = None
    if kind != "adapter":
        ground = model.ground_tensors(slot)
        for name, tensor in tensors.items():
            if name not in ground or ground[name].shape != tensor.shape:
                raise NotEliminableError(
                    f"{slot.name!r} brings {name!r}, beneath which lies no tensor of its shape",
                    object=name,
                    hint="Only changes of what is beneath can be put back element by element.",
                )
    return Elimination(tensors, ground, fractions)
