"""Studies: measurements of a model in many states, kept point by point so that every figure can be drawn again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rblstore.errors import InputError
from rblstore.objects.canonical import Json
from rblstore.objects.fields import Fields, check_measure_name, check_text, require_sorted
from rblstore.objects.ids import CommitId, ProbeId, RecordId, StudyId
from rblstore.objects.record import Record

Scalar = str | float | bool | None
"""What a parameter or a condition may be; integers are numbers like any other."""


@dataclass(frozen=True)
class PromptMeasures:
    """What was measured on one prompt.

    Attributes:
        id: The prompt's.
        values: By name: ``kl``, ``js``, ``entropy``, ...; means over the prompt's positions, None where not finite.
    """

    id: str
    values: dict[str, float | None]

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"id": self.id, "values": dict(self.values)}

    @classmethod
    def read(cls, value: Any) -> PromptMeasures:
        """Reads one element of a point."""
        fields = Fields(value, "prompt measures")
        measures = cls(fields.text("id", 255), fields.numbers("values"))
        fields.done()
        return measures


@dataclass(frozen=True)
class StudyPoint:
    """One state that a model was put into, and what was measured in it.

    Attributes:
        condition: What the state is: ``{"epsilon": 0.2}``, ``{"behavior": "polite", "given": "terse"}``, ...
        seed: Of the random numbers that made it; None where none did.
        bit_equal: Whether all outputs equal the reference's, bit for bit; None where nothing was compared.
        values: What is no mean over prompts, by name: ``rf``, ``angle``, ...; None where undefined.
        reason: Why a value is None, else None.
        prompts: One each, in the probe's order; empty where none was run.
    """

    condition: dict[str, Scalar]
    seed: int | None
    bit_equal: bool | None
    values: dict[str, float | None]
    reason: str | None
    prompts: tuple[PromptMeasures, ...]

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {
            "bit_equal": self.bit_equal,
            "condition": dict(self.condition),
            "prompts": [prompt.body() for prompt in self.prompts],
            "reason": self.reason,
            "seed": self.seed,
            "values": dict(self.values),
        }

    @classmethod
    def read(cls, value: Any) -> StudyPoint:
        """Reads one element of a study."""
        fields = Fields(value, "study point")
        seed, equal = fields.optional_number("seed"), fields.take("bit_equal")
        point = cls(
            _scalars(fields, "condition"),
            None if seed is None else int(seed),
            equal,
            fields.numbers("values"),
            fields.optional_text("reason"),
            fields.items("prompts", PromptMeasures.read),
        )
        fields.done()
        if not (equal is None or isinstance(equal, bool)):
            raise InputError("study point: 'bit_equal' is not true, false or null", object="bit_equal")
        if seed is not None and not (seed.is_integer() and 0 <= seed < 2**53):
            raise InputError("study point: 'seed' is not an integer from 0 to 2^53 - 1", object="seed")
        require_sorted(sorted(prompt.id for prompt in point.prompts), "study point: prompt ids")
        return point


@dataclass(frozen=True)
class Study(Record):
    """Evidence: what was measured of one or more commits in many states.

    Attributes:
        study: Which one: ``elimination``, ``mutation``, ``svar``, ...
        commits: What was studied, the first being the subject; no commit twice. The study lives while all of them do.
        probes: What was measured under, in the order of their use; no probe twice.
        parameters: What was asked for.
        environment: Where it was measured (flat text).
        points: At least one, in the order in which they were asked for.
        author: Who measured.
        time: RFC 3339.
    """

    KIND: ClassVar[str] = "study"
    ID: ClassVar[type[RecordId]] = StudyId

    study: str
    commits: tuple[CommitId, ...]
    probes: tuple[ProbeId, ...]
    parameters: dict[str, Scalar | list[Scalar]]
    environment: dict[str, str]
    points: tuple[StudyPoint, ...]
    author: str
    time: str

    def body(self) -> dict[str, Json]:
        return {
            "author": self.author,
            "commits": [str(commit) for commit in self.commits],
            "environment": dict(self.environment),
            "parameters": {
                name: list(value) if isinstance(value, list) else value for name, value in self.parameters.items()
            },
            "points": [point.body() for point in self.points],
            "probes": [str(probe) for probe in self.probes],
            "study": self.study,
            "time": self.time,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Study:
        study = cls(
            fields.text("study", 63),
            fields.items("commits", lambda value: Fields({"commit": value}, "study").id("commit", CommitId), 1),
            fields.items("probes", lambda value: Fields({"probe": value}, "study").id("probe", ProbeId)),
            _parameters(fields),
            fields.text_map("environment"),
            fields.items("points", StudyPoint.read, minimum=1),
            fields.text("author"),
            fields.time("time"),
        )
        check_measure_name(study.study, "study record: its name")
        require_sorted(sorted(study.commits), "study record: commits")
        require_sorted(sorted(study.probes), "study record: probes")
        return study


def _members(fields: Fields, name: str) -> dict[str, Any]:
    value = fields.take(name)
    if not isinstance(value, dict):
        raise InputError(f"study: {name!r} is not a JSON object", object=name)
    for key in value:
        check_measure_name(key, f"study: {name}:")
    return dict(value)


def _scalar(value: Any, what: str) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return check_text(value, what)
    return Fields({"value": value}, what).number("value")


def _scalars(fields: Fields, name: str) -> dict[str, Scalar]:
    return {key: _scalar(value, f"study: {name}.{key}") for key, value in _members(fields, name).items()}


def _parameters(fields: Fields) -> dict[str, Scalar | list[Scalar]]:
    found: dict[str, Scalar | list[Scalar]] = {}
    for key, value in _members(fields, "parameters").items():
        what = f"study: parameters.{key}"
        found[key] = [_scalar(one, what) for one in value] if isinstance(value, list) else _scalar(value, what)
    return found
