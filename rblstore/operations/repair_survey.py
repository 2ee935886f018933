"""What is left of a repository: every pack read content by content, whatever the catalog says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rblstore.errors import CorruptError, InputError
from rblstore.objects.ids import ContentId, PackId, RecordId
from rblstore.objects.kinds import parse_record
from rblstore.objects.locations import ContentLocation, PackKind
from rblstore.objects.record import Record
from rblstore.operations.progress import Meter, Progress
from rblstore.storage.backend import Backend, ReadError, is_key
from rblstore.storage.decoding import Wanted, read_contents
from rblstore.storage.pack_format import pack_of_key
from rblstore.storage.pack_reader import PackReader
from rblstore.storage.pack_salvage import UNREADABLE, PackPile, SalvagedPack, problem_of, require_disk_error
from rblstore.storage.stored_content import Find, StoredContent

_LATER: Final = "a later version wrote it"


@dataclass(frozen=True)
class Copy:
    """One copy of a content in a pack.

    Attributes:
        pack: The pack.
        location: Where in it.
        bases: What it is stored as a difference from.
    """

    pack: SalvagedPack
    location: ContentLocation
    bases: frozenset[ContentId] = frozenset()

    @property
    def content(self) -> ContentId:
        """Its id."""
        return self.location.content

    @property
    def kind(self) -> PackKind:
        """What its pack holds."""
        return self.pack.kind()

    def stored(self, find: Find) -> StoredContent:
        """The content, to be read.

        Raises:
            CorruptError: The pack cannot be read.
        """
        return StoredContent(self.pack, self.location, find)


@dataclass
class Survey:
    """What is left.

    Attributes:
        pile: The packs.
        damaged: Why packs are not what they should be, by id.
        whole: Copies whose bytes are right, by kind of pack and content.
        bad: Copies whose bytes are not, and what is wrong with them.
        pending: Copies that cannot be read, since what they are differences from cannot.
        records: Every record that can be read.
        misread: Whole bytes in record packs that are no record of this version, and why.
        strangers: What lies where a pack should, and is no file.
    """

    pile: PackPile
    damaged: dict[PackId, str] = field(default_factory=dict)
    whole: dict[tuple[PackKind, ContentId], list[Copy]] = field(default_factory=dict)
    bad: list[tuple[Copy, str]] = field(default_factory=list)
    pending: list[Copy] = field(default_factory=list)
    records: dict[RecordId, Record] = field(default_factory=dict)
    misread: dict[RecordId, str] = field(default_factory=dict)
    strangers: tuple[Path, ...] = ()

    def has(self, content: ContentId) -> bool:
        """Whether some copy is whole, be it a difference."""
        return bool(self.whole.get(("C", content)) or self.whole.get(("R", content)))

    def undelta(self, content: ContentId) -> Copy | None:
        """A whole copy that is no difference."""
        copies = [*self.whole.get(("C", content), ()), *self.whole.get(("R", content), ())]
        return next((copy for copy in copies if not copy.bases), None)

    def base(
        self, content: ContentId, gone: PackId | None = None, damaged: frozenset[PackId] = frozenset()
    ) -> StoredContent | None:
        """What frames are differences from, if it is whole."""
        copy = None if gone is not None or damaged else self.undelta(content)
        return None if copy is None else copy.stored(self.base)

    def later(self, record_id: RecordId) -> bool:
        """Whether a record is there that only a later version can read."""
        return self.misread.get(record_id) == _LATER


def survey_packs(backend: Backend, folder: Path, workers: int, progress: Progress | None, *, verify: bool) -> Survey:
    """Reads every pack.

    Args:
        backend: Where they are.
        folder: The ``.rbl``, in which what is no file is looked for.
        workers: Threads that decode.
        progress: Is told bytes.
        verify: Whether contents are read and their digests compared; records are in any case.

    Raises:
        ReadError: Something may not be read, which says nothing about whether it is whole.
    """
    pile = PackPile(backend, ("packs",), workers)
    survey = Survey(pile, dict(pile.unreadable), strangers=_strangers(folder))
    meter = Meter(progress, sum(location.stored for found in pile.locations.values() for location in found))
    later: list[Copy] = []
    for pack in pile.packs:
        try:
            PackReader(backend, pack.id).summary()
        except (CorruptError, ReadError) as error:
            require_disk_error(error)
            survey.damaged[pack.id] = error.message
        for location in pile.locations[pack.id]:
            try:
                bases = StoredContent(pack, location, survey.base).bases
            except UNREADABLE as error:
                require_disk_error(error)
                survey.bad.append((Copy(pack, location), error.message))
                continue
            copy = Copy(pack, location, bases)
            if bases:
                later.append(copy)
            else:
                _look(survey, copy, workers, verify=verify)
            meter.add("reading packs", location.stored)
    for copy in later:
        if all(survey.undelta(base) for base in copy.bases):
            _look(survey, copy, workers, verify=verify)
        else:
            survey.pending.append(copy)
    return survey


def _look(survey: Survey, copy: Copy, workers: int, *, verify: bool) -> None:
    """Reads one copy, and sorts it in."""
    if copy.kind == "R":
        try:
            data = b"".join(piece.data for piece in read_contents([Wanted(copy.stored(survey.base))], workers=0))
        except UNREADABLE as error:
            require_disk_error(error)
            survey.bad.append((copy, error.message))
            return
        _sort_record(survey, RecordId(copy.content), data)
    elif verify:
        problem = problem_of(copy.stored(survey.base), workers)
        if problem is not None:
            survey.bad.append((copy, problem))
            return
    survey.whole.setdefault((copy.kind, copy.content), []).append(copy)


def _sort_record(survey: Survey, record_id: RecordId, data: bytes) -> None:
    try:
        record = parse_record(data)
    except InputError as error:
        # Of another version, or of a kind that is kept for one; anything else is no record at all.
        survey.misread[record_id] = _LATER if error.hint is not None and "pgrade" in error.hint else error.message
    else:
        survey.records[type(record).ID(record_id)] = record


def _strangers(folder: Path) -> tuple[Path, ...]:
    """Folders, links and the like under names that only packs have."""
    return tuple(
        path
        for path in sorted((folder / "packs").glob("??/*.pack"))
        if is_key(path.relative_to(folder).as_posix()) and (path.is_symlink() or not path.is_file())
    )


def pack_of_stranger(path: Path) -> PackId:
    """The pack that should be where something else is."""
    return pack_of_key("/".join(path.parts[-3:]))
