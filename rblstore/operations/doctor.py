"""``doctor``: what may go wrong with a repository, and with what it runs on. Changes nothing, and opens what it can."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rblstore.catalog.database import LIBRARY_VERSION, Catalog
from rblstore.catalog.engine import CatalogBusyError
from rblstore.errors import RblError
from rblstore.objects.history_records import Operation
from rblstore.opening import FOLDER, ForeignRepositoryError, check_format, check_owner, read_configuration, read_regular
from rblstore.operations.doctor_findings import Finding, Level
from rblstore.operations.doctor_system import packs, system_findings
from rblstore.operations.leftovers import leftovers_in
from rblstore.operations.result import Result
from rblstore.operations.study_journal import journals
from rblstore.storage.refs_log import RefsLog

PACKAGES: Final = ("rblstore", "torch", "transformers", "peft", "safetensors", "sqlalchemy")
_LEVELS: Final[tuple[Level, ...]] = ("ok", "note", "warning", "problem")
_WAL_HEADER: Final = b"\2\2"
_BUSY_SECONDS: Final = 2.0
_AHEAD: Final = timedelta(minutes=5)


@dataclass(frozen=True)
class DoctorResult(Result):
    """What was found.

    Attributes:
        path: The folder that holds ``.rbl``; None where there is none.
        level: The worst of the findings' levels.
        findings: What was looked at, in order.
    """

    path: Path | None
    level: Level
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is a problem; warnings are none."""
        return self.level != "problem"


def doctor(start: Path, *, allow_foreign: bool = False) -> DoctorResult:
    """Looks at versions, file system, locks, permissions, space, clock, settings, catalog and log.

    Args:
        start: A folder; the repository is the nearest at or above it, whether it opens or not.
        allow_foreign: Whether another user's catalog may be opened.
    """
    root = _nearest(start.absolute())
    findings = list(_software())
    if root is None:
        findings.append(Finding("repository", "note", f"{start.absolute()} is in no repository", "Make one: rbl init"))
    else:
        findings += _repository(root / FOLDER, allow_foreign=allow_foreign)
    worst = max((_LEVELS.index(finding.level) for finding in findings), default=0)
    return DoctorResult(root, _LEVELS[worst], tuple(findings))


def _nearest(start: Path) -> Path | None:
    """The nearest folder in which something is called ``.rbl``, whatever that is."""
    if start.name == FOLDER:
        return start.parent
    return next((folder for folder in (start, *start.parents) if os.path.lexists(folder / FOLDER)), None)


def _software() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    yield Finding("python", "ok", f"Python {sys.version.split()[0]}")
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", f"{name} {version(name)}")
        except PackageNotFoundError:
            if name == "rblstore":  # run from a source checkout
                yield Finding(name, "note", "rblstore is not installed as a package")
            else:
                yield Finding(name, "warning", f"{name} is not installed", f"pip install {name}")
    yield Finding("sqlite", "ok", f"SQLite {LIBRARY_VERSION}; its write-ahead log is not used")


def _repository(folder: Path, *, allow_foreign: bool) -> Iterator[Finding]:
    if not os.path.isdir(folder):  # noqa: PTH112 - pathlib's raises where the system refuses
        hint = "Move it away, or restore the repository from a copy."
        yield Finding("repository", "problem", f"{folder} is no folder, or cannot be looked at", hint)
        return
    try:
        check_format(folder)
        yield Finding("repository", "ok", f"a repository of format 1 in {folder.parent}")
    except RblError as error:
        yield _problem("repository", error)
    yield from system_findings(folder)
    try:
        configuration = read_configuration(folder)
        yield Finding(
            "configuration",
            "ok",
            f"config.toml: compression {configuration.compression}, {configuration.workers} threads",
        )
    except RblError as error:
        yield _problem("configuration", error)
    try:
        check_owner(folder, allow_foreign=allow_foreign)
    except ForeignRepositoryError as error:
        yield _problem("owner", error)
    else:
        yield from _catalog(folder)
    yield from _lying_about(folder)


