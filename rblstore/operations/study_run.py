"""One study being measured, point by point, and its record at the end: all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rblstore.errors import UsageError
from rblstore.objects.canonical import Json
from rblstore.objects.ids import CommitId, ProbeId, StudyId
from rblstore.objects.study_records import Scalar, Study, StudyPoint
from rblstore.operations.evidence_time import evidence_time
from rblstore.operations.progress import ProgressEvent
from rblstore.operations.result import Result
from rblstore.operations.study_journal import StudyJournal, point_key

if TYPE_CHECKING:
    from rblstore.operations.study_model import StudyModel

Parameter = Scalar | list[Scalar]

_MEASURES: Final = 1
"""Of how points are measured: raised where the same parameters would give other numbers, so that no journal mixes."""


class EmptyStudyError(UsageError):
    """A study without a single point."""

    code: ClassVar[str] = "empty_study"


@dataclass(frozen=True)
class StudyResult(Result):
    """A study that was recorded.

    Attributes:
        study_id: Its id.
        record: What was measured.
        commit: The commit that it is about; the first one where there are several.
    """

    study_id: StudyId
    record: Study
    commit: CommitId

    def as_json(self) -> dict[str, Any]:
        from rblstore.operations.study_summary import derived_of

        return {**self.record.body(), **derived_of(self.record), "id": str(self.study_id)}


class StudyRun:
    """A study that is being measured. Points that an interrupted run of the very same study measured are taken over.

    Args:
        model: What is measured: its repository, environment and element type (a parameter like the others, where one
            was asked for) are the study's, and so are its author and progress.
        study: Its name: small letters, digits and underscores.
        parameters: What was asked for.
        total: How many points there will be.
        commits: What is studied, the first being the subject; None for the model's alone.
        probes: What is measured under; None for the model's alone.
        environment: Where it is measured; None for the model's.

    Raises:
        InputError: A parameter is no value that a record can hold.
        WriteError: The journal cannot be read.
    """

    def __init__(
        self,
        model: StudyModel,
        study: str,
        parameters: Mapping[str, Any],
        *,
        total: int,
        commits: Sequence[CommitId] | None = None,
        probes: Sequence[ProbeId] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._store = model.store
        self._study = study
        self._commits = (model.commit,) if commits is None else tuple(commits)
        self._probes = (model.probe_id,) if probes is None else tuple(probes)
        self._parameters: dict[str, Parameter] = {
            name: list(value) if isinstance(value, (list, tuple)) else value for name, value in parameters.items()
        }
        if model.dtype is not None:
            self._parameters["dtype"] = model.dtype
        self._environment = dict(sorted((model.environment if environment is None else environment).items()))
        self._author = model.author
        self._progress = model.progress
        self._total = total
        self._points: dict[bytes, StudyPoint] = {}
        self._measured = False
        self._journal = StudyJournal(
            self._store.folder,
            {
                "commits": [str(commit) for commit in self._commits],
                "environment": dict(self._environment),
                "measures": _MEASURES,
                "parameters": {name: _json(value) for name, value in self._parameters.items()},
                "probes": [str(probe) for probe in self._probes],
                "study": study,
            },
        )

    def point(self, condition: Mapping[str, Scalar], seed: int | None, make: Callable[[], StudyPoint]) -> StudyPoint:
        """A point: as an interrupted run measured it, else as it is measured now.

        Args:
            condition: What the state is; with the seed it names the point, so one that was asked for before is not
                measured again.
            seed: Of the random numbers that make it, or None.
            make: Measures it; the point has this condition and seed.

        Raises:
            NanOutputError: The state's outputs are not numbers; names the state and the prompt.
            InputError: The point holds what no record can: NaN, or text that is too long.
            WriteError: The system refused.
        """
        key = point_key(condition, seed)
        if (known := self._points.get(key)) is not None:
            return known
        self._tell(_stage(condition, seed))
        found = self._journal.find(key)
        if found is None:
            found = self._journal.add(key, _made(make, _stage(condition, seed)))
            self._measured = True
        self._points[key] = found
        self._tell(_stage(condition, seed))
        return found

    def finish(self) -> StudyResult:
        """Records the study, and removes its journal.

        Where every point came out of a journal, and a study has these very points already, that one is returned: an
        earlier run recorded it, and did not get to removing its journal.

        Raises:
            EmptyStudyError: Nothing was measured.
            DanglingReferenceError: gc took a commit or a probe meanwhile.
        """
        if not self._points:
            raise EmptyStudyError(f"the study {self._study!r} has no points", object=self._study)
        record = Study(
            self._study,
            self._commits,
            self._probes,
            self._parameters,
            self._environment,
            tuple(self._points.values()),
            self._author,
            evidence_time(self._store, self._commits[0], Study),
        )
        study_id = None if self._measured else self._recorded(record)
        if study_id is None:
            with self._store.transaction(self._author) as transaction:
                study_id = StudyId(transaction.add_record(record))
        self._journal.remove()
        return StudyResult(study_id, self._store.record(study_id, Study), self._commits[0])

    def _recorded(self, record: Study) -> StudyId | None:
        """The newest study that measured what another one did, whoever recorded it and when; None without one."""
        with self._store.catalog.read() as reader:
            found = reader.evidence(record.commits[0], Study.KIND)
        wanted = _content(record)
        return next(
            (StudyId(one) for one in reversed(found) if _content(self._store.record(one, Study)) == wanted), None
        )

    def _tell(self, stage: str) -> None:
        if self._progress is not None:
            self._progress(ProgressEvent(stage, len(self._points), max(self._total, len(self._points)), "points"))


def _made(make: Callable[[], StudyPoint], stage: str) -> StudyPoint:
    from rblstore.divergence.metrics import NanOutputError

    try:
        return make()
    except NanOutputError as error:
        raise NanOutputError(f"{stage}: {error.message}", object=error.object, hint=error.hint) from error


def _content(record: Study) -> dict[str, Json]:
    return {name: value for name, value in record.body().items() if name not in ("author", "time")}


def _json(value: Parameter) -> Json:
    return list(value) if isinstance(value, list) else value


def _stage(condition: Mapping[str, Scalar], seed: int | None) -> str:
    words = [f"{name} {_shown(value)}" for name, value in condition.items() if value is not None]
    if seed is not None:
        words.append(f"seed {seed}")
    return ", ".join(words)


def _shown(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
