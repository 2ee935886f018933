"""``doctor``: each thing that may be wrong is found, by its own name, and nothing is changed by looking."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_checkpoints import write_base

import rblstore
from rblstore.catalog.database import Catalog
from rblstore.operations import doctor as doctoring
from rblstore.operations import doctor_system, file_systems
from rblstore.operations.doctor import DoctorResult, doctor
from rblstore.operations.doctor_findings import Finding
from rblstore.operations.file_systems import FileSystem, find_mount, network_warning


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The ``.rbl`` of a repository with one commit."""
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=write_base(tmp_path / "model"))
    return tmp_path / "store" / ".rbl"


def looked(folder: Path) -> DoctorResult:
    return rblstore.doctor(folder.parent)


def of(result: DoctorResult, check: str) -> list[Finding]:
    return [finding for finding in result.findings if finding.check == check]


def one(folder: Path, check: str, level: str) -> Finding:
    """The only finding of a check that is of a level."""
    (found,) = [finding for finding in of(looked(folder), check) if finding.level == level]
    assert found.hint or level in ("ok", "note"), found
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_sound_repository_has_no_problem_and_stays_as_it_is(folder: Path) -> None:
    before = files(folder)
    result = looked(folder)
    assert result.ok
    assert result.path == folder.parent
    assert [finding for finding in result.findings if finding.level == "problem"] == []
    assert {"python", "sqlite", "torch", "file_system", "flock", "space", "catalog", "log"} <= {
        finding.check for finding in result.findings
    }
    assert "journal mode delete, synchronous EXTRA" in one(folder, "catalog", "ok").what
    assert "agree on 2 operations" in one(folder, "log", "ok").what
    assert rblstore.doctor(folder / "packs").path == folder.parent
    assert files(folder) == before
    document = result.as_json()
    assert set(document) == {"path", "level", "findings"}
    assert set(document["findings"][0]) == {"check", "level", "what", "hint"}


def test_outside_a_repository_versions_are_said(tmp_path: Path) -> None:
    result = rblstore.doctor(tmp_path)
    assert (result.path, result.ok) == (None, True)
    assert of(result, "repository")[0].level == "note"
    assert of(result, "python")


def test_a_missing_package_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctoring, "PACKAGES", ("rblstore-without-such-a-package",))
    assert "not installed" in one(folder, "rblstore-without-such-a-package", "warning").what


def make_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("break_it", "check"),
    [
        (lambda folder: (folder / "format").write_text("rblstore 9\n"), "repository"),
        (lambda folder: (folder / "format").unlink(), "repository"),
        (lambda folder: make_fifo(folder / "format"), "repository"),
        (lambda folder: (folder / "config.toml").write_text("[gc]\ngrace = 'soon'"), "configuration"),
        (lambda folder: make_fifo(folder / "config.toml"), "configuration"),
        (lambda folder: (folder / "catalog.db").unlink(), "catalog"),
        (lambda folder: (folder / "catalog.db").write_bytes(b"no catalog" * 1000), "catalog"),
        (lambda folder: make_fifo(folder / "catalog.db"), "catalog"),
        (lambda folder: make_link(folder / "catalog.db"), "catalog"),
        (lambda folder: make_link(folder / "refs.log"), "log"),
        (lambda folder: (folder / "refs.log").write_bytes(b"a\nb\nc\n"), "log"),
        (lambda folder: (folder / "tmp").rmdir() or (folder / "tmp").touch(), "clock"),
    ],
)
def test_what_is_broken_is_a_problem(folder: Path, break_it: Any, check: str) -> None:
    break_it(folder)
    result = looked(folder)
    assert not result.ok
    assert [finding for finding in of(result, check) if finding.level == "problem"]
    assert of(result, "quarantine"), "the rest was not looked at"


def test_a_file_in_the_place_of_the_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".rbl").touch()
    assert "is no folder" in of(rblstore.doctor(tmp_path), "repository")[0].what
    assert not rblstore.doctor(tmp_path).ok


