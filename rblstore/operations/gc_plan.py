"""What gc would do: which packs go to the trash, which are written anew without what nothing reaches, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from rblstore.configuration import MAX_DAYS
from rblstore.errors import CorruptError, UsageError
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import CommitId, PackId, RecordId
from rblstore.objects.locations import ContentLocation, PackKind
from rblstore.operations.gc_marking import DAY_SECONDS, Reached, Seen, Stored, StoredPack, look, reached_by, read_stored
from rblstore.operations.progress import Progress
from rblstore.repository import Store
from rblstore.storage.backend import MissingObjectError
from rblstore.storage.pack_format import pack_key

Reason = Literal["unreachable", "mostly_unreachable", "dead_records", "unlisted", "forgotten"]

# What is left of small packs goes into one; raw bytes.
_GROUP_BYTES: Final = 64 << 20
_NAMED: Final = 20


@dataclass(frozen=True)
class GcPack:
    """A pack that goes to the trash.

    Attributes:
        pack: Its id.
        kind: ``C`` for contents, ``R`` for records.
        size: Bytes of its file.
        contents: How many contents (records) are in it.
        kept: How many of them go into a new pack before; 0 where nothing in it is reached.
        reason: ``unreachable`` (nothing reaches what is in it), ``mostly_unreachable`` (most bytes in it),
            ``dead_records`` (some records in it), ``unlisted`` (a command that did not come to its end left it), or
            ``forgotten`` (something in it was removed on purpose, or is a difference from that).
    """

    pack: PackId
    kind: PackKind
    size: int
    contents: int
    kept: int
    reason: Reason


@dataclass(frozen=True)
class UnreachedCommit:
    """A commit that nothing reaches.

    Attributes:
        id: Its id.
        subject: Its message's first line.
        time: RFC 3339.
    """

    id: CommitId
    subject: str
    time: str


@dataclass(frozen=True)
class TrashedPack:
    """A pack in the trash.

    Attributes:
        pack: Its id.
        size: Bytes of its file.
        since: When it came there, in seconds of the Unix epoch, by the clock of the file system.
    """

    pack: PackId
    size: int
    since: float


@dataclass(frozen=True)
class Rewrite:
    """What is kept of some packs of one kind, and goes into one new pack.

    Attributes:
        kind: Of the packs.
        copies: The copies that go into it.
        anew: Those of them that are differences from what goes, and so are encoded by themselves.
    """

    kind: PackKind
    copies: tuple[ContentLocation, ...]
    anew: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GcPlan:
    """What is to be done.

    Attributes:
        seen: What it holds for.
        now: When it was made, by the clock of the file system.
        grace_days: For how long what nothing reaches stays, and then stays in the trash.
        packs: What goes to the trash, in this order: what refers to something goes before it.
        rewrites: New packs to be written before.
        dead: Records that nothing reaches.
        unneeded: Contents that nothing reaches.
        kinds: How many dead records there are of each kind.
        commits: Dead commits, newest first; at most twenty.
        dead_bytes: Stored bytes of what nothing reaches and stays: in a young pack, or beside more that is needed.
        young: Packs of which nothing is taken, since their grace is not over.
        future: Packs whose time lies in the future; they count as young.
        unreadable: Packs that the catalog does not list and that cannot be read, and why; they stay.
        missing: Contents that are reached and lie in no pack. While there are some, nothing is deleted.
        trash: What lies in the trash now.
        expired: What of it is to be deleted.
        covered: How many contents that were removed on purpose go now.
        covered_staying: How many of them stay for now: their packs are young.
    """

    seen: Seen
    now: float
    grace_days: int
    packs: tuple[GcPack, ...]
    rewrites: tuple[Rewrite, ...]
    dead: tuple[RecordId, ...]
    unneeded: frozenset[str]
    kinds: Mapping[str, int]
    commits: tuple[UnreachedCommit, ...]
    dead_bytes: int
    young: int
    future: tuple[PackId, ...]
    unreadable: tuple[tuple[PackId, str], ...]
    missing: int
    trash: tuple[TrashedPack, ...]
    expired: tuple[TrashedPack, ...]
    covered: int
    covered_staying: int

    @property
    def forgotten(self) -> tuple[PackId, ...]:
        """Packs that the catalog is to forget."""
        return tuple(one.pack for one in self.packs if one.reason != "unlisted")


def check_grace(grace_days: int | None, configured: int) -> int:
    """The days of grace, from what was asked for.

    Raises:
        UsageError: They are no number of days.
    """
    if grace_days is None:
        return configured
    if isinstance(grace_days, bool) or not isinstance(grace_days, int) or not 0 <= grace_days <= MAX_DAYS:
        raise UsageError(
            f"{str(grace_days)[:40]!r} is no number of days", object="grace", hint=f"Give 0 to {MAX_DAYS} whole days."
        )
    return grace_days


def plan_gc(store: Store, grace_days: int, progress: Progress | None = None) -> GcPlan:
    """Finds out what is reached, and decides. Nothing is changed.

    Args:
        store: The repository.
        grace_days: For how long what nothing reaches stays, and then stays in the trash.
        progress: Is told bytes of packs read.

    Raises:
        CorruptError: A pack, a record or a ref is damaged, or the catalog misplaces what is in a pack.
    """
    seen, now = look(store), store.backend.now()
    grace = float(grace_days * DAY_SECONDS)
    stored = read_stored(store, seen, now, grace, progress)
    reached = reached_by(store, seen, stored, now)
    here = {at.content for pack in stored.packs if pack.kind == "C" for at in pack.locations}
    chosen = _choose(stored, reached)
    gone = [pack for pack in stored.packs if pack.pack in chosen]
    for pack in gone:
        _require_listed_as_it_is(store, pack)
    dead = [record_id for record_id in stored.records if record_id not in reached.records]
    missing = len(reached.contents - here)
    covered = reached.covered & here
    staying = covered & reached.contents  # beneath a difference in a young pack
    for pack in stored.packs if covered else ():
        if pack.pack not in chosen:
            staying.update(at.content for at in pack.locations if at.content in covered)
    trash = tuple(_trash(store, seen))
    return GcPlan(
        seen,
        now,
        grace_days,
        tuple(chosen[pack] for pack in _referrers_first(stored, gone, reached)),
        tuple(_rewrites([pack for pack in gone if chosen[pack.pack].kept], reached)),
        tuple(map(RecordId, dead)),
        frozenset(here - reached.contents),
        Counter(stored.records[record_id].kind for record_id in dead),
        _dead_commits(store, [record_id for record_id in dead if stored.records[record_id].kind == "commit"]),
        sum(at.stored for pack in stored.packs for at in _unreached(pack, reached) if pack.pack not in chosen),
        sum(pack.young for pack in stored.packs),
        tuple(stored.future),
        tuple(stored.unreadable),
        missing,
        trash,
        () if missing else tuple(one for one in trash if _is_over(one, now, grace)),
        len(covered - staying),
        len(staying),
    )


def _unreached(pack: StoredPack, reached: Reached) -> list[ContentLocation]:
    held = reached.records if pack.kind == "R" else reached.contents
    return [at for at in pack.locations if at.content not in held]


def _choose(stored: Stored, reached: Reached) -> dict[PackId, GcPack]:
    """Decides about every pack; what the contents that stay are differences from is reached from then on."""
    listed: dict[PackKind, set[str]] = {"C": set(), "R": set(stored.records)}
    for pack in stored.packs:
        if pack.listed and pack.kind == "C":
            listed["C"].update(at.content for at in pack.locations)
    while True:
        chosen: dict[PackId, GcPack] = {}
        beneath: set[str] = set()
        goes = reached.covered - reached.contents
        for pack in stored.packs:
            decided = _decide(pack, _unreached(pack, reached), listed[pack.kind], goes)
            if decided is not None:
                chosen[pack.pack] = decided
            for content, bases in pack.bases.items():
                if decided is None:
                    beneath.update(bases)
                elif decided.kept and content in reached.contents:
                    beneath.update(base for base in bases if base not in goes)  # else it is encoded anew
        if beneath <= reached.contents:
            return chosen
        reached.contents |= beneath


def _decide(pack: StoredPack, dead: Sequence[ContentLocation], listed: Set[str], goes: Set[str]) -> GcPack | None:
    """What becomes of a pack; None where it stays as it is."""
    if pack.young:
        return None
    kept = len(pack.locations) - len(dead)
    reason: Reason
    if not pack.listed:
        going = {at.content for at in dead}
        if any(at.content not in going and at.content not in listed for at in pack.locations):
            return None  # the catalog lost it: not for gc to decide
        kept, reason = 0, "unlisted"
    elif dead and not kept:
        reason = "unreachable"
    elif goes and _holds_any(pack, goes):
        reason = "forgotten"
    elif not dead:
        return None
    elif pack.kind == "R":
        reason = "dead_records"
    elif 2 * sum(at.stored for at in dead) > sum(at.stored for at in pack.locations):
        reason = "mostly_unreachable"
    else:
        return None
    return GcPack(pack.pack, pack.kind, pack.size, len(pack.locations), kept, reason)


def _holds_any(pack: StoredPack, goes: Set[str]) -> bool:
    """Whether a pack holds something of what goes, or a difference from it."""
    return any(at.content in goes for at in pack.locations) or any(
        base in goes for bases in pack.bases.values() for base in bases
    )


def _require_listed_as_it_is(store: Store, pack: StoredPack) -> None:
    if not pack.listed:
        return
    with store.catalog.read() as index:
        listed = index.contents_of_pack(pack.pack)
    if listed != list(pack.locations):
        raise CorruptError(
            f"the catalog misplaces what is in pack {pack.pack.short}", object=pack.pack, hint="Run: rbl reindex"
        )


def _rewrites(packs: Sequence[StoredPack], reached: Reached) -> Iterator[Rewrite]:
    """New packs for what is kept of old ones; what is left of small packs goes together."""
    kinds: tuple[PackKind, ...] = ("C", "R")
    for kind in kinds:
        held = reached.records if kind == "R" else reached.contents
        copies: dict[str, tuple[StoredPack, ContentLocation]] = {}
        for pack in packs:
            for at in pack.locations if pack.kind == kind else ():
                # Others may be differences from it, so a copy that is no difference itself goes before one that is.
                other = copies.get(at.content)
                better = other is None or (at.content in other[0].bases and at.content not in pack.bases)
                if at.content in held and better:
                    copies[at.content] = pack, at
        goes = reached.covered - reached.contents
        anew = frozenset(
            content for content, (pack, _) in copies.items() if any(one in goes for one in pack.bases.get(content, ()))
        )
        together: list[ContentLocation] = []
        raw = 0
        for _, at in copies.values():
            together.append(at)
            raw += at.size
            if raw >= _GROUP_BYTES:
                yield Rewrite(kind, tuple(together), anew)
                together, raw = [], 0
        if together:
            yield Rewrite(kind, tuple(together), anew)


def _referrers_first(stored: Stored, packs: Sequence[StoredPack], reached: Reached) -> list[PackId]:
    """Packs in an order in which none is left with something that refers to what has gone already.

    So a catalog that is rebuilt half-way lists nothing that lacks a part. Where packs refer to one another in a circle
    there is no such order, and one of them comes first.
    """
    order: list[PackId] = []
    for kind in ("R", "C"):
        of_kind = [pack for pack in packs if pack.kind == kind]
        dead = {pack.pack: [at.content for at in _unreached(pack, reached)] for pack in of_kind}
        holders: dict[str, list[PackId]] = {}
        for pack_id, contents in dead.items():
            for content in contents:
                holders.setdefault(content, []).append(pack_id)
        beneath = {
            pack.pack: {
                holder
                for content in dead[pack.pack]
                for target in _targets(stored, pack, content)
                for holder in holders.get(target, ())
            }
            for pack in of_kind
        }
        order += before_what_they_need(beneath)
    return order


def _targets(stored: Stored, pack: StoredPack, content: str) -> tuple[str, ...]:
    if pack.kind == "C":
        return pack.bases.get(content, ())
    return (stored.records.get(content) or stored.unlisted[content]).records


def before_what_they_need(needs: Mapping[PackId, Set[PackId]]) -> list[PackId]:
    """Packs in an order in which each comes before those that it needs, as far as there is one.

    Args:
        needs: Which of them each needs; itself counts for nothing.
    """
    needed_first: list[PackId] = []
    begun: set[PackId] = set()
    for start in needs:
        path = [(start, iter(sorted(needs[start])))] if start not in begun else []
        begun.add(start)
        while path:
            pack, ahead = path[-1]
            following = next((one for one in ahead if one not in begun), None)
            if following is None:
                needed_first.append(pack)
                path.pop()
            else:
                begun.add(following)
                path.append((following, iter(sorted(needs[following]))))
    return needed_first[::-1]


def _dead_commits(store: Store, dead: Sequence[str]) -> tuple[UnreachedCommit, ...]:
    found = [(CommitId(one), store.record(RecordId(one), Commit)) for one in dead[-_NAMED:]]
    found.sort(key=lambda pair: pair[1].time, reverse=True)
    return tuple(UnreachedCommit(commit_id, commit.subject, commit.time) for commit_id, commit in found)


def _trash(store: Store, seen: Seen) -> Iterator[TrashedPack]:
    for pack in sorted(seen.trash):
        key = pack_key(pack, "trash")
        with suppress(MissingObjectError):  # another gc deletes what this one only looks at
            yield TrashedPack(pack, store.backend.size(key), store.backend.modified(key))


def _is_over(trashed: TrashedPack, now: float, grace_seconds: float) -> bool:
    """Whether a pack may be deleted. One that lies in the future may not."""
    return now - trashed.since >= grace_seconds
