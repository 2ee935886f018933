"""Who holds what: the identities and behaviors of a repository with their files, and the commits that compose them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from rblstore.objects.content_records import Behavior, FileEntry, Identity
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import CommitId, CompositionId, RecordId
from rblstore.operations.log import ref_names
from rblstore.repository import Store


@dataclass(frozen=True)
class Holder:
    """An identity or behavior with the files that it came in.

    Attributes:
        role: ``identity`` or ``behavior``.
        id: Its id.
        form: ``adapter`` or ``overlay``; None for an identity.
        files: Sorted by path.
        targets: Tensors that an adapter changes; none for anything else.
    """

    role: str
    id: RecordId
    form: str | None
    files: tuple[FileEntry, ...]
    targets: frozenset[str] = frozenset()


def holders(store: Store) -> Iterator[Holder]:
    """Every identity, then every behavior, in the order in which they came.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    with store.catalog.read() as reader:
        identities = [one for one, _ in reader.records(Identity.KIND)]
        behaviors = [one for one, _ in reader.records(Behavior.KIND)]
    for one in identities:
        yield Holder("identity", one, None, store.record(one, Identity).files)
    shared: dict[frozenset[str], frozenset[str]] = {}  # thousands of adapters may change the same tensors
    for one in behaviors:
        behavior = store.record(one, Behavior)
        changes = behavior.effects if behavior.form == "adapter" else ()
        targets = frozenset(effect.target for effect in changes if effect.on == "tensor")
        yield Holder("behavior", one, behavior.form, behavior.files, shared.setdefault(targets, targets))


@dataclass(frozen=True)
class History:
    """Every commit that a branch, a tag or HEAD leads to, with its composition.

    Attributes:
        commits: (commit, composition), newest first.
        compositions: By id; those that are lost are left out.
    """

    commits: tuple[tuple[CommitId, CompositionId], ...]
    compositions: Mapping[CompositionId, Composition]

    @classmethod
    def of(cls, store: Store) -> History:
        """The history of a repository."""
        with store.catalog.read() as reader:
            rows = [(row.id, row.composition) for row in reader.commits(list(ref_names(store, reader)), None)]
            return cls(tuple(rows), reader.compositions(composition for _, composition in rows))

    def commits_of(self, composition: CompositionId) -> list[CommitId]:
        """The commits that have a composition, newest first."""
        return [commit for commit, one in self.commits if one == composition]

    def composing(self, wanted: Collection[RecordId]) -> tuple[dict[RecordId, list[CommitId]], dict[RecordId, str]]:
        """The commits that compose each of some identities and behaviors, newest first; and slots' names in the newest.

        Args:
            wanted: Their ids.
        """
        commits: dict[RecordId, list[CommitId]] = {one: [] for one in wanted}
        names: dict[RecordId, str] = {}
        for commit, composition in self.commits if wanted else ():
            one = self.compositions.get(composition)
            if one is None:
                continue
            for held in {one.identity, *(slot.behavior for slot in one.slots)} & commits.keys():
                commits[held].append(commit)
            for slot in one.slots:
                if slot.behavior in commits:
                    names.setdefault(slot.behavior, slot.name)
        return commits, names