def test_histories_of_other_lengths_are_noted_and_of_other_kinds_a_problem(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "refs.log").read_bytes().splitlines(keepends=True)
    (folder / "refs.log").write_bytes(lines[0])
    assert "refs.log has 1 operations and the catalog 2" in one(folder, "log", "note").what
    with rblstore.init(tmp_path / "other") as repo:
        repo.commit("another", identity=write_base(tmp_path / "another", seed=3))
    (folder / "refs.log").write_bytes((tmp_path / "other" / ".rbl" / "refs.log").read_bytes())
    assert "different histories" in one(folder, "log", "problem").what


def test_write_ahead_logging_that_others_left_is_found(folder: Path) -> None:
    connection = sqlite3.connect(folder / "catalog.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    assert "write-ahead" in one(folder, "catalog", "warning").what
    (folder / "catalog.db-wal").touch()
    assert "catalog.db-wal" in of(looked(folder), "catalog")[0].what


def test_a_library_that_syncs_less_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalog, "settings", lambda _: ("delete", "FULL"))
    assert "synchronous FULL" in one(folder, "catalog", "problem").what


def test_a_catalog_that_somebody_holds_is_noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctoring, "_BUSY_SECONDS", 0.0)
    connection = sqlite3.connect(folder / "catalog.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    assert one(folder, "catalog", "note")
    connection.close()


@pytest.mark.parametrize(
    ("path", "mode", "check", "level", "words"),
    [
        ("", 0o777, "permissions", "warning", "everybody may write"),
        ("config.toml", 0o664, "permissions", "note", "the group"),
    ],
)
def test_modes(folder: Path, path: str, mode: int, check: str, level: str, words: str) -> None:
    (folder / path).chmod(mode)
    assert words in one(folder, check, level).what


def test_packs_that_can_be_written_are_found(folder: Path) -> None:
    pack = next(folder.glob("packs/*/*.pack"))
    pack.chmod(0o644)
    assert pack.name in one(folder, "permissions", "warning").what


def test_what_cannot_be_written_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != ".rbl")
    assert "cannot be written" in one(folder, "permissions", "warning").what


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_owner_is_named_and_their_catalog_not_opened(folder: Path) -> None:
    os.chown(folder / "catalog.db", 4711, -1)
    assert "4711" in one(folder, "owner", "warning").what
    assert "4711" in one(folder, "owner", "problem").what
    assert of(looked(folder), "catalog") == []
    assert of(rblstore.doctor(folder.parent, allow_foreign=True), "catalog")[0].level == "ok"


def test_a_full_disk_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace(f_bavail=10, f_frsize=4096, f_files=1000, f_favail=3)
    monkeypatch.setattr(os, "statvfs", lambda _: nothing)
    assert "40,960 bytes are free" in one(folder, "space", "warning").what
    assert one(folder, "inodes", "warning")


@pytest.mark.parametrize(("number", "level"), [(errno.EOPNOTSUPP, "problem"), (errno.ENOLCK, "problem")])
def test_flock_that_is_refused_is_a_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, level: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert "does not work" in one(folder, "flock", level).what


def test_flock_that_keeps_nobody_out_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "keeps nobody out" in one(folder, "flock", "problem").what


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="no /proc/locks")
def test_who_holds_a_lock_is_named(folder: Path) -> None:
    with rblstore.open(folder.parent) as repo, repo._store.maintenance():
        found = [finding.what for finding in of(looked(folder), "locks") if finding.level == "note"]
    if not found:
        pytest.skip("the kernel does not show the locks of this file system")
    assert any(str(os.getpid()) in what and what.startswith("lock is held alone") for what in found)


@pytest.mark.parametrize(("drift", "word"), [(90.0, "ahead of"), (-90.0, "behind")])
def test_clocks_that_differ_are_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, drift: float, word: str
) -> None:
    real = doctor_system.file_system_time
    monkeypatch.setattr(doctor_system, "file_system_time", lambda path: real(path) + drift)
    assert word in one(folder, "clock", "warning").what


