"""``repack``: what is stored, stored anew under a policy; no id changes, and nobody who reads notices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rblstore.catalog.engine import CommitOutcomeUnknownError
from rblstore.catalog.rows import PackRow
from rblstore.configuration import Compression, check_compression
from rblstore.errors import RblError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import PackSummary
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.repack_plan import PackRewrite, RepackPlan, plan_repack
from rblstore.operations.result import Result
from rblstore.repository import Store
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.durable import WriteError
from rblstore.storage.pack_bases import bases_of
from rblstore.storage.pack_format import pack_key
from rblstore.storage.pack_writer import AddedContent, PackWriter
from rblstore.storage.stored_content import StoredContent


@dataclass(frozen=True)
class RepackResult(Result):
    """What a repack did, or would do.

    Attributes:
        compression: The policy.
        dry_run: Whether nothing was done.
        changed: Whether packs were (or would be) replaced.
        packs_before: How many packs there were.
        packs_after: How many there are.
        bytes_before: What they took.
        bytes_after: What they take; None for a dry run, which cannot know.
        reencoded: Contents encoded anew.
        deltas: Those of them that became differences.
        duplicates: Copies that were dropped.
        rewrites: Which packs went together into a new one, and why.
        left: Packs that nothing refers to any more, and that could not be deleted.
    """

    compression: Compression
    dry_run: bool
    changed: bool
    packs_before: int
    packs_after: int
    bytes_before: int
    bytes_after: int | None
    reencoded: int
    deltas: int
    duplicates: int
    rewrites: tuple[PackRewrite, ...]
    left: tuple[PackId, ...] = ()


def repack(
    store: Store,
    *,
    compression: Compression | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RepackResult:
    """Writes packs anew: contents under a policy, as differences where that helps, small packs together.

    The new packs are durable before one transaction of the catalog puts them in the place of the old ones, which are
    deleted after that. Whoever reads an old pack meanwhile finds its contents again in the new ones.

    Args:
        store: The repository.
        compression: ``fast``, ``max`` or ``none``; None for what the settings say.
        dry_run: Whether to plan only.
        progress: Is told bytes.

    Raises:
        UsageError: There is no such policy.
        LockedError: Another process is writing.
        CorruptError: Something stored is damaged; nothing was changed.
        WriteError: The system refused; nothing was changed.
    """
    policy = store.configuration.compression if compression is None else check_compression(compression)
    if dry_run:
        store.contents.look_anew()
        plan = plan_repack(store, policy, progress)
        rows = _listed(store)
        after = len(rows) - sum(len(rewrite.packs) - bool(rewrite.contents) for rewrite in plan.rewrites)
        return _result(plan, plan.rewrites, sum(rewrite.deltas for rewrite in plan.rewrites), rows, after, None)
    with store.maintenance():
        return _Repack(store, plan_repack(store, policy, progress), progress).run()


def _result(
    plan: RepackPlan,
    rewrites: tuple[PackRewrite, ...],
    deltas: int,
    before: list[PackRow],
    packs_after: int,
    bytes_after: int | None,
    left: tuple[PackId, ...] = (),
) -> RepackResult:
    return RepackResult(
        plan.compression,
        bytes_after is None,
        bool(rewrites),
        len(before),
        packs_after,
        sum(row.size for row in before),
        bytes_after,
        sum(rewrite.reencoded for rewrite in rewrites),
        deltas,
        sum(rewrite.duplicates for rewrite in rewrites),
        rewrites,
        left,
    )


def _listed(store: Store) -> list[PackRow]:
    with store.catalog.read() as reader:
        return reader.packs()


class _Source:
    """A stored content, to be encoded anew."""

    def __init__(self, stored: StoredContent) -> None:
        self.size = stored.size
        self.read_into = stored.read_into


class _Repack:
    """Carries out a plan; the repository's lock is held alone."""

    def __init__(self, store: Store, plan: RepackPlan, progress: Progress | None) -> None:
        self._store = store
        self._plan = plan
        self._meter = Meter(progress, plan.raw)
        self._new: list[PackSummary] = []
        self._present = set(store.packs())
        self._deltas = 0

    def run(self) -> RepackResult:
        before = _listed(self._store)
        done: list[PackRewrite] = []
        try:
            done += [rewrite for rewrite in self._plan.rewrites if self._write(rewrite)]
            self._compare_kept(done)
            if done:
                self._replace(done)
        except CommitOutcomeUnknownError:
            raise  # whichever packs turn out to be listed must be there
        except BaseException:
            self._sweep(done)
            raise
        left = self._sweep(done)
        after = _listed(self._store)
        bytes_after = sum(row.size for row in after)
        return _result(self._plan, tuple(done), self._deltas, before, len(after), bytes_after, left)

    def _write(self, rewrite: PackRewrite) -> bool:
        """Writes what a rewrite is to hold; False where that would be no gain, and then nothing is written."""
        store, plan = self._store, self._plan
        with PackWriter(
            store.backend,
            rewrite.kind,
            is_stored=lambda content: False,
            compression=plan.compression,
            workers=store.configuration.workers,
        ) as writer:
            added: list[tuple[StoredContent, AddedContent]] = []
            for pack in rewrite.packs:
                reader = store.pack(pack)
                for location in reader.summary().locations:
                    if not plan.stays(rewrite.kind, location):
                        continue
                    stored = reader.stored(location)
                    if rewrite.kind == "C" and location.content in plan.encode:
                        added.append((stored, self._encode(writer, stored)))
                        self._meter.add("encoding", location.size)
                    else:
                        writer.copy(stored)
                        self._meter.add("copying", location.size)
            for stored, one in added:
                if one.content != stored.content:
                    raise stored.wrong()
            asked_for = plan.compression == "none" and rewrite.reencoded > 0
            if writer.size >= rewrite.size and not asked_for:
                return False
            summary = writer.finish()
        if summary is not None:
            self._new.append(summary)
            differences = bases_of(store.backend, store.pack(summary.pack).footer()) if rewrite.deltas else {}
            self._deltas += sum(content in plan.deltas for content in map(ContentId, differences))
        return True

    def _encode(self, writer: PackWriter, stored: StoredContent) -> AddedContent:
        base_id = self._plan.encode[stored.content]
        base = None if base_id is None else self._store.contents.find(base_id)
        width = stored.frames[0].element_width
        return writer.add_source(_Source(stored), element_width=width, base=base)

    def _compare_kept(self, done: list[PackRewrite]) -> None:
        """Reads the copies that stay where they are of what is dropped elsewhere: what goes must not be the whole one.

        Raises:
            CorruptError: One is damaged.
        """
        read = {pack for rewrite in self._plan.rewrites for pack in rewrite.packs}
        dropped = {
            (plan_pack, location.content)
            for rewrite in done
            if rewrite.duplicates
            for pack in rewrite.packs
            for location in self._store.pack(pack).summary().locations
            if not self._plan.stays(rewrite.kind, location)
            and (plan_pack := self._plan.kept[rewrite.kind][location.content]) not in read
        }
        for pack, content in sorted(dropped):
            with self._store.catalog.read() as reader:
                location = next(at for at in reader.all_locations(content) if at.pack == pack)
            for _ in read_contents([Wanted(self._store.pack(pack).stored(location))], reuse=True):
                pass

    def _replace(self, done: list[PackRewrite]) -> None:
        """The one transaction. It refuses to forget the last copy of anything, whatever the plan said."""
        new = {summary.pack for summary in self._new}
        with self._store.catalog.write() as index:
            for summary in self._new:
                index.add_pack(summary)
            index.forget_packs(pack for rewrite in done for pack in rewrite.packs if pack not in new)

    def _sweep(self, done: Iterable[PackRewrite]) -> tuple[PackId, ...]:
        """Deletes those of the old and the new packs that the catalog does not list; returns what is left of them."""
        left = []
        try:
            listed = {row.pack for row in _listed(self._store)}
            touched = set(self._store.packs()) - self._present  # also one of which no more was heard than an error
        except RblError:
            return ()  # nobody knows which are in use; they take room and do no harm
        touched.update(pack for rewrite in done for pack in rewrite.packs)
        for pack in sorted(touched - listed):
            try:
                self._store.backend.delete(pack_key(pack))
            except WriteError:
                left.append(pack)
        return tuple(left)
