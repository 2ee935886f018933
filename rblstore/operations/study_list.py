"""Which studies there are."""

from __future__ import annotations

from dataclasses import dataclass

from rblstore.errors import NotFoundError
from rblstore.objects.ids import CommitId, RecordId, StudyId, is_full_id
from rblstore.objects.study_records import Study
from rblstore.operations.result import Result
from rblstore.operations.study_run import StudyResult
from rblstore.repository import Store
from rblstore.revisions import find_record


@dataclass(frozen=True)
class StudyInfo(Result):
    """One study.

    Attributes:
        id: Its id.
        study: Which one: ``elimination``, ``mutation``, ...
        commits: What it is about.
        probes: What was measured under.
        points: How many states were measured.
        author: Who measured.
        time: When.
    """

    id: StudyId
    study: str
    commits: tuple[CommitId, ...]
    probes: tuple[RecordId, ...]
    points: int
    author: str
    time: str


def studies(store: Store, commit: CommitId | None = None) -> list[StudyInfo]:
    """Studies in the order in which they were recorded: of one commit, or all of them."""
    with store.catalog.read() as reader:
        if commit is not None:
            found = list(reader.evidence(commit, "study"))
        else:
            found = [record_id for record_id, _ in reader.records("study")]
    return [study_info(store, RecordId(one)) for one in found]


def study(store: Store, study_id: str) -> StudyResult:
    """A recorded study.

    Args:
        store: The repository.
        study_id: Its id, or a unique prefix of it.

    Raises:
        NotFoundError: There is none.
    """
    try:
        found = RecordId(study_id) if is_full_id(study_id) else find_record(store, study_id)
        record = store.any_record(found)
    except NotFoundError as error:
        raise NotFoundError(
            f"no study is called {study_id!r:.80}", object=study_id, hint="There are: rbl study list"
        ) from error
    if not isinstance(record, Study):
        raise NotFoundError(
            f"{found.short} is a {record.KIND}, not a study", object=found, hint="There are: rbl study list"
        )
    return StudyResult(StudyId(found), record, record.commits[0])


def study_info(store: Store, study_id: RecordId) -> StudyInfo:
    """What a listing says of one study.

    Raises:
        CorruptError: Its record is missing or damaged.
    """
    record = store.record(study_id, Study)
    return StudyInfo(
        StudyId(study_id),
        record.study,
        record.commits,
        record.probes,
        len(record.points),
        record.author,
        record.time,
    )
