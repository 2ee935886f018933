"""``baseline``: record the output distributions of a composition under a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.tokenizing import tokenizer_digest
from rblstore.objects.evidence_records import Baseline, Probe, PromptOutput
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import BaselineId, CommitId, CompositionId, ContentId, ProbeId, RecordId
from rblstore.operations.evidence_time import evidence_time
from rblstore.operations.load import load_composition
from rblstore.operations.probe import require_probe
from rblstore.operations.progress import Progress
from rblstore.operations.result import Result
from rblstore.operations.stored_models import composed_state
from rblstore.repository import Store
from rblstore.revisions import resolve

if TYPE_CHECKING:
    from rblstore.divergence.measure import PromptMeasurement


@dataclass(frozen=True)
class BaselineResult(Result):
    """A recorded baseline.

    Attributes:
        baseline: Its id.
        commit: The commit whose composition was measured, or None.
        composition: What was measured.
        probe: The probe's id.
        probe_name: The probe's name.
        prompts: How many prompts.
        bytes: Raw bytes of the outputs.
        reused: Whether the same composition had one in this environment already.
        environment: Where it was measured.
    """

    baseline: BaselineId
    commit: CommitId | None
    composition: CompositionId
    probe: ProbeId
    probe_name: str
    prompts: int
    bytes: int
    reused: bool
    environment: dict[str, str]


def check_fit(store: Store, composition: Composition, probe: Probe, name: str, model: Any = None) -> None:
    """Refuses a probe that another tokenizer made, or that the model cannot read.

    Args:
        store: The repository.
        composition: What is to be measured.
        probe: Under what.
        name: The probe's name, for messages.
        model: The composition's model; None before it is loaded, when its tokenizer alone is compared.

    Raises:
        ProbeMismatchError: It does not fit.
    """
    from rblstore.divergence.model_limits import context_of, vocabulary_of
    from rblstore.divergence.probes import check_probe_fits

    check_probe_fits(
        probe,
        tokenizer=tokenizer_digest(composed_state(store, composition).files),
        vocabulary=None if model is None else vocabulary_of(model),
        context=None if model is None else context_of(model),
        probe_name=name,
    )


def find_baseline(
    store: Store, composition: CompositionId, probe: ProbeId, environment: dict[str, str] | None
) -> tuple[BaselineId, Baseline] | None:
    """The newest baseline of a composition under a probe.

    Args:
        store: The repository.
        composition: Of what.
        probe: Under what.
        environment: Only one measured in this environment, or None for any.
    """
    with store.catalog.read() as reader:
        found = reader.evidence(composition, "baseline")
    for record_id in reversed(found):
        record = store.record(record_id, Baseline)
        if record.composition != composition or record.probe != probe:
            continue
        if environment is None or record.environment == environment:
            return BaselineId(record_id), record
    return None


def record_baseline(
    store: Store,
    composition: Composition,
    probe_id: ProbeId,
    environment: dict[str, str],
    measured: Iterator[PromptMeasurement],
    author: str,
) -> tuple[BaselineId, Baseline]:
    """Stores measured outputs as a baseline.

    Args:
        store: The repository.
        composition: What was measured; it is stored too, since a revert measures what it is only about to commit.
        probe_id: Under what.
        environment: Where.
        measured: One measurement a prompt, in the probe's order; each is stored before the next is asked for.
        author: Who.
    """
    from rblstore.divergence.measure import dtype_name, values_bytes

    outputs, dtype, kind = [], "", ""
    with store.transaction(author) as transaction:
        for prompt in measured:
            dtype, kind = dtype_name(prompt.values), prompt.output
            added = transaction.add_content([values_bytes(prompt.values)], element_width=prompt.values.element_size())
            rows, width = prompt.values.shape
            outputs.append(PromptOutput(prompt.id, (rows, width), added.content))
        composition_id = CompositionId(transaction.add_record(composition))
        record = Baseline(
            composition_id,
            probe_id,
            environment,
            "embedding" if kind == "embedding" else "logits",
            dtype,
            tuple(outputs),
            author,
            evidence_time(store, composition_id, Baseline),
        )
        baseline_id = BaselineId(transaction.add_record(record))
    return baseline_id, record


def baseline_of(
    store: Store,
    composition: Composition,
    composition_id: CompositionId,
    probe: tuple[str, ProbeId],
    environment: dict[str, str],
    fresh: Callable[[], Any],
    author: str,
) -> tuple[BaselineId, Baseline]:
    """The baseline of a composition in an environment, recorded from a fresh load where there is none.

    Args:
        store: The repository.
        composition: Of what.
        composition_id: Its id.
        probe: Name and id of what is measured.
        environment: Where.
        fresh: Gives a freshly loaded model of the composition.
        author: Who.

    Raises:
        ProbeMismatchError: The probe was not made for the composition.
        NanOutputError: Its outputs are not numbers.
    """
    from rblstore.divergence.measure import measure

    name, probe_id = probe
    found = find_baseline(store, composition_id, probe_id, environment)
    if found is not None:
        return found
    model, record = fresh(), store.record(probe_id, Probe)
    check_fit(store, composition, record, name, model)
    return record_baseline(store, composition, probe_id, environment, measure(model, record), author)


def baseline(
    store: Store, revision: str = "HEAD", probe: str | None = None, *, author: str, progress: Progress | None = None
) -> BaselineResult:
    """Measures the composition of a commit and records its outputs, unless this environment has them already.

    Args:
        store: The repository.
        revision: Which commit.
        probe: The probe's name; None for the default one.
        author: Who.
        progress: Is told bytes read.

    Raises:
        NoSuchProbeError: No such probe.
        ProbeMismatchError: The probe was made for another tokenizer.
        NanOutputError: The model's outputs are not numbers.
    """
    from rblstore.divergence.environment import current_environment
    from rblstore.divergence.measure import measure

    commit = resolve(store, revision).commit
    composition_id = store.record(commit, Commit).composition
    composition = store.record(composition_id, Composition)
    name, probe_id = require_probe(store, probe)
    record = store.record(probe_id, Probe)
    check_fit(store, composition, record, name)
    model = load_composition(store, composition, progress)
    check_fit(store, composition, record, name, model)
    environment = current_environment(model, record)
    found = find_baseline(store, composition_id, probe_id, environment)
    baseline_id, made = found or record_baseline(
        store, composition, probe_id, environment, measure(model, record), author
    )
    return BaselineResult(
        baseline_id,
        commit,
        composition_id,
        probe_id,
        name,
        len(made.prompts),
        sum(output_bytes(made)),
        found is not None,
        environment,
    )


def output_bytes(baseline_record: Baseline) -> list[int]:
    """Raw bytes of each prompt's recorded output."""
    from rblstore.objects.dtypes import span_bytes

    return [span_bytes(baseline_record.dtype, prompt.shape) for prompt in baseline_record.prompts]


def references(store: Store, record: Baseline) -> list[Any]:
    """A baseline's outputs as :func:`rblstore.divergence.compare.compare` takes them; bytes are read when asked for."""
    from rblstore.divergence.compare import Reference

    def reader(content: ContentId, size: int) -> Any:
        return lambda: store.contents.read_buffer(content, size)

    return [
        Reference(prompt.id, prompt.shape, record.dtype, prompt.content, reader(prompt.content, size))
        for prompt, size in zip(record.prompts, output_bytes(record), strict=True)
    ]


def baselines(store: Store) -> list[BaselineResult]:
    """Every recorded baseline, oldest first."""
    from rblstore.repository import PROBES

    with store.catalog.read() as reader:
        found = [record_id for record_id, _ in reader.records("baseline")]
        names = {value: ref.removeprefix(PROBES) for ref, value in reader.refs(PROBES).items()}
    results = []
    for record_id in found:
        record = store.record(RecordId(record_id), Baseline)
        results.append(
            BaselineResult(
                BaselineId(record_id),
                None,
                record.composition,
                record.probe,
                names.get(record.probe, ""),
                len(record.prompts),
                sum(output_bytes(record)),
                True,
                record.environment,
            )
        )
    return results
