"""Every defect is curable: from another copy, and, in the files of a model, from the directory that they came from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from damaged import DEFECTS, damaged
from make_repository import unpack, write_second

import rblstore
from rblstore.errors import NoRepositoryError
from rblstore.operations.repair import RepairResult

VERSION = Path(__file__).parent / "0.1.0"
EXPECTED = json.loads((VERSION / "expected.json").read_text("utf-8"))
# What only says that a later version made it is not damage.
LEFT = {"format_unknown"}
IN_A_MODEL_S_FILES = [
    "footer_flipped",
    "frame_flipped",
    "index_flipped",
    "pack_is_a_folder",
    "pack_missing",
    "pack_truncated",
    "record_frame_flipped",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(VERSION, tmp_path_factory.mktemp("golden") / "store")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_second(tmp_path_factory.mktemp("golden") / "second")


def tree(root: Path) -> dict[str, str]:
    """Everything in a folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }


def held(root: Path) -> set[str]:
    """The bytes in a folder, whatever their names; but for the catalog, which is made anew, and the lock's gate."""
    return {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (root / ".rbl").rglob("*")
        if path.is_file() and path.stat().st_size and "lock" not in path.name and path.name != "stat-cache"
    }


def cure(root: Path, source: Path) -> RepairResult:
    before, bytes_before = tree(root), held(root)
    plan = rblstore.repair(root, sources=[source])
    assert tree(root) == before, "a plan changes nothing"
    assert plan.found
    assert plan.steps
    assert (plan.applied, plan.whole) == (False, False)
    result = rblstore.repair(root, sources=[source], apply=True)
    assert result.steps == plan.steps
    assert result.restored == plan.restored
    assert (result.applied, result.whole, result.remaining, result.lost) == (True, True, (), ())
    log = hashlib.sha256((root / ".rbl" / "refs.log").read_bytes()).hexdigest()
    torn = {digest for path, digest in before.items() if path.endswith("refs.log")} - {log}
    assert bytes_before - held(root) <= torn, "nothing is ever deleted"
    return result


@pytest.mark.parametrize("name", sorted(DEFECTS.keys() - LEFT))
def test_another_copy_cures_it(name: str, whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    damaged(whole, root, name)
    source = tree(whole)
    cure(root, whole)
    assert tree(whole) == source
    with rblstore.open(root) as repo:
        with repo._store.catalog.read() as reader:
            assert reader.refs("") == EXPECTED["refs"]
        assert [one.id for one in repo.operations()] == [id for id, _, _ in EXPECTED["operations"]]
        assert [entry.commit for entry in repo.log(all=True)] == [entry["commit"] for entry in EXPECTED["log"]]
        assert repo.fsck(full=True).ok
    again = rblstore.repair(root, sources=[whole], apply=True)
    assert (again.whole, again.found, again.steps) == (True, (), ())


@pytest.mark.parametrize("name", IN_A_MODEL_S_FILES)
def test_the_directory_that_it_came_from_cures_it(name: str, whole: Path, second: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    damaged(whole, root, name)
    result = cure(root, second)
    assert all(one.source.startswith((str(second), "nothing")) for one in result.restored)
    assert result.restored or name == "footer_flipped"


def test_the_records_of_an_identity_come_from_its_directory(whole: Path, second: Path, tmp_path: Path) -> None:
    """A record pack that is lost: rows of the catalog and the checkpoint give all but what somebody said about it."""
    root = tmp_path / "store"
    damaged(whole, root, "pack_empty")
    result = rblstore.repair(root, sources=[second], apply=True)
    kinds = sorted((one.kind, one.source) for one in result.restored)
    rows = "rows of the catalog"
    expected = [("commit", rows), ("composition", rows), *[("file-manifest", str(second))] * 2]
    assert kinds == [*expected, ("identity", str(second))]
    assert [EXPECTED["records"][one.object] for one in result.lost] == ["statement"]
    assert (result.whole, result.remaining) == (False, ())
    with rblstore.open(root) as repo:
        assert repo.fsck(full=True).ok
        repo.checkout("second", tmp_path / "out")


def test_a_later_version_s_repository_is_left_alone(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    damaged(whole, root, "format_unknown")
    before = tree(root)
    with pytest.raises(NoRepositoryError):
        rblstore.repair(root, sources=[whole], apply=True)
    assert tree(root).keys() - before.keys() <= {".rbl/lock.gate"}
