"""``study mechanisms``: ways of adapting a model, and ways of getting it back, with and without a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from rblstore.divergence.locality import check_threshold
from rblstore.divergence.recipes import Recipe
from rblstore.divergence.verdict import DEFAULT_TOLERANCE
from rblstore.errors import ConflictError
from rblstore.objects.content_records import Behavior
from rblstore.objects.evidence_records import Probe
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import CompositionId, ProbeId
from rblstore.objects.study_records import Scalar
from rblstore.operations.baseline import baseline_of, check_fit, references
from rblstore.operations.live_compositions import Compositions, slot_of
from rblstore.operations.mechanism_rows import (
    MECHANISMS,
    RESETS,
    MechanismRows,
    MechanismSettings,
    Training,
    check_trainable,
    chosen,
)
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.study_points import SEEDS, check_seeds
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    import torch

    from rblstore.operations.study_model import StudyModel
    from rblstore.operations.study_run import StudyResult


class NoMechanismError(ConflictError):
    """Nothing of what was asked for applies to the composition."""

    code = "no_mechanism"


class MechanismOptions(TypedDict, total=False):
    """What the studies of mechanisms let a caller choose, each with its default in :func:`settings_of`.

    Attributes:
        alpha: Standard deviation of the noise of unstructured mutation; 0.01.
        steps: AdamW steps of structured fine-tuning, and of distillation; 10.
        learning_rate: Of these; 5e-5.
        layers: How many of the last layers they change; 4.
        mechanisms: Of ``unstructured``, ``structured``, ``reversible`` and (not in ``scale``) ``overlay``; None for all
            that apply.
        resets: Of ``pull_back``, ``eight_bit``, ``estimated_delta``, ``distillation`` and ``store``; None for all.
        seeds: How many, from 0 on; 3.
        threshold: ILS (nats) above which a prompt is flagged; 1e-6.
    """

    alpha: float
    steps: int
    learning_rate: float
    layers: int
    mechanisms: Sequence[str] | None
    resets: Sequence[str] | None
    seeds: int
    threshold: float


def settings_of(
    *,
    alpha: float = 0.01,
    steps: int = Recipe.steps,
    learning_rate: float = Recipe.learning_rate,
    layers: int = Recipe.layers,
    mechanisms: Sequence[str] | None = None,
    resets: Sequence[str] | None = None,
    seeds: int = SEEDS,
    threshold: float = DEFAULT_TOLERANCE,
    known: Sequence[str] = MECHANISMS,
) -> MechanismSettings:
    """What was asked for (:class:`MechanismOptions`), checked before anything is loaded.

    Args:
        alpha: As there, and so are the others.
        steps: Likewise.
        learning_rate: Likewise.
        layers: Likewise.
        mechanisms: Likewise.
        resets: Likewise.
        seeds: Likewise.
        threshold: Likewise.
        known: The mechanisms of the study.

    Raises:
        UsageError: A number is out of range, or a name is unknown; says which and the range.
    """
    from rblstore.divergence.perturbations import check_alpha

    check_alpha(alpha)
    check_threshold(threshold)
    recipe = Recipe(steps=steps, learning_rate=learning_rate, layers=layers)
    recipe.check()
    return MechanismSettings(
        float(alpha),
        recipe,
        chosen("mechanism" if known == MECHANISMS else "mechanism of this study", mechanisms, known),
        chosen("reset", resets, RESETS),
        check_seeds(seeds),
        float(threshold),
    )


def parameters_of(settings: MechanismSettings) -> dict[str, Scalar | list[Scalar]]:
    """What a study records of its settings."""
    return {
        "alpha": settings.alpha,
        "layers": float(settings.recipe.layers),
        "learning_rate": settings.recipe.learning_rate,
        "mechanisms": list(settings.mechanisms),
        "resets": list(settings.resets),
        "rows": float(settings.recipe.rows),
        "seeds": [float(seed) for seed in settings.seeds],
        "steps": float(settings.recipe.steps),
        "threshold": settings.threshold,
    }


def study_mechanisms(
    store: Store,
    revision: str = "HEAD",
    behaviors: Sequence[str] | None = None,
    probe: str | None = None,
    *,
    training: str | None = None,
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
    **options: Unpack[MechanismOptions],
) -> StudyResult:
    """Adapts a commit's identity in several ways, gets it back in several ways, and measures both.

    Args:
        store: The repository.
        revision: Which commit.
        behaviors: Of its behaviors, which take part; None for all that stand on the identity alone.
        probe: Under what everything is measured; None for the default probe.
        training: The probe whose prompts are trained on; None for the one that is measured.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.
        options: What is done: :class:`MechanismOptions`.

    Raises:
        UsageError: A parameter is out of range.
        NoMechanismError: Nothing of what was asked for applies.
        NoSuchBehaviorError: The commit has none of a name.
        ConflictError: A named behavior does not stand on the identity alone, or a probe does not fit.
        UntrainableModelError: The model cannot be trained.
        NanOutputError: An adapted model gives no distributions; names the prompt.
    """
    from rblstore.operations.study_model import StudyModel
    from rblstore.operations.study_run import StudyRun

    settings = settings_of(**options)
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    slots = standing_alone(store, composition, behaviors, revision)
    measured = require_probe(store, probe)
    trained = measured if training is None else require_probe(store, training)
    total = MechanismRows.count(settings, slots)
    if not total:
        raise NoMechanismError(
            f"{revision} has no overlay that stands on the identity alone",
            object=revision,
            hint="Ask for other mechanisms too.",
        )
    with StudyModel(store, commit, measured, dtype=dtype, author=author, progress=progress) as model:
        base = Composition(composition.identity, ())
        model.become(base)
        check_trainable(model, settings, slots)
        run = StudyRun(
            model,
            "mechanisms",
            {
                **parameters_of(settings),
                "behaviors": [slot.name for found in slots.values() for slot in found],
                "training": trained[0],
            },
            total=total,
            probes=tuple(dict.fromkeys((measured[1], trained[1]))),
        )
        data = training_of(model, base, trained, author)
        MechanismRows(model, run, settings, base, data).measure(slots)
        return run.finish()


def standing_alone(
    store: Store, composition: Composition, behaviors: Sequence[str] | None, revision: str
) -> dict[str, list[Slot]]:
    """The behaviors that make a composition with the identity and nothing else, by their form.

    Args:
        store: The repository.
        composition: Of the commit.
        behaviors: Which; None for all that do.
        revision: How messages call the commit.

    Raises:
        NoSuchBehaviorError: There is none of a name.
        ConflictError: A named one stands on another behavior.
    """
    compositions = Compositions(store)
    found: dict[str, list[Slot]] = {"adapter": [], "overlay": []}
    names = [behaviors] if isinstance(behaviors, str) else behaviors
    wanted = composition.slots if names is None else [slot_of(composition, name, revision) for name in names]
    for slot in wanted:
        try:
            compositions.checked(Composition(composition.identity, (slot,)))
        except ConflictError:
            if names is not None:
                raise
            continue
        found[store.record(slot.behavior, Behavior).form].append(slot)
    return found


def training_of(model: StudyModel, base: Composition, probe: tuple[str, ProbeId], author: str) -> Training:
    """What is trained on, and what the identity gives there: a baseline, recorded now where there is none.

    Args:
        model: Is the identity alone.
        base: That composition.
        probe: Name and id of the probe whose prompts are trained on.
        author: Who records.
    """
    from rblstore.divergence.measure import tensor_from_bytes
    from rblstore.operations.live_measuring import live_environment

    store, record = model.store, model.store.record(probe[1], Probe)
    check_fit(store, base, record, probe[0], model.model)
    base_id = CompositionId(Composition.id_of(base.encode()))
    environment = live_environment(model.live, base, record, "adapters")
    _, baseline = baseline_of(store, base, base_id, probe, environment, lambda: model.model, author)
    recorded = references(store, baseline)
    sequences = [prompt.tokens for prompt in record.prompts]

    def target(place: int) -> torch.Tensor:
        found = recorded[place]
        return tensor_from_bytes(found.read(), found.dtype, found.shape)

    return Training(sequences, target)
