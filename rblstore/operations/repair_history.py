"""History around what is lost: commits taken over without their lost parents, and refs moved to what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from rblstore.objects import limits
from rblstore.objects.evidence_records import Probe, Verification
from rblstore.objects.history_records import SYMBOLIC, Commit, Tag
from rblstore.objects.ids import CommitId, RecordId, is_full_id
from rblstore.objects.record import Record
from rblstore.objects.signature_records import Signature
from rblstore.objects.study_records import Study
from rblstore.objects.training_records import TrainingState
from rblstore.repository import HEADS, PROBES, TAGS

_UNKNOWN: Final = "what refs were is not known any more"


@dataclass(frozen=True)
class RescuedRecord:
    """A record taken over under another id, since what it points at is lost or was taken over itself.

    Attributes:
        kind: ``commit``, ``tag``, ``verification``, ``training-state`` or ``study``.
        before: Its id.
        after: The new record's; None where only quarantine keeps it.
    """

    kind: str
    before: RecordId
    after: RecordId | None


@dataclass(frozen=True)
class RepairedRef:
    """A ref that moves.

    Attributes:
        ref: Its full name.
        before: What it was.
        after: What it becomes; None where it is deleted.
        why: In words.
    """

    ref: str
    before: str | None
    after: str | None
    why: str


@dataclass
class HistoryPlan:
    """What becomes of history.

    Attributes:
        rescued: Records that others take the place of, or nothing.
        added: The others.
        refs: The refs that move.
    """

    rescued: dict[RecordId, RescuedRecord] = field(default_factory=dict)
    added: dict[RecordId, Record] = field(default_factory=dict)
    refs: list[RepairedRef] = field(default_factory=list)


def _message(message: str, old: RecordId) -> str:
    line = f"\n\nrescued from {old}"
    room = limits.MESSAGE_BYTES - len(line.encode())
    return message.encode("utf-8")[:room].decode("utf-8", "ignore").rstrip("\n") + line


class HistoryMender:
    """Plans what becomes of commits, tags, verifications, training states and refs.

    Args:
        records: Every record that is or will be there.
        stays: Whether a record that is not among them is there all the same, for a later version.
    """

    def __init__(self, records: Mapping[RecordId, Record], stays: Callable[[RecordId], bool]) -> None:
        self._records = records
        self._stays = stays
        self.plan = HistoryPlan()
        self._take_over_commits()
        self._take_over_others()

    def _there(self, record_id: str) -> bool:
        return record_id in self._records or self._stays(RecordId(record_id))

    def _add(self, old: RecordId, record: Record | None) -> None:
        kind = self._records[old].KIND
        if record is None:
            self.plan.rescued[old] = RescuedRecord(kind, old, None)
            return
        new = record.id_of(record.encode())
        self.plan.added[new] = record
        self.plan.rescued[old] = RescuedRecord(kind, old, new)

    def _now(self, old: RecordId) -> RecordId | None:
        """What an id has become; None where it is lost."""
        rescued = self.plan.rescued.get(old)
        if rescued is not None:
            return rescued.after
        return old if self._there(old) else None

    def _take_over_commits(self) -> None:
        """Parents first: a commit that has lost one, or whose parent was taken over, is taken over."""
        from graphlib import TopologicalSorter

        commits = {id: record for id, record in self._records.items() if isinstance(record, Commit)}
        order = TopologicalSorter(
            {id: [parent for parent in commit.parents if parent in commits] for id, commit in commits.items()}
        )
        for commit_id in order.static_order():
            commit = commits[commit_id]
            now = tuple(self._now(parent) for parent in commit.parents)
            if now != commit.parents:
                left = tuple(dict.fromkeys(CommitId(parent) for parent in now if parent is not None))
                self._add(commit_id, replace(commit, parents=left, message=_message(commit.message, commit_id)))

    def _take_over_others(self) -> None:
        for record_id, record in self._records.items():
            if isinstance(record, Tag):
                target = self._now(record.target)
                if target is None:
                    self._add(record_id, None)
                elif target != record.target:
                    message = _message(record.message, record_id)
                    self._add(record_id, replace(record, target=CommitId(target), message=message))
            elif isinstance(record, Verification) and record.commit is not None:
                commit = self._now(record.commit)
                if commit != record.commit:
                    self._add(record_id, replace(record, commit=None if commit is None else CommitId(commit)))
            elif isinstance(record, TrainingState):
                commit = self._now(record.commit)
                if commit != record.commit:
                    self._add(record_id, None if commit is None else replace(record, commit=CommitId(commit)))
            elif isinstance(record, Study):
                commits = [self._now(commit) for commit in record.commits]
                left = tuple(dict.fromkeys(CommitId(commit) for commit in commits if commit is not None))
                if left != record.commits:
                    whole = len(left) == len(record.commits)
                    self._add(record_id, replace(record, commits=left) if whole else None)
        for record_id, record in self._records.items():
            # Nobody signed what a commit or a verification was taken over as.
            if isinstance(record, Signature) and self._now(record.subject) != record.subject:
                self._add(record_id, None)

    def mend_refs(
        self,
        refs: Mapping[str, str],
        moved: Mapping[str, Sequence[str]],
        *,
        complete: bool,
        log_refs: Mapping[str, str],
    ) -> None:
        """Plans where refs go.

        Args:
            refs: What they are known to have been.
            moved: What each was before that, the latest last.
            complete: Whether no change of refs is missing.
            log_refs: What they are by the operations that stay in the log.
        """
        wanted: dict[str, tuple[str | None, str]] = {}
        for name, value in refs.items():
            if not value.startswith(SYMBOLIC):
                wanted[name] = self._value(name, value, moved.get(name, ()))
        after = {name: value for name, (value, _) in wanted.items() if value is not None}
        why = {name: because for name, (_, because) in wanted.items()}
        if not complete:
            for name, value in self._unnamed(after).items():
                after[name] = value
                why[name] = _UNKNOWN
        for name, value in refs.items():
            if value.startswith(SYMBOLIC):
                if name == "HEAD" or value.removeprefix(SYMBOLIC) in after:
                    after[name] = value
                else:
                    why[name] = "what it stood for is lost"
        if "HEAD" not in after:
            heads = [name for name in after if name.startswith(HEADS)]
            main = f"{HEADS}main"
            after["HEAD"] = SYMBOLIC + (main if main in heads or not heads else min(heads))
            why["HEAD"] = _UNKNOWN
        for name in sorted(after.keys() | log_refs.keys()):
            if after.get(name) != log_refs.get(name):
                because = why.get(name) or "an operation that has lost its place in the log moved it"
                self.plan.refs.append(RepairedRef(name, log_refs.get(name), after.get(name), because))

    def _value(self, name: str, value: str, before: Sequence[str]) -> tuple[str | None, str]:
        if is_full_id(value):
            now = self._now(RecordId(value))
            if now == value:
                return now, ""
            if now is not None:
                return now, f"{value[:12]} was rescued"
        for older in reversed(before):
            now = self._now(RecordId(older)) if is_full_id(older) else None
            if now is not None:
                return now, f"{value[:12]} is lost; this is what it was before"
        return None, f"{value[:12]} is lost, and nothing before it is left"

    def _unnamed(self, named: Mapping[str, str]) -> dict[str, str]:
        """Names for what no ref reaches, where refs are lost: the tips of history, tags, probes."""
        records = {id: record for id, record in self._records.items() if id not in self.plan.rescued}
        records.update(self.plan.added)
        commits = {id: record for id, record in records.items() if isinstance(record, Commit)}
        reached: set[str] = set()
        waiting = [
            record.target if isinstance(record := records.get(RecordId(value)), Tag) else value
            for value in named.values()
        ]
        while waiting:
            commit_id = waiting.pop()
            commit = commits.get(RecordId(commit_id))
            if commit is not None and commit_id not in reached:
                reached.add(commit_id)
                waiting += commit.parents
        tags = sorted(
            ((record.time, id, record) for id, record in records.items() if isinstance(record, Tag)),
            key=lambda t: t[:2],
        )
        found: dict[str, str] = {}
        for _, tag_id, tag in tags:
            if f"{TAGS}{tag.name}" not in named:
                found[f"{TAGS}{tag.name}"] = tag_id
        parents = {parent for commit in commits.values() for parent in commit.parents}
        for commit_id in commits:
            if commit_id not in parents and commit_id not in reached:
                found[f"{HEADS}rescued/{commit_id[:12]}"] = commit_id
        for record_id, record in records.items():
            if isinstance(record, Probe) and record_id not in named.values():
                found[f"{PROBES}rescued-{record_id[:12]}"] = record_id
        return found
