"""``study shift``: the same proof of recovery on the probe and on prompts that were held out from it, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from rblstore.checkpoints.composition_ground import shown
from rblstore.divergence.verdict import DEFAULT_TOLERANCE, check_tolerance, recovery
from rblstore.errors import UsageError
from rblstore.objects.evidence_records import Probe
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import ProbeId
from rblstore.objects.study_records import Scalar, StudyPoint
from rblstore.operations.baseline import check_fit
from rblstore.operations.composition_parts import Parts, chosen_behaviors
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.study_model import StudyModel
from rblstore.operations.study_outputs import mean_of
from rblstore.operations.study_run import StudyResult, StudyRun
from rblstore.repository import Store
from rblstore.revisions import resolve


class HeldOutProbeError(UsageError):
    """The held-out probe is the other one, or has prompts of it: nothing would be held out."""

    code: ClassVar[str] = "not_held_out"


def study_shift(
    store: Store,
    revision: str = "HEAD",
    behavior: str | None = None,
    *,
    held_out: str,
    probe: str | None = None,
    allow_shared: bool = False,
    tolerance: float = DEFAULT_TOLERANCE,
    dtype: str | None = None,
    author: str,
    progress: Progress | None = None,
) -> StudyResult:
    """Takes a behavior out of the live model and proves it, as a revert does, under two probes.

    Args:
        store: The repository.
        revision: Which commit.
        behavior: Which of its behaviors is taken out; None for all of them.
        held_out: The name of the other probe.
        probe: The probe's name; None for the default one.
        allow_shared: Whether the two probes may have prompts in common.
        tolerance: ILS (nats) above which a prompt is flagged.
        dtype: Of the loaded model: see :data:`rblstore.operations.study_model.DTYPES`; None for the stored one.
        author: Who.
        progress: Is told points.

    Raises:
        HeldOutProbeError: The probes are one, or share prompts.
        TooFewBehaviorsError: The composition has no behavior.
        NoSuchBehaviorError: It has none of that name.
        ConflictError: What is left cannot be composed, or a probe was not made for it.
        NanOutputError: A state's outputs are not numbers.
    """
    check_tolerance(tolerance)
    commit = resolve(store, revision).commit
    composition = store.record(store.record(commit, Commit).composition, Composition)
    taken = chosen_behaviors(composition, None if behavior is None else [behavior], 1)
    parts = Parts(store, composition)
    target = parts.require(set(parts.names) - set(taken))
    probes = require_probe(store, probe), require_probe(store, held_out)
    _check_held_out(store, probes, allow_shared=allow_shared)
    check_fit(store, composition, store.record(probes[1][1], Probe), probes[1][0])
    run: StudyRun | None = None
    for place, named in enumerate(probes):
        with StudyModel(store, commit, named, dtype=dtype, author=author, progress=progress) as model:
            if run is None:
                # Of the model too, before minutes are spent on the first probe.
                check_fit(store, composition, store.record(probes[1][1], Probe), probes[1][0], model.model)
                run = StudyRun(
                    model,
                    "shift",
                    {
                        "behaviors": list(taken),
                        "probe": probes[0][0],
                        "held_out": probes[1][0],
                        "allow_shared": allow_shared,
                        "tolerance": tolerance,
                    },
                    total=2 * len(probes),
                    probes=tuple(probe_id for _, probe_id in probes),
                )
            _measure(model, run, (named[0], "held_out" if place else "probe"), composition, target, tolerance)
    assert run is not None
    return run.finish()


def _check_held_out(store: Store, probes: Sequence[tuple[str, ProbeId]], *, allow_shared: bool) -> None:
    (name, probe_id), (other, other_id) = probes
    if probe_id == other_id:
        raise HeldOutProbeError(
            f"{other!r} is the probe {name!r} itself: nothing is held out",
            object=other,
            hint="Make one of other prompts: rbl probe add NAME --prompts FILE",
        )
    known = {prompt.tokens for prompt in store.record(probe_id, Probe).prompts}
    shared = [prompt.id for prompt in store.record(other_id, Probe).prompts if prompt.tokens in known]
    if shared and not allow_shared:
        raise HeldOutProbeError(
            f"prompts of {other!r} are in {name!r} as well: {shown(shared)}",
            object=other,
            hint="Make one of other prompts, or pass --allow-shared.",
        )


def _measure(
    model: StudyModel,
    run: StudyRun,
    probe: tuple[str, str],
    whole: Composition,
    target: Composition,
    tolerance: float,
) -> None:
    """The adapted and the recovered model under one probe, against what is to be left."""
    name, role = probe

    def condition(part: str) -> dict[str, Scalar]:
        return {"part": part, "probe": name, "role": role}

    def adapted() -> StudyPoint:
        reference = model.reference(target)
        model.become(whole)
        return model.measured(reference, condition("adapted"), None)

    before = run.point(condition("adapted"), None, adapted)

    def recovered() -> StudyPoint:
        reference = model.reference(target)
        model.become(whole)
        model.become(target)
        point = model.measured(reference, condition("recovered"), None)
        return _with_recovery(point, before, tolerance)

    run.point(condition("recovered"), None, recovered)


def _with_recovery(point: StudyPoint, before: StudyPoint, tolerance: float) -> StudyPoint:
    """Adds RF, and what ILS says of single prompts."""
    fidelity, reason = recovery(
        mean_of(point, "kl"), mean_of(before, "kl"), recovered_reason=point.reason, adapted_reason=before.reason
    )
    local = [prompt.values.get("kl") for prompt in point.prompts]
    known = [value for value in local if value is not None]
    values = {
        **point.values,
        "rf": fidelity,
        "kl_adapted": mean_of(before, "kl"),
        "js_adapted": mean_of(before, "js"),
        "ils_max": max(known) if known and len(known) == len(local) else None,
        "ils_flagged": float(sum(value is None or value > tolerance for value in local)),
    }
    return replace(point, values=values, reason=point.reason or reason)
