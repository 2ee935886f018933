"""``study scale``: what can be recovered of identities of several sizes, in percent of what was lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from rblstore.errors import UsageError
from rblstore.objects.evidence_records import Probe
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, ProbeId
from rblstore.objects.study_records import StudyPoint
from rblstore.operations.baseline import check_fit
from rblstore.operations.mechanism_rows import MechanismRows, check_trainable
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.study_mechanisms import MechanismOptions, parameters_of, settings_of, training_of
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from rblstore.objects.study_records import Scalar
    from rblstore.operations.study_run import StudyResult, StudyRun

MECHANISMS = ("unstructured", "structured", "reversible")
"""Those of the paper's Table 5, and structured fine-tuning."""

# What differs between models in one process, and belongs to no environment that all of them share.
_OF_THE_MODEL = ("attention", "batch_plan", "dtype")


def study_scale(
    store: Store,
    revisions: Sequence[str],
    probes: Sequence[str] | None = None,
    *,
    training: Sequence[str] | None = None,
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
    **options: Unpack[MechanismOptions],
) -> StudyResult:
    """Does for each of several identities what ``study mechanisms`` does for one; the adapter is made on the spot.

    Args:
        store: The repository.
        revisions: One commit an identity; their behaviors are left out.
        probes: One for all of them, or one each in their order; None for the default probe.
        training: Likewise, whose prompts are trained on; None for those that are measured.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.
        options: What is done: :class:`MechanismOptions`, without the mechanism ``overlay``.

    Raises:
        UsageError: No revision, two of one identity, another number of probes, or a parameter out of range.
        ConflictError: A probe does not fit.
        UntrainableModelError: A model cannot be trained.
        NanOutputError: An adapted model gives no distributions; names the prompt.
    """
    from rblstore.divergence.adaptations import UntrainableModelError
    from rblstore.operations.study_model import StudyModel
    from rblstore.operations.study_run import StudyRun

    settings = settings_of(**options, known=MECHANISMS)
    names = [revisions] if isinstance(revisions, str) else list(revisions)
    commits = _commits(store, names)
    measured = _one_each("probe", store, names, probes)
    trained = measured if training is None else _one_each("training probe", store, names, training)
    bases = [
        Composition(store.record(store.record(commit, Commit).composition, Composition).identity, ())
        for commit in commits
    ]
    each = list(zip(names, commits, bases, measured, trained, strict=True))
    for name, commit, base, probe, data in each:
        # What the last of them cannot do is known before minutes are spent on the first.
        with StudyModel(store, commit, probe, dtype=dtype, author=author, progress=progress) as model:
            try:
                check_trainable(model, settings, {})
            except UntrainableModelError as error:
                raise UntrainableModelError(f"{name}: {error.message}", object=name, hint=error.hint) from error
            check_fit(store, base, store.record(data[1], Probe), data[0], model.model)
    run: StudyRun | None = None
    for name, commit, base, probe, data in each:
        with StudyModel(store, commit, probe, dtype=dtype, author=author, progress=progress) as model:
            model.become(base)
            if run is None:
                run = StudyRun(
                    model,
                    "scale",
                    {
                        **parameters_of(settings),
                        "identities": list(names),
                        "training": [one for one, _ in trained],
                    },
                    total=len(names) * MechanismRows.count(settings, {}),
                    commits=commits,
                    probes=tuple(dict.fromkeys(one for _, one in (*measured, *trained))),
                    environment={key: value for key, value in model.environment.items() if key not in _OF_THE_MODEL},
                )
            rows = MechanismRows(
                model,
                _Timed(run),
                settings,
                base,
                training_of(model, base, data, author),
                condition={"identity": name},
                values={"parameters": parameter_count(model.live.plain)},
            )
            rows.measure({})
    assert run is not None, "there is at least one revision"
    return run.finish()


def parameter_count(plain: object) -> float:
    """How many parameters a model has; shared ones count once."""
    parameters: Callable[[], Sequence[object]] = plain.parameters  # type: ignore[attr-defined]
    return float(sum(parameter.numel() for parameter in parameters()))  # type: ignore[attr-defined]


class _Timed:
    """A run whose points say how long they took, and what was recovered in percent."""

    def __init__(self, run: StudyRun) -> None:
        self._run = run

    def point(self, condition: dict[str, Scalar], seed: int | None, make: Callable[[], StudyPoint]) -> StudyPoint:
        """As the run's, with ``seconds`` and ``recoverability`` among its values."""

        def timed() -> StudyPoint:
            began = time.monotonic()
            point = make()
            fidelity = point.values.get("rf")
            percent = None if fidelity is None else 100.0 * fidelity
            more = {"recoverability": percent, "seconds": time.monotonic() - began}
            return replace(point, values={**point.values, **more})

        return self._run.point(condition, seed, timed)


def _commits(store: Store, names: Sequence[str]) -> tuple[CommitId, ...]:
    if not names:
        raise UsageError("no identity is named", hint="Name one commit for each identity.")
    found = tuple(resolve(store, name).commit for name in names)
    identities = [store.record(store.record(commit, Commit).composition, Composition).identity for commit in found]
    for place, identity in enumerate(identities):
        if identity in identities[:place]:
            raise UsageError(
                f"{names[identities.index(identity)]} and {names[place]} have one identity, "
                "and their behaviors are left out",
                object=identity,
                hint="Name each identity once.",
            )
    return found


def _one_each(what: str, store: Store, names: Sequence[str], given: Sequence[str] | None) -> list[tuple[str, ProbeId]]:
    chosen = [None] if given is None else [given] if isinstance(given, str) else list(given)
    if len(chosen) not in (1, len(names)):
        raise UsageError(
            f"{len(chosen)} {what}s are named, and the number of identities is {len(names)}",
            hint=f"Name one {what} for all of them, or one for each in their order.",
        )
    probes = [require_probe(store, name) for name in chosen]
    return probes * len(names) if len(probes) == 1 else probes