def test_an_operation_from_the_future_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rblstore import transaction

    monkeypatch.setattr(transaction, "utc_now", lambda: "2999-01-01T00:00:00.000Z")
    with rblstore.open(folder.parent) as repo:
        repo.create_branch("future")
    assert "2999" in one(folder, "clock", "warning").what


def test_leftovers_trash_and_quarantine_are_counted(folder: Path) -> None:
    (folder / "tmp" / "1-dead").write_bytes(b"x" * 10_000)
    for room, size in (("trash", 5), ("quarantine", 7)):
        (folder / room / "ab").mkdir(parents=True)
        (folder / room / "ab" / f"{'ab' * 32}.pack").write_bytes(b"p" * size)
    assert "1 left by processes that died, 10,000 bytes" in one(folder, "leftovers", "note").what
    assert one(folder, "trash", "note").what == "1 packs, 5 bytes"
    assert one(folder, "quarantine", "note").what == "1 packs, 7 bytes"
    assert (folder / "tmp" / "1-dead").exists()


MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 27 0:40 / /mnt/with\\040space rw,relatime - nfs4 server:/export rw,vers=4.2
31 27 0:41 / /mnt/ssh ro,nosuid - fuse.sshfs me@there:/ rw
32 27 0:42 / /mnt/over rw - fuse.fuse-overlayfs fuse-overlayfs rw
33 27 0:43 / /mnt/twice rw - ext4 /dev/vdb rw
34 33 0:44 / /mnt/twice rw - cifs //server/share rw
a line of nonsense
"""


@pytest.mark.parametrize(
    ("path", "kind", "network", "read_only"),
    [
        ("/home/me", "ext4", False, False),
        ("/mnt/with space/store", "nfs4", True, False),
        ("/mnt/with space and more", "ext4", False, False),
        ("/mnt/ssh", "fuse.sshfs", True, True),
        ("/mnt/over/x", "fuse.fuse-overlayfs", False, False),
        ("/mnt/twice/x", "cifs", True, False),
    ],
)
def test_a_path_is_on_the_innermost_mount(path: str, kind: str, network: bool, read_only: bool) -> None:
    found = find_mount(MOUNTS, path)
    assert found is not None
    assert (found.type, found.is_network, found.read_only) == (kind, network, read_only)
    assert find_mount("", path) is None


@pytest.fixture
def _nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(_: Path) -> FileSystem:
        return FileSystem("nfs4", "server:/export", "/mnt", False)

    monkeypatch.setattr(file_systems, "file_system_of", found)
    monkeypatch.setattr(doctor_system, "file_system_of", found)


@pytest.mark.usefixtures("_nfs")
def test_a_network_file_system_is_a_warning_also_of_init(folder: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from rblstore.cli.program import rbl

    assert "network" in one(folder, "file_system", "warning").what
    assert doctor(folder.parent).ok
    assert "nfs4" in (network_warning(folder) or "")
    result = CliRunner().invoke(rbl, ["init", str(tmp_path / "new")])
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")
    assert "rbl doctor" in result.stderr


@pytest.mark.parametrize(("kind", "words"), [("tmpfs", "gone when"), ("vfat", "another system")])
def test_memory_and_foreign_file_systems_are_warnings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    monkeypatch.setattr(doctor_system, "file_system_of", lambda _: FileSystem(kind, "x", "/", True))
    assert words in one(folder, "file_system", "warning").what
    assert "read-only" in one(folder, "file_system", "note").what
    monkeypatch.setattr(doctor_system, "file_system_of", lambda _: None)
    assert "does not say" in one(folder, "file_system", "note").what


def test_the_command_exits_1_where_there_is_a_problem(folder: Path) -> None:
    from click.testing import CliRunner

    from rblstore.cli.program import rbl

    result = CliRunner().invoke(rbl, ["-C", str(folder.parent), "doctor"])
    assert result.exit_code == 0, result.output
    assert "journal mode delete" in result.stdout
    (folder / "catalog.db").unlink()
    result = CliRunner().invoke(rbl, ["-C", str(folder.parent), "doctor"])
    assert result.exit_code == 1
    assert "problem" in result.stdout
    assert "rbl reindex" in result.stdout
    assert result.stderr == ""
