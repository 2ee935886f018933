"""Every defect is refused where the repository is opened, or named by fsck; nothing but RblError ever comes out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from damaged import DEFECTS, damaged
from make_repository import CHECKOUTS, unpack

import rblstore
from rblstore.errors import CorruptError, InputError, NoRepositoryError, RblError

VERSION = Path(__file__).parent / "0.1.0"

REFUSED: dict[str, type[RblError]] = {
    "catalog_garbage": CorruptError,
    "catalog_missing": CorruptError,
    "catalog_truncated": CorruptError,
    "catalog_of_a_later_version": NoRepositoryError,
    "config_nonsense": InputError,
    "config_unknown_setting": InputError,
    "format_missing": NoRepositoryError,
    "format_unknown": NoRepositoryError,
    "log_of_another": CorruptError,
}
# What opening mends, because the other of the two still has it.
MENDED = {"log_torn", "log_missing"}
# What lies in the catalog alone, and so in nothing that is lost with it.
CURED_BY_REINDEX = {
    "branch_elsewhere",
    "branch_nonsense",
    "catalog_garbage",
    "catalog_missing",
    "catalog_of_a_later_version",
    "catalog_truncated",
    "catalog_without_a_commit_s_message",
    "head_missing",
    "head_nonsense",
}
EXPECTED = json.loads((VERSION / "expected.json").read_text("utf-8"))
ONE_OF_EACH_KIND = {kind: record for record, kind in EXPECTED["records"].items()}.values()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(VERSION, tmp_path_factory.mktemp("golden") / "store")


@pytest.fixture
def spoil(whole: Path, tmp_path: Path) -> Callable[[str], tuple[Path, str]]:
    def make(name: str) -> tuple[Path, str]:
        return tmp_path / "store", damaged(whole, tmp_path / "store", name)

    return make


def state(store: Path) -> dict[str, str]:
    """Every file of a repository and its digest; the catalog apart, which SQLite may touch."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.rglob("*")
        if path.is_file() and path.name != "catalog.db"
    }


def refs(store: Path) -> Any:
    with rblstore.open(store) as repo, repo._store.catalog.read() as reader:
        return reader.refs("")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_where_it_is_opened(name: str, spoil: Callable[[str], tuple[Path, str]]) -> None:
    store, about = spoil(name)
    before = state(store)
    with pytest.raises(REFUSED[name]) as caught:
        rblstore.open(store)
    assert about in str(caught.value.object)
    assert caught.value.exit_code == REFUSED[name].exit_code
    assert name == "format_missing" or caught.value.hint or about in caught.value.message
    assert state(store) == before


@pytest.mark.parametrize("name", sorted(MENDED))
def test_opening_mends_it(name: str, spoil: Callable[[str], tuple[Path, str]], whole: Path) -> None:
    store, _ = spoil(name)
    with rblstore.open(store) as repo:
        assert repo.fsck(full=True).damages == ()
    assert (store / ".rbl" / "refs.log").read_bytes() == (whole / ".rbl" / "refs.log").read_bytes()


@pytest.mark.parametrize("full", [False, True], ids=["quick", "full"])
@pytest.mark.parametrize("name", sorted(DEFECTS.keys() - REFUSED.keys() - MENDED))
def test_fsck_names_it(name: str, full: bool, spoil: Callable[[str], tuple[Path, str]]) -> None:
    store, about = spoil(name)
    before = state(store)
    with rblstore.open(store) as repo:
        result = repo.fsck(full=full)
    assert not result.ok
    named = {damage.object for damage in result.damages}
    if name == "catalog_without_a_commit_s_message":
        about = next(entry["commit"] for entry in EXPECTED["log"] if entry["message"] == about)
    assert about in named
    assert all(damage.hint and damage.problem for damage in result.damages)
    assert state(store) == before