def _problem(check: str, error: RblError) -> Finding:
    return Finding(check, "problem", error.message, error.hint)


def _catalog(folder: Path) -> Iterator[Finding]:
    path = folder / "catalog.db"
    for suffix in ("-wal", "-shm"):
        if os.path.lexists(f"{path}{suffix}"):
            what = f"{path.name}{suffix} lies beside the catalog: another program opened it in another mode"
            yield Finding("catalog", "warning", what, "End that program, then: rbl reindex")
    try:
        header = read_regular(path, 20)
    except OSError:
        header = b""
    if header[18:20] == _WAL_HEADER:
        yield Finding("catalog", "warning", "another program set the catalog to write-ahead logging", "rbl reindex")
    newest: Operation | None = None
    try:
        with closing(Catalog.open(path, busy_timeout=_BUSY_SECONDS)) as catalog, catalog.read() as reader:
            newest = reader.last_operation()
            settings = catalog.settings()
        yield _settings(settings)
    except CatalogBusyError as error:
        yield Finding("catalog", "note", error.message, error.hint)
        return
    except RblError as error:
        yield _problem("catalog", error)
        return
    yield from _log(folder, newest)
    if newest is not None:
        yield from _newest(newest)


def _settings(settings: tuple[str, str]) -> Finding:
    """How SQLite writes when we ask it to."""
    what = "it opens; journal mode {}, synchronous {}".format(*settings)
    if settings == ("delete", "EXTRA"):
        return Finding("catalog", "ok", what)
    return Finding("catalog", "problem", what, "A commit may not outlive a power cut: install another SQLite library.")


def _log(folder: Path, newest: Operation | None) -> Iterator[Finding]:
    try:
        last = RefsLog(folder / "refs.log").last()
    except RblError as error:
        yield _problem("log", error)
        return
    logged, known = 0 if last is None else last[0], 0 if newest is None else newest.sequence
    if logged != known:
        what = f"refs.log has {logged} operations and the catalog {known}"
        yield Finding("log", "note", what, "The next command brings them together: rbl log")
    elif last is not None and newest is not None and not last[1].endswith(b" " + newest.encode().partition(b"\n")[2]):
        what = f"refs.log and the catalog tell different histories at operation {known}"
        yield Finding("log", "problem", what, "Rebuild the catalog from refs.log: rbl reindex")
    else:
        yield Finding("log", "ok", f"refs.log and the catalog agree on {known} operations")


def _newest(newest: Operation) -> Iterator[Finding]:
    try:
        made = datetime.fromisoformat(newest.time)
    except ValueError:
        return
    ahead = made - datetime.now(UTC)
    if ahead > _AHEAD:
        what = f"the newest operation is from {newest.time}, which is still to come"
        yield Finding("clock", "warning", what, "Set this machine's clock right, or that of whoever made it.")


def _lying_about(folder: Path) -> Iterator[Finding]:
    """What takes space and is not part of the repository."""
    found = leftovers_in(folder / "tmp")
    what = f"{len(found)} left by processes that died, {sum(one.bytes for one in found):,} bytes"
    yield Finding("leftovers", "note" if found else "ok", what, "rbl gc removes them." if found else None)
    studies = journals(folder)
    what = f"{len(studies)} begun and not recorded, {sum(size for _, size in studies):,} bytes"
    hint = "The same rbl study goes on where it was; rbl gc removes them when their time has come."
    yield Finding("studies", "note" if studies else "ok", what, hint if studies else None)
    for name, hint in (
        ("trash", "rbl gc deletes it when its time has come."),
        ("quarantine", "Damage that rbl repair set aside."),
    ):
        sizes = [status.st_size for _, status in packs(folder, name)]
        level: Level = "note" if sizes else "ok"
        yield Finding(name, level, f"{len(sizes)} packs, {sum(sizes):,} bytes", hint if sizes else None)
