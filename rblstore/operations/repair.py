"""``repair``: what is damaged is set aside, what can be found again is stored anew, and the rest is said.

A plan first; it is carried out on request, under the repository's lock, in an order that a crash may cut anywhere: new
packs, the log, the old packs to quarantine, the catalog. Whoever repairs again finishes. Nothing is ever deleted.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from rblstore.configuration import DEFAULT_TEXT
from rblstore.errors import RblError
from rblstore.objects.history_records import Operation, RefChange
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import PackSummary
from rblstore.opening import FOLDER, FORMAT
from rblstore.operations.fsck import FsckDamage, fsck
from rblstore.operations.progress import Progress
from rblstore.operations.reindex import build_catalog
from rblstore.operations.repair_history import RepairedRef, RescuedRecord
from rblstore.operations.repair_log import operation_id
from rblstore.operations.repair_losses import RepairLoss, Restored
from rblstore.operations.repair_plan import RepairPlan, plan_repair
from rblstore.operations.repair_survey import pack_of_stranger
from rblstore.operations.result import Result
from rblstore.repository import Store, utc_now
from rblstore.storage.disk import DiskBackend
from rblstore.storage.durable import StagedFile, WriteError, fsync_directory, move_file, write_file
from rblstore.storage.encoding import SourceChangedError
from rblstore.storage.locks import maintaining
from rblstore.storage.log_salvage import encode_log
from rblstore.storage.pack_format import pack_key
from rblstore.storage.pack_writer import CorruptPackError, PackWriter
from rblstore.storage.stored_content import StoredContent

AUTHOR: Final = "rblstore"
_CHUNK: Final = 4 << 20


@dataclass(frozen=True)
class RepairStep:
    """One thing that is done.

    Attributes:
        action: ``restore``, ``copy``, ``rescue``, ``log``, ``ref``, ``quarantine``, ``settings``, ``catalog`` or
            ``format``.
        object: To what.
        what: How, or why, in words.
    """

    action: str
    object: str
    what: str


@dataclass(frozen=True)
class RepairResult(Result):
    """What a repair did, or would do.

    Attributes:
        applied: Whether it was done.
        whole: Whether nothing is damaged or lost: now, where it was done, else before.
        found: What was wrong.
        steps: What is done about it, in order.
        restored: What comes back, and from where.
        rescued: Records taken over under new ids.
        refs: Refs that move, and why.
        lost: What nothing has any more.
        remaining: What is wrong afterwards; where nothing was done, what was found.
    """

    applied: bool
    whole: bool
    found: tuple[FsckDamage, ...]
    steps: tuple[RepairStep, ...]
    restored: tuple[Restored, ...]
    rescued: tuple[RescuedRecord, ...]
    refs: tuple[RepairedRef, ...]
    lost: tuple[RepairLoss, ...]
    remaining: tuple[FsckDamage, ...]


def repair(
    root: Path, *, sources: Iterable[str | Path] = (), apply: bool = False, progress: Progress | None = None
) -> RepairResult:
    """Plans a repair and, where asked to, carries it out.

    Args:
        root: The folder that holds ``.rbl``, which need not be one that opens.
        sources: Other copies of the repository, and directories and files that its contents came from.
        apply: Whether to do it.
        progress: Is told bytes.

    Raises:
        NoRepositoryError: A later version's.
        NoSuchSourceError: A source is not there.
        LockedError: Another process is writing.
        SourceChangedError: A source was written to meanwhile; run it again.
        WriteError: The system refused; what was there is there still.
    """
    given = list(sources)
    if not apply:
        plan = plan_repair(root, given, progress)
        return _result(plan, plan.found, applied=False)
    with maintaining(root / FOLDER):
        plan = plan_repair(root, given, progress)
        if not plan.does_anything:
            return _result(plan, plan.found, applied=True)
        _Repair(plan, progress).run()
        return _result(plan, _check(root, progress), applied=True)


def _check(root: Path, progress: Progress | None) -> tuple[FsckDamage, ...]:
    """What is wrong now."""
    try:
        with closing(Store.open(root, allow_foreign=True)) as store:
            return fsck(store, full=True, progress=progress).damages
    except RblError as error:
        return (FsckDamage(error.object or str(root), "repository", error.message, (), error.hint or ""),)


def _result(plan: RepairPlan, remaining: tuple[FsckDamage, ...], *, applied: bool) -> RepairResult:
    return RepairResult(
        applied,
        not remaining and not plan.lost,
        plan.found,
        tuple(_steps(plan)),
        plan.restored,
        tuple(plan.history.rescued.values()),
        tuple(plan.history.refs),
        plan.lost,
        remaining,
    )


def _steps(plan: RepairPlan) -> Iterator[RepairStep]:
    amounts = Counter((one.kind, one.source) for one in plan.restored)
    for (kind, source), count in sorted(amounts.items()):
        yield RepairStep("restore", kind, f"{count} from {source}")
    if plan.copies:
        yield RepairStep("copy", "packs", f"{len(plan.copies)} that packs on their way to quarantine hold whole")
    for old in plan.history.rescued.values():
        what = "in quarantine only" if old.after is None else f"as {old.after}"
        yield RepairStep("rescue", old.before, f"{old.kind}, {what}")
    if plan.log is not None and (plan.log.damage is not None or plan.log.missing):
        count = len(plan.log.operations)
        yield RepairStep("log", "refs.log", f"written anew with the {count} operations that follow from each other")
    for ref in plan.history.refs:
        yield RepairStep("ref", ref.ref, f"{ref.before or 'nothing'} -> {ref.after or 'deleted'}: {ref.why}")
    for path in plan.strangers:
        yield RepairStep("quarantine", pack_of_stranger(path), "what lies in its place is no file")
    for pack, why in sorted(plan.out.items()):
        yield RepairStep("quarantine", pack, why)
    if plan.settings_damaged:
        yield RepairStep("settings", "config.toml", "set aside; the defaults take its place")
    if plan.rebuild:
        yield RepairStep("catalog", "catalog.db", "rebuilt from packs and refs.log")
    if plan.format_damaged:
        yield RepairStep("format", "format", "written anew")


class _Repair:
    """Carries out a plan; the repository's lock is held alone."""

    def __init__(self, plan: RepairPlan, progress: Progress | None) -> None:
        self._plan = plan
        self._progress = progress
        self._folder = plan.root / FOLDER
        self._backend = DiskBackend(self._folder)
        self._fetched = {found.content: found for found, _ in plan.fetched}
        self._moved: set[PackId] = set()

    def run(self) -> None:
        plan, folder = self._plan, self._folder
        try:
            for name in ("packs", "tmp", "quarantine"):
                (folder / name).mkdir(exist_ok=True)
        except OSError as error:
            raise WriteError(f"making a folder failed: {error.strerror}", object=str(folder)) from error
        for path in plan.strangers:
            self._move_aside(path)
        self._write_packs()
        self._write_log()
        for pack in sorted(plan.out):
            self._quarantine(pack)
        if plan.settings_damaged:
            self._keep("config.toml")
            write_file(folder / "config.toml", DEFAULT_TEXT.encode(), folder / "tmp")
        if plan.rebuild:
            self._keep("catalog.db")
            build_catalog(plan.root, self._progress)
        if plan.format_damaged:
            self._keep("format")
            write_file(folder / "format", FORMAT, folder / "tmp")
            fsync_directory(folder)

    # Packs.

    def _write_packs(self) -> None:
        """One pack of contents, one of records: what damaged packs have whole, and what was found elsewhere."""
        for write in (self._write_contents, self._write_records):
            while (taken := self._publish(write)) is not None:
                # It would be what a damaged one was. That goes to quarantine first, from where it can be read, too.
                self._quarantine(taken)

    def _publish(self, write: Callable[[], PackSummary | None]) -> PackId | None:
        """Writes a pack; gives its id where the damaged one that it is to replace still has that name."""
        try:
            summary = write()
            pack = None if summary is None else summary.pack
        except CorruptPackError as error:
            pack = PackId(str(error.object))
            if pack not in self._plan.out or pack in self._moved:
                raise
        return pack if pack in self._plan.out and pack not in self._moved else None

    def _base(
        self, content: ContentId, gone: PackId | None = None, damaged: frozenset[PackId] = frozenset()
    ) -> StoredContent | None:
        survey = self._plan.survey
        stored = None if survey is None else survey.base(content, gone, damaged)
        if stored is not None or gone is not None:
            return stored
        return cast("StoredContent | None", self._fetched.get(content))  # of a base nothing is asked but its bytes

    def _write_contents(self) -> PackSummary | None:
        plan = self._plan
        with PackWriter(
            self._backend,
            "C",
            is_stored=lambda content: False,
            compression=plan.configuration.compression,
            workers=plan.configuration.workers,
        ) as writer:
            for copy in plan.copies:
                if copy.kind == "C":
                    writer.copy(copy.stored(self._base))
            added = [(one, writer.add_source(one, element_width=width)) for one, width in plan.fetched]
            for found, one in added:
                if one.content != found.content:
                    raise SourceChangedError(
                        f"{found.source} was written to while it was read",
                        object=found.source,
                        hint="Run the command again once nothing writes to it.",
                    )
            return writer.finish()

    def _write_records(self) -> PackSummary | None:
        with PackWriter(self._backend, "R", is_stored=lambda content: False, compression="fast") as writer:
            for copy in self._plan.copies:
                if copy.kind == "R":
                    writer.copy(copy.stored(self._base))
            for data in self._plan.records.values():
                writer.add_bytes(data)
            return writer.finish()

    def _quarantine(self, pack: PackId) -> None:
        """Moves a pack. Where one of its name is in quarantine already, its name there is its own digest."""
        key = pack_key(pack)
        if pack in self._moved or not self._backend.exists(key):
            return  # what has its name by now is the one that took its place
        to = pack_key(pack, "quarantine")
        if not self._backend.move(key, to):
            digest = _digest(self._folder / key)
            if digest != _digest(self._folder / to):
                to = pack_key(PackId(digest), "quarantine")
                kept = not self._backend.move(key, to)
            else:
                kept = True
            if kept:
                self._backend.delete(key)  # quarantine has these very bytes
        self._moved.add(pack)
        survey = self._plan.survey
        for one in () if survey is None else survey.pile.packs:
            if one.id == pack:
                one.moved_to(to)

    # Other files.

    def _write_log(self) -> None:
        plan = self._plan
        if plan.log is None:
            return
        operations = plan.log.operations
        if plan.history.refs:
            last = operations[-1] if operations else None
            operation = Operation(
                1 if last is None else last.sequence + 1,
                None if last is None else operation_id(last),
                "repair",
                tuple(RefChange(ref.ref, ref.before, ref.after) for ref in plan.history.refs),
                None,
                AUTHOR,
                utc_now(),
            )
            operations = (*operations, operation)
        if plan.log.damage is not None:
            self._keep("refs.log")
        write_file(self._folder / "refs.log", encode_log(operations), self._folder / "tmp")

    def _keep(self, name: str) -> None:
        """Keeps a copy of a file of the repository, under its name and its digest."""
        path = self._folder / name
        try:
            regular = stat.S_ISREG(path.lstat().st_mode)
        except FileNotFoundError:
            return
        if not regular:
            self._move_aside(path)
            return
        digest = hashlib.sha256()
        staged = StagedFile(self._folder / "tmp")
        try:
            for piece in _pieces(path):
                digest.update(piece)
                staged.write(piece)
            staged.publish(self._folder / "quarantine" / f"{name}-{digest.hexdigest()}")
        finally:
            staged.discard()

    def _move_aside(self, path: Path) -> None:
        """Moves what is no file to a name in quarantine that nothing has."""
        number = 1
        while (to := self._folder / "quarantine" / f"{path.name}-{number}").exists() or to.is_symlink():
            number += 1
        move_file(path, to)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_CHUNK):
                yield piece
    except OSError as error:
        raise WriteError(f"{path} could not be copied: {error.strerror}", object=str(path)) from error
