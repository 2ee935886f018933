"""Records about others: statements, probes, baselines and verifications."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import Json
from rblstore.objects.dtypes import span_bytes
from rblstore.objects.fields import Fields, require_sorted
from rblstore.objects.ids import (
    BaselineId,
    CommitId,
    CompositionId,
    ContentId,
    ProbeId,
    RecordId,
    StatementId,
    VerificationId,
)
from rblstore.objects.record import Record

Positions = Literal["all", "last"]
Verdict = Literal["exact", "within_tolerance", "diverged"]
Output = Literal["logits", "embedding"]


@dataclass(frozen=True, order=True)
class Claim:
    """One thing that a statement says.

    Attributes:
        key: ``license``, ``source``, ``base_model``, ``dataset``, ... or ``meta.<anything>``.
        value: Text.
        origin: Where it was read: a file's path, ``command line`` or ``api``.
    """

    key: str
    value: str
    origin: str

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"key": self.key, "origin": self.origin, "value": self.value}

    @classmethod
    def read(cls, value: Any) -> Claim:
        """Reads one element of a statement."""
        fields = Fields(value, "claim")
        claim = cls(fields.text("key", 255), fields.text("value"), fields.text("origin", limits.PATH_BYTES))
        fields.done()
        return claim


@dataclass(frozen=True)
class Statement(Record):
    """What somebody says about an identity or behavior. A later one supersedes, none replaces.

    Attributes:
        subject: The identity or behavior.
        claims: Sorted, none repeated.
        author: Who says so.
        time: RFC 3339.
        contents: What it brings along, the texts of licences; sorted, none repeated.
    """

    KIND: ClassVar[str] = "statement"
    ID: ClassVar[type[RecordId]] = StatementId

    subject: RecordId
    claims: tuple[Claim, ...]
    author: str
    time: str
    contents: tuple[ContentId, ...] = ()

    def body(self) -> dict[str, Json]:
        body: dict[str, Json] = {
            "author": self.author,
            "claims": [claim.body() for claim in self.claims],
            "subject": str(self.subject),
            "time": self.time,
        }
        # Left out where there are none, so that a record has one encoding.
        return {**body, "contents": [str(one) for one in self.contents]} if self.contents else body

    @classmethod
    def from_fields(cls, fields: Fields) -> Statement:
        statement = cls(
            fields.id("subject", RecordId), fields.items("claims", Claim.read, 1), fields.text("author"),
            fields.time("time"), fields.items("contents", _content, 1) if fields.has("contents") else (),
        )  # fmt: skip
        require_sorted(statement.claims, "statement record: claims")
        require_sorted(statement.contents, "statement record: contents")
        return statement


def _content(value: Any) -> ContentId:
    return Fields({"content": value}, "statement").id("content", ContentId)


@dataclass(frozen=True)
class Prompt:
    """One token sequence of a probe.

    Attributes:
        id: Unique in the probe.
        tokens: Token ids, at least one.
        text: What was tokenized, or None where token ids were given.
    """

    id: str
    tokens: tuple[int, ...]
    text: str | None

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"id": self.id, "text": self.text, "tokens": list(self.tokens)}

    @classmethod
    def read(cls, value: Any) -> Prompt:
        """Reads one element of a probe."""
        fields = Fields(value, "prompt")
        prompt = cls(fields.text("id", 255), fields.integers("tokens", 2**31 - 1), fields.optional_text("text"))
        fields.done()
        if not prompt.tokens:
            raise InputError(f"prompt {prompt.id!r} has no tokens", object=prompt.id)
        return prompt


@dataclass(frozen=True)
class Probe(Record):
    """A fixed set of token sequences, with the batch plan and the positions that are measured.

    Attributes:
        prompts: In the order in which they were given.
        batches: Indices into ``prompts``, every one once; a batch is one forward pass.
        positions: ``all``, or ``last`` (the last token of each prompt).
        tokenizer: Digest of the tokenizer's files that made the tokens, or None where token ids were given.
    """

    KIND: ClassVar[str] = "probe"
    ID: ClassVar[type[RecordId]] = ProbeId

    prompts: tuple[Prompt, ...]
    batches: tuple[tuple[int, ...], ...]
    positions: Positions
    tokenizer: ContentId | None

    def body(self) -> dict[str, Json]:
        return {
            "batches": [list(batch) for batch in self.batches],
            "positions": self.positions,
            "prompts": [prompt.body() for prompt in self.prompts],
            "tokenizer": None if self.tokenizer is None else str(self.tokenizer),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Probe:
        prompts = fields.items("prompts", Prompt.read, minimum=1)
        batches = fields.items("batches", lambda value: Fields({"batch": value}, "batch").integers("batch"))
        probe = cls(
            prompts,
            batches,
            cast("Positions", fields.choice("positions", ("all", "last"))),
            fields.optional_id("tokenizer", ContentId),
        )
        require_sorted(sorted(prompt.id for prompt in prompts), "probe record: prompt ids")
        if sorted(index for batch in batches for index in batch) != list(range(len(prompts))) or not all(batches):
            raise InputError("probe record: the batches do not hold every prompt once")
        return probe

    def measured_positions(self) -> int:
        """How many positions are measured over all prompts (for models with an output a position)."""
        return sum(len(prompt.tokens) if self.positions == "all" else 1 for prompt in self.prompts)


@dataclass(frozen=True)
class PromptOutput:
    """The recorded output for one prompt.

    Attributes:
        id: The prompt's.
        shape: (positions, vocabulary or classes or width).
        content: The raw little-endian row-major values; its digest is the prompt's digest.
    """

    id: str
    shape: tuple[int, int]
    content: ContentId

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"content": str(self.content), "id": self.id, "shape": list(self.shape)}

    @classmethod
    def read(cls, value: Any) -> PromptOutput:
        """Reads one element of a baseline."""
        fields = Fields(value, "prompt output")
        name, shape, content = fields.text("id", 255), fields.integers("shape"), fields.id("content", ContentId)
        fields.done()
        if len(shape) != 2:
            raise InputError(f"prompt output {name!r}: its shape is not (positions, width)", object=name)
        return cls(name, (shape[0], shape[1]), content)


@dataclass(frozen=True)
class Baseline(Record):
    """The outputs of one composition under one probe in one environment.

    Attributes:
        composition: What was measured.
        probe: Under what.
        environment: Where: device, dtype, threads, versions (flat text).
        output: ``logits`` (a distribution over the last axis) or ``embedding`` (no distribution).
        dtype: Element type of the values, as safetensors names it.
        prompts: In the probe's order.
        author: Who recorded it.
        time: RFC 3339.
    """

    KIND: ClassVar[str] = "baseline"
    ID: ClassVar[type[RecordId]] = BaselineId

    composition: CompositionId
    probe: ProbeId
    environment: dict[str, str]
    output: Output
    dtype: str
    prompts: tuple[PromptOutput, ...]
    author: str
    time: str

    def body(self) -> dict[str, Json]:
        return {
            "author": self.author,
            "composition": str(self.composition),
            "dtype": self.dtype,
            "environment": dict(self.environment),
            "output": self.output,
            "probe": str(self.probe),
            "prompts": [prompt.body() for prompt in self.prompts],
            "time": self.time,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Baseline:
        baseline = cls(
            fields.id("composition", CompositionId),
            fields.id("probe", ProbeId),
            fields.text_map("environment"),
            cast("Output", fields.choice("output", ("embedding", "logits"))),
            fields.text("dtype", 32),
            fields.items("prompts", PromptOutput.read, minimum=1),
            fields.text("author"),
            fields.time("time"),
        )
        for prompt in baseline.prompts:
            span_bytes(baseline.dtype, prompt.shape)
        require_sorted(sorted(prompt.id for prompt in baseline.prompts), "baseline record: prompt ids")
        return baseline


@dataclass(frozen=True)
class PromptDivergence:
    """How far one prompt's output is from the baseline's.

    Attributes:
        id: The prompt's.
        kl: Mean over positions of KL(baseline || measured), nats; None where the output is no distribution.
        js: The same with JS.
        bit_equal: Whether every recorded value is the same, bit for bit.
        values: Further measures by name: ``relative_l2`` and ``cosine`` of embeddings; ``kl_adapted`` and
            ``js_adapted`` of a revert, the adapted model against the same baseline. None where infinite or undefined.
    """

    id: str
    kl: float | None
    js: float | None
    bit_equal: bool
    values: dict[str, float | None] = field(default_factory=dict)

    def body(self) -> dict[str, Json]:
        """JSON members."""
        found: dict[str, Json] = {"bit_equal": self.bit_equal, "id": self.id, "js": self.js, "kl": self.kl}
        # Left out where there is nothing to say, so that a record has one encoding.
        return {**found, "values": dict(self.values)} if self.values else found

    @classmethod
    def read(cls, value: Any) -> PromptDivergence:
        """Reads one element of a verification."""
        fields = Fields(value, "prompt divergence")
        divergence = cls(
            fields.text("id", 255), fields.optional_number("kl"), fields.optional_number("js"),
            fields.boolean("bit_equal"), fields.numbers("values") if "values" in value else {},
        )  # fmt: skip
        fields.done()
        if "values" in value and not divergence.values:
            raise InputError("prompt divergence: 'values' is empty, where it is left out", object="values")
        return divergence


@dataclass(frozen=True)
class Verification(Record):
    """Evidence: a comparison of a composition's outputs with a baseline, and its verdict.

    Attributes:
        commit: The commit vouched for, or None: a diverged revert makes none, and a comparison with another composition
            vouches for none.
        composition: What was measured.
        adapted: The composition before the revert, or None where nothing was reverted.
        removed: Names of the slots that were taken out of the live model.
        probe: Under what.
        baseline: What it was compared with.
        environment: Where it was measured.
        verdict: ``exact`` (bit-equal), ``within_tolerance`` or ``diverged``.
        tolerance: KL and JS below which the verdict is within tolerance.
        bit_equal: Whether every recorded value is the same.
        kl: Mean over prompts, nats; None where the output is no distribution.
        js: The same with JS.
        rf: 1 - kl / kl_adapted, or None with a reason.
        kl_adapted: KL(baseline || adapted model), or None.
        js_adapted: JS of the same, or None.
        reason: Why rf is None, else None.
        prompts: One each, in the probe's order.
        author: Who measured.
        time: RFC 3339.
    """

    KIND: ClassVar[str] = "verification"
    ID: ClassVar[type[RecordId]] = VerificationId

    commit: CommitId | None
    composition: CompositionId
    adapted: CompositionId | None
    removed: tuple[str, ...]
    probe: ProbeId
    baseline: BaselineId
    environment: dict[str, str]
    verdict: Verdict
    tolerance: float
    bit_equal: bool
    kl: float | None
    js: float | None
    rf: float | None
    kl_adapted: float | None
    js_adapted: float | None
    reason: str | None
    prompts: tuple[PromptDivergence, ...]
    author: str
    time: str

    def body(self) -> dict[str, Json]:
        return {
            "adapted": None if self.adapted is None else str(self.adapted),
            "author": self.author,
            "baseline": str(self.baseline),
            "bit_equal": self.bit_equal,
            "commit": None if self.commit is None else str(self.commit),
            "composition": str(self.composition),
            "environment": dict(self.environment),
            "js": self.js,
            "js_adapted": self.js_adapted,
            "kl": self.kl,
            "kl_adapted": self.kl_adapted,
            "probe": str(self.probe),
            "prompts": [prompt.body() for prompt in self.prompts],
            "reason": self.reason,
            "removed": list(self.removed),
            "rf": self.rf,
            "time": self.time,
            "tolerance": self.tolerance,
            "verdict": self.verdict,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Verification:
        verification = cls(
            commit=fields.optional_id("commit", CommitId),
            composition=fields.id("composition", CompositionId),
            adapted=fields.optional_id("adapted", CompositionId),
            removed=fields.items("removed", lambda value: Fields({"name": value}, "removed").text("name", 255)),
            probe=fields.id("probe", ProbeId),
            baseline=fields.id("baseline", BaselineId),
            environment=fields.text_map("environment"),
            verdict=cast("Verdict", fields.choice("verdict", ("diverged", "exact", "within_tolerance"))),
            tolerance=fields.number("tolerance"),
            bit_equal=fields.boolean("bit_equal"),
            kl=fields.optional_number("kl"),
            js=fields.optional_number("js"),
            rf=fields.optional_number("rf"),
            kl_adapted=fields.optional_number("kl_adapted"),
            js_adapted=fields.optional_number("js_adapted"),
            reason=fields.optional_text("reason"),
            prompts=fields.items("prompts", PromptDivergence.read, minimum=1),
            author=fields.text("author"),
            time=fields.time("time"),
        )
        require_sorted(sorted(prompt.id for prompt in verification.prompts), "verification record: prompt ids")
        if (verification.verdict == "exact") != verification.bit_equal:
            raise InputError("verification record: 'exact' means bit-equal, and only that")
        return verification
