"""``fsck``: storage integrity. Every frame, digest, record and reference; what is damaged, and what needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rblstore.catalog.writer import subjects_of
from rblstore.checkpoints.composition_ground import shown
from rblstore.checkpoints.overlay_effects import contradictions
from rblstore.errors import CorruptError, RblError
from rblstore.objects import limits
from rblstore.objects.content_records import Behavior, FileManifest, Identity
from rblstore.objects.history_records import SYMBOLIC, Commit, Composition
from rblstore.objects.ids import CommitId, CompositionId, ContentId, PackId, RecordId, is_full_id
from rblstore.objects.record import Record
from rblstore.objects.references import files_of, references
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.result import Result
from rblstore.operations.stored_models import check_members, members, read_checkpoint, view_identity
from rblstore.repository import Store
from rblstore.storage.pack_bases import bases_of
from rblstore.storage.pack_check import check_pack


@dataclass(frozen=True)
class FsckDamage:
    """One thing that is wrong.

    Attributes:
        object: A pack, a content, a record, a ref or a file of the repository.
        kind: ``pack``, ``content``, ``record``, ``reference``, ``ref``, ``log``, ``catalog`` or ``composition``.
        problem: What is wrong with it.
        needed_by: Commits, files and behaviors that need it, in words; at most twenty.
        hint: What to do.
    """

    object: str
    kind: str
    problem: str
    needed_by: tuple[str, ...]
    hint: str


@dataclass(frozen=True)
class FsckResult(Result):
    """What a check of the storage found.

    Attributes:
        ok: Whether nothing is damaged.
        full: Whether every content was decoded and hashed.
        damages: What is wrong.
        packs: How many packs were read.
        contents: How many contents they hold.
        records: How many records were parsed.
        commits: How many commits there are.
        operations: How many operations the log holds.
    """

    ok: bool
    full: bool
    damages: tuple[FsckDamage, ...]
    packs: int
    contents: int
    records: int
    commits: int
    operations: int


_REINDEX = "Run: rbl reindex"
_NEEDS = 20
# A lost pack may hold thousands of tensors; what they are part of is worth more words.
_TENSORS = 5
_COPY = "Keep the repository as it is and fetch the named files from another copy."


class _Check:
    def __init__(self, store: Store, *, full: bool, progress: Progress | None) -> None:
        self._store = store
        self._full = full
        self._progress = progress
        self.damages: list[FsckDamage] = []
        self.packs = 0
        self.contents: set[ContentId] = set()
        self.records: dict[RecordId, Record] = {}
        self.bad_contents: dict[str, str] = {}
        self.lost: dict[str, tuple[str, ...]] = {}
        self.unlisted: set[str] = set()
        self.differences: dict[str, list[str]] = {}

    def damage(self, object: str, kind: str, problem: str, hint: str) -> None:
        self.damages.append(FsckDamage(object, kind, problem, (), hint))

    # Packs, and the records in them.

    def read_packs(self) -> None:
        store = self._store
        packs = store.packs()
        sizes = {pack: store.pack_size(pack) for pack in packs}
        meter = Meter(self._progress, sum(sizes.values()))
        with store.catalog.read() as reader:
            known = {row.pack for row in reader.packs()}
        for pack in sorted(known - set(packs)):
            self._lose(pack, "the catalog names it and it is not there")
        for pack in packs:
            self.packs += 1
            self._read_pack(pack, known)
            meter.add("checking packs", sizes[pack])

    def _lose(self, pack: PackId, problem: str) -> None:
        """Notes a pack of which nothing can be read."""
        with self._store.catalog.read() as reader:
            lost = reader.contents_of_pack(pack)
        self.lost[pack] = tuple(location.content for location in lost)
        self.bad_contents.update({location.content: f"its pack {pack.short} is damaged" for location in lost})
        self.damage(pack, "pack", problem, _COPY)

    def _read_pack(self, pack: PackId, known: set[PackId]) -> None:
        whole = True
        for found in check_pack(self._store.backend, pack, full=self._full, find=self._store.contents.find):
            if found.content is None:
                whole = False
                self._lose(pack, found.problem)
            else:
                self.bad_contents[found.content] = found.problem
                self.damage(found.content, "content", f"{found.problem} (pack {pack.short})", _COPY)
        if not whole:
            return
        reader = self._store.pack(pack)
        try:
            summary = reader.summary()
        except CorruptError as error:
            self._lose(pack, error.message)
            return
        if pack not in known:
            # What a lost race or a crash leaves: nothing refers to it. Where something does, a reference is broken.
            self.unlisted.update(location.content for location in summary.locations)
            return
        self.contents.update(location.content for location in summary.locations)
        with self._store.catalog.read() as index:
            if index.contents_of_pack(pack) != list(summary.locations):
                self.damage(pack, "catalog", "the catalog misplaces what is in this pack", _REINDEX)
        if summary.kind != "R":
            for content, bases in bases_of(self._store.backend, reader.footer()).items():
                for base in bases:
                    self.differences.setdefault(base, []).append(content)
            return
        for location in summary.locations:
            if location.content in self.bad_contents:
                continue
            try:
                data = reader.read_small(location, limits.RECORD_BYTES + 128)
                record_id, record = self._store.parse(RecordId(location.content), data)
            except RblError as error:
                self.damage(location.content, "record", error.message, _COPY)
            else:
                self.records[record_id] = record

    # References between records, and from records to contents.

    def checkreferences(self) -> None:
        for record_id, record in self.records.items():
            for target, what in references(record):
                missing = target not in (self.records if what == "record" else self.contents)
                if missing and target not in self.bad_contents:
                    unlisted = target in self.unlisted
                    self.damage(
                        target,
                        "reference",
                        f"{record.KIND} {record_id.short} refers to this {what}, and it is in no pack"
                        + (" that the catalog knows" if unlisted else ""),
                        _REINDEX if unlisted else _COPY,
                    )

        for base in self.differences.keys() - self.contents - self.bad_contents.keys():
            content = ContentId(self.differences[base][0])
            unlisted = base in self.unlisted
            self.damage(
                base,
                "reference",
                f"content {content.short} is stored as a difference from this content, and it is in no pack"
                + (" that the catalog knows" if unlisted else ""),
                _REINDEX if unlisted else _COPY,
            )

    def check_refs(self) -> None:
        with self._store.catalog.read() as reader:
            refs = reader.refs("")
        for name, value in refs.items():
            if value.startswith(SYMBOLIC):
                continue
            if not is_full_id(value) or RecordId(value) not in self.records:
                hint = _REINDEX if value in self.unlisted else "Move it with: rbl undo"
                self.damage(name, "ref", f"it names {value[:12]}, which is not stored", hint)

    def check_log(self) -> int:
        store = self._store
        with store.catalog.read() as reader:
            recorded = reader.operations_after(0)
        try:
            logged = store.log.read().operations
        except RblError as error:
            self.damage(
                "refs.log", "log", error.message, "Keep a copy of refs.log; the catalog still has the operations."
            )
            return len(recorded)
        if list(logged) != recorded:
            self.damage("refs.log", "log", "it and the catalog tell different histories", _REINDEX)
        told: dict[str, str | None] = {change.ref: change.after for one in logged for change in one.changes}
        with store.catalog.read() as reader:
            refs = reader.refs("")
        for name in sorted(told.keys() | refs.keys()):
            if told.get(name) != refs.get(name):
                self.damage(name, "ref", "the catalog has it elsewhere than refs.log says", _REINDEX)
        return len(logged)

    def check_catalog(self) -> int:
        store = self._store
        problems = store.catalog.integrity_problems()
        for problem in problems:
            self.damage("catalog.db", "catalog", problem, _REINDEX)
        with store.catalog.read() as reader:
            recorded = dict(reader.records(None))
            for record_id, record in self.records.items():
                if recorded.pop(record_id, None) != record.KIND:
                    self.damage(record_id, "catalog", f"the catalog does not know this {record.KIND}", _REINDEX)
            for record_id in recorded:
                if record_id not in self.bad_contents:
                    self.damage(record_id, "catalog", "the catalog knows a record that no pack holds", _COPY)
            for record_id, record in self.records.items():
                told: object = record
                if isinstance(record, Commit):
                    row = reader.commit(CommitId(record_id))
                    told = row and Commit(row.composition, row.parents, row.author, row.time, row.message)
                elif isinstance(record, Composition):
                    told = reader.composition(CompositionId(record_id))
                if told != record:
                    self.damage(record_id, "catalog", f"the catalog tells this {record.KIND} wrongly", _REINDEX)
            about: dict[RecordId, set[RecordId]] = {}
            for record_id, record in self.records.items():
                for subject in subjects_of(record):
                    about.setdefault(subject, set()).add(record_id)
            for subject, found in reader.evidence_for(about).items():
                if not about[subject].issubset(found):
                    self.damage(subject, "catalog", "the catalog has not all evidence about it", _REINDEX)
        return sum(isinstance(record, Commit) for record in self.records.values())

    # Full: every file's digest, and every commit composes.

    def check_files(self) -> None:
        import hashlib

        checked: set[tuple[str, str | None]] = set()
        for record_id, record in self.records.items():
            for entry in files_of(record):
                if entry.manifest is None or (entry.sha256, entry.manifest) in checked:
                    continue
                checked.add((entry.sha256, entry.manifest))
                digest, size = hashlib.sha256(), 0
                try:
                    for chunk in self._store.file(entry):
                        digest.update(chunk)
                        size += len(chunk)
                except RblError:
                    continue  # The content itself has been named already.
                if digest.hexdigest() != entry.sha256 or size != entry.size:
                    self.damage(
                        record_id, "record", f"its file {entry.path} does not compose to the recorded digest", _COPY
                    )

    def check_overlays(self) -> None:
        for record_id, record in self.records.items():
            if not isinstance(record, Behavior) or record.form != "overlay":
                continue
            try:
                own = read_checkpoint(self._store, record.files)
                false = contradictions(record, own.tensors, own.beside)
            except RblError:
                continue  # What is damaged has been named already.
            if false:
                self.damage(record_id, "record", f"its effects are not what its files hold: {shown(false)}", _COPY)

    def check_compositions(self) -> None:
        for record_id, record in self.records.items():
            if not isinstance(record, Composition):
                continue
            try:
                view = view_identity(self._store, self._store.record(record.identity, Identity))
                check_members(view, members(self._store, record), unloadable=True)
            except CorruptError:
                continue  # What it needs has been named already.
            except RblError as error:
                self.damage(record_id, "composition", error.message, _COPY)

    def name_needs(self) -> None:
        """Says which files, behaviors and commits need each damaged content."""
        needs = _Needs(self.records, self.differences)
        self.damages = [
            damage
            if damage.kind not in ("content", "pack", "reference", "record")
            else replace(damage, needed_by=needs.of(self.lost.get(damage.object, (damage.object,))))
            for damage in self.damages
        ]


class _Needs:
    """Who refers to what, backwards."""

    def __init__(self, records: dict[RecordId, Record], differences: Mapping[str, Iterable[str]]) -> None:
        self._records = records
        self._differences = differences
        self._users: dict[str, list[RecordId]] = {}
        for record_id, record in records.items():
            for target, _ in references(record):
                self._users.setdefault(target, []).append(record_id)

    def of(self, damaged: Iterable[str]) -> tuple[str, ...]:
        words: list[str] = []
        queue = deque(damaged)
        queue.extend([content for base in queue for content in self._differences.get(base, ())])
        seen, tensors = set(queue), 0
        while queue and len(words) < _NEEDS:
            target = queue.popleft()
            for user in self._users.get(target, ()):
                record = self._records[user]
                if isinstance(record, FileManifest) and tensors < _TENSORS:
                    tensors += 1
                    words.append(_described(user, record, target))
                elif user not in seen and not isinstance(record, FileManifest):
                    words.append(_described(user, record, target))
                if user not in seen:
                    seen.add(user)
                    queue.append(user)
        return tuple(dict.fromkeys(words))[:_NEEDS]


def _described(record_id: RecordId, record: Record, target: str) -> str:
    if isinstance(record, FileManifest):
        names = [entry.name for entry in record.tensors if entry.tensor.content == target]
        return f"tensor {names[0]}" if names else f"header of file {record_id.short}"
    if isinstance(record, (Identity, Behavior)):
        paths = [entry.path for entry in record.files if target in (entry.sha256, entry.manifest)]
        return f"{record.KIND} {record_id.short}" + (f" ({paths[0]})" if paths else "")
    if isinstance(record, Commit):
        return f"commit {record_id.short} ({record.subject[:60]})"
    return f"{record.KIND} {record_id.short}"


def fsck(store: Store, *, full: bool = False, progress: Progress | None = None) -> FsckResult:
    """Checks the repository and changes nothing.

    Args:
        store: The repository.
        full: Whether to decode and hash every content, compose every file and every composition, besides checking
            every frame's checksum, every record and every reference.
        progress: Is told bytes of packs read.

    Returns:
        Everything that is wrong; it does not raise for damage.
    """
    check = _Check(store, full=full, progress=progress)
    check.read_packs()
    check.checkreferences()
    check.check_refs()
    operations = check.check_log()
    commits = check.check_catalog()
    if full:
        check.check_files()
        check.check_overlays()
        check.check_compositions()
    check.name_needs()
    return FsckResult(
        not check.damages,
        full,
        tuple(check.damages),
        check.packs,
        len(check.contents - check.records.keys()),
        len(check.records),
        commits,
        operations,
    )
