"""The entropy of recorded outputs, streamed from the store: what the model was before and after, without running it."""

from __future__ import annotations

import math

from rblstore.divergence.intervals import Interval, interval
from rblstore.objects.evidence_records import Baseline
from rblstore.operations.report_facts import PromptEntropy
from rblstore.operations.study_outputs import recorded_outputs
from rblstore.repository import Store


def baseline_entropy(store: Store, baseline: Baseline) -> tuple[Interval, tuple[PromptEntropy, ...]]:
    """Mean entropy of each prompt's distributions, and that of all with its interval; one prompt in memory at a time.

    Args:
        store: The repository.
        baseline: Of logits.

    Raises:
        CorruptError: Stored bytes are missing or damaged.
        InputError: They are no distributions; names the prompt.
    """
    from rblstore.divergence.metrics import NanOutputError, entropy

    found = []
    for prompt in recorded_outputs(store, baseline):
        try:
            values = entropy(prompt.values).tolist()
        except NanOutputError as error:
            raise NanOutputError(f"prompt {prompt.id!r}: {error.message}", object=prompt.id, hint=error.hint) from error
        found.append(PromptEntropy(prompt.id, math.fsum(values) / len(values)))
    return interval([[one.entropy for one in found]]), tuple(found)
