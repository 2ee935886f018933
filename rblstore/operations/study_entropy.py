"""``study entropy``: does the frozen base give the same again and again? That is the paper's Fig. 3."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from rblstore.errors import ConflictError
from rblstore.objects.evidence_records import Baseline
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.study_records import StudyPoint
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.study_model import StudyModel
from rblstore.operations.study_points import BadStudyError
from rblstore.operations.study_run import StudyResult, StudyRun
from rblstore.repository import Store
from rblstore.revisions import resolve

RUNS: Final = 5

_MOST_RUNS: Final = 1000


class NoDistributionError(ConflictError):
    """The model gives no distributions, and so has no entropy."""

    code = "no_distribution"


def study_entropy(
    store: Store,
    revision: str = "HEAD",
    runs: int = RUNS,
    probe: str | None = None,
    *,
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
) -> StudyResult:
    """Reads a commit's identity from the store several times, and measures the entropy of its outputs each time.

    Before each run every floating-point tensor of the model is overwritten with NaN, so that what is measured is what
    was read. Each run is compared with the recorded baseline, bit for bit.

    Args:
        store: The repository.
        revision: Which commit; its behaviors are left out.
        runs: How many, from 1.
        probe: The probe's name; None for the default one.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.

    Raises:
        BadStudyError: The number of runs is out of range.
        NoDistributionError: The model gives embeddings.
        ConflictError: The probe was not made for the model.
        NanOutputError: The base's outputs are not numbers; names the prompt.
    """
    if isinstance(runs, bool) or not isinstance(runs, int) or not 1 <= runs <= _MOST_RUNS:
        raise BadStudyError(f"the number of runs is an integer from 1 to {_MOST_RUNS}, not {runs!r:.40}", object="runs")
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    named = require_probe(store, probe)
    base = Composition(composition.identity)
    with StudyModel(store, commit, named, dtype=dtype, author=author, progress=progress) as model:
        model.become(base)
        reference = model.reference(base)
        if reference.output != "logits":
            raise NoDistributionError(
                f"the model of {revision} gives an {reference.output}, which has no entropy", object=revision
            )
        run = StudyRun(
            model,
            "entropy",
            {"runs": float(runs)},
            total=runs,
        )
        for number in range(1, runs + 1):
            run.point({"run": float(number)}, None, lambda number=number: _run(model, reference, number))  # type: ignore[misc]
        return run.finish()


def _run(model: StudyModel, reference: Baseline, number: int) -> StudyPoint:
    from rblstore.divergence.locality import entropy_summary

    model.reload()
    point = model.measured(reference, {"run": float(number)}, None)
    entropies = [value for prompt in point.prompts if (value := prompt.values["entropy"]) is not None]
    found = entropy_summary(entropies)
    values = {"entropy_mean": found.mean, "entropy_std": found.std, "entropy_max": found.max}
    return replace(point, values={**point.values, **values})
