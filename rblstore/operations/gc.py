"""``gc``: what nothing reaches goes to the trash, and from there, when its grace is over, for good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from rblstore.catalog.engine import CommitOutcomeUnknownError
from rblstore.errors import RblError
from rblstore.objects.ids import PackId
from rblstore.objects.locations import PackSummary
from rblstore.operations.gc_marking import DAY_SECONDS, look
from rblstore.operations.gc_plan import GcPack, GcPlan, Rewrite, TrashedPack, UnreachedCommit, check_grace, plan_gc
from rblstore.operations.leftovers import Leftover, leftovers, remove_leftovers
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.result import Result
from rblstore.operations.steady_packs import while_packs_stay
from rblstore.operations.study_journal import stale_journals
from rblstore.repository import Store
from rblstore.storage.backend import ReadError
from rblstore.storage.durable import WriteError
from rblstore.storage.pack_format import pack_key
from rblstore.storage.pack_writer import PackWriter


class GcUnfinishedError(RblError):
    """The catalog forgot what was to go, and the system did not let all of it go; the next gc goes on."""

    code = "gc_unfinished"


@dataclass(frozen=True)
class GcResult(Result):
    """What gc did, or would do.

    Attributes:
        applied: Whether it was done.
        grace_days: For how long what nothing reaches stays, and then stays in the trash.
        changed: Whether anything goes, or would go.
        commits: Commits that nothing reaches; the newest, at most twenty.
        dead: How many records nothing reaches, by kind.
        packs: Packs that go to the trash, and why.
        packs_written: New packs for what is kept of them.
        bytes_written: What these take; None where nothing was done, since only writing tells.
        bytes_to_trash: What the packs that go to the trash take there.
        bytes_staying: Stored bytes that nothing reaches and that stay: in young packs, or beside more that is needed.
        young: Packs of which nothing is taken, since their grace is not over.
        future: Packs whose time lies in the future. They count as young until it has come.
        unreadable: (pack, problem) of packs that the catalog does not list and that cannot be read; they stay.
        missing: Contents that are needed and lie in no pack. While there are some, nothing is deleted for good.
        deleted: Packs that go from the trash for good.
        leftovers: What dead processes left in ``tmp/``, and journals of studies that nobody finished; goes for good.
        bytes_freed: What goes for good takes.
        trash_packs: Packs in the trash afterwards.
        trash_bytes: What they take.
        trash_until: When the grace of the last of them is over, RFC 3339; None where there are none.
        forgotten: Contents that were removed on purpose and go to the trash now.
        forgotten_staying: Those that stay where they are, since the grace of their packs is not over.
    """

    applied: bool
    grace_days: int
    changed: bool
    commits: tuple[UnreachedCommit, ...]
    dead: Mapping[str, int]
    packs: tuple[GcPack, ...]
    packs_written: int
    bytes_written: int | None
    bytes_to_trash: int
    bytes_staying: int
    young: int
    future: tuple[PackId, ...]
    unreadable: tuple[tuple[PackId, str], ...]
    missing: int
    deleted: tuple[PackId, ...]
    leftovers: tuple[Leftover, ...]
    bytes_freed: int
    trash_packs: int
    trash_bytes: int
    trash_until: str | None
    forgotten: int = 0
    forgotten_staying: int = 0


def gc(
    store: Store, *, apply: bool = False, grace_days: int | None = None, progress: Progress | None = None
) -> GcResult:
    """Finds what no ref, no recent operation and no young pack reaches; with ``apply``, lets it go.

    What goes lies in the trash for the days of grace, from where ``restore_trash`` brings it back, and is deleted by
    the first gc after that. Whoever reads meanwhile does not notice.

    Args:
        store: The repository.
        apply: Whether to do it, and not only to say what would be done.
        grace_days: In place of the configured ones.
        progress: Is told bytes.

    Raises:
        UsageError: That is no number of days.
        LockedError: Somebody is writing, and took too long.
        CorruptError: The repository is damaged; nothing was changed.
        WriteError: The system refused; nothing was changed.
        GcUnfinishedError: The system refused later; the next gc goes on.
    """
    days = check_grace(grace_days, store.configuration.grace_days)
    plan = while_packs_stay(store, lambda: plan_gc(store, days, progress))
    if not apply:
        left = *leftovers(store), *stale_journals(store.folder, days, plan.now)
        return _result(plan, (), left, applied=False)
    with store.maintenance():
        # Reading everything takes long, and nobody could write meanwhile: it is done before, if it still holds.
        if look(store) != plan.seen:
            plan = plan_gc(store, days, progress)
        return _Collection(store, plan, progress).run()


def _result(plan: GcPlan, written: tuple[PackSummary, ...], left: tuple[Leftover, ...], *, applied: bool) -> GcResult:
    new = {summary.pack for summary in written}
    packs = tuple(one for one in plan.packs if one.pack not in new)
    gone = {one.pack for one in plan.expired}
    trash = {one.pack: one for one in plan.trash if one.pack not in gone}
    trash.update({one.pack: TrashedPack(one.pack, one.size, plan.now) for one in packs})
    last = max((one.since for one in trash.values()), default=None)
    return GcResult(
        applied=applied,
        grace_days=plan.grace_days,
        changed=bool(packs or plan.expired or left),
        commits=plan.commits,
        dead=dict(sorted(plan.kinds.items())),
        packs=packs,
        packs_written=len(plan.rewrites),
        bytes_written=sum(summary.size for summary in written) if applied else None,
        bytes_to_trash=sum(one.size for one in packs),
        bytes_staying=plan.dead_bytes,
        young=plan.young,
        future=plan.future,
        unreadable=plan.unreadable,
        missing=plan.missing,
        deleted=tuple(one.pack for one in plan.expired),
        leftovers=left,
        bytes_freed=sum(one.size for one in plan.expired) + sum(one.bytes for one in left),
        trash_packs=len(trash),
        trash_bytes=sum(one.size for one in trash.values()),
        trash_until=None if last is None else _time(last + plan.grace_days * DAY_SECONDS),
        forgotten=plan.covered,
        forgotten_staying=plan.covered_staying,
    )


def _time(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None  # beyond what calendars reach


class _Collection:
    """Carries out a plan; the repository's lock is held alone."""

    def __init__(self, store: Store, plan: GcPlan, progress: Progress | None) -> None:
        self._store = store
        self._plan = plan
        self._meter = Meter(progress, sum(at.size for rewrite in plan.rewrites for at in rewrite.copies))
        self._written: list[PackSummary] = []

    def run(self) -> GcResult:
        try:
            for rewrite in self._plan.rewrites:
                self._write(rewrite)
            self._forget()
        except CommitOutcomeUnknownError:
            raise  # whichever packs turn out to be listed must be there
        except BaseException:
            self._take_back()
            raise
        try:
            self._discard()
            self._delete()
        except (WriteError, ReadError) as error:
            raise GcUnfinishedError(
                f"what nothing reaches is forgotten, but not all of it could go: {error.message}",
                object=error.object,
                hint="See to the disk, then run: rbl gc --apply",
            ) from error
        finally:
            self._store.contents.close()  # packs that are kept open lie elsewhere now
        journals = stale_journals(self._store.folder, self._plan.grace_days, self._plan.now, remove=True)
        removed = *remove_leftovers(self._store), *journals
        return _result(self._plan, tuple(self._written), removed, applied=True)

    def _write(self, rewrite: Rewrite) -> None:
        """Writes a new pack of what is kept. Every content is read whole, and its digest compared."""
        store = self._store
        with PackWriter(
            store.backend,
            rewrite.kind,
            is_stored=lambda content: False,
            compression=store.configuration.compression,
            workers=store.configuration.workers,
        ) as writer:
            for at in rewrite.copies:
                stored = store.pack(at.pack).stored(at)
                if at.content in rewrite.anew:
                    added = writer.add_source(stored, element_width=stored.frames[0].element_width)
                    if added.content != at.content:
                        raise stored.wrong()
                else:
                    writer.copy(stored)
                self._meter.add("copying what is kept", at.size)
            summary = writer.finish()
        if summary is not None:
            self._written.append(summary)

    def _forget(self) -> None:
        """The one transaction. It refuses to forget the last copy of anything that is reached."""
        plan = self._plan
        if not (plan.forgotten or self._written):
            return
        with self._store.catalog.write() as index:
            for summary in self._written:
                index.add_pack(summary)
            index.forget_dead(plan.forgotten, plan.dead, plan.unneeded)

    def _take_back(self) -> None:
        """Deletes the new packs, of which the catalog has heard nothing."""
        store = self._store
        try:
            with store.catalog.read() as reader:
                listed = {row.pack for row in reader.packs()}
            for pack in sorted(set(store.packs()) - self._plan.seen.there - listed):
                store.backend.delete(pack_key(pack))
        except RblError:
            return  # they take room and do no harm; the next gc collects them

    def _discard(self) -> None:
        """Moves packs to the trash. What is in one is either in a new one, too, or reached by nothing."""
        backend = self._store.backend
        new = {summary.pack for summary in self._written}
        for pack in (one.pack for one in self._plan.packs if one.pack not in new):
            key, trash = pack_key(pack), pack_key(pack, "trash")
            if not backend.move(key, trash) and backend.exists(key):
                # The same pack went there once before, and was written anew since: its grace begins anew, too.
                backend.delete(trash)
                backend.move(key, trash)

    def _delete(self) -> None:
        coming = {one.pack for one in self._plan.packs}
        for one in sorted(self._plan.expired, key=lambda one: one.since):
            if one.pack not in coming:
                self._store.backend.delete(pack_key(one.pack, "trash"))
