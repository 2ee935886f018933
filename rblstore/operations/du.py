"""``du``: what a repository takes on disk, or what a commit takes, shares with others and adds.

Everything is counted in contents, each once however many need it, and without what a pack adds to them. A content that
is stored as a difference needs its base, so a base is shared by all that stands on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final

from rblstore.objects.ids import CommitId, CompositionId, ContentId, RecordId
from rblstore.objects.locations import PackKind
from rblstore.operations.content_needs import (
    Part,
    Reach,
    gather,
    parts_of,
    reach,
    read_bases,
    read_parts,
)
from rblstore.operations.result import Result
from rblstore.repository import HEADS, Store
from rblstore.revisions import resolve
from rblstore.storage.backend import ReadError

# One snapshot for everything would keep writers waiting.
_SNAPSHOT_CONTENTS: Final = 50_000


def ratio_of(raw: int, stored: int) -> float | None:
    """Raw bytes to stored bytes; None where nothing is stored."""
    return raw / stored if stored else None


@dataclass(frozen=True)
class Amount:
    """Some contents, each counted once.

    Attributes:
        contents: How many.
        raw: Their bytes.
        stored: What their frames take in packs.
        ratio: ``raw / stored``, or None where nothing is stored.
    """

    contents: int
    raw: int
    stored: int
    ratio: float | None


@dataclass(frozen=True)
class PartUsage:
    """What an identity, a behavior or a whole composition takes.

    Attributes:
        name: The slot's, or None.
        id: The identity, behavior or composition.
        contents: How many contents it has.
        raw: Bytes of its files.
        stored: What its contents take in packs, each once.
        ratio: ``raw / stored``, or None where nothing is stored.
        shared: What of ``stored`` some other identity or behavior needs, too; for a composition, some other commit.
            Only what a branch or tag reaches counts.
        unique: The rest of ``stored``, which would be free without the identity, the behavior or the commit.
    """

    name: str | None
    id: RecordId
    contents: int
    raw: int
    stored: int
    ratio: float | None
    shared: int
    unique: int


@dataclass(frozen=True)
class CommitUsage(Result):
    """What a commit takes.

    Attributes:
        commit: Which.
        composition: What it composes.
        parents: Its parents.
        identity: The base checkpoint.
        behaviors: By slot, in order.
        total: The commit: all of them, and contents that several have count once.
        baselines: The recorded outputs of its composition.
        states: Its training states.
        added: Contents of its composition that no parent's has.
    """

    commit: CommitId
    composition: CompositionId
    parents: tuple[CommitId, ...]
    identity: PartUsage
    behaviors: tuple[PartUsage, ...]
    total: PartUsage
    baselines: Amount
    states: Amount
    added: Amount


@dataclass(frozen=True)
class PackUsage:
    """Packs on disk.

    Attributes:
        count: How many.
        bytes: Of their files.
        overhead: What of them is neither a content nor a record: headers, indexes, second copies, and packs that a
            crash left.
    """

    count: int
    bytes: int
    overhead: int


@dataclass(frozen=True)
class BranchUsage:
    """One branch.

    Attributes:
        name: Without ``refs/heads/``.
        commit: Its tip.
        raw: Bytes of the files of the tip's composition.
        stored: What the tip's contents take in packs, each once.
        ratio: ``raw / stored``, or None where nothing is stored.
        unique: What the branch with all its history needs and no other branch or tag does.
    """

    name: str
    commit: CommitId
    raw: int
    stored: int
    ratio: float | None
    unique: int


@dataclass(frozen=True)
class RepositoryUsage(Result):
    """What a repository takes.

    Attributes:
        packs: On disk.
        contents: Every content.
        records: Every record.
        unreached: Contents that nothing needs that a branch or tag reaches.
        branches: Sorted by name.
        catalog: Bytes of the catalog.
        log: Bytes of ``refs.log``.
        other: Bytes of everything else in ``.rbl``.
        total: Bytes of all files in ``.rbl``.
    """

    packs: PackUsage
    contents: Amount
    records: Amount
    unreached: Amount
    branches: tuple[BranchUsage, ...]
    catalog: int
    log: int
    other: int
    total: int


class _Tally:
    """Contents counted up."""

    def __init__(self) -> None:
        self.contents = self.raw = self.stored = 0

    def add(self, contents: int, raw: int, stored: int) -> None:
        self.contents += contents
        self.raw += raw
        self.stored += stored

    def amount(self) -> Amount:
        return Amount(self.contents, self.raw, self.stored, ratio_of(self.raw, self.stored))


def _total(tallies: Iterable[_Tally]) -> _Tally:
    total = _Tally()
    for tally in tallies:
        total.add(tally.contents, tally.raw, tally.stored)
    return total


def commit_usage(store: Store, revision: str) -> CommitUsage:
    """What a commit takes, shares and adds.

    Args:
        store: The repository.
        revision: Which commit.

    Raises:
        UnknownRevisionError: No such commit.
        CorruptError: Something that a ref reaches is missing or damaged.
    """
    commit = resolve(store, revision).commit
    with store.catalog.read() as reader:
        row = next(reader.commits([commit], 1))
        above = [found.composition for found in map(reader.commit, row.parents) if found is not None]
    history = reach(store, commit, *row.parents)
    composition = history.compositions[row.composition]
    model = parts_of(composition)
    states = history.states.get(commit, ())
    parts = (*history.parts(row.composition), *states)
    # Two bits for each part of this commit, one for naming a content and one for needing it, and three for the rest.
    names = {part: 1 << 2 * at for at, part in enumerate(parts)}
    other, elsewhere, parent = (1 << 2 * len(parts) + at for at in range(3))
    marks = {part: bit | bit << 1 for part, bit in names.items()}
    for composed, here in {(found.composition, found.id == commit) for found in history.commits}:
        for part in history.parts(composed):
            marks[part] = marks.get(part, other) | (0 if here else elsewhere)
    for trained, others in history.states.items():
        if trained != commit:
            marks.update(dict.fromkeys(others, other | elsewhere))
    for composed in above:
        for part in parts_of(history.compositions[composed]):
            marks[part] = marks.get(part, 0) | parent
    needs = other | elsewhere | sum(bit << 1 for bit in names.values())
    own = list(read_parts(store, parts))
    bases = read_bases(store)
    wanted = set().union(*(part.contents for part in own))
    wanted.update(base for content in bases.keys() & wanted for base in bases[content])
    rest = read_parts(store, marks.keys() - names.keys())
    found = gather(chain(own, rest), marks, bases, needs, wanted)
    tallies = _by_mark(store, found)

    def tally(named: Iterable[RecordId], without: int = 0) -> _Tally:
        bits = sum(names[part] for part in named)
        return _total(one for mark, one in tallies.items() if mark & bits and not mark & without)

    raw = {part.id: part.raw for part in own}

    def usage(name: str | None, subject: RecordId, named: tuple[RecordId, ...], others: int) -> PartUsage:
        all_of_it, alone = tally(named), tally(named, others)
        size, shared = sum(raw[part] for part in named), all_of_it.stored - alone.stored
        ratio = ratio_of(size, all_of_it.stored)
        return PartUsage(name, subject, all_of_it.contents, size, all_of_it.stored, ratio, shared, alone.stored)

    def part_usage(name: str | None, part: RecordId) -> PartUsage:
        return usage(name, part, (part,), needs & ~elsewhere & ~(names[part] << 1))

    return CommitUsage(
        commit,
        row.composition,
        row.parents,
        part_usage(None, composition.identity),
        tuple(part_usage(slot.name, slot.behavior) for slot in composition.slots),
        usage(None, row.composition, model, elsewhere),
        tally(set(parts) - set(model) - set(states)).amount(),
        tally(states).amount(),
        tally(model, parent).amount(),
    )


def _by_mark(store: Store, found: Mapping[str, int]) -> dict[int, _Tally]:
    """Contents counted up by their marks."""
    with store.catalog.read() as reader:
        locations = reader.locations(map(ContentId, found))
    tallies: dict[int, _Tally] = {}
    for content, mark in found.items():
        location = locations.get(ContentId(content)) or store.location(ContentId(content))
        tallies.setdefault(mark, _Tally()).add(1, location.size, location.stored)
    return tallies


def repository_usage(store: Store) -> RepositoryUsage:
    """What the repository takes.

    Raises:
        CorruptError: Something that a ref reaches is missing or damaged.
    """
    history = reach(store)
    refs = list(history.refs)
    tips = {row.id: row.composition for row in history.commits if row.id in set(history.refs.values())}
    heads = {name: tips[commit] for name, commit in history.refs.items() if name.startswith(HEADS)}
    # A bit for each ref, for what it needs; then one for each composition at a branch's tip, for what that names.
    needs = (1 << len(refs)) - 1
    names = {composed: 1 << len(refs) + at for at, composed in enumerate(dict.fromkeys(heads.values()))}
    marks = _marks(history, refs)
    for composed, bit in names.items():
        for part in parts_of(history.compositions[composed]):
            marks[part] |= bit
    raw: dict[RecordId, int] = {}

    def remembered(parts: Iterator[Part]) -> Iterator[Part]:
        for part in parts:
            raw[part.id] = part.raw
            yield part

    found = gather(remembered(read_parts(store, marks)), marks, read_bases(store), needs)
    tallies = _all_by_mark(store, "C", found)
    contents, records = _total(tallies.values()), _total(_all_by_mark(store, "R", {}).values())
    unique = dict.fromkeys(refs, 0)
    stored = dict.fromkeys(names.values(), 0)
    for mark, tally in tallies.items():
        reached, named = mark & needs, mark & ~needs
        if reached and not reached & (reached - 1):
            unique[refs[reached.bit_length() - 1]] += tally.stored
        while named:
            bit = named & -named
            stored[bit] += tally.stored
            named ^= bit
    branches = []
    for name, composed in sorted(heads.items()):
        size = sum(raw[part] for part in parts_of(history.compositions[composed]))
        taken = stored[names[composed]]
        short = name.removeprefix(HEADS)
        branches.append(BranchUsage(short, history.refs[name], size, taken, ratio_of(size, taken), unique[name]))
    sizes = [store.pack_size(pack) for pack in store.packs()]
    files = _files_outside_packs(store.folder)
    return RepositoryUsage(
        PackUsage(len(sizes), sum(sizes), sum(sizes) - contents.stored - records.stored),
        contents.amount(),
        records.amount(),
        tallies.get(0, _Tally()).amount(),
        tuple(branches),
        files["catalog"],
        files["log"],
        files["other"],
        sum(sizes) + sum(files.values()),
    )


def _marks(history: Reach, refs: list[str]) -> dict[RecordId, int]:
    """For each identity, behavior, baseline, training state and signature the refs that reach it, as bits."""
    reached: dict[CommitId, int] = {}
    for at, name in enumerate(refs):
        commit = history.refs[name]
        reached[commit] = reached.get(commit, 0) | 1 << at
    composed: dict[CompositionId, int] = {}
    marks: dict[RecordId, int] = {}
    for row in history.commits:  # children come before their parents
        mark = reached.pop(row.id)
        composed[row.composition] = composed.get(row.composition, 0) | mark
        for parent in row.parents:
            reached[parent] = reached.get(parent, 0) | mark
        marks.update(dict.fromkeys((*history.states.get(row.id, ()), *history.signatures.get(row.id, ())), mark))
    for composition, mark in composed.items():
        for part in history.parts(composition):
            marks[part] = marks.get(part, 0) | mark
    return marks


def _all_by_mark(store: Store, kind: PackKind, found: Mapping[str, int]) -> dict[int, _Tally]:
    """Everything in packs of a kind, counted up by its marks; 0 for what has none.

    Raises:
        MissingContentError: Something that has marks is in no pack.
    """
    tallies: dict[int, _Tally] = {}
    last, seen, taken = "", 0, _SNAPSHOT_CONTENTS
    while taken == _SNAPSHOT_CONTENTS:
        taken = 0
        with store.catalog.read() as reader:
            for content, size, stored in islice(reader.content_sizes(kind, last), _SNAPSHOT_CONTENTS):
                taken += 1
                last = content
                mark = found.get(content)
                if mark is None:
                    mark = 0
                else:
                    seen += 1
                tally = tallies.get(mark)
                if tally is None:
                    tally = tallies[mark] = _Tally()
                tally.add(1, size, stored)
    if seen < len(found):
        _by_mark(store, found)  # raises, naming one
    return tallies


def _files_outside_packs(folder: Path) -> dict[str, int]:
    """Bytes of the files in ``.rbl``: of the catalog, the log and everything else but the packs.

    Raises:
        ReadError: The system does not say how large one is.
    """
    sizes = {"catalog": 0, "log": 0, "other": 0}
    for at, folders, names in os.walk(folder):
        if at == str(folder):
            folders[:] = [name for name in folders if name != "packs"]
        for name in names:
            kind = "other"
            if at == str(folder):
                kind = "catalog" if name.startswith("catalog.db") else "log" if name == "refs.log" else "other"
            try:
                sizes[kind] += (Path(at) / name).lstat().st_size
            except FileNotFoundError:
                continue  # a file in tmp/ whose writer is done with it
            except OSError as error:
                raise ReadError(f"its size cannot be read: {error.strerror or error}", object=name) from error
    return sizes
