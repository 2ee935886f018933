"""``probe``: fixed prompts under which behaviors are measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rblstore.checkpoints.tokenizing import TOKENIZER_FILES, tokenizer_digest
from rblstore.divergence.probe_file import FILE_BYTES, RawPrompt, parse_prompts
from rblstore.divergence.probes import baseline_bytes, check_batch, check_probe_fits, make_probe
from rblstore.errors import InputError, NotFoundError, UsageError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.evidence_records import Positions, Probe
from rblstore.objects.history_records import SYMBOLIC, Commit, Composition
from rblstore.objects.ids import ContentId, ProbeId, RecordId
from rblstore.objects.paths import check_name, given_path
from rblstore.operations.result import Result
from rblstore.operations.scratch import scratch
from rblstore.operations.stored_models import CONFIG, composed_state
from rblstore.operations.switch import RefExistsError, refuse_clash
from rblstore.repository import PROBES, Store
from rblstore.revisions import resolve

BASELINE_BYTES = 1 << 30
_FLOAT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class NoSuchProbeError(NotFoundError):
    """No probe of that name, or none at all."""

    code = "no_such_probe"


class BaselineTooLargeError(UsageError):
    """A baseline under this probe would take more than the limit."""

    code = "baseline_too_large"


@dataclass(frozen=True)
class ProbeInfo(Result):
    """One probe.

    Attributes:
        name: Its name.
        probe: Its id.
        prompts: How many prompts.
        tokens: Tokens in all.
        positions: ``all`` or ``last``.
        measured_positions: How many positions a baseline records.
        baseline_bytes: What a baseline takes, or None where the vocabulary is not known.
        batches: How many forward passes a measurement takes.
        default: Whether it is the one used where none is named.
    """

    name: str
    probe: ProbeId
    prompts: int
    tokens: int
    positions: Positions
    measured_positions: int
    baseline_bytes: int | None
    batches: int
    default: bool


def _info(name: str, probe_id: RecordId, probe: Probe, size: int | None, default: bool) -> ProbeInfo:
    return ProbeInfo(
        name,
        ProbeId(probe_id),
        len(probe.prompts),
        sum(len(prompt.tokens) for prompt in probe.prompts),
        probe.positions,
        probe.measured_positions(),
        size,
        len(probe.batches),
        default,
    )


def add_probe(
    store: Store,
    name: str,
    prompts: str | Path | Sequence[Any],
    *,
    revision: str = "HEAD",
    positions: Positions = "all",
    batch: int = 1,
    default: bool = False,
    force: bool = False,
    author: str,
) -> ProbeInfo:
    """Fixes prompts as token ids under a name.

    Args:
        store: The repository.
        name: The probe's name.
        prompts: A JSON, JSONL or text file, or a sequence of strings and ``{"id", "text"}`` or ``{"id", "tokens"}``.
        revision: Whose identity's tokenizer encodes text.
        positions: ``all``, or ``last`` (the last token of each prompt) for huge vocabularies.
        batch: How many prompts go through the model at once, from 1. Padding changes bits, so that this is part of the
            probe.
        default: Whether to mark it as the one used where none is named.
        force: Whether to allow a baseline of more than 1 GiB.
        author: Who.

    Raises:
        BadProbeError: A prompt that cannot be measured.
        BadBatchError: The batch is not a number of prompts.
        ProbeMismatchError: A prompt is longer than what the identity's configuration says that it reads, or has a token
            beyond the vocabulary that it names.
        BaselineTooLargeError: A baseline under it would take more than 1 GiB.
        RefExistsError: There is a probe of that name.
    """
    ref = PROBES + check_name(name, "probe")
    check_batch(batch)
    if store.ref(ref) is not None:
        raise RefExistsError(
            f"the probe {name!r} exists, and probes do not change", object=name, hint="Choose another name."
        )
    refuse_clash(store, ref, PROBES, "probe")
    raw = _raw_prompts(prompts)
    commit = store.record(resolve(store, revision).commit, Commit)
    files = composed_state(store, store.record(commit.composition, Composition)).files
    needs_text = any(prompt.tokens is None for prompt in raw)
    encode = _encoder(store, files) if needs_text else None
    probe = make_probe(raw, encode, tokenizer_digest(files), positions, batch)
    config = _config(store, files)
    check_probe_fits(probe, tokenizer=None, vocabulary=_vocabulary(config), context=_context(config), probe_name=name)
    size = _baseline_size(config, probe)
    if size is not None and size > BASELINE_BYTES and not force:
        raise BaselineTooLargeError(
            f"a baseline under this probe takes {size / 2**30:.1f} GiB",
            object=name,
            hint="Measure fewer positions (--positions last), use fewer prompts, or pass --force.",
        )
    before = store.ref("PROBE")
    with store.transaction(author) as transaction:
        probe_id = transaction.add_record(probe)
        transaction.set_ref(ref, None, probe_id)
        if default:
            transaction.set_ref("PROBE", before, SYMBOLIC + ref)
        transaction.describe(f"probe: {name}")
    return _info(name, probe_id, probe, size, default)


def _raw_prompts(prompts: str | Path | Sequence[Any]) -> tuple[RawPrompt, ...]:
    if not isinstance(prompts, (str, Path)):
        try:
            return parse_prompts(json.dumps(list(prompts)).encode(), "prompts.json")
        except (TypeError, ValueError) as error:
            raise InputError(f"the prompts are not strings or objects: {error}", object="prompts") from error
    path = given_path(prompts)
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}",
            object=str(path),
            hint="Give a file of prompts: JSON, JSONL, or text with one prompt a line.",
        ) from error
    return parse_prompts(data, path.name)


def _encoder(store: Store, files: Mapping[str, ContentId]) -> Callable[[str], Sequence[int]]:
    from rblstore.checkpoints.tokenizing import load_tokenizer

    with scratch(store, "tokenizer") as folder:
        for path in (TOKENIZER_FILES | {CONFIG}) & files.keys():
            with (folder / path).open("wb") as stream:
                for chunk in store.content(files[path]):
                    stream.write(chunk)
        return load_tokenizer(folder)


def _config(store: Store, files: Mapping[str, ContentId]) -> dict[str, Any]:
    if CONFIG not in files:
        return {}
    data = store.content_bytes(files[CONFIG], limits.ADAPTER_CONFIG_BYTES)
    config = decode_json(data, what="config.json", max_bytes=limits.ADAPTER_CONFIG_BYTES)
    return config if isinstance(config, dict) else {}


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _context(config: dict[str, Any]) -> int | None:
    """The most tokens that a model reads, as far as its configuration says it under the usual name."""
    bound = _text_config(config).get("max_position_embeddings")
    return bound if type(bound) is int and bound > 0 else None


def _vocabulary(config: dict[str, Any]) -> int | None:
    """How many tokens a model knows, likewise."""
    found = _text_config(config).get("vocab_size", config.get("vocab_size"))
    return found if type(found) is int and found > 0 else None


def _baseline_size(config: dict[str, Any], probe: Probe) -> int | None:
    text, vocabulary = _text_config(config), _vocabulary(config)
    dtype = config.get("dtype", config.get("torch_dtype", text.get("dtype", "float32")))
    if vocabulary is None:
        return None
    return baseline_bytes(probe, vocabulary, _FLOAT_BYTES.get(str(dtype), 4))


def probes(store: Store) -> list[ProbeInfo]:
    """Every probe, sorted by name."""
    with store.catalog.read() as reader:
        found = reader.refs(PROBES)
        default = reader.ref("PROBE")
    return [
        _info(
            ref.removeprefix(PROBES),
            RecordId(value),
            store.record(RecordId(value), Probe),
            None,
            default == SYMBOLIC + ref or (default is None and len(found) == 1),
        )
        for ref, value in sorted(found.items())
    ]


def find_probe(store: Store, name: str | None) -> tuple[str, ProbeId] | None:
    """The probe of a name; without one, the probe marked default, else the only one, else None.

    Raises:
        NoSuchProbeError: A name was given and there is none of it.
    """
    with store.catalog.read() as reader:
        found = reader.refs(PROBES)
        default = (reader.ref("PROBE") or "").removeprefix(SYMBOLIC)
    if name is not None:
        if (value := found.get(PROBES + name)) is None:
            raise NoSuchProbeError(
                f"no probe is called {name!r}",
                object=name,
                hint=f"There are: {', '.join(ref.removeprefix(PROBES) for ref in found) or 'none; rbl probe add'}.",
            )
        return name, ProbeId(value)
    ref = default if default in found else next(iter(found)) if len(found) == 1 else None
    return None if ref is None else (ref.removeprefix(PROBES), ProbeId(found[ref]))


def require_probe(store: Store, name: str | None) -> tuple[str, ProbeId]:
    """Like :func:`find_probe`, but there has to be one.

    Raises:
        NoSuchProbeError: There is none, or several and none is marked default.
    """
    found = find_probe(store, name)
    if found is None:
        raise NoSuchProbeError(
            "no probe is named, and none is the default",
            hint="Name one with --probe, or make one: rbl probe add NAME --prompts FILE",
        )
    return found
