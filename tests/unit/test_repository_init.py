"""A repository is there once its format file is, and not before."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import rblstore
from rblstore import repository
from rblstore.storage import durable as durable_files


def test_an_init_that_was_cut_short_is_started_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file = repository.write_file

    def cut(path: Path, data: bytes, temporary: Path) -> None:
        if path.name == "format":
            raise KeyboardInterrupt
        write_file(path, data, temporary)

    monkeypatch.setattr(repository, "write_file", cut)
    with pytest.raises(KeyboardInterrupt):
        rblstore.init(tmp_path)
    with pytest.raises(rblstore.NoRepositoryError):
        rblstore.open(tmp_path)
    monkeypatch.undo()
    with rblstore.init(tmp_path, branch="trunk") as repo:
        assert repo.branch == "trunk"
        assert [operation.sequence for operation in repo.operations()] == [1]
        assert repo.fsck(full=True).ok


@pytest.mark.parametrize("stuck", [False, True], ids=["taken back", "stuck"])
def test_an_init_whose_end_is_not_durable(stuck: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The format file has its name, and the folder cannot be made durable: it goes again, or the error says so."""
    made_durable, unlink = durable_files.fsync_directory, Path.unlink

    def refuse(path: Path) -> None:
        if (path / "format").exists():
            raise durable_files.WriteError("making a directory durable failed")
        made_durable(path)

    def keep(path: Path, missing_ok: bool = False) -> None:
        if path.name == "format" and stuck:
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(durable_files, "fsync_directory", refuse)
    monkeypatch.setattr(Path, "unlink", keep)
    with pytest.raises(rblstore.RblError) as caught:
        rblstore.init(tmp_path)
    assert caught.value.code == ("init_unfinished" if stuck else "write_failed")
    monkeypatch.undo()
    with rblstore.open(tmp_path) if stuck else rblstore.init(tmp_path) as repo:
        assert repo.fsck(full=True).ok


def test_packs_without_a_format_file_are_not_started_over(tmp_path: Path) -> None:
    rblstore.init(tmp_path).close()
    pack = tmp_path / ".rbl" / "packs" / "ab"
    pack.mkdir()
    (tmp_path / ".rbl" / "format").unlink()
    before = (tmp_path / ".rbl" / "refs.log").read_bytes()
    with pytest.raises(rblstore.ConflictError, match="format file is missing") as caught:
        rblstore.init(tmp_path)
    assert "rbl repair" in str(caught.value.hint)
    assert (tmp_path / ".rbl" / "refs.log").read_bytes() == before
    (tmp_path / "below").mkdir()
    with pytest.raises(rblstore.NoRepositoryError, match="no format file") as lost:
        rblstore.open(tmp_path / "below")
    assert "rbl repair" in str(lost.value.hint)
    rblstore.repair(tmp_path, apply=True)
    with rblstore.open(tmp_path) as repo:
        assert repo.branch == "main"


def test_folders_that_init_makes_outlive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a folder is durable once the folder above it is: also of the one that holds ``.rbl``."""
    durable: list[Path] = []
    for module in (repository, durable_files):
        monkeypatch.setattr(module, "fsync_directory", durable.append)
    rblstore.init(tmp_path / "new" / "store").close()
    made = (tmp_path, tmp_path / "new", tmp_path / "new" / "store", tmp_path / "new" / "store" / ".rbl")
    assert set(made) <= set(durable)
    assert tmp_path.parent not in durable
