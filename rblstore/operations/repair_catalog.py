"""What a catalog that may be damaged still says: records that are listed, and those that its rows spell out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rblstore.catalog.database import Catalog
from rblstore.configuration import Configuration
from rblstore.errors import CorruptError, LockedError, NoRepositoryError, RblError
from rblstore.objects.history_records import Commit, Operation
from rblstore.objects.ids import CommitId, CompositionId, RecordId
from rblstore.objects.record import Record
from rblstore.opening import FOLDER
from rblstore.operations.fsck import FsckDamage, FsckResult, fsck
from rblstore.operations.progress import Progress
from rblstore.repository import Store
from rblstore.storage.status import is_there

T = TypeVar("T")

_TRIES = 1_000_000
_CATALOG = "catalog.db"
_HINT = "Run: rbl repair --apply"


@dataclass
class CatalogRemains:
    """What could be read of a catalog.

    Attributes:
        found: What is wrong with the repository, as far as a check that needs the catalog got.
        checked: Whether that check came to its end.
        listed: The records that it lists, with their kinds.
        operations: What it has of the operation log; None where nothing can be read.
        path: The catalog's file, where it opens.
    """

    found: tuple[FsckDamage, ...] = ()
    checked: bool = False
    listed: dict[RecordId, str] = field(default_factory=dict)
    operations: tuple[Operation, ...] | None = None
    path: Path | None = None

    def spelled(self, record_id: RecordId) -> bytes | None:
        """A commit's or composition's bytes as its rows spell them, where their SHA-256 is right; else None."""
        kind = self.listed.get(record_id)
        if self.path is None or kind not in ("commit", "composition"):
            return None

        def look(catalog: Catalog) -> Record | None:
            with catalog.read() as reader:
                if kind == "composition":
                    return reader.composition(CompositionId(record_id))
                row = reader.commit(CommitId(record_id))
            return None if row is None else Commit(row.composition, row.parents, row.author, row.time, row.message)

        record = _of_catalog(self.path, look)
        if record is None:
            return None
        try:
            data = record.encode()
        except RblError:
            return None
        return data if record.id_of(data) == record_id else None


def _of_catalog(path: Path, look: Callable[[Catalog], T]) -> T | None:
    """What a look into a catalog finds; None where that cannot be read."""
    with suppress(CorruptError, NoRepositoryError), closing(Catalog.open(path)) as catalog:
        return look(catalog)
    return None


def _listed(catalog: Catalog) -> dict[RecordId, str]:
    with catalog.read() as reader:
        return dict(reader.records())


def _operations(catalog: Catalog) -> tuple[Operation, ...]:
    with catalog.read() as reader:
        try:
            return tuple(reader.operations_after(0))
        except CorruptError:
            pass
        # From the latest on down to the first that cannot be read: the log has the earlier ones.
        found: list[Operation] = []
        before: int | None = None
        for _ in range(_TRIES):
            try:
                latest = next(iter(reader.operations(1, before)), None)
            except CorruptError:
                break
            if latest is None:
                break
            found.append(latest)
            before = latest.sequence
        return tuple(reversed(found))


def read_remains(root: Path, configuration: Configuration, progress: Progress | None) -> CatalogRemains:
    """Checks a repository with the help of its catalog, as far as that goes, and reads what the catalog has.

    Args:
        root: The folder that holds ``.rbl``.
        configuration: Its settings.
        progress: Is told bytes of packs read.

    Raises:
        LockedError: Another process holds the catalog.
        RblError: The system refused something; nothing is known to be damaged by that.
    """
    path = root / FOLDER / _CATALOG
    remains = CatalogRemains()
    try:
        if not is_there(path):
            raise CorruptError("there is no catalog", object=_CATALOG)
        store = Store(root, Catalog.open(path), configuration)
    except LockedError:
        raise
    except (CorruptError, NoRepositoryError) as error:
        remains.found = (FsckDamage(_CATALOG, "catalog", error.message, (), _HINT),)
        return remains
    remains.path = path
    with closing(store):
        try:
            result: FsckResult = fsck(store, full=True, progress=progress)
        except (CorruptError, NoRepositoryError) as error:
            remains.found = (FsckDamage(error.object or _CATALOG, "catalog", error.message, (), _HINT),)
        else:
            remains.found, remains.checked = result.damages, True
    remains.listed = _of_catalog(path, _listed) or {}
    remains.operations = _of_catalog(path, _operations)
    return remains
