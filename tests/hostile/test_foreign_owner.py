"""Repositories that are another user's, wholly or in part, and files of other kinds in the places of a repository's.

Each is refused by a typed error that names what is wrong, at once: nothing waits for the other end of a pipe.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_checkpoints import write_base

import rblstore
from rblstore.cli.program import rbl
from rblstore.errors import CorruptError, InputError, NoRepositoryError, RblError
from rblstore.opening import ForeignRepositoryError

OTHER = 4711
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
PATIENCE_SECONDS = 60


@pytest.fixture(autouse=True)
def _nothing_hangs() -> Iterator[None]:
    """Whatever waits for a pipe is killed by a signal that nobody handles; a test that ends was not."""
    signal.alarm(PATIENCE_SECONDS)
    yield
    signal.alarm(0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a repository of one commit."""
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=write_base(tmp_path / "model"))
    return tmp_path / "store"


def give(path: Path, *, whole: bool = False) -> None:
    for each in (path, *(path.rglob("*") if whole else ())):
        os.chown(each, OTHER, -1, follow_symlinks=False)


def refused(root: Path, part: Path) -> None:
    """Everything that opens a repository refuses this one, by name, and does as it is told where it is allowed."""
    for way in (rblstore.open, rblstore.reindex, rblstore.repair):
        with pytest.raises(ForeignRepositoryError, match=f"uid {OTHER}") as caught:
            way(root)
        assert caught.value.object == str(part)
        assert "--allow-foreign" in str(caught.value.hint)
    result = CliRunner().invoke(rbl, ["-C", str(root), "log"])
    assert result.exit_code == 3
    assert str(OTHER) in result.stderr
    assert "--allow-foreign" in result.stderr
    with rblstore.open(root, allow_foreign=True) as repo:
        assert [entry.message for entry in repo.log()] == ["base"]
    result = CliRunner().invoke(rbl, ["-C", str(root), "--allow-foreign", "log"])
    assert result.exit_code == 0, result.output


@as_root
def test_a_repository_of_another_user_is_refused_unless_it_is_allowed(root: Path) -> None:
    give(root / ".rbl", whole=True)
    refused(root, root / ".rbl")


@as_root
@pytest.mark.parametrize("name", ["format", "config.toml", "catalog.db", "refs.log"])
def test_a_part_that_is_another_users_is_named(root: Path, name: str) -> None:
    give(root / ".rbl" / name)
    refused(root, root / ".rbl" / name)


@as_root
def test_a_link_to_another_users_repository_and_another_users_link_to_ours(root: Path, tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    link = tmp_path / "beside" / ".rbl"
    link.symlink_to(root / ".rbl")
    with rblstore.open(tmp_path / "beside") as repo:
        assert len(repo.log()) == 1, "one's own link to one's own repository is nobody else's doing"
    give(link)
    refused(tmp_path / "beside", link)
    link.unlink()
    link.symlink_to(root / ".rbl")
    give(root / ".rbl")
    refused(tmp_path / "beside", link)


@as_root
def test_the_owner_is_named_where_the_system_knows_a_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    other = next(entry for entry in pwd.getpwall() if entry.pw_uid not in (0, os.geteuid()))
    os.chown(root / ".rbl", other.pw_uid, -1)
    with pytest.raises(ForeignRepositoryError, match=f"uid {other.pw_uid}, {other.pw_name}"):
        rblstore.open(root)


@as_root
def test_what_belongs_to_root_is_nobody_elses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    with rblstore.open(root) as repo:
        assert len(repo.log()) == 1


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 40)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


KINDS = [fifo, folder, huge, endless, circle, dangling]


@pytest.mark.parametrize("kind", [*KINDS, Path.touch], ids=lambda kind: kind.__name__)
def test_something_else_in_the_place_of_the_folder(tmp_path: Path, kind: Any) -> None:
    kind(tmp_path / ".rbl")
    with pytest.raises(NoRepositoryError):
        rblstore.open(tmp_path)
    if kind is not folder:
        with pytest.raises(RblError):
            rblstore.init(tmp_path)
        assert not rblstore.doctor(tmp_path).ok


def put(root: Path, name: str, kind: Any) -> os.stat_result:
    """Puts something else in the place of a part of a repository."""
    path = root / ".rbl" / name
    if path.is_dir():
        path.rename(path.with_name("away"))
    path.unlink(missing_ok=True)
    kind(path)
    return os.lstat(path)


def stayed(root: Path, name: str, before: os.stat_result) -> None:
    after = os.lstat(root / ".rbl" / name)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("name", "family"),
    [("format", NoRepositoryError), ("config.toml", InputError), ("catalog.db", CorruptError), ("refs.log", RblError)],
)
def test_something_else_in_the_place_of_what_is_read_first(
    root: Path, name: str, family: type[RblError], kind: Any
) -> None:
    before = put(root, name, kind)
    with pytest.raises(family):
        rblstore.open(root)
    rblstore.doctor(root)
    stayed(root, name, before)


@pytest.mark.parametrize(("name", "family"), [("format", NoRepositoryError), ("config.toml", InputError)])
def test_a_link_to_what_would_be_right_is_not_followed(root: Path, name: str, family: type[RblError]) -> None:
    path = root / ".rbl" / name
    path.symlink_to(path.rename(root / "elsewhere"))
    with pytest.raises(family):
        rblstore.open(root)
    assert not rblstore.doctor(root).ok


@pytest.mark.parametrize("kind", [fifo, folder, endless], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["lock", "lock.gate", "tmp", "packs", "quarantine", "trash", "stat-cache"])
def test_something_else_in_the_place_of_what_is_used_later(root: Path, tmp_path: Path, name: str, kind: Any) -> None:
    before = put(root, name, kind)
    rblstore.doctor(root)
    tried: list[Callable[[rblstore.Repository], object]] = [
        lambda repo: repo.create_branch("new"),
        lambda repo: repo.commit("two", identity=write_base(tmp_path / "two", seed=2)),
        lambda repo: repo.checkout("HEAD", tmp_path / "out"),
        lambda repo: repo.fsck(full=True),
        lambda repo: repo.repack(),
        lambda repo: repo.gc(apply=True),
        lambda repo: repo.du(),
    ]
    for attempt in tried:
        # Whatever comes of it: no error but ours, and it comes at once.
        with suppress(RblError), rblstore.open(root) as repo:
            attempt(repo)
    if name != "stat-cache":
        stayed(root, name, before)


@pytest.mark.parametrize(
    "data", [b"a = 1\n" * 20_000, b"[" * 60_000, b"\xff", b"author = 3", b"nonsense = 1", b"\0" * 70_000]
)
def test_settings_that_are_none(root: Path, data: bytes) -> None:
    (root / ".rbl" / "config.toml").write_bytes(data)
    with pytest.raises(InputError, match=r"config\.toml"):
        rblstore.open(root)
    assert "config.toml" in CliRunner().invoke(rbl, ["-C", str(root), "log"]).stderr


def test_a_folder_that_cannot_be_looked_into(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.name == "format":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(NoRepositoryError):
        rblstore.open(root)
