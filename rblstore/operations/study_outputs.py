"""Comparing outputs that are recorded already: points of a study for which no model has to run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rblstore.objects.evidence_records import Baseline
from rblstore.objects.study_records import PromptMeasures, Scalar, StudyPoint
from rblstore.operations.baseline import output_bytes
from rblstore.operations.study_model import unknown_of
from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.divergence.measure import PromptMeasurement

Values = dict[str, float | None]


def recorded_outputs(store: Store, baseline: Baseline) -> Iterator[PromptMeasurement]:
    """A baseline's outputs as if they were measured now, one prompt in memory at a time.

    Raises:
        CorruptError: Stored bytes are missing or damaged.
        BadValuesError: They are not as the record says; names the prompt.
    """
    from rblstore.divergence.measure import BadValuesError, PromptMeasurement, tensor_from_bytes

    for prompt, size in zip(baseline.prompts, output_bytes(baseline), strict=True):
        data = store.content_bytes(prompt.content, size)
        try:
            values = tensor_from_bytes(data, baseline.dtype, prompt.shape)
        except BadValuesError as error:
            raise BadValuesError(f"prompt {prompt.id!r}: {error.message}", object=prompt.id, hint=error.hint) from error
        yield PromptMeasurement(prompt.id, values, baseline.output)


def recorded_point(
    store: Store, reference: Baseline, measured: Baseline, condition: Mapping[str, Scalar], values: Values | None = None
) -> StudyPoint:
    """What one recording measures against another, as a point.

    Args:
        store: The repository.
        reference: What is compared with.
        measured: The other one, of the same probe.
        condition: What the point is called.
        values: What it says besides.
    """
    from rblstore.divergence.pair_measures import measure_prompt

    reason = not_comparable(reference, measured)
    if reason is not None:
        return StudyPoint(dict(condition), None, False, dict(values or {}), reason, ())
    prompts, equal = [], True
    for ours, theirs in zip(recorded_outputs(store, reference), recorded_outputs(store, measured), strict=True):
        same, found = measure_prompt(ours.values, theirs)
        equal = equal and same
        prompts.append(PromptMeasures(ours.id, found))
    return StudyPoint(dict(condition), None, equal, dict(values or {}), unknown_of(prompts), tuple(prompts))


def not_comparable(*baselines: Baseline) -> str | None:
    """Why outputs cannot be compared with one another, or None where they can."""
    first = baselines[0]
    for other in baselines[1:]:
        if other.output != first.output:
            return f"one gives {first.output}, another {other.output}"
        for ours, theirs in zip(first.prompts, other.prompts, strict=True):
            if ours.shape != theirs.shape:
                return f"prompt {ours.id!r}: outputs of {list(ours.shape)} and {list(theirs.shape)} cannot be compared"
    return None


def mean_of(point: StudyPoint, name: str) -> float | None:
    """The mean of a measure over a point's prompts; None where one of them has none."""
    found = [prompt.values.get(name) for prompt in point.prompts]
    known = [value for value in found if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(found) else None
