"""What the hub's client noted beside a download: believed where the weights are still what was noted."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints

import rblstore
from rblstore.checkpoints.hub_metadata import hub_claims
from rblstore.checkpoints.source_directory import scan_directory
from rblstore.objects.evidence_records import Claim

ONE, OTHER = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.write_base(tmp_path_factory.mktemp("hub") / "base")


@pytest.fixture
def base(_base: Path, tmp_path: Path) -> Path:
    shutil.copytree(_base, tmp_path / "base")
    return tmp_path / "base"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def note(base: Path, path: str, *lines: str) -> Path:
    noted = base / ".cache" / "huggingface" / "download" / f"{path}.metadata"
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.write_text("".join(f"{line}\n" for line in lines))
    return noted


def found(base: Path) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    source = scan_directory(base)
    claims, warnings = hub_claims(source, {file.path: sha256(base / file.path) for file in source.files})
    assert {claim.origin for claim in claims} <= {"hub cache", "hub download"}
    return [(claim.key, claim.value) for claim in claims], warnings


def weights(base: Path) -> list[str]:
    return [file.path for file in scan_directory(base).files if file.kind == "safetensors"]


def test_a_plain_directory_says_nothing(base: Path) -> None:
    assert found(base) == ([], ())


def test_a_snapshot_of_the_cache(base: Path) -> None:
    snapshot = base.parent / "models--org--my--model" / "snapshots" / ONE
    snapshot.parent.mkdir(parents=True)
    base.rename(snapshot)
    assert found(snapshot) == ([("source", "org/my--model"), ("source_revision", ONE)], ())
    link = snapshot.parents[2] / "link"
    link.symlink_to(snapshot)
    assert found(link)[0] == [("source", "org/my--model"), ("source_revision", ONE)]


def test_a_snapshot_that_is_no_commit(base: Path) -> None:
    snapshot = base.parent / "models--gpt2" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    base.rename(snapshot)
    assert found(snapshot) == ([("source", "gpt2")], ())


def test_a_local_download(base: Path) -> None:
    for path in weights(base):
        note(base, path, ONE, sha256(base / path), "1712656091.1")
    note(base, "config.json", OTHER, "3" * 40, "1712656091.1")
    assert found(base) == ([("source_revision", ONE)], ())


def test_weights_that_changed_since(base: Path) -> None:
    for path in weights(base):
        note(base, path, ONE, "f" * 64, "1712656091.1")
    claims, (warning,) = found(base)
    assert claims == []
    assert "is not what was downloaded at commit 111111111111" in warning


def test_weights_of_two_commits_or_not_all_noted(base: Path) -> None:
    (path,) = weights(base)
    shutil.copy(base / path, base / "more.safetensors")
    note(base, path, ONE, sha256(base / path))
    assert found(base) == ([], ())
    note(base, "more.safetensors", OTHER, sha256(base / path))
    assert found(base) == ([], ("the weights were downloaded at 2 commits; no source revision is recorded",))


@pytest.mark.parametrize(
    "lines",
    [(), ("",), ("main", "x"), (ONE,), (ONE, "W/etag"), ("1" * 41, "a" * 64), (ONE, "A" * 64), ("\0" * 2000, ONE)],
)
def test_notes_of_another_form(base: Path, lines: tuple[str, ...]) -> None:
    for path in weights(base):
        note(base, path, *lines)
    assert found(base) == ([], ())


def test_notes_that_are_no_files(base: Path) -> None:
    (path,) = weights(base)
    noted = note(base, path, ONE, sha256(base / path))
    moved = noted.rename(base.parent / "elsewhere")
    for make in (lambda: noted.symlink_to(moved), lambda: os.mkfifo(noted), noted.mkdir):
        make()
        assert found(base) == ([], ())
        noted.rmdir() if noted.is_dir() else noted.unlink()


def test_it_reaches_the_statement(base: Path, tmp_path: Path) -> None:
    for path in weights(base):
        note(base, path, ONE, sha256(base / path))
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base, source="org/model")
        stated: Any = repo.statements("identity")
        assert (stated.said.sources, stated.said.source_revision) == (("org/model",), ONE)
        assert Claim("source_revision", ONE, "hub download") in stated.claims
        note(base, weights(base)[0], ONE, "0" * 64)
        again = repo.commit("again", identity=base, allow_empty=True)
        assert "is not what was downloaded" in again.warnings[0]
