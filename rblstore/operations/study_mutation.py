"""``study mutation``: noise in every weight of the identity, and what brings it back (the paper's Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.study_records import Scalar, StudyPoint
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.study_model import StudyModel
from rblstore.operations.study_points import SEEDS, check_bounds, check_list, check_seeds, with_recovery
from rblstore.operations.study_run import StudyResult, StudyRun
from rblstore.repository import Store
from rblstore.revisions import resolve

ALPHAS: Final = (0.001, 0.01, 0.05)
"""The paper's."""


def study_mutation(
    store: Store,
    revision: str = "HEAD",
    alphas: Sequence[float] | None = None,
    probe: str | None = None,
    *,
    seeds: int = SEEDS,
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
) -> StudyResult:
    """Adds N(0, alpha^2) to every floating-point weight of a commit's identity, without a snapshot and with the store.

    For each alpha and seed the mutated model is measured, measured once more after all that can be done without a
    snapshot, which is nothing (``reset`` ``none``), and measured after restoring from the store (``store``).

    Args:
        store: The repository.
        revision: Which commit; its behaviors are left out.
        alphas: Standard deviations, each above 0; None for the paper's.
        probe: The probe's name; None for the default one.
        seeds: How many, from 0 on.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.

    Raises:
        UsageError: An alpha or the number of seeds is out of range.
        ConflictError: The probe was not made for the model.
        NanOutputError: A mutated model's outputs are not numbers; names the prompt. Nothing is recorded.
    """
    from rblstore.divergence.perturbations import add_noise, check_alpha

    deviations = check_list("alpha", map(check_alpha, ALPHAS if alphas is None else alphas))
    drawn = check_seeds(seeds)
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    named = require_probe(store, probe)
    base = Composition(composition.identity)
    with StudyModel(store, commit, named, dtype=dtype, author=author, progress=progress) as model:
        model.become(base)
        reference = model.reference(base)
        run = StudyRun(
            model,
            "mutation",
            {"alphas": list(deviations), "seeds": [float(seed) for seed in drawn]},
            total=2 * len(deviations) * len(drawn),
        )

        def mutated(alpha: float, seed: int) -> StudyPoint:
            model.restore()
            add_noise(model.identity_tensors(), alpha, seed)
            adapted = check_bounds(model.measured(reference, _condition(alpha, "none"), seed))
            # What can be done without a snapshot is nothing; that it changes nothing is measured, not assumed.
            return with_recovery(check_bounds(model.measured(reference, _condition(alpha, "none"), seed)), adapted)

        def restored(alpha: float, seed: int, adapted: StudyPoint) -> StudyPoint:
            model.restore()
            add_noise(model.identity_tensors(), alpha, seed)
            model.restore()
            return with_recovery(model.measured(reference, _condition(alpha, "store"), seed), adapted)

        for alpha in deviations:
            for seed in drawn:
                adapted = run.point(
                    _condition(alpha, "none"),
                    seed,
                    lambda alpha=alpha, seed=seed: mutated(alpha, seed),  # type: ignore[misc]
                )
                run.point(
                    _condition(alpha, "store"),
                    seed,
                    lambda alpha=alpha, seed=seed, adapted=adapted: restored(alpha, seed, adapted),  # type: ignore[misc]
                )
        return run.finish()


def _condition(alpha: float, reset: str) -> dict[str, Scalar]:
    return {"alpha": alpha, "reset": reset}
