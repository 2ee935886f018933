"""What a repository should hold, as a dictionary and a list: the model that the state machine compares with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

HEADS, TAGS, SYMBOLIC = "refs/heads/", "refs/tags/", "ref: "


@dataclass(frozen=True)
class Part:
    """A slot: its name, what was committed in it, and its weight."""

    name: str
    source: str
    weight: float = 1.0


def subject(source: str, base: str) -> str:
    """What tells one behavior from another: what it stands on, too. Fine-tunes keep all that adapters stand on."""
    return f"{source} on {base if 'o' in source else base[:2]}"


@dataclass(frozen=True)
class Composed:
    """What a commit composes: the names of sources."""

    base: str
    parts: tuple[Part, ...] = ()

    def part(self, name: str) -> Part | None:
        return next((part for part in self.parts if part.name == name), None)

    def having(self, name: str, source: str) -> Composed:
        old = self.part(name)
        if old is None:
            return replace(self, parts=(*self.parts, Part(name, source)))
        return replace(self, parts=tuple(replace(one, source=source) if one is old else one for one in self.parts))

    def weighing(self, name: str, weight: float) -> Composed:
        return replace(
            self, parts=tuple(replace(one, weight=weight) if one.name == name else one for one in self.parts)
        )

    def without(self, name: str) -> Composed:
        return replace(self, parts=tuple(one for one in self.parts if one.name != name))

    @property
    def subjects(self) -> tuple[str, ...]:
        """What statements are about: the identity, and each behavior on it, in order."""
        return (self.base, *(subject(part.source, self.base) for part in self.parts))


@dataclass(frozen=True)
class Made:
    """A commit."""

    composed: Composed
    parent: str | None
    day: float


@dataclass(frozen=True)
class Done:
    """An operation: refs with their values before and after, and the number of the one that it undoes."""

    description: str
    changes: Mapping[str, tuple[str | None, str | None]]
    undoes: int | None
    day: float


@dataclass
class Model:
    """A repository.

    Attributes:
        refs: As the catalog has them, HEAD among them.
        operations: From the first on.
        commits: Every commit that was ever made.
        tags: Every tag that was ever made, and its commit.
        present: Commits and tags that no gc has taken.
        said: By subject, keys that somebody stated about it and that must still stand.
        day: What day it is.
    """

    refs: dict[str, str] = field(default_factory=dict)
    operations: list[Done] = field(default_factory=list)
    commits: dict[str, Made] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    said: dict[str, set[str]] = field(default_factory=dict)
    day: float = 0.0

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def head_ref(self) -> str:
        return self.refs["HEAD"].removeprefix(SYMBOLIC)

    @property
    def head(self) -> str | None:
        return self.refs.get(self.head_ref)

    def branches(self) -> dict[str, str]:
        return {name: value for name, value in self.refs.items() if name.startswith(HEADS)}

    def history(self, commit: str | None) -> Iterator[str]:
        while commit is not None:
            yield commit
            commit = self.commits[commit].parent

    def undone(self) -> set[int]:
        """Numbers of operations that are reversed now."""
        found: set[int] = set()
        for number in range(len(self.operations), 0, -1):
            undoes = self.operations[number - 1].undoes
            if undoes is not None and number not in found:
                found.add(undoes)
        return found

    def latest(self) -> int | None:
        """The number of the operation that ``undo`` reverses."""
        undone = self.undone()
        for number in range(len(self.operations), 1, -1):
            if self.operations[number - 1].undoes is None and number not in undone:
                return number
        return None

    def values_of_operations(self, days: int) -> set[str]:
        """What the operations of the last days moved refs from and to."""
        recent = [done for done in self.operations if self.day - done.day < days]
        return {value for done in recent for pair in done.changes.values() for value in pair if value is not None}

    def reached(self, *, operation_days: int, young_days: int = 0) -> set[str]:
        """Commits and tags that a gc must leave, among those that are there."""
        roots = set(self.refs.values()) | self.values_of_operations(operation_days)
        roots |= {one for one, made in self.commits.items() if self.day - made.day < young_days}
        found: set[str] = set()
        for root in roots & self.present:
            found.add(root)
            found.update(self.history(self.tags.get(root, root)))
        return found

    # -- changing -----------------------------------------------------------------------------------------------

    def do(
        self, description: str, changes: Mapping[str, tuple[str | None, str | None]], undoes: int | None = None
    ) -> None:
        """Records an operation; one that changes nothing is none."""
        changed = {ref: pair for ref, pair in changes.items() if pair[0] != pair[1]}
        if not changed:
            return
        for ref, (before, after) in changed.items():
            assert self.refs.get(ref) == before
            self.refs.pop(ref, None)
            if after is not None:
                self.refs[ref] = after
        self.operations.append(Done(description, changed, undoes, self.day))

    def commit(self, ref: str, commit: str, composed: Composed, description: str) -> None:
        before = self.refs.get(ref)
        self.commits[commit] = Made(composed, before, self.day)
        self.present.add(commit)
        self.do(description, {ref: (before, commit)})

    def collected(self, present: Iterable[str]) -> None:
        """Takes note of what a gc left, or a restore brought back."""
        self.present = set(present)
        standing = set().union(*(self.commits[one].composed.subjects for one in self.present & self.commits.keys()))
        self.said = {subject: keys for subject, keys in self.said.items() if subject in standing}
