"""Small records with made-up ids, and fresh catalogs that cost a file copy each."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

from rblstore.catalog.database import Catalog
from rblstore.objects.evidence_records import Claim, Statement
from rblstore.objects.history_records import Commit, Composition, RefChange, Slot
from rblstore.objects.ids import (
    AnyId,
    BehaviorId,
    CommitId,
    CompositionId,
    ContentId,
    IdentityId,
    PackId,
    RecordId,
)
from rblstore.objects.locations import ContentLocation, PackKind, PackSummary

TIME = "2024-05-01T12:00:00Z"
MAIN = "refs/heads/main"


def made(of: type[AnyId], name: object) -> AnyId:
    return of(hashlib.sha256(f"{of.__name__} {name}".encode()).hexdigest())


@cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.db"
        Catalog.create(path).close()
        return path.read_bytes()


def fresh_catalog(path: Path, busy_timeout: float = 30.0) -> Catalog:
    path.write_bytes(_template())
    return Catalog.open(path, busy_timeout=busy_timeout)


def copy_of(catalog: Catalog, path: Path) -> Path:
    shutil.copyfile(catalog.path, path)
    return path


def composition(name: object = "base", *slots: tuple[str, object, float]) -> tuple[CompositionId, Composition]:
    record = Composition(
        made(IdentityId, name), tuple(Slot(slot, made(BehaviorId, what), weight) for slot, what, weight in slots)
    )
    return CompositionId(Composition.id_of(record.encode())), record


def commit(
    name: object, *parents: CommitId, of: CompositionId | None = None, time: str = TIME
) -> tuple[CommitId, Commit]:
    record = Commit(of or composition()[0], parents, "Ada", time, f"{name}\n\nbody")
    return CommitId(Commit.id_of(record.encode())), record


def statement(subject: RecordId, text: object = "apache-2.0") -> tuple[RecordId, Statement]:
    record = Statement(subject, (Claim("license", str(text), "api"),), "Ada", TIME)
    return Statement.id_of(record.encode()), record


def pack(name: object, contents: int, kind: PackKind = "C", first: int = 0) -> PackSummary:
    id = made(PackId, name)
    return PackSummary(
        id,
        kind,
        1000,
        tuple(ContentLocation(made(ContentId, first + at), 10 + at, id, 2 * at, 2, 5) for at in range(contents)),
    )


def moved(before: str | None, after: str | None, ref: str = MAIN) -> list[RefChange]:
    return [RefChange(ref, before, after)]
