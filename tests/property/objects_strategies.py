"""Hypothesis strategies for valid records of every kind."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from rblstore.objects.content_records import (
    Behavior,
    Effect,
    FileEntry,
    FileManifest,
    Ground,
    Identity,
    NamedTensor,
    StoredTensor,
)
from rblstore.objects.dtypes import BITS
from rblstore.objects.evidence_records import (
    Baseline,
    Claim,
    Probe,
    Prompt,
    PromptDivergence,
    PromptOutput,
    Statement,
    Verification,
)
from rblstore.objects.history_records import Commit, Composition, Operation, RefChange, Slot, Tag
from rblstore.objects.ids import (
    AnyId,
    BaselineId,
    BehaviorId,
    CommitId,
    CompositionId,
    ContentId,
    FileManifestId,
    IdentityId,
    OperationId,
    ProbeId,
    RecordId,
)
from rblstore.objects.record import Record
from rblstore.objects.signature_records import Signature
from rblstore.objects.study_records import PromptMeasures, Study, StudyPoint
from rblstore.objects.tombstone_records import Tombstone
from rblstore.objects.training_records import TrainingState

DIGITS = "0123456789abcdef"
WHOLE_BYTES = sorted(dtype for dtype, bits in BITS.items() if bits % 8 == 0)

integers = st.integers(0, 2**53 - 1)
# -0.0 is left out: RFC 8785 writes it as 0, and no member tells them apart.
numbers = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != 0 or math.copysign(1, x) > 0)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
paths = st.lists(st.text("abcxyz0._-é ß", min_size=1, max_size=8), min_size=1, max_size=3).map(
    lambda parts: "/".join("p" + part.replace(" ", "_") + "q" for part in parts)
)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_+-]{0,10}z", fullmatch=True)
times = st.builds(
    "{:%Y-%m-%dT%H:%M:%S}{}{}".format,
    st.datetimes(),
    st.sampled_from(["", ".5", ".000000001"]),
    st.sampled_from(["Z", "+01:00", "-23:59"]),
).map(lambda text: text.rjust(len("0000-00-00T00:00:00") + len(text.partition("T")[2]) - 8, "0"))


def ids(of: type[AnyId]) -> st.SearchStrategy[AnyId]:
    return st.text(DIGITS, min_size=64, max_size=64).map(of)


def tuples(
    elements: st.SearchStrategy[Any], *, key: Any = None, ordered: bool = False, minimum: int = 0
) -> st.SearchStrategy[tuple[Any, ...]]:
    """Tuples of distinct keys, sorted by them where asked for."""
    key = key or (lambda value: value)
    found = st.lists(elements, min_size=minimum, max_size=4, unique_by=key)
    return found.map(lambda values: tuple(sorted(values, key=key) if ordered else values))


def folded_paths_differ(entries: tuple[Any, ...], path: Any) -> bool:
    """Whether no two paths, and no folder and file, meet: by distinct first components after folding."""
    heads = [path(entry).split("/")[0].casefold() for entry in entries]
    return len(heads) == len(set(heads))


shapes = st.lists(st.integers(0, 5000), max_size=4).map(tuple)
stored_tensors = st.builds(StoredTensor, st.sampled_from(WHOLE_BYTES), shapes, ids(ContentId))
named_tensors = st.builds(NamedTensor, texts, stored_tensors)
file_manifests = st.builds(FileManifest, ids(ContentId), tuples(named_tensors, key=lambda entry: entry.name))
file_entries = st.builds(FileEntry, paths, ids(ContentId), integers, st.none() | ids(FileManifestId))


def file_lists(minimum: int) -> st.SearchStrategy[tuple[FileEntry, ...]]:
    found = tuples(file_entries, key=lambda entry: entry.path, ordered=True, minimum=minimum)
    return found.filter(lambda entries: folded_paths_differ(entries, lambda entry: entry.path))


identities = st.builds(Identity, file_lists(1), ids(ContentId))


@st.composite
def grounds(draw: st.DrawFn, target: tuple[str, str] | None = None) -> Ground:
    on, name = target or draw(targets)
    if on == "tensor":
        return Ground.tensor(name, draw(stored_tensors))
    return Ground("file", name, draw(ids(ContentId)))


targets = st.tuples(st.just("tensor"), texts) | st.tuples(st.just("file"), paths)


@st.composite
def effects(draw: st.DrawFn, form: str) -> Effect:
    target = draw(targets)
    actions = ["adds", "replaces", "removes" if form == "overlay" else "modifies"]
    action: Any = draw(st.sampled_from(actions))
    beneath = None if action == "adds" else draw(grounds(target))
    value = None if action in ("modifies", "removes") else draw(grounds(target))
    return Effect(target[0], target[1], action, beneath, value)  # type: ignore[arg-type]


@st.composite
def behaviors(draw: st.DrawFn) -> Behavior:
    form: Any = draw(st.sampled_from(["adapter", "overlay"]))

    def key(value: Effect | Ground) -> tuple[str, str]:
        return (value.on, value.target)

    def apart(values: tuple[Any, ...]) -> bool:
        return folded_paths_differ(tuple(value for value in values if value.on == "file"), lambda value: value.target)

    return Behavior(
        form,
        draw(file_lists(0)),
        draw(tuples(effects(form), key=key, ordered=True).filter(apart)),
        draw(tuples(grounds(), key=key, ordered=True)),
    )


slots = st.builds(Slot, names, ids(BehaviorId), numbers)
compositions = st.builds(Composition, ids(IdentityId), tuples(slots, key=lambda slot: slot.name.casefold()))
commits = st.builds(Commit, ids(CompositionId), tuples(ids(CommitId)), texts, times, texts)
tags = st.builds(Tag, st.lists(names, min_size=1, max_size=3).map("/".join), ids(CommitId), texts, times, texts)

ref_names = st.sampled_from(["HEAD", "PROBE"]) | names.map("refs/heads/{}".format) | names.map("refs/tags/a/{}".format)
ref_states = st.none() | ids(RecordId).map(str) | ref_names.map("ref: {}".format)
ref_changes = st.builds(RefChange, ref_names, ref_states, ref_states)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    sequence = draw(st.integers(1, 2**53 - 1))
    return Operation(
        sequence,
        None if sequence == 1 else draw(ids(OperationId)),
        draw(texts),
        draw(tuples(ref_changes, key=lambda change: change.ref, ordered=True)),
        draw(st.none() | ids(OperationId)),
        draw(texts),
        draw(times),
    )


claims = st.builds(Claim, texts, texts, texts)
statements = st.builds(
    Statement,
    ids(RecordId),
    tuples(claims, ordered=True, minimum=1),
    texts,
    times,
    tuples(ids(ContentId), ordered=True),
)

prompts = st.builds(
    Prompt, texts, st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple), st.none() | texts
)


@st.composite
def probes(draw: st.DrawFn) -> Probe:
    found = draw(tuples(prompts, key=lambda prompt: prompt.id, minimum=1))
    order = draw(st.permutations(range(len(found))))
    cut = draw(st.integers(1, len(found)))
    batches = tuple(tuple(batch) for batch in (order[:cut], order[cut:]) if batch)
    return Probe(found, batches, draw(st.sampled_from(["all", "last"])), draw(st.none() | ids(ContentId)))  # type: ignore[arg-type]


environments = st.dictionaries(texts, texts, max_size=4)
prompt_outputs = st.builds(
    PromptOutput, texts, st.tuples(st.integers(0, 4096), st.integers(0, 300_000)), ids(ContentId)
)
baselines = st.builds(
    Baseline,
    ids(CompositionId),
    ids(ProbeId),
    environments,
    st.sampled_from(["embedding", "logits"]),
    st.sampled_from(WHOLE_BYTES),
    tuples(prompt_outputs, key=lambda prompt: prompt.id, minimum=1),
    texts,
    times,
)

maybe_number = st.none() | numbers
measures = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), maybe_number, max_size=3)
prompt_divergences = st.builds(PromptDivergence, texts, maybe_number, maybe_number, st.booleans(), measures)


@st.composite
def verifications(draw: st.DrawFn) -> Verification:
    bit_equal = draw(st.booleans())
    verdict: Any = "exact" if bit_equal else draw(st.sampled_from(["diverged", "within_tolerance"]))
    return Verification(
        commit=draw(st.none() | ids(CommitId)),
        composition=draw(ids(CompositionId)),
        adapted=draw(st.none() | ids(CompositionId)),
        removed=draw(tuples(texts)),
        probe=draw(ids(ProbeId)),
        baseline=draw(ids(BaselineId)),
        environment=draw(environments),
        verdict=verdict,
        tolerance=draw(numbers),
        bit_equal=bit_equal,
        kl=draw(maybe_number),
        js=draw(maybe_number),
        rf=draw(maybe_number),
        kl_adapted=draw(maybe_number),
        js_adapted=draw(maybe_number),
        reason=draw(st.none() | texts),
        prompts=draw(tuples(prompt_divergences, key=lambda prompt: prompt.id, minimum=1)),
        author=draw(texts),
        time=draw(times),
    )


training_states = st.builds(
    TrainingState,
    ids(CommitId),
    file_lists(1),
    st.integers(0, 2**53 - 1),
    environments,
    texts,
    times,
)

member_names = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
measured = st.dictionaries(member_names, st.none() | numbers, max_size=3)
scalars = st.none() | st.booleans() | texts | numbers
study_points = st.builds(
    StudyPoint,
    st.dictionaries(member_names, scalars, max_size=3),
    st.none() | st.integers(0, 2**53 - 1),
    st.none() | st.booleans(),
    measured,
    st.none() | texts,
    st.lists(st.builds(PromptMeasures, texts, measured), max_size=3, unique_by=lambda prompt: prompt.id).map(tuple),
)
studies = st.builds(
    Study,
    member_names,
    st.lists(ids(CommitId), min_size=1, max_size=3, unique=True).map(tuple),
    st.lists(ids(ProbeId), max_size=2, unique=True).map(tuple),
    st.dictionaries(member_names, scalars | st.lists(scalars, max_size=3), max_size=3),
    environments,
    st.lists(study_points, min_size=1, max_size=3).map(tuple),
    texts,
    times,
)

digests = ids(ContentId)
signatures = st.one_of(
    st.builds(Signature, ids(RecordId), st.just("key"), digests, st.none(), texts, digests, texts, times),
    st.builds(Signature, ids(RecordId), st.just("certificate"), digests, texts, texts, digests, texts, times),
    st.builds(Signature, ids(RecordId), st.just("sigstore"), st.none(), texts, texts, digests, texts, times),
)
tombstones = st.builds(Tombstone, ids(RecordId), texts.map(lambda text: f"r{text}"), texts, times)

RECORDS: dict[str, st.SearchStrategy[Any]] = {
    "file-manifest": file_manifests,
    "identity": identities,
    "behavior": behaviors(),
    "composition": compositions,
    "commit": commits,
    "tag": tags,
    "operation": operations(),
    "statement": statements,
    "probe": probes(),
    "baseline": baselines,
    "verification": verifications(),
    "training-state": training_states,
    "study": studies,
    "signature": signatures,
    "tombstone": tombstones,
}

records: st.SearchStrategy[Record] = st.one_of(*RECORDS.values())
