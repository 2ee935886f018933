"""Planning a repair: what is damaged, what of it is somewhere, and what becomes of the rest. Nothing is written.

Every byte that a plan counts on was read and its SHA-256 compared while planning, and is again when it is stored.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from rblstore.configuration import MAX_BYTES, Configuration, parse_configuration
from rblstore.errors import InputError
from rblstore.objects.content_records import FileManifest
from rblstore.objects.dtypes import BITS, span_bytes
from rblstore.objects.evidence_records import Baseline
from rblstore.objects.history_records import Operation
from rblstore.objects.ids import CommitId, ContentId, OperationId, PackId, RecordId, is_full_id
from rblstore.objects.kinds import KINDS, parse_record, record_class
from rblstore.objects.record import Record
from rblstore.objects.references import files_of, references
from rblstore.opening import FOLDER, check_format, read_regular
from rblstore.operations.fsck import FsckDamage
from rblstore.operations.progress import Progress
from rblstore.operations.repair_catalog import CatalogRemains, read_remains
from rblstore.operations.repair_history import HistoryMender, HistoryPlan
from rblstore.operations.repair_log import LogPlan, plan_log
from rblstore.operations.repair_losses import RepairLoss, Restored, forgotten_records, losses, records_of
from rblstore.operations.repair_sources import EMPTY, Found, PackSource, Source, empty_content, open_sources
from rblstore.operations.repair_survey import Copy, Survey, pack_of_stranger, survey_packs
from rblstore.storage.backend import ReadError
from rblstore.storage.log_salvage import read_log_file
from rblstore.storage.pack_salvage import problem_of
from rblstore.storage.patient import PatientBackend
from rblstore.storage.stored_content import Find, StoredContent

_APPLY = "Run: rbl repair --apply"


@dataclass
class RepairPlan:
    """What a repair is to do.

    Attributes:
        root: The folder that holds ``.rbl``.
        configuration: The settings.
        found: What is wrong.
        out: Packs that go to quarantine, and why.
        strangers: What lies where a pack should, and is no file.
        copies: Whole copies that packs on their way to quarantine hold alone.
        fetched: Contents to be stored anew, with the bytes of an element.
        records: Records to be stored anew.
        log: What ``refs.log`` is to hold but for the repair itself; None where it stays.
        history: Which records take the place of others, and which refs move.
        settings_damaged: Whether ``config.toml`` cannot be read.
        format_damaged: Whether the format file is gone.
        rebuild: Whether the catalog is to be made anew.
        restored: What comes back.
        lost: What does not.
    """

    root: Path
    configuration: Configuration
    found: tuple[FsckDamage, ...] = ()
    out: dict[PackId, str] = field(default_factory=dict)
    strangers: tuple[Path, ...] = ()
    copies: list[Copy] = field(default_factory=list)
    fetched: list[tuple[Found, int]] = field(default_factory=list)
    records: dict[RecordId, bytes] = field(default_factory=dict)
    log: LogPlan | None = None
    history: HistoryPlan = field(default_factory=HistoryPlan)
    settings_damaged: bool = False
    format_damaged: bool = False
    rebuild: bool = False
    restored: tuple[Restored, ...] = ()
    lost: tuple[RepairLoss, ...] = ()
    survey: Survey | None = None

    @property
    def does_anything(self) -> bool:
        """Whether there is anything to do, or nothing that could be done."""
        return bool(
            self.out
            or self.strangers
            or self.fetched
            or self.records
            or self.log is not None
            or self.history.refs
            or self.settings_damaged
            or self.format_damaged
            or self.rebuild
        )


def plan_repair(root: Path, sources: Iterable[str | Path] = (), progress: Progress | None = None) -> RepairPlan:
    """Finds out what is wrong with a repository, and what can be done about it.

    Args:
        root: The folder that holds ``.rbl``. Nothing else in there need be whole.
        sources: Other copies of it, directories and files that its contents came from.
        progress: Is told bytes.

    Raises:
        NoRepositoryError: A later version's.
        NoSuchSourceError: A source is not there.
        ReadError: Something may not be read; that it is damaged is not known.
    """
    folder = root / FOLDER
    configuration, format_damaged, damages = _read_settings(folder)
    opened = open_sources(sources, folder, configuration.workers, progress)
    remains = read_remains(root, configuration, progress)
    found = (*damages, *remains.found)
    plan = RepairPlan(root, configuration, found, format_damaged=format_damaged)
    plan.settings_damaged = any(damage.object == "config.toml" for damage in damages)
    if remains.found or not remains.checked:
        _Planner(plan, opened, remains, progress).run()
    return plan


def _read_settings(folder: Path) -> tuple[Configuration, bool, list[FsckDamage]]:
    """The settings, whether the format file is gone or nonsense, and what is wrong with either.

    Raises:
        NoRepositoryError: The format file names another version.
    """
    damages: list[FsckDamage] = []
    first = _read_or_strange(folder / "format", 64) or b""
    format_damaged = re.fullmatch(rb"rblstore [1-9][0-9]*\n", first) is None
    if format_damaged:
        damages.append(FsckDamage("format", "format", "the format file is missing or damaged", (), _APPLY))
    else:
        check_format(folder)
    configuration = Configuration()
    try:
        settings = _read_or_strange(folder / "config.toml", MAX_BYTES)
        if settings is None:
            raise InputError("config.toml is no regular file", object="config.toml")
        configuration = parse_configuration(settings)
    except InputError as error:
        hint = "Mend it by hand; rbl repair --apply sets it aside."
        damages.append(FsckDamage("config.toml", "settings", error.message, (), hint))
    return configuration, format_damaged, damages


def _read_or_strange(path: Path, max_bytes: int) -> bytes | None:
    """A small file's bytes; none where there is no file, None where something else lies in its place.

    Raises:
        ReadError: It may not be read, which does not mean that it is damaged.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        return read_regular(path, max_bytes)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ReadError(
            f"{path.name} cannot be read: {error.strerror}", object=str(path), hint="Check its owner and permissions."
        ) from error


