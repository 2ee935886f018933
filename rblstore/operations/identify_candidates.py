"""What loose models are compared with: identities, behaviors, and what several overlays come to, by their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from rblstore.forgotten import ForgottenError
from rblstore.objects.content_records import FileEntry, FileManifest, StoredTensor
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import CommitId, CompositionId, RecordId
from rblstore.operations.audit_parts import component
from rblstore.operations.holders import History, Holder, holders
from rblstore.operations.identify_result import CommitsFound, Role
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, composed_state, file_named, read_checkpoint
from rblstore.repository import Store

_NEWEST = 20


@dataclass(frozen=True)
class Candidate:
    """A stored model.

    Attributes:
        role: ``identity``, ``behavior`` or ``composition``.
        id: Its id.
        form: ``adapter`` or ``overlay`` for behaviors.
        files: What it came in; none for a composition.
        tensors: By name.
    """

    role: Role
    id: RecordId
    form: str | None
    files: tuple[FileEntry, ...]
    tensors: Mapping[str, StoredTensor]


class Known:
    """What a repository holds, read once.

    Args:
        store: The repository.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.holders = tuple(holders(store))

    @cached_property
    def history(self) -> History:
        """Commits and compositions."""
        return History.of(self._store)

    @cached_property
    def forms(self) -> Mapping[RecordId, str | None]:
        """The form of every behavior; None for identities."""
        return {one.id: one.form for one in self.holders}

    def candidates(self) -> Iterator[Candidate]:
        """Everything with tensors, one at a time.

        Raises:
            CorruptError: A record is missing or damaged.
        """
        for one in self.holders:
            role: Role = "identity" if one.role == "identity" else "behavior"
            yield Candidate(role, one.id, one.form, one.files, self._tensors(one))
        for id, composition in self.history.compositions.items():
            # One overlay holds the whole checkpoint that it was; several come to something that none of them is.
            if sum(self.forms.get(slot.behavior) == "overlay" for slot in composition.slots) > 1:
                try:
                    yield Candidate("composition", id, None, (), composed_state(self._store, composition).tensors)
                except ForgottenError:
                    continue  # what a forgotten overlay said of the layout is gone

    def _tensors(self, holder: Holder) -> Mapping[str, StoredTensor]:
        if holder.form != "adapter":
            return read_checkpoint(self._store, holder.files).tensors
        entry = file_named(holder.files, ADAPTER_WEIGHTS)
        if entry is None or entry.manifest is None:
            return {}
        return {one.name: one.tensor for one in self._store.record(entry.manifest, FileManifest).tensors}

    def commits(self, candidate: Candidate) -> CommitsFound:
        """The commits that hold a candidate."""
        if candidate.role == "composition":
            return commits_found(self.history.commits_of(CompositionId(candidate.id)))
        return commits_found(self.history.composing([candidate.id])[0][candidate.id])

    def name(self, role: str, id: RecordId) -> str:
        """What a candidate is called: its slot in the newest commit, or what is said of it."""
        if role == "composition":
            return ""
        slot = self.history.composing([id])[1].get(id, "")
        return slot or component(self._store, role, "", id, 1.0, None, ()).name

    def adapters(self, composition: Composition) -> frozenset[RecordId]:
        """The adapters of a composition."""
        return frozenset(slot.behavior for slot in composition.slots if self.forms.get(slot.behavior) == "adapter")

    def ground(self, id: CompositionId, composition: Composition) -> frozenset[RecordId]:
        """Every id by which the checkpoint beneath a composition's adapters may go."""
        overlays = [slot.behavior for slot in composition.slots if self.forms.get(slot.behavior) == "overlay"]
        if not overlays:
            return frozenset([composition.identity])
        return frozenset(overlays) if len(overlays) == 1 else frozenset([RecordId(id)])

    def commits_with(self, ground: frozenset[RecordId], adapters: frozenset[RecordId]) -> list[CommitId]:
        """The commits whose checkpoint is one of some and whose adapters are just these, newest first."""
        if not ground:
            return []
        fitting = {
            id
            for id, composition in self.history.compositions.items()
            if self.adapters(composition) == adapters and self.ground(id, composition) & ground
        }
        return [commit for commit, composition in self.history.commits if composition in fitting]


def commits_found(commits: list[CommitId]) -> CommitsFound:
    """The newest of some commits, the oldest, and how many they are.

    Args:
        commits: Newest first.
    """
    return CommitsFound(tuple(commits[:_NEWEST]), commits[-1] if commits else None, len(commits))