@pytest.mark.parametrize("name", sorted(CURED_BY_REINDEX))
def test_reindex_cures_what_is_in_the_catalog_alone(name: str, spoil: Callable[[str], tuple[Path, str]]) -> None:
    store, _ = spoil(name)
    rblstore.reindex(store)
    assert refs(store) == EXPECTED["refs"]
    with rblstore.open(store) as repo:
        assert repo.fsck(full=True).damages == ()


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_nothing_but_its_own_errors_comes_out(
    name: str, spoil: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    store, _ = spoil(name)
    with suppress(RblError), rblstore.open(store) as repo:
        looks: list[Callable[[], object]] = [
            repo.status, repo.branches, repo.tags, repo.operations, repo.audit, repo.probes, repo.diff,
            lambda: repo.log(all=True),
            lambda: repo.commit("more", weights={"polite": 0.75}),
            repo.undo,
        ]  # fmt: skip
        looks += [partial(repo.show, record) for record in ONE_OF_EACH_KIND]
        for look in looks:
            with suppress(RblError):
                look()
        for number, revision in enumerate(CHECKOUTS):
            out = tmp_path / f"out{number}"
            try:
                repo.checkout(revision, out)
            except RblError:
                # What was not verified to its end is not there.
                assert not out.exists()
            else:
                check_checkout(out, EXPECTED["checkouts"][revision], moved=revision.startswith("main"))
    with suppress(RblError):
        rblstore.reindex(store)


def check_checkout(out: Path, files: dict[str, str], *, moved: bool) -> None:
    """No file has other bytes than it had, whatever was damaged."""
    for folder, _, names in os.walk(out):
        for name in names:
            path = Path(folder) / name
            known = files.get(path.relative_to(out).as_posix())
            if name != "rbl-composition.json" and not (moved and known is None):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == known


@pytest.mark.parametrize("name", ["frame_flipped", "index_flipped", "pack_missing", "pack_truncated"])
def test_what_is_whole_still_comes_out(name: str, spoil: Callable[[str], tuple[Path, str]], tmp_path: Path) -> None:
    store, about = spoil(name)
    with rblstore.open(store) as repo:
        with pytest.raises(CorruptError) as caught:
            repo.checkout("second", tmp_path / "second")
        assert not (tmp_path / "second").exists()
        assert name == "frame_flipped" or about in str(caught.value)
        repo.checkout("main", tmp_path / "main")
        needs = [need for damage in repo.fsck().damages for need in damage.needed_by]
    check_checkout(tmp_path / "main", EXPECTED["checkouts"]["main"], moved=False)
    assert any("second base" in need for need in needs)


@pytest.mark.parametrize("name", ["log_torn", "log_missing"])
def test_reindex_keeps_what_only_the_catalog_has(name: str, spoil: Callable[[str], tuple[Path, str]]) -> None:
    store, _ = spoil(name)
    assert rblstore.reindex(store).operations == len(EXPECTED["operations"])
    assert refs(store) == EXPECTED["refs"]


@pytest.mark.parametrize(
    "name",
    [
        "pack_empty",
        "record_frame_flipped",
        "record_of_a_later_version",
        "record_of_a_reserved_kind",
        "record_pack_missing",
        "record_without_members",
    ],
)
def test_reindex_leaves_out_what_is_lost_and_no_more(
    name: str, spoil: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    store, about = spoil(name)
    (store / ".rbl" / "catalog.db").unlink()
    result = rblstore.reindex(store)
    left_out = {object for object, _ in result.skipped}
    if name == "record_pack_missing":
        later = [entry["commit"] for entry in EXPECTED["log"] if entry["message"] in ("brief", "Revert brief")]
        assert left_out > set(later)
    else:
        assert about in left_out
    with rblstore.open(store) as repo:
        assert repo.fsck().damages
        assert repo._store.ref("HEAD") == EXPECTED["refs"]["HEAD"]
        repo.checkout("second~1" if name == "record_pack_missing" else "main", tmp_path / "out")


def test_every_defect_has_its_place() -> None:
    assert REFUSED.keys() | MENDED | CURED_BY_REINDEX <= DEFECTS.keys()
    assert len(DEFECTS) > 12
