"""What loose models are compared with: identities, behaviors, and what several overlays come to, by their tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from rblstore.forgotten import ForgottenError, tombstones_of
from rblstore.objects.content_records import FileEntry, FileManifest, StoredTensor
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import CommitId, CompositionId, RecordId
from rblstore.operations.audit_parts import component
from rblstore.operations.holders import History, Holder, holders
from rblstore.operations.identify_adapters import Products, products_of
from rblstore.operations.identify_result import CommitsFound, Role
from rblstore.operations.stored_models import ADAPTER_WEIGHTS, composed_state, file_named, read_checkpoint
from rblstore.repository import Store

_NEWEST = 20
_ONE_OVERLAY = 2  # an identity and an overlay


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
        self._products: dict[tuple[RecordId, frozenset[str]], Mapping[RecordId, Products]] = {}

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
        yield from self.identities()
        for one in self.holders:
            if one.role != "identity":
                yield Candidate("behavior", one.id, one.form, one.files, self._tensors(one))
        for id in self._stacked.values():
            try:
                yield Candidate("composition", id, None, (), self.composed_tensors(id))
            except ForgottenError:
                continue  # what a forgotten overlay said of the layout is gone

    def identities(self) -> Iterator[Candidate]:
        """Every identity, one at a time.

        Raises:
            CorruptError: A record is missing or damaged.
        """
        for one in self.holders:
            if one.role == "identity":
                yield Candidate("identity", one.id, None, one.files, self._tensors(one))

    def _tensors(self, holder: Holder) -> Mapping[str, StoredTensor]:
        if holder.form != "adapter":
            return read_checkpoint(self._store, holder.files).tensors
        entry = file_named(holder.files, ADAPTER_WEIGHTS)
        if entry is None or entry.manifest is None:
            return {}
        return {one.name: one.tensor for one in self._store.record(entry.manifest, FileManifest).tensors}

    def composed_tensors(self, id: RecordId) -> Mapping[str, StoredTensor]:
        """The tensors beneath a composition's adapters.

        Raises:
            ForgottenError: What said how they lie was removed on purpose.
            CorruptError: A record is missing or damaged.
        """
        return composed_state(self._store, self.history.compositions[CompositionId(id)]).tensors

    def products(
        self, ground: RecordId, beneath: Mapping[str, StoredTensor], targets: frozenset[str]
    ) -> Mapping[RecordId, Products]:
        """The stored adapters that can be merged into a checkpoint, and what they add to some of its tensors.

        Args:
            ground: The checkpoint's id.
            beneath: Its tensors.
            targets: Names of some of them.

        Raises:
            CorruptError: A record is missing or damaged.
        """
        if (ground, targets) not in self._products:
            adapters = (one for one in self.holders if one.form == "adapter" and one.id not in self.gone)
            # One at a time: two lists of thousands are not wanted at once.
            self._products = {(ground, targets): dict(products_of(self._store, adapters, beneath, targets))}
        return self._products[ground, targets]

    @cached_property
    def gone(self) -> Collection[RecordId]:
        """What was removed on purpose."""
        return tombstones_of(self._store, (one.id for one in self.holders)).keys()

    @cached_property
    def _composing(self) -> tuple[dict[RecordId, list[CommitId]], dict[RecordId, str]]:
        return self.history.composing([one.id for one in self.holders])

    def commits(self, candidate: Candidate) -> CommitsFound:
        """The commits that hold a candidate."""
        if candidate.role == "composition":
            fitting = {
                id for id, composition in self.history.compositions.items() if self.ground(composition) == candidate.id
            }
            return commits_found([commit for commit, composition in self.history.commits if composition in fitting])
        return commits_found(self._composing[0][candidate.id])

    def name(self, role: str, id: RecordId) -> str:
        """What a candidate is called: its slot in the newest commit, or what is said of it."""
        if role == "composition":
            return ""
        slot = self._composing[1].get(id, "")
        return slot or component(self._store, role, "", id, 1.0, None, ()).name

    def targets(self, composition: Composition) -> frozenset[str]:
        """The tensors that the adapters of a composition change."""
        return frozenset().union(*(self._targets.get(slot.behavior, frozenset()) for slot in composition.slots))

    @cached_property
    def _targets(self) -> Mapping[RecordId, frozenset[str]]:
        return {one.id: one.targets for one in self.holders}

    def adapters(self, composition: Composition) -> frozenset[RecordId]:
        """The adapters of a composition."""
        return frozenset(slot.behavior for slot in composition.slots if self.forms.get(slot.behavior) == "adapter")

    def ground(self, composition: Composition) -> RecordId:
        """The id of the checkpoint beneath a composition's adapters.

        One overlay holds the whole checkpoint that it was. Several come to something that none of them is: that goes by
        the id of a composition of just these, or of the first that has adapters on them.
        """
        parts = self._parts(composition)
        return parts[-1] if len(parts) <= _ONE_OVERLAY else self._stacked[parts]

    def _parts(self, composition: Composition) -> tuple[RecordId, ...]:
        overlays = (slot.behavior for slot in composition.slots if self.forms.get(slot.behavior) == "overlay")
        return (composition.identity, *overlays)

    @cached_property
    def _stacked(self) -> Mapping[tuple[RecordId, ...], RecordId]:
        found: dict[tuple[RecordId, ...], RecordId] = {}
        for id, composition in self.history.compositions.items():
            parts = self._parts(composition)
            if len(parts) > _ONE_OVERLAY and (parts not in found or len(composition.slots) < len(parts)):
                found[parts] = RecordId(id)
        return found

    def commits_with(self, ground: frozenset[RecordId], adapters: frozenset[RecordId]) -> list[CommitId]:
        """The commits whose checkpoint is one of some and whose adapters are just these, newest first."""
        if not ground:
            return []
        fitting = {
            id
            for id, composition in self.history.compositions.items()
            if self.adapters(composition) == adapters and self.ground(composition) in ground
        }
        return [commit for commit, composition in self.history.commits if composition in fitting]


def commits_found(commits: list[CommitId]) -> CommitsFound:
    """The newest of some commits, the oldest, and how many they are.

    Args:
        commits: Newest first.
    """
    return CommitsFound(tuple(commits[:_NEWEST]), commits[-1] if commits else None, len(commits))