class _Planner:
    """Fills in a plan."""

    def __init__(
        self, plan: RepairPlan, sources: tuple[Source, ...], remains: CatalogRemains, progress: Progress | None
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._remains = remains
        folder = plan.root / FOLDER
        shallow = remains.checked and all(damage.kind in ("catalog", "ref", "log") for damage in remains.found)
        self._survey = plan.survey = survey_packs(
            PatientBackend(folder), folder, plan.configuration.workers, progress, verify=not shallow
        )
        self._log = self._plan_log(folder / "refs.log")
        self._have: dict[RecordId, Record] = dict(self._survey.records)
        self._restored: list[Restored] = []
        self._new_records: dict[RecordId, bytes] = {}
        self._lost_records: set[RecordId] = set()

    def _plan_log(self, path: Path) -> LogPlan:
        strange = _read_or_strange(path, 0) is None
        data = b"" if strange else read_log_file(path)
        plan = plan_log(data, self._remains.operations, self._operations)
        return replace(plan, damage="it is no regular file") if strange else plan

    def _operations(self) -> Mapping[OperationId, Operation]:
        found: dict[OperationId, Operation] = {}
        for source in self._sources:
            found.update(source.operations())
        return found

    def run(self) -> None:
        plan, survey = self._plan, self._survey
        if not self._remains.checked:
            plan.found += tuple(self._damages())
        self._restore_records()
        plan.history = self._mend_history()
        final = {id: one for id, one in self._have.items() if id not in plan.history.rescued} | plan.history.added
        self._restore_contents(final)
        self._set_aside(final)
        for record_id, data in self._new_records.items():
            if record_id not in plan.history.rescued:
                plan.records[record_id] = data
        present = {content for kind, content in survey.whole if kind == "R"}
        for record_id, record in plan.history.added.items():
            if ContentId(record_id) not in present:
                plan.records[record_id] = record.encode()
        plan.restored = tuple(sorted(self._restored, key=lambda one: (one.kind, one.object)))
        if self._log.damage is not None or self._log.missing:
            plan.log = self._log
        plan.strangers = survey.strangers
        catalog_wrong = any(damage.kind in ("catalog", "ref", "log") for damage in self._remains.found)
        changed = bool(plan.out or plan.records or plan.fetched or plan.log or plan.history.refs)
        unlisted = any(damage.kind == "pack" for damage in self._remains.found)
        plan.rebuild = catalog_wrong or changed or unlisted or not self._remains.checked or self._unlisted()
        if plan.log is None and plan.history.refs:
            plan.log = self._log

    def _unlisted(self) -> bool:
        """Whether something that is said to be in no pack is in one that the catalog does not know."""
        have = {str(content) for _, content in self._survey.whole}
        return any(damage.kind == "reference" and damage.object in have for damage in self._remains.found)

    def _damages(self) -> Iterator[FsckDamage]:
        """What a check without a catalog finds."""
        survey = self._survey
        for pack, problem in survey.damaged.items():
            yield FsckDamage(pack, "pack", problem, (), _APPLY)
        for path in survey.strangers:
            yield FsckDamage(pack_of_stranger(path), "pack", "what lies in its place is no file", (), _APPLY)
        for copy, problem in survey.bad:
            yield FsckDamage(copy.content, "content", f"{problem} (pack {copy.pack.id.short})", (), _APPLY)
        for record_id, problem in survey.misread.items():
            yield FsckDamage(record_id, "record", problem, (), _APPLY)
        if self._log.damage is not None:
            yield FsckDamage("refs.log", "log", self._log.damage, (), _APPLY)

    # Records.

    def _restore_records(self) -> None:
        """Looks for every record that something refers to and that no pack has, until nothing more turns up."""
        waiting: list[RecordId] = [
            record_class(kind).ID(id) for id, kind in self._remains.listed.items() if kind in KINDS
        ]
        waiting += [CommitId(value) for value in self._log.refs.values() if is_full_id(value)]
        for record in self._survey.records.values():
            waiting += records_of(record)
        seen: set[RecordId] = set()
        while waiting:
            record_id = waiting.pop()
            if record_id in seen or record_id in self._have or record_id in self._survey.misread:
                continue
            seen.add(record_id)
            found = self._find_record(record_id)
            if found is None:
                self._lost_records.add(record_id)
                continue
            record, data, source = found
            self._have[type(record).ID(record_id)] = record
            self._new_records[record_id] = data
            self._restored.append(Restored(record_id, record.KIND, len(data), source))
            waiting += records_of(record)

    def _find_record(self, record_id: RecordId) -> tuple[Record, bytes, str] | None:
        places = [(source.name, source.record) for source in self._sources]
        for name, look in [("rows of the catalog", self._remains.spelled), *places]:
            data = look(record_id)
            try:
                record = None if data is None else parse_record(data)
            except InputError:
                continue
            if record is not None and data is not None and record.id_of(data) == record_id:
                return record, data, name
        return None

    def _mend_history(self) -> HistoryPlan:
        mender = HistoryMender(self._have, self._survey.later)
        length: dict[str, str] = {}
        for operation in self._log.operations:
            for change in operation.changes:
                length.pop(change.ref, None)
                if change.after is not None:
                    length[change.ref] = change.after
        log = self._log
        mender.mend_refs(log.refs, log.moved, complete=log.complete, log_refs=length)
        return mender.plan

    # Contents.

    def _restore_contents(self, final: Mapping[RecordId, Record]) -> None:
        plan, survey = self._plan, self._survey
        sizes, widths = self._wanted(final)
        wanted = {content: size for content, size in sizes.items() if not survey.has(content)}
        for copy in survey.pending:
            if copy.content in sizes:
                for base in copy.bases:
                    if survey.undelta(base) is None:
                        wanted.setdefault(base, sizes.get(base) or survey.pile.size(base))
        found = self._find_contents(wanted)
        needed = self._resolve_pending(found)
        for content in sorted(found):
            if content in needed or not survey.has(content):
                plan.fetched.append((found[content], widths.get(content, 0)))
                self._restored.append(Restored(content, "content", found[content].size, found[content].source))
        lost = [content for content in sizes if content not in found and not survey.has(content)]
        plan.lost = losses(lost, self._lost_records, final)

    def _wanted(self, final: Mapping[RecordId, Record]) -> tuple[dict[ContentId, int | None], dict[ContentId, int]]:
        """Every content that some record needs, with its size where something says it; and bytes of elements."""
        sizes: dict[ContentId, int | None] = {}
        widths: dict[ContentId, int] = {}
        passed_over = forgotten_records(final)  # nobody is asked for what was removed on purpose
        for record_id, record in final.items():
            if record_id in passed_over:
                continue
            for target, what in references(record):
                if what == "content":
                    sizes.setdefault(ContentId(target), self._survey.pile.size(ContentId(target)))
            for entry in files_of(record):
                manifest = None if entry.manifest is None else final.get(entry.manifest)
                if entry.manifest is None:
                    sizes[entry.sha256] = entry.size
                elif isinstance(manifest, FileManifest):
                    sizes[manifest.header] = entry.size - sum(one.tensor.size for one in manifest.tensors)
            if isinstance(record, FileManifest):
                for one in record.tensors:
                    sizes[one.tensor.content] = one.tensor.size
                    widths[one.tensor.content] = BITS[one.tensor.dtype] // 8
            elif isinstance(record, Baseline):
                for prompt in record.prompts:
                    try:
                        sizes[prompt.content] = span_bytes(record.dtype, prompt.shape)
                    except InputError:
                        continue
        return sizes, widths

    def _find_contents(self, wanted: Mapping[ContentId, int | None]) -> dict[ContentId, Found]:
        found = self._ask_sources(wanted)
        left = wanted.keys() - found.keys()
        packs = [source for source in self._sources if isinstance(source, PackSource)]
        # One source may have a difference, and another what it is a difference from.
        bases = {base: None for source in packs for base in source.bases(left) if self._survey.undelta(base) is None}
        find = self._finder({**self._ask_sources({base: None for base in bases if base not in found}), **found})
        for source in packs if left else ():
            for one in source.contents_on(left - found.keys(), find):
                found.setdefault(one.content, one)
        return found

    def _ask_sources(self, wanted: Mapping[ContentId, int | None]) -> dict[ContentId, Found]:
        found: dict[ContentId, Found] = {EMPTY: empty_content()} if EMPTY in wanted else {}
        for source in self._sources:
            left = {content: size for content, size in wanted.items() if content not in found}
            for one in source.contents(left):
                found.setdefault(one.content, one)
        return found

    def _finder(self, found: Mapping[ContentId, Found]) -> Find:
        """Finds what lies beneath a difference, in packs or among what was found."""
        survey = self._survey

        def find(
            content: ContentId, gone: PackId | None = None, damaged: frozenset[PackId] = frozenset()
        ) -> StoredContent | None:
            stored = survey.base(content, gone, damaged)
            if stored is not None or gone is not None:
                return stored
            return cast("StoredContent | None", found.get(content))  # of a base nothing is asked but its bytes

        return find

    def _resolve_pending(self, found: Mapping[ContentId, Found]) -> set[ContentId]:
        """Reads what is stored as a difference from something that was found; returns what of that is needed."""
        survey = self._survey
        needed: set[ContentId] = set()
        find = self._finder(found)
        for copy in survey.pending:
            problem = "what it is a difference from is lost"
            if all(survey.undelta(base) or base in found for base in copy.bases):
                problem = problem_of(copy.stored(find), self._plan.configuration.workers) or ""
            if problem:
                survey.bad.append((copy, problem))
            else:
                survey.whole.setdefault((copy.kind, copy.content), []).append(copy)
                needed.update(base for base in copy.bases if survey.undelta(base) is None)
        return needed

    # Packs.

    def _set_aside(self, final: Mapping[RecordId, Record]) -> None:
        """Which packs go to quarantine, and which copies in them go into the new packs first."""
        plan, survey = self._plan, self._survey
        named = {RecordId(value) for value in self._log.refs.values() if is_full_id(value)}
        for record in final.values():
            named.update(records_of(record))
        aside = {record_id for record_id in survey.misread if record_id not in named} | plan.history.rescued.keys()
        plan.out.update(survey.damaged)
        for copy, problem in survey.bad:
            plan.out.setdefault(copy.pack.id, f"{copy.content.short}: {problem}")
        for (kind, content), copies in survey.whole.items():
            if kind == "R" and RecordId(content) in aside:
                why = survey.misread.get(RecordId(content), "it was rescued under another id")
                for copy in copies:
                    plan.out.setdefault(copy.pack.id, f"record {content.short}: {why}")
        bases: set[ContentId] = set()
        standing: set[ContentId] = {found.content for found, _ in plan.fetched}
        for (kind, content), copies in sorted(survey.whole.items()):
            if kind == "R" and RecordId(content) in aside:
                continue
            kept = [copy for copy in copies if copy.pack.id not in plan.out]
            if not kept and not (kind == "C" and content in standing):
                kept = [next((copy for copy in copies if not copy.bases), copies[0])]
                plan.copies += kept
            for copy in kept:
                bases.update(copy.bases)
            if any(not copy.bases for copy in kept):
                standing.add(content)
        beneath = bases - standing
        plan.copies = [copy for copy in plan.copies if copy.content not in beneath]
        for content in sorted(beneath):
            # A base of which a difference alone would be left serves nobody.
            whole = survey.undelta(content)
            if whole is not None:
                stored = whole.stored(survey.base)
                plan.fetched.append((Found(content, stored.size, f"pack {whole.pack.id.short}", stored.read_into), 0))
