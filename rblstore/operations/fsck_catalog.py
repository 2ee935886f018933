"""Whether the catalog says what packs and ``refs.log`` say."""

from __future__ import annotations

from collections.abc import Iterable

from rblstore.catalog.engine import CatalogFailedError
from rblstore.catalog.rows import CommitRow
from rblstore.errors import CorruptError, RblError
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import CommitId, RecordId
from rblstore.operations.fsck_findings import REINDEX, REPAIR, Findings
from rblstore.operations.fsck_records import Records


def check_log(found: Findings) -> int:
    """Compares operations and refs of the catalog with ``refs.log``.

    Returns:
        How many operations there are.
    """
    # At one moment both, since others may be writing; the log is read later, and may have more by then.
    state = found.ask(lambda reader: (reader.operations_after(0), reader.refs("")))
    recorded, refs = (None, None) if state is None else state
    try:
        logged = list(found.store.log.read().operations)
    except RblError as error:
        found.add("refs.log", "log", error.message, "Run: rbl repair")
        return len(recorded or ())
    told = logged
    if recorded is not None:
        latest = recorded
        if len(logged) > len(recorded):
            latest = found.ask(lambda reader: reader.operations_after(0)) or recorded
        if logged[: len(latest)] != latest[: len(logged)] or len(logged) > len(latest):
            found.add("refs.log", "log", "it and the catalog tell different histories", REINDEX)
        else:
            told = recorded
            if len(logged) < len(recorded):
                problem = f"it lacks what the catalog has from operation {len(logged) + 1} on"
                found.add("refs.log", "log", problem, "The next command writes it.")
    said = {change.ref: change.after for one in told for change in one.changes}
    if refs is not None:
        for name in sorted(said.keys() | refs.keys()):
            if said.get(name) != refs.get(name):
                found.add(name, "ref", "the catalog has it elsewhere than refs.log says", REINDEX)
    return len(logged)


def check_catalog(found: Findings, records: Records) -> None:
    """Compares what the catalog says of records with the records."""
    try:
        for problem in found.store.catalog.integrity_problems():
            found.add("catalog.db", "catalog", problem, REINDEX)
    except (CorruptError, CatalogFailedError) as error:
        found.add_catalog(error)
    _check_kinds(found, records)
    rows = found.ask(lambda reader: {row.id: row for row in reader.commit_rows(records.commits)})
    if rows is not None:
        _check_commits(found, records.commits, rows)
    compositions = found.ask(lambda reader: reader.compositions(records.compositions))
    for composition_id, composition in records.compositions.items():
        if compositions is not None and compositions.get(composition_id) != composition:
            found.add(composition_id, "catalog", "the catalog tells this composition wrongly", REINDEX)
    _check_evidence(found, records)


def _check_kinds(found: Findings, records: Records) -> None:
    recorded = found.ask(lambda reader: dict(reader.records(None)))
    if recorded is None:
        return
    for record_id, kind in records.kinds.items():
        if recorded.pop(record_id, None) != kind:
            found.add(record_id, "catalog", f"the catalog does not know this {kind}", REINDEX)
    for record_id in recorded:
        if record_id not in found.damaged:
            found.add(record_id, "catalog", "the catalog knows a record that no pack holds", REPAIR)


def _check_commits(found: Findings, commits: dict[CommitId, Commit], rows: dict[CommitId, CommitRow]) -> None:
    for commit_id, commit in commits.items():
        row = rows.get(commit_id)
        told = row and Commit(row.composition, row.parents, row.author, row.time, row.message)
        if row is None or told != commit:
            found.add(commit_id, "catalog", "the catalog tells this commit wrongly", REINDEX)
        elif all(parent in rows for parent in row.parents):
            place = 1 + max((rows[parent].generation for parent in row.parents), default=0)
            if row.generation != place:
                found.add(commit_id, "catalog", "the catalog gives this commit a wrong place", REINDEX)


def _check_evidence(found: Findings, records: Records) -> None:
    pointing = found.ask(lambda reader: _by_subject(reader.all_evidence()))
    if pointing is None:
        return
    pointed: dict[str, set[RecordId]] = {str(subject): pointers for subject, pointers in records.about.items()}
    nothing: set[RecordId] = set()
    for subject in sorted(pointed.keys() | pointing.keys()):
        about, told = pointed.get(subject, nothing), pointing.get(subject, nothing)
        if not about <= told:
            found.add(subject, "catalog", "the catalog has not all evidence about it", REINDEX)
        elif any(record in records.kinds for record in told - about):
            found.add(subject, "catalog", "the catalog has evidence about it that is about something else", REINDEX)


def _by_subject(pairs: Iterable[tuple[str, RecordId]]) -> dict[str, set[RecordId]]:
    pointing: dict[str, set[RecordId]] = {}
    for subject, record_id in pairs:
        pointing.setdefault(subject, set()).add(record_id)
    return pointing
